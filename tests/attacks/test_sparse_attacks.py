"""Attacks on few pixels: Sparse-RS and greedy pixels, in closed form and by brute force."""

import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.keys import image_keys
from abs_model.attacks._core.query import Query
from abs_model.attacks._search.backward_elimination import eliminate
from abs_model.attacks._search.edit_space import EditSpace
from abs_model.attacks.greedy_pixels import greedy_pixels
from abs_model.attacks.sparse_rs import share_of_pixels, sparse_rs
from benchmarks.linear import exact_distances
from tests import minimal_norm
from tests.function_classifiers import function_classifier
from tests.linear_classifiers import (
    SHAPE,
    grays,
    linear_classifier,
    three_classes,
    two_classes,
)
from tests.minimal_norm import KEY, walled

PLACES = SHAPE[0] * SHAPE[1]
minimize = pytest.mark.parametrize("minimize", [False, True])


def gains_of_pixels(images, w):
    """How much w . x grows at most when a pixel goes to 0 or 1 in each channel, (N, pixels)."""
    w = w.reshape(SHAPE)
    return np.maximum(w * (1 - images), -w * images).sum(3).reshape(len(images), -1)


def biased_classes(share=0.6):
    """Two classes, of which the second begins at that share of the largest w . x there is."""
    _, w, _ = two_classes()
    return linear_classifier(np.stack([0 * w, w], 1), [0.0, -np.maximum(w, 0).sum() * share])


def check_changes(result, images, most):
    """At most that many pixels, and those to 0 or 1."""
    found = np.asarray(result.images)
    changed = (found != images).any(3)
    np.testing.assert_array_equal(result.distances, changed.sum((1, 2)))
    assert changed.sum((1, 2)).max() <= most
    assert set(np.unique(found[found != images])) <= {0.0, 1.0}


def test_the_share_of_pixels_follows_the_papers_schedule():
    shares = [share_of_pixels(step, 10_000, 0.3) for step in range(10_001)]
    places = np.flatnonzero(np.diff(shares)) + 1
    np.testing.assert_array_equal(places, [1, 51, 201, 501, 1001, 2001, 4001, 6001, 8001])
    ratios = np.divide(0.3, [shares[place] for place in places])
    np.testing.assert_allclose(ratios, [2, 4, 5, 6, 8, 10, 12, 15, 20])
    assert [share_of_pixels(step, 1000, 0.3) for step in range(1001)] == shares[::10]


def test_random_search_finds_the_fewest_pixels_but_for_one():
    model, images = biased_classes(), walled(6)
    labels = model.predict(images)
    fewest = exact_distances(model, images, labels, "l0")
    assert fewest.min() >= 3
    result = sparse_rs(model, images, labels, KEY, num_pixels=20, num_steps=2000, minimize=True)
    check_changes(result, images, 20)
    assert np.all(result.success)
    assert np.all(np.asarray(result.distances) >= fewest)
    assert np.all(np.asarray(result.distances) <= fewest + 1)


def test_random_search_succeeds_where_the_number_of_pixels_allows_it():
    model, images = biased_classes(), walled(6)
    labels = model.predict(images)
    fewest = exact_distances(model, images, labels, "l0")
    for num_pixels in (int(fewest.min()) - 1, 20):
        result = sparse_rs(model, images, labels, KEY, num_pixels=num_pixels, num_steps=300)
        check_changes(result, images, num_pixels)
        np.testing.assert_array_equal(result.success, num_pixels > fewest)
        np.testing.assert_array_equal(model.predict(result.images) != labels, result.success)
        # All pixels of the set count.
        np.testing.assert_array_equal(result.distances, num_pixels)


@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(
    seed=st.integers(0, 1000),
    num_pixels=st.sampled_from([20, PLACES]),
    minimize=st.booleans(),
)
def test_random_search_keeps_to_the_number_of_pixels(seed, num_pixels, minimize):
    model, images = three_classes(), walled(6, seed)
    labels = np.random.default_rng(seed).integers(0, 3, 6)
    result = sparse_rs(
        model, images, labels, jax.random.key(seed), num_pixels=num_pixels, num_steps=10,
        minimize=minimize, alpha_init=1.0,
    )  # fmt: skip
    check_changes(result, images, num_pixels)
    np.testing.assert_array_equal(result.success, model.predict(result.images) != labels)


@minimize
def test_general_properties_of_random_search(minimize):
    settings = {"num_pixels": 20, "num_steps": 20, "minimize": minimize}
    minimal_norm.check_clean_errors(sparse_rs, **settings)
    minimal_norm.check_split(sparse_rs, **settings | {"num_restarts": 2})
    minimal_norm.check_zero_gradients(sparse_rs, **settings)
    minimal_norm.check_scales(sparse_rs, 1e-6, **settings)


def test_random_search_depends_on_the_key_and_restarts_only_add():
    model, images = biased_classes(), walled(6)
    labels = model.predict(images)
    settings = {"num_steps": 60, "minimize": True, "num_pixels": PLACES}
    first, other = (
        sparse_rs(model, images, labels, jax.random.key(seed), **settings) for seed in (0, 1)
    )
    assert not np.array_equal(first.images, other.images)
    more = sparse_rs(model, images, labels, jax.random.key(0), num_restarts=4, **settings)
    before, after = (np.where(x.success, x.distances, np.inf) for x in (first, more))
    assert np.all(after <= before) and np.any(after < before)


def test_random_search_counts_its_questions_and_stops():
    seen = []
    model, images = biased_classes(0.95), walled(3)
    labels = model.predict(images)
    result = sparse_rs(
        model, images, labels, KEY, num_pixels=20, num_steps=3, num_restarts=2,
        progress=seen.append,
    )  # fmt: skip
    assert not np.any(result.success)
    assert seen == list(range(1, 10))
    np.testing.assert_array_equal(result.num_queries, 9)
    np.testing.assert_array_equal(result.num_gradients, 0)
    easy = sparse_rs(biased_classes(), images, labels, KEY, num_pixels=20, num_steps=1000)
    assert np.all(easy.success) and np.max(easy.num_queries) < 500


def test_random_search_reaches_targets():
    model, images = three_classes(), grays(6)
    targets = (model.predict(images) + 1) % 3
    result = sparse_rs(
        model, images, model.predict(images), KEY, num_pixels=20, num_steps=200, targets=targets
    )
    assert np.all(result.success)
    np.testing.assert_array_equal(model.predict(result.images), targets)


@pytest.mark.parametrize("num_candidates", [1, 5])
def test_greedy_pixels_are_exact_for_two_linear_classes(num_candidates):
    model, images = biased_classes(), walled(6)
    labels = model.predict(images)
    fewest = exact_distances(model, images, labels, "l0")
    result = greedy_pixels(model, images, labels, KEY, num_candidates=num_candidates, num_rounds=1)
    check_changes(result, images, PLACES)
    assert np.all(result.success)
    np.testing.assert_array_equal(result.distances, fewest)


def test_greedy_pixels_lead_to_the_class_that_needs_fewest():
    model, images = three_classes(), grays(12)
    labels = model.predict(images)
    fewest = exact_distances(model, images, labels, "l0")
    result = greedy_pixels(model, images, labels, KEY, num_candidates=1, num_rounds=1, max_pixels=9)
    np.testing.assert_array_equal(result.distances, fewest)
    # Nearest by the logits is not always nearest by pixels.
    nearest = np.argsort(np.asarray(model.logits(images)), axis=1)[:, -2]
    assert np.any(model.predict(result.images) != nearest)


def test_greedy_pixels_stop_at_the_most_that_is_allowed():
    model, images = biased_classes(), walled(6)
    labels = model.predict(images)
    fewest = exact_distances(model, images, labels, "l0")
    most = int(np.median(fewest))
    result = greedy_pixels(model, images, labels, KEY, max_pixels=most, num_candidates=1)
    np.testing.assert_array_equal(result.success, fewest <= most)
    check_changes(result, images, most)


def tiny_network(seed):
    """A random network of two layers for images of 3 x 3 pixels, with one class well ahead."""
    random = np.random.default_rng(seed)
    first, second = (
        jnp.asarray(random.normal(size=size), jnp.float32) for size in ((9, 16), (16, 3))
    )
    shift = jnp.asarray(random.normal(size=16), jnp.float32)

    def logits(images):
        hidden = jnp.tanh((images.reshape(len(images), -1) - 0.5) @ first + shift)
        return hidden @ second + jnp.array([6.0, 0.0, 0.0])

    return function_classifier(logits, 3, batch_size=3**9, shape=(3, 3, 1))


def test_greedy_pixels_against_brute_force():
    settings = [(1, 1), (5, 1), (5, 4)]
    found, fewest = [[] for _ in settings], []
    # Of each pixel: to 0, to 1, or left.
    choices = np.array(list(itertools.product([0.0, 1.0, np.nan], repeat=9)), np.float32)
    for seed in range(2):
        model = tiny_network(seed)
        images = np.random.default_rng(seed).uniform(0, 1, (15, 3, 3, 1)).astype(np.float32)
        labels = model.predict(images)
        for (num_candidates, num_rounds), numbers in zip(settings, found, strict=True):
            result = greedy_pixels(
                model, images, labels, KEY, num_candidates=num_candidates, num_rounds=num_rounds
            )
            numbers += list(np.where(result.success, result.distances, 10))
        for image, label in zip(images, labels, strict=True):
            changed = np.where(np.isnan(choices), image.reshape(-1), choices)
            wrong = model.predict(changed.reshape(-1, 3, 3, 1)) != label
            fewest.append(np.where(wrong, (~np.isnan(choices)).sum(1), 10).min())
    assert len(set(fewest)) >= 4
    assert np.all(np.array(found) >= fewest)
    exact = np.mean(np.array(found) == fewest, axis=1)
    assert exact[2] >= 0.65
    # True scores are of use, and no further round forgets what the first has found.
    assert np.mean(found[0]) >= np.mean(found[1])
    assert np.all(np.array(found[2]) <= found[1])


def test_elimination_leaves_only_the_pixels_that_gain_most():
    model, images = biased_classes(), walled(6)
    labels = model.predict(images)
    batch = Batch(jnp.asarray(images), jnp.asarray(labels), image_keys(KEY, 6), False)
    # All pixels go where they help, but for the first row, which goes the other way.
    w = np.asarray(model.weights, np.float64)[:, 1]
    far = np.broadcast_to(w.reshape(SHAPE) > 0, images.shape).astype(np.float32)
    far[:, 0] = 1 - far[:, 0]
    far[3:] = images[3:]
    query = Query(model, batch, "l0")
    query.logits(jnp.asarray(far))
    np.testing.assert_array_equal(query.best.success, [True] * 3 + [False] * 3)
    eliminate(query, EditSpace("l0"))
    pruned = query.best
    np.testing.assert_array_equal(pruned.images[3:], images[3:])
    gains = gains_of_pixels(images, w)[:, SHAPE[1] :]
    climbed = np.cumsum(-np.sort(-gains, axis=1), axis=1)
    missing = -(images.reshape(6, -1) @ w + float(model.biases[1]))
    fewest = 1 + (climbed <= missing[:, None]).sum(1)
    np.testing.assert_array_equal(pruned.distances[:3], fewest[:3])
    assert query.num_queries <= 2 + PLACES and query.num_gradients == 1


def test_general_properties_of_greedy_pixels():
    minimal_norm.check_clean_errors(greedy_pixels, max_pixels=20)
    minimal_norm.check_scales(greedy_pixels, 1e-6, max_pixels=20)
    minimal_norm.check_zero_gradients(greedy_pixels, max_pixels=5)


@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(seed=st.integers(0, 1000))
def test_greedy_pixels_keep_to_the_range(seed):
    minimal_norm.check_bounds_and_success(greedy_pixels, "l0", seed, max_pixels=5)


def test_without_a_gradient_pixels_are_tried_at_random():
    """Any 8 pixels that change far enough will do, but no gradient says so."""

    def logits(images):
        far = jnp.abs(jax.lax.stop_gradient(images) - 0.5).max(3) > 0.4
        number = far.sum((1, 2)).astype(jnp.float32)
        return jnp.stack([jnp.full(len(images), 7.5), number], axis=1)

    model = function_classifier(logits, 2)
    result = greedy_pixels(model, grays(4), np.zeros(4, int), KEY, num_rounds=1)
    np.testing.assert_array_equal(result.distances, 8)
    changed = (np.asarray(result.images) != grays(4)).any(3)
    assert not np.array_equal(changed[0], changed[1])


def test_greedy_pixels_count_their_questions():
    seen = []
    model, images = biased_classes(), walled(4)
    result = greedy_pixels(
        model, images, model.predict(images), KEY, max_pixels=2, num_candidates=3, num_rounds=1,
        progress=seen.append,
    )  # fmt: skip
    assert not np.any(result.success)
    # The original, two steps, and the gradient for the elimination, which has nothing to do.
    assert seen == list(range(1, 1 + 1 + 2 * 4 + 1))
    np.testing.assert_array_equal(result.num_gradients, 3)


@pytest.mark.parametrize(
    ("attack", "settings", "message"),
    [
        (sparse_rs, {"num_pixels": 0}, r"num_pixels must be .* at least 1 and at most 30, got 0"),
        (sparse_rs, {"num_pixels": 31}, r"num_pixels must be .* at most 30, got 31; an image"),
        (sparse_rs, {"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        (sparse_rs, {"alpha_init": 0.0}, r"alpha_init must be .* above 0.0 and at most 1, got 0.0"),
        (sparse_rs, {"alpha_init": 2.0}, "alpha_init must be .* at most 1, got 2.0"),
        (sparse_rs, {"num_restarts": 0}, "num_restarts must be an integer of at least 1, got 0"),
        (greedy_pixels, {"max_pixels": 0}, "max_pixels must be an integer of at least 1, got 0"),
        (greedy_pixels, {"num_candidates": 0}, "num_candidates must be an integer of at least 1"),
        (greedy_pixels, {"num_rounds": 0}, "num_rounds must be an integer of at least 1, got 0"),
    ],
)
def test_faulty_arguments_are_named(attack, settings, message):
    required = {"num_pixels": 3} if attack is sparse_rs else {}
    with pytest.raises(ValueError, match=message):
        attack(three_classes(), grays(2), np.array([0, 1]), KEY, **required | settings)
