"""The attack on classifiers of thresholded images, in closed form and by brute force."""

import dataclasses
import itertools

import foolbox
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import abs_model
from abs_model import register_dataclass
from abs_model.attacks import distances
from abs_model.attacks._core.keys import image_keys
from abs_model.attacks.flip_pixels import flip_pixels, snap
from abs_model.models.classifier import as_seen, threshold
from tests.function_classifiers import FunctionClassifier, as_kind, function_classifier
from tests.linear_classifiers import PIXELS, SHAPE, check_bounds, grays, three_classes
from tests.minimal_norm import KEY, walled

ABOVE = np.nextafter(np.float32(0.5), np.float32(1))
norms = pytest.mark.parametrize("norm", ["l0", "l2", "linf"])


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class BinaryClassifier(FunctionClassifier):
    """Logits function(thresholded images)."""

    def batch_logits(self, images):
        return self.function(as_seen(images, True))


def binary_classifier(function, num_classes, shape=SHAPE, batch_size=4):
    plain = function_classifier(function, num_classes, batch_size, shape)
    return as_kind(BinaryClassifier, plain, binary=True)


def linear(weights, biases):
    weights, biases = jnp.asarray(weights, jnp.float32), jnp.asarray(biases, jnp.float32)
    return binary_classifier(lambda x: x.reshape(len(x), -1) @ weights + biases, len(biases))


def two_classes(share=0.6):
    """The second class begins at that share of the largest w . x there is."""
    w = np.random.default_rng(5).normal(size=PIXELS)
    bias = -np.maximum(w, 0).sum() * share
    return linear(np.stack([0 * w, w], 1), [0.0, bias]), w, bias


def problem(seed=0, share=0.6):
    """Images of class 0, what each flip gains, (N, 60), and what is missing, (N,)."""
    model, w, bias = two_classes(share)
    images = np.random.default_rng(seed).uniform(0, 1, (40, *SHAPE)).astype(np.float32)
    images = images[model.predict(images) == 0][:6]
    forms = threshold(images).reshape(6, -1)
    return model, images, w * (1 - 2 * forms), -(forms @ w + bias)


def ways(images):
    """How far each value must go to flip, float64 (N, 60)."""
    flips = np.asarray(snap(1 - threshold(images), images))
    return np.abs(flips.astype(np.float64) - images).reshape(len(images), -1)


def fewest(gains, missing):
    """How many of the gains (N, n) add up to more than is missing, (N,)."""
    climbed = np.cumsum(-np.sort(-np.maximum(gains, 0), axis=1), axis=1)
    return 1 + (climbed <= missing[:, None]).sum(1)


def check_snapped(result, images):
    """Every value is the original's, or just across the threshold."""
    np.testing.assert_array_equal(result.images, snap(result.images, images))
    assert set(np.unique(np.asarray(result.images)[result.images != images])) <= {0.5, ABOVE}


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
    pair=hnp.arrays(
        np.float32, (2, 1, 2, 3, 2),
        elements=st.one_of(
            st.floats(0, 1, width=32), st.sampled_from(np.float32([0, 0.5, ABOVE, 1]).tolist())
        ),
    )
)  # fmt: skip
def test_snapped_images_look_the_same_and_are_the_closest(pair):
    images, originals = pair
    found = np.asarray(snap(jnp.asarray(images), jnp.asarray(originals)))
    np.testing.assert_array_equal(found > 0.5, images > 0.5)
    same = (images > 0.5) == (originals > 0.5)
    np.testing.assert_array_equal(found[same], originals[same])
    # A float closer to the original would be on the original's side.
    closer = np.nextafter(found, originals)[~same]
    np.testing.assert_array_equal(closer > 0.5, originals[~same] > 0.5)


def test_what_is_snapped_is_what_the_classifiers_threshold():
    model = abs_model.load("binary_cnn", batch_size=4)
    images = np.random.default_rng(0).uniform(0, 1, (4, 28, 28, 1)).astype(np.float32)
    images[0, :9] = 0.5
    snapped = snap(jnp.asarray(images), jnp.zeros(images.shape))
    np.testing.assert_allclose(model.logits(snapped), model.logits(images), atol=1e-4)
    np.testing.assert_array_equal(threshold(snapped), threshold(images))


@pytest.mark.parametrize("num_candidates", [1, 5])
def test_fewest_pixels_are_flipped(num_candidates):
    model, images, gains, missing = problem()
    of_pixels = np.maximum(gains, 0).reshape(6, -1, SHAPE[2]).sum(2)
    result = flip_pixels(
        model, images, np.zeros(6, int), KEY, norm="l0", num_candidates=num_candidates,
        num_rounds=1,
    )  # fmt: skip
    assert np.all(result.success)
    check_snapped(result, images)
    expected = fewest(of_pixels, missing)
    assert expected.min() >= 2
    np.testing.assert_array_equal(result.distances, expected)


def test_flips_of_equal_cost_are_as_few_as_can_be():
    model, images, gains, missing = problem()
    images = np.where(images > 0.5, 0.75, 0.25).astype(np.float32)
    result = flip_pixels(model, images, np.zeros(6, int), KEY, norm="l2", num_rounds=1)
    check_snapped(result, images)
    expected = 0.25 * np.sqrt(fewest(gains, missing))
    np.testing.assert_allclose(result.distances, expected, rtol=1e-4)


def test_flips_of_different_cost_come_close_to_the_best_choice():
    """Against the optimum of the continuous problem, which no choice of whole flips can beat."""
    model, images, gains, missing = problem()
    result = flip_pixels(model, images, np.zeros(6, int), KEY, norm="l2")
    assert np.all(result.success)
    check_snapped(result, images)
    costs = ways(images) ** 2
    for distance, gain, cost, lacking in zip(result.distances, gains, costs, missing, strict=True):
        order = np.argsort(-np.maximum(gain, 0) / cost)
        climbed = np.cumsum(np.maximum(gain, 0)[order])
        bound = np.sqrt(np.interp(lacking, climbed, np.cumsum(cost[order])))
        assert bound * (1 - 1e-4) <= distance <= 1.1 * bound


def test_the_lowest_level_is_found():
    """All flips up to a level are free: the lowest at which those that help are enough."""
    model, images, gains, missing = problem()
    result = flip_pixels(model, images, np.zeros(6, int), KEY, norm="linf")
    assert np.all(result.success)
    check_snapped(result, images)
    levels = ways(images)
    order = np.argsort(levels, axis=1)
    climbed = np.cumsum(np.take_along_axis(np.maximum(gains, 0), order, 1), axis=1)
    last = (climbed <= missing[:, None]).sum(1)
    needed = np.take_along_axis(np.take_along_axis(levels, order, 1), last[:, None], 1)[:, 0]
    assert np.all(np.asarray(result.distances) >= needed - 1e-6)
    assert np.all(np.asarray(result.distances) <= needed + 1e-3)
    assert needed.max() < 0.45


def network(seed, shape, lead, batch_size):
    """A random network of two layers, with one class well ahead."""
    random = np.random.default_rng(seed)
    first, second = (
        jnp.asarray(random.normal(size=size), jnp.float32)
        for size in ((np.prod(shape), 16), (16, 3))
    )

    def logits(images):
        hidden = jnp.tanh((images.reshape(len(images), -1) - 0.5) @ first)
        return hidden @ second + jnp.array([lead, 0.0, 0.0])

    return binary_classifier(logits, 3, shape, batch_size)


def tiny_network(seed):
    """For images of 12 pixels, of which there are 4,096 when thresholded."""
    return network(seed, (3, 4, 1), 7.0, batch_size=2**12)


# In L2 a choice of flips is a knapsack problem beside, and a greedy search less of a match.
@pytest.mark.parametrize(
    ("norm", "exact", "excess"), [("l0", 0.9, 1.1), ("l2", 0.5, 1.3), ("linf", 0.9, 1.1)]
)
def test_flips_against_brute_force(norm, exact, excess):
    model = tiny_network(0)
    images = np.random.default_rng(0).uniform(0, 1, (20, 3, 4, 1)).astype(np.float32)
    labels = model.predict(images)
    result = flip_pixels(model, images, labels, KEY, norm=norm)
    check_snapped(result, images)
    forms = np.array(list(itertools.product([0, 1], repeat=12)), np.float32).reshape(-1, 3, 4, 1)
    predictions = model.predict(forms)
    best = []
    for image, label in zip(images, labels, strict=True):
        all_snapped = snap(jnp.asarray(forms), jnp.broadcast_to(image, forms.shape))
        away = np.asarray(distances(all_snapped, jnp.asarray(image)[None], norm))
        best.append(np.where(predictions != label, away, np.inf).min())
    found = np.where(result.success, result.distances, np.inf)
    best = np.array(best)
    assert np.isfinite(best).sum() >= 10 and best[np.isfinite(best)].std() > 0
    assert np.all(found >= best * (1 - 1e-5))
    assert np.mean(found <= best * (1 + 1e-5)) >= exact
    both = np.isfinite(found)
    assert np.mean(found[both]) <= excess * np.mean(best[both])


@norms
def test_clean_errors_and_faulty_gradients(norm):
    model, images, _, _ = problem()
    labels = np.arange(6) % 2
    result = flip_pixels(model, images, labels, KEY, norm=norm, max_flips=30, num_rounds=2)
    assert np.all(result.success)
    np.testing.assert_array_equal(np.asarray(result.distances)[1::2], 0.0)
    np.testing.assert_array_equal(np.asarray(result.images)[1::2], images[1::2])
    flat = linear(np.zeros((PIXELS, 3)), [0.0, 1.0, 0.0])
    result = flip_pixels(flat, images, np.ones(6, int), KEY, norm=norm, max_flips=5)
    assert not np.any(result.success)
    check_snapped(result, images)


@norms
def test_result_does_not_depend_on_the_split_into_batches(norm):
    model, images = network(1, SHAPE, 7.0, batch_size=6), walled(6)
    labels = model.predict(images)
    settings = {"norm": norm, "num_rounds": 2, "num_restarts": 2, "num_steps": 5}
    whole = flip_pixels(model, images, labels, KEY, **settings)
    assert np.any(whole.success)
    again = flip_pixels(model, images, labels, KEY, **settings)
    np.testing.assert_array_equal(again.images, whole.images)
    batched = flip_pixels(model.with_batch_size(3), images, labels, KEY, **settings)
    np.testing.assert_array_equal(batched.images, whole.images)
    keys = image_keys(KEY, 6)
    for rows in (np.array([0, 2, 4]), np.array([5, 1, 3])):
        part = flip_pixels(model, images[rows], labels[rows], keys[rows], **settings)
        np.testing.assert_array_equal(part.images, whole.images[rows])


@norms
@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_scale_of_the_logits_plays_no_part(norm, scale):
    _, images, _, _ = problem()
    w = np.random.default_rng(2).normal(size=(PIXELS, 3))
    plain, scaled = (linear(w * s, -0.5 * w.sum(0) * s) for s in (1, scale))
    labels = plain.predict(images)
    first, second = (
        flip_pixels(model, images, labels, KEY, norm=norm, num_rounds=1)
        for model in (plain, scaled)
    )
    assert np.all(first.success)
    np.testing.assert_allclose(second.distances, first.distances, rtol=1e-4)


@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(seed=st.integers(0, 1000), norm=st.sampled_from(["l0", "l2", "linf"]))
def test_results_keep_to_the_range(seed, norm):
    model, _, _ = two_classes()
    images = walled(6, seed)
    labels = np.random.default_rng(seed).integers(0, 2, 6)
    result = flip_pixels(
        model, images, labels, jax.random.key(seed), norm=norm, max_flips=4, num_rounds=2,
        num_steps=2, num_restarts=2,
    )  # fmt: skip
    check_snapped(result, images)
    np.testing.assert_array_equal(result.success, model.predict(result.images) != labels)
    if norm == "l0":
        changed = (np.asarray(result.images) != images).any(3).sum((1, 2))
        np.testing.assert_array_equal(result.distances, changed)
        assert changed.max() <= 4
    else:
        check_bounds(result, images, norm, np.inf)


def test_random_starts_find_lower_levels():
    model = tiny_network(2)
    images = np.random.default_rng(1).uniform(0, 1, (20, 3, 4, 1)).astype(np.float32)
    labels = model.predict(images)
    once, often = (
        flip_pixels(model, images, labels, KEY, norm="linf", num_restarts=count, num_steps=20)
        for count in (1, 6)
    )
    first, second = (np.where(x.success, x.distances, 1.0) for x in (once, often))
    assert np.mean(second) < np.mean(first)


def test_counts_the_questions():
    seen = []
    model, images, _, _ = problem(share=0.95)
    settings = {"max_flips": 2, "num_rounds": 1, "num_steps": 2}
    result = flip_pixels(
        model, images[:3], np.zeros(3, int), KEY, norm="l2", progress=seen.append, **settings
    )
    assert not np.any(result.success)
    assert seen == list(range(1, 1 + 1 + 2 * 6 + 1))
    np.testing.assert_array_equal(result.num_gradients, 3)
    result = flip_pixels(
        model, images[:3], np.zeros(3, int), KEY, norm="linf", num_restarts=2, **settings
    )
    assert np.all(result.num_queries <= 1 + 10 * 2 * 3)
    np.testing.assert_array_equal(result.num_gradients, result.num_queries - 1)


def sample(mnist_sample, count):
    model = abs_model.load("binary_cnn", batch_size=count)
    images = mnist_sample["test_images"][:count].reshape(-1, 28, 28, 1).astype(np.float32) / 255
    return model, images, mnist_sample["test_labels"][:count].astype(np.int32)


def robust_accuracy_of_foolbox(attack, model, images, labels, epsilon):
    _, _, success = attack(
        abs_model.to_foolbox(model), jnp.asarray(images), jnp.asarray(labels), epsilons=epsilon
    )
    return 1 - np.mean(success)


@pytest.mark.parametrize(
    ("norm", "epsilon", "attack"),
    [
        ("linf", 0.25, foolbox.attacks.LinfPGD(steps=20)),
        ("l2", 0.8, foolbox.attacks.L2PGD(steps=20)),
    ],
)
def test_the_binary_cnn_is_no_safer_than_from_foolbox(mnist_sample, norm, epsilon, attack):
    model, images, labels = sample(mnist_sample, 12)
    result = flip_pixels(model, images, labels, KEY, norm=norm, num_rounds=1)
    assert np.all(result.success)
    np.testing.assert_array_equal(model.predict(result.images) != labels, result.success)
    robust = np.mean(np.asarray(result.distances) > epsilon)
    theirs = robust_accuracy_of_foolbox(attack, model, images, labels, epsilon)
    assert 0 < theirs
    assert robust <= theirs - 0.1


def test_other_classifiers_are_refused():
    images, labels = grays(2), np.array([0, 1])
    with pytest.raises(ValueError, match="`binary` of 'linear' is False"):
        flip_pixels(three_classes(), images, labels, KEY, norm="l2")
    with pytest.raises(ValueError, match="`binary` of 'cnn' is False"):
        flip_pixels(abs_model.load("cnn"), images, labels, KEY, norm="l2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "l1"}, "norm must be one of l2, linf, l0, got 'l1'"),
        ({"max_flips": 0}, "max_flips must be an integer of at least 1, got 0"),
        ({"num_candidates": 0}, "num_candidates must be an integer of at least 1, got 0"),
        ({"num_rounds": 0}, "num_rounds must be an integer of at least 1, got 0"),
        ({"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        ({"num_restarts": 0}, "num_restarts must be an integer of at least 1, got 0"),
    ],
)
def test_faulty_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        flip_pixels(two_classes()[0], grays(2), np.array([0, 1]), KEY, **{"norm": "l2"} | changes)
