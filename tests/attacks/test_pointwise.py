"""The pointwise attack, against NumPy searches one question at a time, and what it promises."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import abs_model
from abs_model.attacks import Batch
from abs_model.attacks._core.keys import image_keys
from abs_model.attacks._core.query import Query
from abs_model.attacks._search.coordinate_reset import reset_coordinates
from abs_model.attacks._search.starting_points import most_starting_queries
from abs_model.attacks.pointwise import pointwise
from abs_model.models.decisions import ATTACK_FACTOR, margins, uncertainty
from tests.function_classifiers import function_classifier
from tests.linear_classifiers import (
    PIXELS,
    SHAPE,
    check_bounds,
    grays,
    linear_classifier,
    three_classes,
    two_classes,
)
from tests.minimal_norm import walled

KEY = jax.random.key(3)
NORMS = ("l0", "l2")
few_examples = hypothesis.settings(max_examples=8, deadline=None)
both_norms = pytest.mark.parametrize("norm", NORMS)


def run(model, images, labels, key=KEY, **changes):
    return pointwise(model, images, labels, key, **({"norm": "l0", "num_restarts": 2} | changes))


def curved(offset=3.0):
    """Two classes with a boundary in which the values' effects hang together."""
    w = np.random.default_rng(5).normal(size=PIXELS)
    gray = 0.5 * w.sum() + 0.25 * (PIXELS - 1)

    def function(images):
        flat = images.reshape(len(images), -1)
        score = flat @ jnp.asarray(w, jnp.float32) + (flat[:, :-1] * flat[:, 1:]).sum(1)
        return jnp.stack([jnp.full_like(score, gray + offset), score], axis=1)

    return function_classifier(function, 2)


class Machine:
    """Takes changes of one image back, one question after the other, as is documented."""

    def __init__(self, original, image, key, fools, norm):
        self.original, self.image, self.fools, self.norm = original, image.copy(), fools, norm
        changed = self.changed()
        places = np.asarray(jax.random.uniform(key, changed.shape)) + ~changed
        self.order = [np.unravel_index(i, changed.shape) for i in np.argsort(places.ravel())]

    def changed(self):
        changed = self.image != self.original
        return changed.any(2, keepdims=True) if self.norm == "l0" else changed

    def try_values(self, places, values):
        """Whether the image fools with these values; it keeps them if so."""
        candidate = self.image.copy()
        for place in places:
            where = place[:2] if self.norm == "l0" else place
            candidate[where] = values[where]
        fooled = self.fools(candidate)
        if fooled:
            self.image = candidate
        return fooled

    def reset(self):
        for size in (64, 16, 4):
            ranks = [rank for rank, place in enumerate(self.order) if self.changed()[place]]
            end = -1
            for rank in ranks:
                if rank >= end:
                    end = rank + size
                    block = [place for place in self.order[rank:end] if self.changed()[place]]
                    self.try_values(block, self.original)
        self.go_round(lambda place: self.try_values([place], self.original))
        if self.norm == "l2":
            self.go_round(self.refine)
        return self.image

    def go_round(self, attempt):
        failures = rank = 0
        while self.changed().any() and failures < self.changed().sum():
            place = self.order[rank % len(self.order)]
            rank += 1
            if self.changed()[place]:
                failures = 0 if attempt(place) else failures + 1

    def refine(self, place):
        """Whether the value could move."""
        if self.try_values([place], self.original):
            return True
        half, hundredth, low = np.float32(0.5), np.float32(0.01), self.original[place]
        if abs(self.image[place] - low) < 1e-3:
            return False
        value = self.image + hundredth * (self.original - self.image)
        if not self.try_values([place], value):
            return False
        for _ in range(7):
            value = self.image.copy()
            value[place] = half * (self.image[place] + low)
            if not self.try_values([place], value):
                low = value[place]
        return True


def clearly_wrong(logits, classes, sign=1):
    """By the margin that attacks look for; with a sign of -1, clearly of the classes."""
    classes = np.broadcast_to(classes, len(logits))
    allowed = ATTACK_FACTOR * np.asarray(uncertainty(logits, jnp.asarray(classes)))
    return sign * margins(np.asarray(logits), classes) > allowed


def reset(model, images, labels, beginnings, norm, **settings):
    images = jnp.asarray(images)
    batch = Batch(images, jnp.asarray(labels), image_keys(KEY, len(images)), targeted=False)
    query = Query(model, batch, norm)
    query.logits(images)
    keys = [image_keys(jax.random.key(number), len(images)) for number in range(len(beginnings))]
    reset_coordinates(query, beginnings, keys, **settings)
    return query.best, keys, query.num_queries


@both_norms
@pytest.mark.parametrize("make_model", [three_classes, curved])
def test_does_as_a_search_one_by_one(norm, make_model):
    model, images = make_model(), grays(6)
    labels = model.predict(images)
    logits = jax.jit(model.batch_logits)
    beginnings = [walled(6, seed) for seed in (1, 2)]
    # Not all are adversarial.
    assert 0 < np.sum(model.predict(beginnings[0]) != labels) < 6
    best, keys, _ = reset(model, images, labels, beginnings, norm)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):

        def fools(changed, label=label):
            return bool(clearly_wrong(logits(changed[None]), np.array([label]))[0])

        found = [
            Machine(image, begin[index], order[index], fools, norm).reset()
            for begin, order in zip(beginnings, keys, strict=True)
            if fools(begin[index])
        ]
        assert best.success[index] == bool(found)
        if found:
            changes = [changed - image for changed in found]
            lengths = [
                (change != 0).any(2).sum() if norm == "l0" else np.linalg.norm(change)
                for change in changes
            ]
            np.testing.assert_allclose(best.distances[index], min(lengths), rtol=1e-5)
            if lengths.count(min(lengths)) == 1:
                np.testing.assert_allclose(best.images[index], found[np.argmin(lengths)], atol=1e-6)


def single_resets(original, image, norm):
    """All images with one change taken back."""
    changed = image != original
    places = np.argwhere(changed.any(2) if norm == "l0" else changed)
    images = np.repeat(image[None], len(places), axis=0)
    for candidate, place in zip(images, places, strict=True):
        candidate[tuple(place)] = original[tuple(place)]
    return images


def check_minimal(model, images, labels, result, norm):
    for image, label, found, success in zip(
        images, labels, np.asarray(result.images), result.success, strict=True
    ):
        if success and (found != image).any():
            assert not clearly_wrong(model.logits(single_resets(image, found, norm)), label).any()


@both_norms
@few_examples
@hypothesis.given(seed=st.integers(0, 1000), with_starts=st.booleans())
def test_no_single_change_can_be_taken_back(norm, seed, with_starts):
    model = curved()
    images = walled(6, seed)
    labels = np.random.default_rng(seed).integers(0, 2, 6)
    starts = walled(20, seed + 1) if with_starts else None
    result = run(model, images, labels, jax.random.key(seed), norm=norm, starting_points=starts)
    if norm == "l2":
        check_bounds(result, images, norm, np.inf)
    else:
        changed = (np.asarray(result.images) != images).any(3).sum((1, 2))
        np.testing.assert_array_equal(result.distances, changed)
    np.testing.assert_array_equal(
        result.success, clearly_wrong(model.logits(result.images), labels)
    )
    wrong = clearly_wrong(model.logits(images), labels)
    np.testing.assert_array_equal(np.asarray(result.distances)[wrong], 0.0)
    check_minimal(model, images, labels, result, norm)


@both_norms
def test_targets_are_reached_and_no_single_change_can_be_taken_back(norm):
    model, images = three_classes(), grays(6)
    labels = model.predict(images)
    for shift in (1, 2):
        targets = (labels + shift) % 3
        found = run(model, images, labels, norm=norm, targets=targets, starting_points=walled(40))
        assert np.all(found.success)
        np.testing.assert_array_equal(model.predict(found.images), targets)
        for image, reached, target in zip(images, np.asarray(found.images), targets, strict=True):
            kept = single_resets(image, reached, norm)
            assert not clearly_wrong(model.logits(kept), target, sign=-1).any()


def test_no_value_can_move_by_a_hundredth():
    model, images = curved(), grays(6)
    labels = model.predict(images)
    result = run(model, images, labels, norm="l2")
    assert np.all(result.success)
    for image, label, found in zip(images, labels, np.asarray(result.images), strict=True):
        places = np.argwhere(np.abs(found - image) > 1e-3)
        moved = np.repeat(found[None], len(places), axis=0)
        for candidate, place in zip(moved, places, strict=True):
            where = tuple(place)
            candidate[where] += 0.0101 * (image[where] - candidate[where])
        assert not clearly_wrong(model.logits(moved), label).any()


def test_a_linear_classifier_takes_at_least_the_pixels_of_most_effect():
    _, w, bias = two_classes()
    model = linear_classifier(np.stack([0 * w, w], axis=1), [4.0, bias])
    images = grays(8)
    labels = model.predict(images)
    assert np.all(labels == 0)
    # Noise rarely goes as far.
    starts = (w.reshape(1, *SHAPE) > 0).astype(np.float32)
    result = run(model, images, labels, num_restarts=6, starting_points=starts)
    # Black or white, the same in both channels, or both.
    flat = images.reshape(8, -1, 2).astype(np.float64)
    weights = w.reshape(-1, 2)
    gains = np.maximum((weights * (1 - flat)).sum(2), (weights * -flat).sum(2))
    needed = 4.0 - bias - images.reshape(8, -1) @ w
    least = [
        1 + np.searchsorted(np.cumsum(np.sort(gain)[::-1]), need)
        for gain, need in zip(gains, needed, strict=True)
    ]
    assert np.all(result.success)
    assert np.all(np.asarray(result.distances) >= least)
    assert np.median(result.distances - np.array(least)) <= 4
    check_minimal(model, images, labels, result, "l0")


def test_pixels_are_set_back_in_all_channels():
    model, images = three_classes(), grays(6)
    result = run(model, images, model.predict(images))
    changed = np.asarray(result.images) != images
    np.testing.assert_array_equal(changed[..., 0], changed[..., 1])


@both_norms
def test_budget_ends_the_search(norm):
    model, images = curved(offset=6.0), grays(6)
    labels = model.predict(images)
    free = run(model, images, labels, norm=norm)
    # 20 levels and 1 bisection in each of 2 restarts, other starts, and each start once more.
    least = 1 + 2 * (20 + 1) + most_starting_queries(None) + 2
    for budget in (least, least + 30):
        limited = run(model, images, labels, norm=norm, max_queries=budget)
        assert np.all(limited.num_queries <= budget)
        assert np.all(limited.success)
        assert np.all(np.asarray(limited.distances) >= np.asarray(free.distances))
    assert np.any(np.asarray(limited.distances) > np.asarray(free.distances))
    ample = run(model, images, labels, norm=norm, max_queries=100_000)
    np.testing.assert_array_equal(ample.images, free.images)
    np.testing.assert_array_equal(ample.num_queries, free.num_queries)


def test_blocks_save_questions():
    """What changes nothing goes in few questions: only 2 values of 60 count."""
    w = np.zeros(PIXELS)
    w[[7, 40]] = 1.0
    model = linear_classifier(np.stack([0 * w, w], axis=1), [1.5, 0.0])
    images, beginning = np.zeros((1, *SHAPE), np.float32), np.ones((1, *SHAPE), np.float32)
    best, _, asked = reset(model, images, np.zeros(1, int), [beginning], "l0")
    np.testing.assert_array_equal(best.distances, 2)
    assert asked < 30


@both_norms
def test_more_restarts_never_do_worse(norm):
    model, images = curved(), grays(6)
    labels = model.predict(images)
    fewer, more = (run(model, images, labels, norm=norm, num_restarts=n) for n in (1, 5))
    assert np.all(np.asarray(more.distances) <= np.asarray(fewer.distances))
    assert np.any(np.asarray(more.distances) < np.asarray(fewer.distances))


@both_norms
def test_same_key_same_result_other_key_another(norm):
    model, images = curved(), grays(6)
    labels = model.predict(images)
    first, again, other = (
        run(model, images, labels, jax.random.key(seed), norm=norm) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.images, again.images)
    assert np.abs(np.asarray(first.images) - other.images).max() > 1e-3


@both_norms
@pytest.mark.parametrize("max_queries", [None, 60])
def test_result_does_not_depend_on_the_split_into_calls_and_batches(norm, max_queries):
    model, images = three_classes(), grays(7)
    labels = model.predict(images)
    settings = {"norm": norm, "starting_points": walled(20), "max_queries": max_queries}
    whole = run(model.with_batch_size(7), images, labels, **settings)
    batched = run(model.with_batch_size(3), images, labels, **settings)
    parts = [
        run(model, images[part], labels[part], image_keys(KEY, 7)[part], **settings)
        for part in (slice(0, 2), slice(2, 7))
    ]
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    for other in (batched, joined):
        np.testing.assert_allclose(other.images, whole.images, atol=1e-5)
        np.testing.assert_array_equal(other.success, whole.success)


@both_norms
@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_the_scale_of_the_logits_plays_no_part(norm, scale):
    images = grays(6)
    labels = two_classes()[0].predict(images)
    plain, scaled = (run(two_classes(scale=s)[0], images, labels, norm=norm) for s in (1, scale))
    np.testing.assert_allclose(scaled.distances, plain.distances, rtol=0.01)
    assert np.all(scaled.success)


def test_where_noise_does_not_fool_other_starts_do():
    """Only images without any structure are of class 1."""

    def function(images):
        spread = images.reshape(len(images), -1).std(1)
        return jnp.stack([jnp.full_like(spread, 0.05), 0.1 - spread], axis=1)

    model, images = function_classifier(function, 2), walled(5)
    images[3] = 0.5
    labels = np.array([0, 0, 0, 1, 1])
    result = run(model, images, labels)
    assert np.all(result.success)
    alone = run(model, images[3:], labels[3:], image_keys(KEY, 5)[3:])
    np.testing.assert_array_equal(alone.images, result.images[3:])


@both_norms
def test_a_classifier_that_nothing_fools_is_no_trouble(norm):
    never = linear_classifier(np.zeros((PIXELS, 2)), [1.0, 0.0])
    result = run(never, walled(3), np.zeros(3, int), norm=norm)
    assert not np.any(result.success)
    # 20 levels and the start itself in each restart.
    assert np.all(result.num_queries <= 1 + 2 * 21 + most_starting_queries(None))


def test_needs_no_more_pixels_than_salt_and_pepper(mnist_sample):
    model = abs_model.load("cnn", batch_size=10)
    images = mnist_sample["test_images"][:10].reshape(-1, 28, 28, 1).astype(np.float32) / 255
    labels = mnist_sample["test_labels"][:10]
    result = run(model, images, labels)
    assert np.all(result.success)
    # Schott et al. 2019, table 1, have a median of 9 for 10 restarts on their CNN.
    assert 4 < np.median(result.distances) < 20
    check_minimal(model, images, labels, result, "l0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "linf"}, "norm must be one of l2, l0, got 'linf'"),
        ({"num_restarts": 0}, "num_restarts must be an integer of at least 1, got 0"),
        ({"max_queries": 0.5}, "max_queries must be an integer of at least 1"),
        ({"max_queries": 87}, "max_queries must be at least 88 for 2 restarts, got 87"),
        ({"starting_points": grays(2)[:, :5]}, r"starting_points must be .*\(N, 6, 5, 2\)"),
    ],
)
def test_faulty_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        run(three_classes(), grays(2), np.array([0, 1]), **changes)
