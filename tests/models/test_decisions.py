"""When an image counts as misclassified: by a margin that rounding cannot undo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import abs_model
from abs_model import attacks
from abs_model.attacks import Batch
from abs_model.attacks._core import losses
from abs_model.evaluation import verify
from abs_model.models.decisions import (
    ATTACK_FACTOR,
    NO_DECISION,
    RELATIVE_ROUNDING,
    decide,
    margins,
    uncertainty,
)
from tests.function_classifiers import function_classifier
from tests.linear_classifiers import (
    PIXELS,
    SHAPE,
    grays,
    linear_classifier,
    three_classes,
    two_classes,
)

KEY = jax.random.key(0)


def batch(classes, *, targeted=False, logit_tolerance=0.0):
    count = len(classes)
    keys = jax.random.split(KEY, count)
    images = jnp.zeros((count, *SHAPE))
    return Batch(images, jnp.asarray(classes), keys, targeted, logit_tolerance)


def test_margins_are_of_the_largest_other_logit():
    logits = np.array([[1.0, 3.0, 2.0], [5.0, 3.0, 4.5], [1.0, np.nan, 0.0]], np.float32)
    np.testing.assert_array_equal(margins(logits, np.array([0, 0, 0])), [2.0, -0.5, np.nan])
    np.testing.assert_array_equal(margins(logits, np.array([1, 2, 1])), [-1.0, 0.5, np.nan])


def test_uncertainty_follows_the_two_logits_that_decide():
    logits = jnp.array([[-1e9, 1.0, 3.0], [0.5, 2.0, -jnp.inf], [-7.0, -1e9, 4.0]])
    np.testing.assert_allclose(
        uncertainty(logits, jnp.array([1, 0, 0]), 0.25),
        0.25 + RELATIVE_ROUNDING * np.array([3, 2, 7]),
        rtol=1e-6,
    )


def test_classes_that_are_masked_by_large_negative_logits_protect_nobody():
    linear = three_classes()

    def logits(images):
        found = images.reshape(len(images), -1) @ linear.weights + linear.biases
        return jnp.concatenate([found, jnp.full((len(found), 2), -1e9)], axis=1)

    model, images = function_classifier(logits, 5), grays(6)
    labels = model.predict(images)
    found = attacks.fmn(model, images, labels, KEY, norm="l2", num_steps=40)
    assert found.success.all()
    assert verify(model, images, labels, np.asarray(found.images), norm="l2").verified.all()


def test_in_doubt_a_decision_is_for_the_label():
    logits = np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, np.nan]])
    decided = decide(logits, np.array([0, 0, 0, 0]), np.array([0.9, 1.0, 0.0, 0.0]))
    np.testing.assert_array_equal(decided, [1, 0, 0, NO_DECISION])


def test_a_tie_is_a_decision_for_nobody():
    logits = np.ones((3, 3))
    decided = decide(logits, np.array([0, 1, 2]), np.full(3, 1e-5))
    np.testing.assert_array_equal(decided, [NO_DECISION] * 3)


@pytest.mark.parametrize("targeted", [False, True])
def test_attacks_look_for_twice_the_margin_of_verification(targeted):
    random = np.random.default_rng(0)
    for lead, tolerance in ((1.5, 0.0), (2.5, 0.0), (1.5, 0.01), (2.5, 0.01)):
        logits = random.normal(size=(50, 4)).astype(np.float32) * 20
        classes = random.integers(0, 4, 50)
        # The class as far behind the others, or ahead of them, as `lead` times the uncertainty.
        logits[np.arange(50), classes] = 0.0
        others = np.where(np.eye(4, dtype=bool)[classes], -np.inf, logits).max(1)
        allowed = RELATIVE_ROUNDING * np.abs(others) + tolerance
        sign = 1 if targeted else -1
        logits[np.arange(50), classes] = others + sign * lead * allowed
        attacked = batch(classes, targeted=targeted, logit_tolerance=tolerance)
        expected = np.full(50, lead > ATTACK_FACTOR)
        np.testing.assert_array_equal(attacked.is_adversarial(jnp.asarray(logits)), expected)
        above = losses.margins(jnp.asarray(logits), attacked) > 0
        np.testing.assert_array_equal(above, expected)


@pytest.mark.parametrize("targeted", [False, True])
def test_logits_with_a_nan_fool_nobody(targeted):
    logits = jnp.array([[jnp.nan, 1.0, 0.0], [0.0, 1.0, jnp.nan], [jnp.nan] * 3])
    for label in range(3):
        attacked = batch([label] * 3, targeted=targeted)
        assert not attacked.is_adversarial(logits).any()
        assert np.isneginf(losses.margins(logits, attacked)).all()


def test_a_model_whose_logits_are_nan_is_never_fooled():
    model = function_classifier(lambda images: jnp.full((len(images), 10), jnp.nan), 10)
    images, labels = grays(4), np.array([0, 3, 5, 0])
    found = attacks.boundary(model, images, labels, KEY, num_steps=2)
    assert not found.success.any()
    checked = verify(model, images, labels, images, norm="l2")
    assert not checked.verified.any() and (checked.predictions == NO_DECISION).all()
    assert [checked.reasons(row) for row in range(4)] == [("no_decision",)] * 4


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("name", ["fab", "bim", "fmn", "deepfool"])
def test_what_attacks_report_is_verified_at_every_batch_size(name, norm):
    images = np.random.default_rng(1).uniform(size=(24, *SHAPE)).astype(np.float32)
    weights = np.random.default_rng(2).normal(size=(PIXELS, 10))
    for model in (linear_classifier(scale * weights, np.zeros(10)) for scale in (0.01, 30.0)):
        labels = model.predict(images)
        found = attacks.ATTACKS[name].function(
            model.with_batch_size(24), images, labels, KEY, norm=norm
        )
        assert found.success.all()
        assert abs_model.verify(model, images, labels, found.images, norm=norm).verified.all()
        for batch_size in (1, 7, 64):
            logits = np.asarray(model.with_batch_size(batch_size).logits(found.images))
            allowed = np.asarray(uncertainty(jnp.asarray(logits), jnp.asarray(labels)))
            assert (margins(logits, labels) > allowed).all()


@pytest.mark.parametrize("name", ["pgd", "apgd", "bim", "mim", "fmn", "carlini_wagner", "fab"])
def test_gradients_that_are_not_finite_neither_stop_an_attack_nor_leave_their_mark(name):
    linear = two_classes()[0]
    matrix = linear.weights

    def logits(images):
        # Infinitely steep in the pixels that are 0, and the same otherwise as of the square roots.
        return jnp.sqrt(images).reshape(len(images), -1) @ matrix + linear.biases

    model = function_classifier(logits, 2)
    images = grays(3)
    images[:, :, 0] = 0.0
    labels = model.predict(images)
    settings = {"norm": "l2"} if name != "carlini_wagner" else {"num_steps": 200}
    if name in ("pgd", "apgd"):
        settings |= {"epsilon": 2.0, "num_steps": 20}
        settings |= {"step_size": 0.3} if name == "pgd" else {"loss": "ce"}
    found = attacks.ATTACKS[name].function(model, images, labels, KEY, **settings)
    assert np.isfinite(found.images).all() and np.isfinite(found.distances).all()
    assert (np.asarray(found.num_nonfinite_gradients) > 0).all()
    assert not np.asarray(found.num_zero_gradients).any()
    assert found.success.all()
    assert verify(model, images, labels, np.asarray(found.images), norm="l2").verified.all()


def test_zero_gradients_are_counted_by_image():
    linear = three_classes()

    def logits(images):
        flat = images.reshape(len(images), -1)
        # Flat where the first value is above one half.
        seen = jnp.where(flat[:, :1] > 0.5, jax.lax.stop_gradient(flat), flat)
        return seen @ linear.weights + linear.biases

    model = function_classifier(logits, 3)
    images = grays(4)
    images[:, 0, 0, 0] = (0.9, 0.1, 0.9, 0.1)
    found = attacks.pgd(
        model, images, model.predict(images), KEY, norm="linf", epsilon=0.01, step_size=0.002,
        num_steps=5, random_start=False,
    )  # fmt: skip
    np.testing.assert_array_equal(found.num_zero_gradients, [5, 0, 5, 0])
    np.testing.assert_array_equal(found.num_gradients, [5] * 4)
    np.testing.assert_array_equal(found.num_nonfinite_gradients, [0] * 4)
