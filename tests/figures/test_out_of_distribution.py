import itertools

import numpy as np
import pytest

from abs_model.data import Dataset, DataUnavailableError, Split
from abs_model.figures import out_of_distribution
from abs_model.figures.out_of_distribution import auroc, other_sets
from abs_model.figures.registry import FIGURES, Work
from tests.evaluation_fakes import GenerativeClassifier, stripe_classifier, stripe_dataset

SHAPE = (28, 28, 1)


def make_work(workdir, shape=SHAPE):
    models = {
        "plain": stripe_classifier(shape, scale=0.05),
        "generative": stripe_classifier(shape, cls=GenerativeClassifier, scale=0.05),
    }
    return Work("out_of_distribution", models, stripe_dataset(shape=shape), 12, workdir)


def unavailable(name, data_dir):
    raise DataUnavailableError(f"{name} cannot be downloaded")


def images(count=7, shape=(28, 28, 1)):
    return np.random.default_rng(1).random((count, *shape), np.float32)


def test_sets_are_made_of_the_images():
    digits = images()
    sets = other_sets(digits)
    assert len(sets) == 5
    for name, made in sets.items():
        assert made.shape == digits.shape and made.dtype == np.float32, name
        assert made.min() >= 0 and made.max() <= 1
        np.testing.assert_array_equal(made, other_sets(digits)[name])
    shuffled, rotated = sets["shuffled pixels"], sets["rotated by 90°"]
    np.testing.assert_array_equal(
        np.sort(shuffled.reshape(7, -1), axis=1), np.sort(digits.reshape(7, -1), axis=1)
    )
    assert np.mean(shuffled == digits) < 0.1
    np.testing.assert_array_equal(np.rot90(rotated, -1, axes=(1, 2)), digits)
    np.testing.assert_allclose(sets["inverted"] + digits, 1, rtol=1e-6)
    shifted = sets["shifted by 8 pixels"]
    assert not shifted[:, :, :8].any()
    np.testing.assert_array_equal(shifted[:, :, 8:], digits[:, :, :20])
    assert sets["uniform noise"].mean() == pytest.approx(0.5, abs=0.02)


def test_pixels_are_shuffled_with_all_their_channels():
    colors = images(2, (9, 8, 3))
    sets = other_sets(colors)
    assert "rotated by 90°" not in sets
    found = {tuple(pixel) for pixel in sets["shuffled pixels"][0].reshape(-1, 3)}
    assert found == {tuple(pixel) for pixel in colors[0].reshape(-1, 3)}


def test_auroc_counts_pairs():
    generator = np.random.default_rng(0)
    inside = generator.integers(0, 8, 30).astype(float)
    outside = generator.integers(0, 6, 20).astype(float)
    pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(inside, outside)]
    found = auroc(inside, outside)
    assert found.value == pytest.approx(np.mean(pairs))
    assert found.low < found.value < found.high
    assert auroc(outside, inside).value == pytest.approx(1 - found.value)
    assert auroc(inside + 10, outside).value == auroc(inside + 10, outside).low == 1
    assert auroc(np.zeros(5), np.zeros(4)).value == 0.5


def test_the_interval_of_auroc_is_that_of_its_variance():
    # Of equal distributions: variance (n + m + 1) / (12 n m), Mann and Whitney (1947).
    generator = np.random.default_rng(3)
    found = auroc(generator.normal(size=300), generator.normal(size=200))
    width = 2 * 1.96 * np.sqrt(501 / (12 * 300 * 200))
    assert found.high - found.low == pytest.approx(width, rel=0.15)


def test_numbers_are_those_of_the_models(tmp_path, monkeypatch):
    monkeypatch.setattr(out_of_distribution, "load_dataset", unavailable)
    work = make_work(tmp_path)
    data = FIGURES["out_of_distribution"].compute(work)
    assert "DataUnavailableError" in data.numbers["left out"]["fashion_mnist"]
    sets = {"test images": work.images, **other_sets(work.images)}
    for name, model in work.models.items():
        found = data.numbers["models"][name]
        assert list(found) == list(sets)
        for key, each in sets.items():
            confidences = model.confidences(each).max(axis=1)
            if name == "generative":
                logits = model.logits_from_inference(model.infer(each))
                confidences = np.asarray(model.logits_to_confidences(logits)).max(axis=1)
            median = found[key]["median confidence"]["value"]
            assert median == pytest.approx(np.median(confidences), rel=1e-5)
            above = found[key]["confidence above 90%"]["value"]
            assert above == pytest.approx(np.mean(confidences > 0.9))
            scores = {"plain": ["confidence"], "generative": ["confidence", "energy"]}[name]
            expected = [] if key == "test images" else [f"AUROC by {each}" for each in scores]
            assert [part for part in found[key] if part.startswith("AUROC")] == expected

    (name, picture), *rest = FIGURES["out_of_distribution"].draw(data).items()
    assert name == "out_of_distribution" and not rest
    assert len(picture.axes) == 5 * (1 + 2)


def test_another_data_set_is_taken_where_there_is_one(tmp_path, monkeypatch):
    part = Split((255 * images(20)).astype(np.uint8), np.arange(20, dtype=np.int32) % 10)
    other = Dataset("fashion_mnist", 10, part, part, part)
    monkeypatch.setattr(out_of_distribution, "load_dataset", lambda name, data_dir: other)
    data = FIGURES["out_of_distribution"].compute(make_work(tmp_path))
    assert not data.numbers["left out"]
    assert data.arrays["confidence/plain/fashion_mnist"].shape == (12,)
    np.testing.assert_allclose(data.arrays["example/fashion_mnist"], part.images[0] / 255)


def test_another_shape_is_not_loaded(tmp_path):
    data = out_of_distribution.compute(make_work(tmp_path, (10, 12, 1)))
    assert "shape" in data.numbers["left out"]["fashion_mnist"]
    assert "fashion_mnist" not in data.numbers["models"]["plain"]
    assert "rotated by 90°" not in data.numbers["models"]["plain"]


def test_certainty_is_ranked_beyond_where_confidence_rounds_to_one(tmp_path):
    model = stripe_classifier(scale=1.0)
    bright = np.zeros((2, 8, 8, 1), np.float32)
    bright[0, :2], bright[1, :] = 1.0, 0.0
    bright[1].reshape(-1)[:21] = 1.0
    found = out_of_distribution._judge(model, bright)
    assert found["confidence"][1] == pytest.approx(1)
    assert 0 < found["doubt"][1] < found["doubt"][0] < 1e-5
