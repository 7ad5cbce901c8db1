import dataclasses

import numpy as np
import pytest

from abs_model.evaluation.run.models import parse_models
from abs_model.evaluation.tables.paper_results import published, published_name
from abs_model.evaluation.tables.statistics import (
    THRESHOLDS,
    accuracy_curve,
    clustered_share,
    median,
    robust,
    share_interval,
    summarize,
)


def test_clean_errors_count_as_zero_and_failures_as_infinity():
    distances = np.array([0.0, 1.0, 2.0, np.inf])
    found = summarize(distances, 1.5)
    assert found.median.value == 1.5 and found.accuracy.value == 0.5 and found.num_images == 4
    assert summarize(np.array([1.0, np.inf, np.inf]), 1.5).median.value == np.inf
    assert summarize(np.array([1.0, np.inf]), 1.5).median.value == np.inf


def test_the_threshold_itself_counts_as_adversarial_up_to_rounding():
    distances = np.array([0.3, np.float32(0.3), 0.3 * (1 + 5e-6), 0.3003])
    np.testing.assert_array_equal(robust(distances, 0.3), [False, False, False, True])


def test_medians_are_those_of_numpy():
    values = np.random.default_rng(0).random((5, 8))
    np.testing.assert_allclose(median(values), np.median(values, axis=1))
    np.testing.assert_allclose(median(values[:, 1:]), np.median(values[:, 1:], axis=1))


def test_intervals_hold_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(1)
    hits = np.zeros(2)
    for _ in range(200):
        found = summarize(generator.exponential(2.0, 100), 1.5)
        for i, (estimate, truth) in enumerate(
            ((found.median, 2 * np.log(2)), (found.accuracy, np.exp(-0.75)))
        ):
            hits[i] += estimate.low <= truth <= estimate.high
    assert np.all(hits / 200 > 0.89) and np.all(hits / 200 < 0.99)


def test_the_same_distances_give_the_same_intervals():
    distances = np.random.default_rng(2).random(30)
    assert summarize(distances, 0.5) == summarize(distances, 0.5)
    with pytest.raises(ValueError, match="at least one"):
        summarize(np.array([]), 0.5)


def test_curves_agree_with_accuracies():
    distances = np.random.default_rng(3).random(50)
    at = np.linspace(0, 1, 7)
    curve = accuracy_curve(distances, at)
    assert np.all(np.diff(curve) <= 0) and curve[0] == 1
    assert curve[3] == summarize(distances, at[3]).accuracy.value


@pytest.mark.parametrize(
    ("norm", "model", "median", "accuracy"),
    [
        ("l2", "abs", 2.241, 0.80),
        ("linf", "madry", 0.341, 0.88),
        ("l0", "binary_abs", 21.333, 0.77),
    ],
)
def test_the_published_rows_are_those_of_their_curves(norm, model, median, accuracy):
    found = published(norm, model)
    assert (found.median, found.accuracy) == (median, accuracy)
    beyond = found.accuracies[np.searchsorted(found.distances, THRESHOLDS[norm], side="right") - 1]
    assert abs(beyond - accuracy) <= 0.02
    crossing = found.distances[np.searchsorted(-found.accuracies, -0.5)]
    assert crossing == pytest.approx(median, rel=0.03)
    assert published(norm, "mine") is None


def test_published_rows_are_for_the_shipped_models_whatever_they_are_called():
    """Not for other models of the same name."""
    entries = ("cnn=my_lab:make", "foo=cnn", "madry:binary", "x=abs:binary", "abs=runs/abs")
    about = {"models_from": [dataclasses.asdict(spec) for spec in parse_models(entries)]}
    names = {spec["name"]: published_name(about, spec["name"]) for spec in about["models_from"]}
    paper = {name: found and published("l2", found) is not None for name, found in names.items()}
    assert paper == {"cnn": False, "foo": True, "binary_madry": False, "x": True, "abs": False}
    assert names["foo"] == "cnn" and names["x"] == "binary_abs"
    assert published_name({}, "abs") == "abs"
    assert published_name({"dataset": {"name": "fashion_mnist"}} | about, "foo") is None


def test_intervals_agree_with_published_ones():
    # Newcombe 1998, table I, method 3.
    published = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0, 0.1611)}
    for (hits, count), bounds in published.items():
        found = share_interval(hits, count)
        assert found.value == hits / count
        np.testing.assert_allclose((found.low, found.high), bounds, atol=5e-5)


def test_shares_of_clusters_are_as_uncertain_as_the_clusters():
    random = np.random.default_rng(0)
    clusters = np.repeat(np.arange(40), 9)
    together = random.integers(0, 2, 40).astype(bool).repeat(9)
    found, single = clustered_share(together, clusters), clustered_share(together, np.arange(360))
    assert found.value == single.value == together.mean()
    assert (found.high - found.low) / (single.high - single.low) == pytest.approx(3, rel=0.15)
    always = clustered_share(np.ones(360, bool), clusters)
    assert always == share_interval(40, 40) and always.low < 0.95
    one = clustered_share(np.arange(10) < 9, np.zeros(10))
    assert one.value == 0.9 and one.high - one.low > 0.5
