"""Random models: found out, and averaged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abs_model.attacks import average_logits, estimate_gradients
from abs_model.attacks._core.query import Query
from abs_model.evaluation.run.workdir import model_identity
from abs_model.models.randomness import depends_on_batch, is_random
from tests.function_classifiers import function_classifier
from tests.linear_classifiers import SHAPE, grays, three_classes
from tests.models.test_estimated_gradients import batch_of

KEY = jax.random.key(0)


def noisy(scale=1.0, draws=None, num_classes=3):
    """A linear classifier whose slopes are multiplied by normal noise around 1 in each call."""
    linear, random = three_classes(), np.random.default_rng(0)

    def draw(_):
        value = np.float32(random.normal(1, scale))
        if draws is not None:
            draws.append(float(value))
        return value

    @jax.custom_vjp
    def scaled(images):
        factor = jax.pure_callback(draw, jax.ShapeDtypeStruct((), jnp.float32), images[0, 0, 0, 0])
        return factor * linear.batch_logits(images)

    def forward(images):
        factor = jax.pure_callback(draw, jax.ShapeDtypeStruct((), jnp.float32), images[0, 0, 0, 0])
        return factor * linear.batch_logits(images), (factor, images)

    def backward(given, steps):
        factor, images = given
        return (factor * jax.vjp(linear.batch_logits, images)[1](steps)[0],)

    scaled.defvjp(forward, backward)
    return function_classifier(lambda images: scaled(images), num_classes), linear


def test_random_models_are_found_out():
    assert is_random(noisy()[0], grays(5))
    assert not is_random(noisy(scale=0)[0], grays(5))
    assert not is_random(three_classes(), grays(5))
    assert not is_random(function_classifier(lambda x: jnp.full((len(x), 3), jnp.nan), 3), grays(2))


def test_models_that_look_at_other_images_are_found_out():
    linear = three_classes()

    def centered(images):
        logits = linear.batch_logits(images)
        return logits - logits.mean(axis=0)

    assert depends_on_batch(function_classifier(centered, 3), grays(5))
    assert not depends_on_batch(linear, grays(5))
    assert not depends_on_batch(function_classifier(lambda x: jnp.full((len(x), 3), jnp.nan), 3),
                                grays(2))  # fmt: skip
    # One image has no others to depend on.
    assert not depends_on_batch(function_classifier(centered, 3), grays(1))


def test_differences_that_rounding_makes_are_no_randomness():
    assert not is_random(noisy(scale=1e-7)[0], grays(5))


def test_an_average_is_of_different_draws():
    """Compilers merge equal calls, and move those out of loops that a loop does not change."""
    draws = []
    model, linear = noisy(draws=draws)
    images = grays(4)
    averaged = average_logits(model, 10)
    draws.clear()
    logits = np.asarray(averaged.logits(images))
    assert len(set(draws)) == 10
    np.testing.assert_allclose(logits, np.mean(draws) * linear.logits(images), rtol=1e-4, atol=1e-5)


def test_gradients_are_means_over_different_draws():
    draws = []
    model, linear = noisy(draws=draws)
    images, batch = jnp.asarray(grays(4)), batch_of(grays(4), np.zeros(4, int))
    query = Query(average_logits(model, 10), batch, "l2")
    draws.clear()
    found = query.gradients(images)
    assert len(set(draws)) >= 10 and found.state == ()
    exact = Query(linear, batch, "l2").gradients(images)
    factor = np.asarray(found.logits / exact.logits)
    np.testing.assert_allclose(factor, factor[0, 0], rtol=1e-3)
    assert any(
        np.isclose(factor[0, 0], np.mean(draws[at : at + 10]), rtol=1e-3)
        for at in range(len(draws) - 9)
    )
    steep = np.abs(exact.gradients) > 0.1
    ratio = np.asarray(found.gradients)[steep] / np.asarray(exact.gradients)[steep]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)


def test_means_come_closer_with_more_samples():
    def deviation(num_samples):
        model, linear = noisy()
        averaged, images = average_logits(model, num_samples), grays(1)
        factors = [
            float(averaged.logits(images)[0, 0] / linear.logits(images)[0, 0]) for _ in range(30)
        ]
        return np.std(factors)

    assert 0.5 < deviation(1) < 1.5
    assert 0.08 < deviation(40) < 0.25  # 0.16


def test_it_is_the_same_classifier_but_for_its_samples():
    model = three_classes()
    averaged = average_logits(model, 3)
    images = grays(5)
    assert (averaged.name, averaged.image_shape) == ("linear, mean of 3", SHAPE)
    np.testing.assert_allclose(averaged.logits(images), model.logits(images), rtol=1e-5)
    np.testing.assert_allclose(averaged.confidences(images), model.confidences(images), rtol=1e-5)
    black_box = function_classifier(lambda x: x.reshape(len(x), -1)[:, :3].astype(int), 3)
    assert averaged.differentiable and not average_logits(black_box, 3).differentiable


def test_evaluations_are_counted():
    images, batch = jnp.asarray(grays(4)), batch_of(grays(4), np.zeros(4, int))
    averaged = average_logits(three_classes(), 7)
    query = Query(averaged, batch, "l2")
    query.logits(images)
    assert query.num_queries == 7
    query.gradients(images)
    assert (query.num_queries, query.num_gradients) == (14, 1)
    assert estimate_gradients(averaged).evaluations_per_gradient == 7 * 61
    assert average_logits(estimate_gradients(three_classes()), 7).evaluations_per_gradient == 7 * 61


def test_the_fingerprint_is_of_the_model_and_the_number():
    def averaged(num_samples, scale):
        model = function_classifier(lambda x: scale * x.reshape(len(x), -1)[:, :3], 3)
        return average_logits(model, num_samples)

    assert model_identity(averaged(3, 1.0)) == model_identity(averaged(3, 1.0))
    found = {model_identity(averaged(*each)) for each in ((3, 1.0), (4, 1.0), (3, 2.0))}
    assert len(found) == 3


@pytest.mark.parametrize("number", [0, 1.5, True])
def test_faulty_numbers_are_named(number):
    with pytest.raises(ValueError, match="num_samples must be an integer of at least 1"):
        average_logits(three_classes(), number)


def test_a_model_that_draws_once_for_all_samples_is_refused():
    generator = np.random.default_rng(0)

    def logits(images):
        noise = jax.pure_callback(
            lambda: generator.normal(size=3).astype(np.float32),
            jax.ShapeDtypeStruct((3,), np.float32),
        )
        return images.reshape(len(images), -1)[:, :3] + noise

    model = function_classifier(logits, 3)
    with pytest.raises(ValueError, match=r"give jax\.pure_callback the images"):
        average_logits(model, 10)
