"""Gradients from finite differences, in place of a classifier's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import abs_model
from abs_model import register_dataclass
from abs_model.attacks import Batch, log_odds, margins, pgd
from abs_model.attacks._core.query import Answer, Query
from abs_model.attacks.fast_gradient import fast_gradient
from abs_model.data import Dataset, Split
from abs_model.models.classifier import threshold
from abs_model.models.estimated_gradients import estimate_gradients
from tests.function_classifiers import (
    FunctionClassifier,
    as_kind,
    function_classifier,
    tracking_classifier,
)
from tests.linear_classifiers import (
    PIXELS,
    SHAPE,
    boundary_distances,
    grays,
    three_classes,
    two_classes,
)

KEY = jax.random.key(3)


def batch_of(images, labels):
    keys = jax.random.split(KEY, len(images))
    return Batch(jnp.asarray(images), jnp.asarray(labels), keys, targeted=False)


def mixed(count, seed=0):
    """Images with many values at the ends of the range."""
    values = np.random.default_rng(seed).uniform(-0.5, 1.5, (count, *SHAPE))
    return np.clip(values, 0, 1).astype(np.float32)


def query_of(model, batch):
    return Query(model, batch, "l2")


@pytest.mark.parametrize("step", [0.001, 0.1, 0.6, 1.0])
def test_gradients_of_a_linear_classifier_are_exact(step):
    model, images = three_classes(), mixed(4)
    estimated = estimate_gradients(model, step=step)
    batch = batch_of(images, np.array([0, 1, 2, 0]))
    tolerance = 0.01 if step == 0.001 else 1e-4
    for loss in (margins, log_odds):
        exact = query_of(model, batch).gradients(batch.images, loss=loss)
        found = query_of(estimated, batch).gradients(batch.images, loss=loss)
        np.testing.assert_allclose(found.gradients, exact.gradients, atol=tolerance)
        np.testing.assert_allclose(found.logits, exact.logits, atol=1e-5)
        assert found.state == ()
    rows = query_of(estimated, batch).jacobian(batch.images).jacobian.gradients
    expected = model.weights.T.reshape(3, *SHAPE)
    np.testing.assert_allclose(rows, np.broadcast_to(expected, rows.shape), atol=tolerance)


@pytest.mark.parametrize("count", [1, 7, 150])
def test_every_number_of_images_is_answered(count):
    """One image is asked about in chunks of many coordinates, 150 by one coordinate at a time."""
    model, images = three_classes().with_batch_size(count), mixed(count)
    gradients = jax.grad(lambda x: estimate_gradients(model).logits(x)[:, 1].sum())(images)
    expected = model.weights[:, 1].reshape(SHAPE)
    np.testing.assert_allclose(gradients, np.broadcast_to(expected, images.shape), atol=1e-4)


def test_differences_stay_in_range_and_lead_to_the_farther_end():
    seen = []

    def logits(images):
        jax.debug.callback(lambda values: seen.append(np.asarray(values)), images)
        return jnp.zeros((len(images), 2))

    images = mixed(2)
    estimated = estimate_gradients(function_classifier(logits, 2), step=0.7)
    query_of(estimated, batch_of(images, np.array([0, 1]))).gradients(jnp.asarray(images))
    jax.effects_barrier()
    asked = np.concatenate(seen)
    assert asked.min() >= 0 and asked.max() <= 1
    # All pixels of each image have been moved, by themselves, and across the middle.
    for image in images:
        moves = asked - image
        moves = moves[(moves != 0).reshape(-1, PIXELS).sum(1) == 1]
        ends = np.where(image > 0.5, np.maximum(image - 0.7, 0), np.minimum(image + 0.7, 1))
        extremes = np.where(image > 0.5, moves.min(0), moves.max(0))
        np.testing.assert_allclose(extremes, ends - image, atol=1e-6)


def count_images(ask):
    """How many images a query of the estimate of a classifier of three classes evaluates."""
    seen = []

    def logits(images):
        # A callback that is mapped over is called once for each.
        jax.debug.callback(lambda _: seen.append(len(images)), images)
        return images.reshape(len(images), -1)[:, :3]

    model = estimate_gradients(function_classifier(logits, 3))
    images = jnp.asarray(mixed(50))
    ask(query_of(model, batch_of(images, np.zeros(50, int))), images)
    jax.effects_barrier()
    return sum(seen), model.evaluations_per_gradient


def test_differences_are_evaluated_once_for_all_classes_and_only_when_asked_for():
    evaluated, expected = count_images(lambda query, images: query.jacobian(images))
    assert expected == 1 + PIXELS
    assert evaluated == 50 * expected
    evaluated, _ = count_images(lambda query, images: query.gradients(images))
    assert evaluated == 50 * expected
    assert count_images(lambda query, images: query.logits(images))[0] == 50


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Follower(FunctionClassifier):
    """When it follows, the two largest logits and those asked for are exact, others too small."""

    def cold_logits(self, images):
        return self.function(images), images

    def warm_logits(self, images, state, required=None):
        exact = self.function(state) >= jax.lax.top_k(self.function(state), 2)[0][:, 1:]
        exact = exact if required is None else exact | required
        logits = self.function(images)
        return jnp.where(exact, logits, logits - 100.0), images


@pytest.mark.parametrize("begun", [False, True])
def test_differences_follow_the_state_of_the_image_itself(begun):
    linear = three_classes()
    plain = function_classifier(linear.batch_logits, 3)
    model = as_kind(Follower, plain)
    estimated = estimate_gradients(model)
    images = jnp.asarray(grays(4))
    near = None if begun else Answer(images, None, state=images + 0.001)
    answer = query_of(estimated, batch_of(images, np.zeros(4, int))).jacobian(images, near)
    rows = answer.jacobian.gradients
    np.testing.assert_array_equal(answer.state, images)
    expected = np.broadcast_to(linear.weights.T.reshape(3, *SHAPE), rows.shape)
    np.testing.assert_allclose(rows, expected, atol=1e-3)


def test_mere_bounds_have_no_gradient():
    linear = three_classes()
    plain = function_classifier(linear.batch_logits, 3)
    model = as_kind(Follower, plain)
    images = jnp.asarray(grays(4))
    last = np.argmin(linear.logits(images), axis=1)
    follow = estimate_gradients(model).warm_logits
    for asked, expected in ((False, 0.0), (True, linear.weights.T[last].reshape(4, *SHAPE))):
        wanted = jnp.full((4, 3), asked)
        gradient = jax.grad(
            lambda x, wanted=wanted: follow(x, images, wanted)[0][jnp.arange(4), last].sum()
        )(images)
        np.testing.assert_allclose(gradient, expected, atol=1e-3)


def test_differences_are_asked_about_with_the_state_of_the_image_itself():
    model, asked = tracking_classifier(three_classes().batch_logits, 3)
    images = jnp.asarray(grays(4))
    query = query_of(estimate_gradients(model), batch_of(images, np.zeros(4, int)))
    query.jacobian(images, near=Answer(images, None, state=images + 0.2))
    jax.effects_barrier()
    assert len(asked) > 1
    for moved, state in asked[1:]:
        assert np.all((moved != state).reshape(len(moved), -1).sum(1) == 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlackBox(FunctionClassifier):
    @property
    def differentiable(self):
        return False


register_dataclass(BlackBox)


def test_a_black_box_is_attacked():
    linear, w, bias = two_classes()
    plain = function_classifier(lambda x: jax.lax.stop_gradient(linear.batch_logits(x)), 2)
    model = as_kind(BlackBox, plain)
    images = grays(6)
    labels = model.predict(images)
    with pytest.raises(ValueError, match="black box"):
        fast_gradient(model, images, labels, KEY, norm="l2")
    result = fast_gradient(estimate_gradients(model), images, labels, KEY, norm="l2")
    needed = boundary_distances(images, w, bias, "l2")
    np.testing.assert_allclose(result.distances, needed, rtol=2e-3)


def test_thresholded_images_answer_across_the_threshold():
    linear = three_classes()
    model = function_classifier(
        lambda images: linear.batch_logits(jax.lax.stop_gradient(threshold(images))), 3
    )
    images = jnp.asarray(mixed(4))
    flipped = np.where(np.asarray(images) > 0.5, -1.0, 1.0)
    for step, in_reach in [(0.1, np.abs(images - 0.5) < 0.099), (0.6, np.full(images.shape, True))]:
        query = query_of(estimate_gradients(model, step=step), batch_of(images, np.zeros(4, int)))
        rows = query.jacobian(images).jacobian.gradients
        # A flip by 1, over the distance that it took.
        moved = np.minimum(step, np.maximum(images, 1 - images)) * flipped
        expected = linear.weights.T.reshape(1, 3, *SHAPE) * (flipped / moved)[:, None]
        seen = np.broadcast_to(in_reach[:, None], rows.shape)
        np.testing.assert_allclose(rows[seen], expected[seen], rtol=1e-3, atol=1e-3)
        far = np.broadcast_to((np.abs(images - 0.5) > 0.101)[:, None], rows.shape)
        if step == 0.1:
            # But for how logits are rounded in batches of other images.
            np.testing.assert_allclose(rows[far], 0.0, atol=1e-4)


def test_models_on_thresholded_images_are_asked_across_the_threshold_by_default():
    assert estimate_gradients(abs_model.load("cnn")).step == 0.1
    assert estimate_gradients(abs_model.load("cnn", binary=True)).step == 0.6


def test_weights_of_any_type_will_do(mnist_sample):
    """The nearest neighbor's counts are integers, which have no gradients."""
    part = Split(mnist_sample["train_images"][:100], mnist_sample["train_labels"][:100])
    dataset = Dataset("sample", 10, part, part, part)
    model = estimate_gradients(abs_model.nearest_neighbor(dataset), step=0.01)
    images = jnp.asarray(mnist_sample["test_images"][:2], jnp.float32).reshape(-1, 28, 28, 1) / 255
    batch = batch_of(images, np.asarray(mnist_sample["test_labels"][:2], np.int32))
    found, exact = (query_of(m, batch).gradients(images).gradients for m in (model, model.model))
    np.testing.assert_allclose(found, exact, atol=0.05)


def test_it_is_the_same_classifier_but_for_its_gradients():
    model = three_classes()
    estimated = estimate_gradients(model)
    assert estimated.name == "linear, GE"
    assert (estimated.image_shape, estimated.num_classes) == (SHAPE, 3)
    assert estimated.with_batch_size(2).batch_size == 2
    images = grays(5)
    np.testing.assert_array_equal(estimated.predict(images), model.predict(images))
    np.testing.assert_allclose(estimated.confidences(images), model.confidences(images), rtol=1e-5)


@pytest.mark.parametrize("step", [0.0, 0.0005, 1.5, float("nan"), "0.1"])
def test_faulty_steps_are_named(step):
    with pytest.raises(ValueError, match="step must be"):
        estimate_gradients(three_classes(), step=step)


@pytest.fixture(scope="module")
def cnn(mnist_sample):
    images = np.asarray(mnist_sample["test_images"][:10], np.float32).reshape(-1, 28, 28, 1)
    labels = np.asarray(mnist_sample["test_labels"][:10], np.int32)
    return abs_model.load("cnn", batch_size=10), images / 255, labels


def cosines(first, second):
    first, second = (np.reshape(array, (len(array), -1)) for array in (first, second))
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return (first * second).sum(1) / lengths


def test_gradients_of_the_cnn_are_close(cnn):
    model, images, labels = cnn
    batch = batch_of(images, labels)
    exact = query_of(model, batch).gradients(batch.images).gradients
    for step, least in [(0.01, 0.999), (0.1, 0.98)]:
        query = query_of(estimate_gradients(model, step=step), batch)
        found = query.gradients(batch.images).gradients
        assert cosines(found, exact).min() > least


def test_pgd_finds_as_much_with_estimates(cnn):
    model, images, labels = cnn
    # Within this epsilon, PGD succeeds on about half of the images.
    settings = {"norm": "linf", "epsilon": 0.06, "step_size": 0.03, "num_steps": 3}
    settings["random_start"] = False
    exact = pgd(model, images, labels, KEY, **settings)
    found = pgd(estimate_gradients(model), images, labels, KEY, **settings)
    assert 2 < np.sum(exact.success) < 8
    np.testing.assert_array_equal(found.success, exact.success)
    np.testing.assert_allclose(
        found.distances[exact.success], exact.distances[exact.success], rtol=0.1
    )
    expected = exact.num_queries + 28 * 28 * exact.num_gradients
    np.testing.assert_array_equal(found.num_queries, expected)
