"""Adversarial examples that only wrong warm-started queries find."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abs_model import register_dataclass
from abs_model.attacks import (
    Batch,
    apgd,
    bim,
    carlini_wagner,
    deepfool,
    fab,
    fmn,
    greedy_pixels,
    mim,
    pgd,
    sparse_rs,
    square,
)
from abs_model.attacks._core.keys import image_keys
from abs_model.attacks._core.query import Query
from abs_model.attacks._core.run import run
from benchmarks.linear import LinearClassifier
from tests.linear_classifiers import boundary_distances, grays, two_classes
from tests.minimal_norm import KEY


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class RashClassifier(LinearClassifier):
    """Warm-started answers see images fooled `rashness` too early, in units of the margin.

    As ABS does where its latents are stuck: only where the last image was on that side, too.
    """

    rashness: jax.Array

    def cold_logits(self, images):
        return self.batch_logits(images), images

    def warm_logits(self, images, state, required=None):
        logits = self.batch_logits(images)
        margins = logits[:, 1] - logits[:, 0]
        rash = logits + 0.5 * jnp.sign(margins)[:, None] * jnp.array([1.0, -1.0]) * self.rashness
        seems_fooled = jnp.abs(margins) < self.rashness
        return jnp.where(seems_fooled[:, None], rash, logits), images


def rash_classifier(share):
    """And its boundary's w and bias; rash within that share of the way of the image `grays` has."""
    linear, w, bias = two_classes()
    margins = grays(6).reshape(6, -1) @ w + bias
    settings = {field.name: getattr(linear, field.name) for field in dataclasses.fields(linear)}
    rashness = jnp.asarray(share * np.abs(margins).min(), jnp.float32)
    return RashClassifier(**settings, rashness=rashness), w, bias


ATTACKS = [
    (functools.partial(bim, norm="l2"), "l2"),
    (functools.partial(mim, norm="linf"), "linf"),
    (functools.partial(deepfool, norm="l2"), "l2"),
    (functools.partial(fab, norm="l2", num_steps=40), "l2"),
    (functools.partial(fmn, norm="linf", num_steps=200), "linf"),
    (functools.partial(carlini_wagner, num_steps=200, step_size=0.05), "l2"),
    (functools.partial(pgd, norm="linf", epsilon=0.2, step_size=0.01, num_steps=40), "linf"),
    (functools.partial(apgd, norm="l2", epsilon=3.0, num_steps=40, loss="ce"), "l2"),
    (functools.partial(square, norm="linf", epsilon=0.3, num_steps=300), "linf"),
    (functools.partial(sparse_rs, num_pixels=20, num_steps=300), None),
    (functools.partial(greedy_pixels), None),
]


@pytest.mark.parametrize(("attack", "norm"), ATTACKS)
def test_what_only_seems_adversarial_does_not_count_and_does_not_end_the_search(attack, norm):
    model, w, bias = rash_classifier(0.6)
    images = grays(6)
    labels = model.predict(images)
    result = attack(model, images, labels, KEY)
    assert np.all(result.success)
    assert np.all(model.predict(result.images) != labels)
    if norm is not None:
        needed = boundary_distances(images, w, bias, norm)
        assert np.all(np.asarray(result.distances) >= needed * (1 - 1e-4))


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class WavyRashClassifier(RashClassifier):
    """To whose boundary the ways are crooked, and of different lengths."""

    def batch_logits(self, images):
        logits = super().batch_logits(images)
        waves = jnp.sin(40 * images.reshape(len(images), -1)) @ self.weights[::-1]
        return logits + 0.1 * waves


@pytest.mark.parametrize(("attack", "norm"), ATTACKS)
def test_examples_of_other_images_in_the_batch_play_no_part(attack, norm):
    linear, _, _ = rash_classifier(0.9)
    settings = {field.name: getattr(linear, field.name) for field in dataclasses.fields(linear)}
    model = WavyRashClassifier(**settings)
    images = grays(6)
    labels, keys = model.predict(images), image_keys(KEY, 6)
    whole = attack(model.with_batch_size(6), images, labels, keys)
    for rows in (np.array([0, 2, 4, 5]), np.array([1]), np.array([3])):
        part = attack(model.with_batch_size(len(rows)), images[rows], labels[rows], keys[rows])
        np.testing.assert_allclose(part.images, whole.images[rows], atol=1e-4)


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class StuckClassifier(RashClassifier):
    """Rash for good, once warm-started answers have come near the boundary."""

    def cold_logits(self, images):
        logits = self.batch_logits(images)
        return logits, (logits[:, 1] > logits[:, 0], jnp.zeros(len(images), bool))

    def warm_logits(self, images, state, required=None):
        logits = self.batch_logits(images)
        first, stuck = state
        stuck = stuck | (jnp.abs(logits[:, 1] - logits[:, 0]) < self.rashness)
        lead = jnp.where(stuck, self.rashness, 0.0) * jnp.where(first, -1.0, 1.0)
        return logits + 0.5 * lead[:, None] * jnp.array([-1.0, 1.0]), (first, stuck)


def stuck_classifier(share):
    model, w, bias = rash_classifier(share)
    settings = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    return StuckClassifier(**settings), w, bias


@pytest.mark.parametrize(
    ("attack", "norm"),
    [
        (functools.partial(fab, norm="l2", num_steps=20), "l2"),
        (functools.partial(fmn, norm="l2", num_steps=100), "l2"),
        (functools.partial(fmn, norm="linf", num_steps=100), "linf"),
        (functools.partial(carlini_wagner, num_steps=100, step_size=0.05, num_searches=4), "l2"),
        (functools.partial(deepfool, norm="l2"), "l2"),
    ],
)
def test_what_lies_a_little_beyond_a_rejected_example_is_found(attack, norm):
    model, w, bias = stuck_classifier(0.1)
    images = grays(6)
    labels = model.predict(images)
    result = attack(model, images, labels, KEY)
    assert np.all(result.success) and np.all(model.predict(result.images) != labels)
    needed = boundary_distances(images, w, bias, norm)
    assert np.all(result.distances >= needed * (1 - 1e-4))
    assert np.all(result.distances <= needed * 1.25)


def test_greedy_pixels_continue_where_examples_are_rejected():
    model, _, _ = stuck_classifier(0.3)
    images = grays(6)
    labels = model.predict(images)
    result = greedy_pixels(model, images, labels, KEY)
    assert np.all(result.success) and np.all(model.predict(result.images) != labels)


def test_a_rejected_example_is_searched_beyond_up_to_the_demanded_margin():
    """What fools by less than the confidence is no end of the search farther out."""
    model, w, _ = stuck_classifier(0.02)
    images = grays(3)
    labels = model.predict(images)
    settings = {"num_steps": 100, "step_size": 0.05, "num_searches": 5}
    result = carlini_wagner(model, images, labels, KEY, confidence=0.05, **settings)
    logits = np.asarray(model.logits(result.images))
    margins = np.abs(logits[:, 1] - logits[:, 0]) / np.linalg.norm(w)
    assert np.all(result.success) and np.all(model.predict(result.images) != labels)
    assert np.all(margins >= 0.05 * (1 - 1e-4))


def test_a_random_search_continues_where_all_examples_are_rejected():
    model, w, bias = stuck_classifier(0.6)
    # One by one, so that a wrong example is all that there is.
    model = model.with_batch_size(1)
    images = grays(3)
    labels = model.predict(images)
    # So little room that each image passes through where answers are rash.
    epsilon = 1.2 * float(boundary_distances(images, w, bias, "linf").max())
    result = square(model, images, labels, KEY, norm="linf", epsilon=epsilon, num_steps=400)
    assert np.all(result.success)
    assert np.all(model.predict(result.images) != labels)


def test_a_verified_example_outlives_a_closer_one_that_is_rejected():
    model, w, bias = rash_classifier(0.3)
    images = grays(6)
    labels = model.predict(images)
    ways = -(images.reshape(6, -1) @ w + bias)[:, None] / (w @ w) * w

    def at(share):
        return jnp.asarray(images + share * ways.reshape(images.shape), jnp.float32)

    def attack(query, batch):
        original = query.logits(batch.images)
        query.finish(at(1.1))
        assert query.best.success.all() and query.best.verified.all()
        answer = query.logits(at(0.9), near=query.logits(at(0.85), near=original))
        rash = ~query.best.verified
        assert query.best.success.all() and rash.any()
        again = query.verify(answer)
        np.testing.assert_array_equal(query.rejected, rash)
        assert batch.is_adversarial(answer.logits)[rash].all()
        assert not batch.is_adversarial(again.logits).any()

    model = model.with_batch_size(6)
    found = run(attack, model, images, labels, KEY, norm="l2", norms=("l2",))
    assert np.all(found.success)
    np.testing.assert_array_equal(found.images, at(1.1))


def test_a_rejection_shows_without_any_verified_example():
    """Though the rejected image is the best that there is: the one of the highest margin."""
    model, _, _ = stuck_classifier(0.3)
    images = jnp.asarray(grays(4))
    labels = jnp.asarray(model.predict(images))
    batch = Batch(images, labels, image_keys(KEY, 4), targeted=False)
    query = Query(model, batch, "l2")
    first = query.gradients(images)
    moved, answer = images, first.plain()
    while not bool(query.best.success.all()):
        moved = moved + 1e-3 * first.gradients
        answer = query.logits(moved, near=answer)
    wrong = ~batch.is_adversarial(model.logits(query.best.images))
    assert wrong.any() and not query.best.verified.any()
    again = query.verify(answer)
    np.testing.assert_array_equal(query.rejected, wrong)
    np.testing.assert_allclose(again.logits[wrong], model.logits(moved)[wrong], atol=1e-5)


def report(share):
    """An attack that reports, after a warm query, images at a share of the way."""

    def attack(model, images, labels, key):
        w = np.asarray(model.weights)[:, 1]
        ways = -(images.reshape(len(images), -1) @ w + float(model.biases[1])) / (w @ w)
        reported = images + (share[:, None] * ways[:, None] * w).reshape(images.shape)

        def find(query, batch):
            original = query.logits(batch.images)
            query.logits(jnp.asarray(reported, jnp.float32), near=original)

        return run(find, model, images, labels, key, norm="l2", norms=("l2",))

    return attack


def test_in_the_end_the_line_to_the_next_verified_image_is_bisected():
    model, w, bias = rash_classifier(0.2)
    images = grays(6)
    labels = model.predict(images)
    needed = boundary_distances(images, w, bias, "l2")
    # All but one, which fails, are reported within the rashness.
    shares = np.array([0.995, 0.97, 0.93, 0.999, 0.99, 0.5], np.float32)
    margins = np.abs(images.reshape(6, -1) @ w + bias)
    reported = (1 - shares) * margins < float(model.rashness)
    result = report(shares)(model.with_batch_size(6), images, labels, KEY)
    np.testing.assert_array_equal(result.success, reported)
    assert reported.sum() >= 3 and not reported[5]
    found = np.asarray(result.distances)[reported]
    assert np.all(found >= needed[reported])
    np.testing.assert_allclose(found, needed[reported], rtol=0.02)
    # And nothing is tried for those that were not reported.
    alone = report(shares[5:])(model.with_batch_size(1), images[5:], labels[5:], KEY)
    np.testing.assert_allclose(result.images[5:], alone.images, atol=1e-6)
