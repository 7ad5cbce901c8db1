"""The transfer attack between linear classifiers, where directions are known, and networks."""

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

import abs_model
from abs_model import register_dataclass
from abs_model.attacks.deepfool import deepfool
from abs_model.attacks.transfer import transfer
from benchmarks.linear import exact_distances
from tests import minimal_norm
from tests.function_classifiers import FunctionClassifier, as_kind, function_classifier
from tests.linear_classifiers import (
    PIXELS,
    boundary_distances,
    grays,
    linear_classifier,
    three_classes,
    two_classes,
)
from tests.minimal_norm import KEY, walled

norms = pytest.mark.parametrize("norm", ["l2", "linf"])
from_three = functools.partial(transfer, surrogate=three_classes())


def tilted(w, bias, seed=1):
    """Two classes with a boundary that is not that of w; its weights."""
    v = w + 0.7 * np.random.default_rng(seed).normal(size=PIXELS)
    shift = bias * v.sum() / w.sum()
    return linear_classifier(np.stack([0 * v, v], 1), [0.0, shift]), v


def direction(v, norm):
    """Of length 1 in that norm, in which v . x grows most."""
    return np.sign(v) if norm == "linf" else v / np.linalg.norm(v)


@norms
def test_on_the_surrogate_itself_the_boundary_is_found(norm):
    minimal_norm.check_closed_form(
        transfer, norm, 0.005, norm=norm, surrogate=two_classes()[0], num_bisections=12
    )


@norms
def test_distances_are_those_along_the_directions_of_the_surrogate(norm):
    model, w, bias = two_classes()
    surrogate, v = tilted(w, bias)
    images = grays(12)
    labels = model.predict(images)
    both = surrogate.predict(images) == labels
    assert 3 <= both.sum() < 12
    result = transfer(model, images, labels, KEY, norm=norm, surrogate=surrogate)
    slope = direction(v, norm) @ w
    # Of both classifiers, all of the four directions are the same.
    needed = np.abs(images.reshape(12, -1) @ w + bias) / slope
    assert slope > 0 and np.all(needed > 1.1 * boundary_distances(images, w, bias, norm))
    assert np.all(np.asarray(result.success)[both])
    np.testing.assert_allclose(np.asarray(result.distances)[both], needed[both], rtol=0.005)
    # What the surrogate gets wrong already has no direction.
    assert not np.any(np.asarray(result.success)[~both])
    np.testing.assert_array_equal(np.asarray(result.images)[~both], images[~both])


@norms
@pytest.mark.parametrize("share", [0.03, 0.98])
def test_lines_go_on_far_beyond_the_surrogates_boundary_and_stop_before_it(norm, share):
    """The model's boundary is parallel to the surrogate's, and that share of the way, or more."""
    _, w, _ = two_classes()
    images = walled(6)
    # All images of class 0, and the surrogate's boundary near them.
    values = images.reshape(6, -1) @ w
    reach = np.maximum(w, 0).sum()
    surrogate = linear_classifier(np.stack([0 * w, w], 1), [0.0, -values.max() - 0.2])
    model = linear_classifier(
        np.stack([0 * w, w], 1), [0.0, -values.max() - share * (reach - values.max())]
    )
    result = transfer(model, images, np.zeros(6, int), KEY, norm=norm, surrogate=surrogate)
    assert np.all(result.success)
    found = np.asarray(result.images).reshape(6, -1)
    # The ends of the range are passed by values that have reached them.
    needed = exact_distances(model, images, np.zeros(6, int), norm)
    assert np.all(np.asarray(result.distances) >= needed * (1 - 1e-4))
    # DeepFool and the others bend their ways at the ends; the last corner is far off for all.
    np.testing.assert_allclose(result.distances, needed, rtol=0.005 if share < 0.5 else 0.15)
    assert np.all(found @ w + float(model.biases[1]) > 0)


def test_the_first_crossing_counts():
    """Along the only direction there are two intervals that fool; the first is the nearer one."""
    surrogate = linear_classifier(np.stack([np.zeros(PIXELS), np.ones(PIXELS)], 1), [0.0, -26.0])

    def logits(images):
        level = images.mean((1, 2, 3))
        inside = ((level > 0.5) & (level < 0.6)) | (level > 0.8)
        return jax.nn.one_hot(inside.astype(int), 2)

    images = np.full((3, 6, 5, 2), 0.4, np.float32)
    model = function_classifier(logits, 2)
    result = transfer(model, images, np.zeros(3, int), KEY, norm="linf", surrogate=surrogate)
    np.testing.assert_allclose(result.distances, 0.1, atol=1e-3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlackBox(FunctionClassifier):
    @property
    def differentiable(self):
        return False


register_dataclass(BlackBox)


def black_box(model):
    plain = function_classifier(model.batch_logits, model.num_classes, shape=model.image_shape)
    return dataclasses.replace(as_kind(BlackBox, plain), name="box")


def test_black_boxes_are_attacked_and_only_their_questions_counted():
    seen = []
    model, images = two_classes()[0], grays(4)
    labels = model.predict(images)
    result = transfer(
        black_box(model), images, labels, KEY, norm="l2", surrogate=model, num_scales=20,
        num_bisections=5, progress=seen.append,
    )  # fmt: skip
    assert np.all(result.success)
    np.testing.assert_array_equal(result.num_gradients, 0)
    np.testing.assert_array_equal(result.num_queries, len(seen))
    assert seen == list(range(1, len(seen) + 1)) and 20 < len(seen) <= 1 + 4 * 25


def test_finer_scans_and_more_bisections_come_closer():
    model, images = two_classes()[0], grays(6)
    labels = model.predict(images)
    coarse, fine = (
        transfer(
            model, images, labels, KEY, norm="l2", surrogate=model, num_scales=5, num_bisections=n
        )
        for n in (1, 12)
    )
    assert np.all(fine.success) and np.all(coarse.success)
    assert np.mean(coarse.distances) > 1.02 * np.mean(fine.distances)


@norms
def test_general_properties(norm):
    minimal_norm.check_scales(from_three, 0.005, norm=norm)
    minimal_norm.check_zero_gradients(from_three, norm=norm)
    minimal_norm.check_clean_errors(transfer, norm=norm, surrogate=two_classes()[0])


@hypothesis.settings(max_examples=5, deadline=None)
@hypothesis.given(seed=st.integers(0, 1000), norm=st.sampled_from(["l2", "linf"]))
def test_results_keep_to_the_range(seed, norm):
    minimal_norm.check_bounds_and_success(from_three, norm, seed, norm=norm, num_scales=10)


@norms
def test_networks(mnist_sample, norm):
    """From itself it is no worse than DeepFool, and from another network somewhat farther."""
    model = abs_model.load("cnn", batch_size=10)
    images = mnist_sample["test_images"][:10].reshape(-1, 28, 28, 1).astype(np.float32) / 255
    labels = mnist_sample["test_labels"][:10].astype(np.int32)
    direct = deepfool(model, images, labels, KEY, norm=norm)
    itself, other = (
        transfer(model, images, labels, KEY, norm=norm, surrogate=abs_model.load(name))
        for name in ("cnn", "transfer")
    )
    assert np.all(itself.success) and np.all(other.success)
    assert np.all(np.asarray(itself.distances) <= 1.001 * np.asarray(direct.distances))
    ratio = np.median(other.distances) / np.median(itself.distances)
    assert 1.1 < ratio < 2


def test_other_surrogates_are_refused():
    images, labels = grays(2), np.array([0, 1])
    attack = functools.partial(transfer, three_classes(), images, labels, KEY, norm="l2")
    with pytest.raises(ValueError, match="surrogate must be a Classifier, got str"):
        attack(surrogate="cnn")
    with pytest.raises(ValueError, match=r"\(6, 5, 2\) and 3; 'linear' is for \(6, 5, 2\) and 2"):
        attack(surrogate=two_classes()[0])
    with pytest.raises(ValueError, match=r"'cnn' is for \(28, 28, 1\) and 10"):
        attack(surrogate=abs_model.load("cnn"))
    with pytest.raises(ValueError, match="surrogate must have gradients, and 'box'"):
        attack(surrogate=black_box(three_classes()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "l0"}, "norm must be one of l2, linf, got 'l0'"),
        ({"num_scales": 0}, "num_scales must be an integer of at least 1, got 0"),
        ({"num_bisections": 0}, "num_bisections must be an integer of at least 1, got 0"),
    ],
)
def test_faulty_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        from_three(three_classes(), grays(2), np.array([0, 1]), KEY, **{"norm": "l2"} | changes)
