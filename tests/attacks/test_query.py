"""The query session of a warm-started classifier, an ABS model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import abs_model
from abs_model import register_dataclass
from abs_model.attacks import Batch, log_odds
from abs_model.attacks._core.keys import image_keys
from abs_model.attacks._core.query import Query, _Flaws, _jacobian
from abs_model.attacks._core.run import run
from abs_model.models.classifier import Classifier
from tests.linear_classifiers import grays, linear_classifier


@pytest.fixture(scope="module")
def model(abs_run):
    return abs_model.load(abs_run, batch_size=4)


@pytest.fixture
def batch(mnist_sample):
    images = mnist_sample["test_images"][:4].reshape(-1, 28, 28, 1).astype(np.float32) / 255
    labels = jnp.asarray(mnist_sample["test_labels"][:4], jnp.int32)
    return Batch(jnp.asarray(images), labels, image_keys(jax.random.key(0), 4), targeted=False)


@pytest.fixture
def moved(batch):
    noise = 0.02 * np.random.default_rng(0).normal(size=batch.images.shape)
    return jnp.clip(batch.images + noise, 0, 1).astype(jnp.float32)


def test_a_warm_answer_has_the_two_largest_logits_and_leaves_others_out(model, batch, moved):
    query = Query(model, batch, "l2")
    answer = query.logits(moved, near=query.logits(batch.images))
    assert query.warm and query.num_queries == 2 and query.num_gradients == 0
    largest = np.argsort(-np.asarray(answer.logits), axis=1)[:, :2]
    assert np.take_along_axis(np.asarray(answer.state.searched), largest, 1).all()
    assert not np.asarray(answer.state.searched).all()
    np.testing.assert_array_equal(answer.logits.argmax(1), model.predict(moved))


def test_a_warm_jacobian_is_of_all_classes(model, batch, moved):
    query = Query(model, batch, "l2")
    answer = query.jacobian(moved, near=query.logits(batch.images))
    jacobian, logits, following = answer.jacobian, answer.logits, answer.state
    assert np.asarray(following.searched).all()
    assert np.any(np.asarray(jacobian.gradients) != 0, axis=(2, 3, 4)).all()
    # dE_c/dx = 2 (x - G_c(z)), times the class weight.
    explained = moved[:, None] - following.reconstructions
    expected = -2 * model.class_weights[None, :, None, None, None] * explained / 784
    np.testing.assert_allclose(jacobian.gradients, expected, atol=1e-6)
    np.testing.assert_allclose(logits, -model.weighted_energies(following) / 784, rtol=1e-5)


@pytest.mark.parametrize("count", [2, 5, 60, 100])
def test_a_jacobian_of_leading_classes_is_part_of_the_whole(count):
    """The label is among them however far behind, as first, last or any other class."""
    random = np.random.default_rng(0)
    model = linear_classifier(random.normal(size=(60, 60)), random.normal(size=60))
    images, labels = jnp.asarray(grays(4)), jnp.array([0, 59, 7, 30])
    batch = Batch(images, labels, image_keys(jax.random.key(0), 4), targeted=False)
    answer = Query(model, batch, "l2").jacobian(images)
    whole, logits = answer.jacobian, answer.logits
    np.testing.assert_array_equal(whole.classes, np.tile(np.arange(60), (4, 1)))
    answer = Query(model, batch, "l2").jacobian(images, num_classes=count)
    part = answer.jacobian
    np.testing.assert_array_equal(answer.logits, logits)
    for row, label in enumerate(np.asarray(labels)):
        order = [k for k in np.argsort(-np.asarray(logits[row])) if k != label]
        expected = sorted([label, *order[: count - 1]])
        np.testing.assert_array_equal(part.classes[row], expected)
        np.testing.assert_allclose(part.gradients[row], whole.gradients[row, expected], rtol=1e-6)


def test_a_jacobian_of_leading_classes_takes_memory_for_these_only():
    model = linear_classifier(np.zeros((60, 1000)), np.zeros(1000))
    images = jnp.asarray(grays(32))
    labels = jnp.zeros(32, jnp.int32)
    flaws = _Flaws(labels, labels)
    taken = []
    for count in (1000, 10):
        program = _jacobian.lower(model, images, None, flaws, labels, count).compile()
        found = program.memory_analysis()
        taken.append(found.temp_size_in_bytes + found.output_size_in_bytes)
    assert taken[0] >= 32 * 1000 * 60 * 4
    # The logits and what chooses among them are there, too.
    assert taken[1] <= 32 * (10 * 60 + 5 * 1000) * 4


def test_warm_gradients_know_the_label_and_the_target_however_far_behind(model, batch, moved):
    for targeted in (False, True):
        for shift in range(10):
            classes = (batch.classes + shift) % 10
            asked = Batch(batch.images, classes, batch.keys, targeted)
            query = Query(model, asked, "l2")
            answer = query.gradients(moved, near=query.logits(batch.images))
            assert np.asarray(answer.state.searched)[np.arange(4), classes].all()
            assert np.any(np.asarray(answer.gradients) != 0, axis=(1, 2, 3)).all()


def test_losses_of_all_logits_get_all_logits(model, batch, moved):
    query = Query(model, batch, "l2")
    answer = query.gradients(moved, near=query.logits(batch.images), loss=log_odds)
    assert np.asarray(answer.state.searched).all()


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Rash(Classifier):
    """Class 1 where the mean is above 0.5; its decisions are so from 0.4 on."""

    @property
    def races(self):
        return True

    def batch_logits(self, images):
        return self._above(images, 0.5)

    def batch_decision_logits(self, images):
        return self._above(images, 0.4)

    def _above(self, images, level):
        lead = images.mean((1, 2, 3)) - level
        return jnp.stack([-lead, lead], axis=1)

    def logits_to_confidences(self, logits):
        return jax.nn.softmax(logits)


@pytest.mark.parametrize(("level", "fools"), [(0.45, False), (0.6, True)])
def test_what_decisions_find_counts_once_a_full_query_has_verified_it(level, fools):
    model = Rash(name="rash", image_shape=(2, 2, 1), num_classes=2, batch_size=3)
    images = np.zeros((3, 2, 2, 1), np.float32)

    def attack(query, batch):
        answer = query.decisions(batch.images)  # the first query is for all logits
        assert np.asarray(query.best.verified).all()
        answer = query.decisions(jnp.full_like(batch.images, level))
        assert np.asarray(batch.is_adversarial(answer.logits)).all()
        assert not np.asarray(query.best.verified).any()
        assert not query.all_succeeded()
        query.decisions(jnp.ones_like(batch.images), record=False)

    key = jax.random.key(0)
    found = run(
        attack, model, images, np.zeros(3, int), key, norm="linf", norms=("linf",), epsilon=level
    )
    np.testing.assert_array_equal(found.success, fools)


def test_a_rejected_example_is_searched_for_farther_out(model, batch):
    """An attack that reports images just short of the boundary."""
    far = jnp.broadcast_to(batch.images[::-1], batch.images.shape)

    def attack(query, batch):
        query.logits(batch.images)
        low, high = np.zeros(4), np.ones(4)
        for _ in range(12):
            middle = (low + high) / 2
            images = batch.images + middle[:, None, None, None] * (far - batch.images)
            fooled = model.predict(np.asarray(images, np.float32)) != np.asarray(batch.classes)
            low, high = np.where(fooled, low, middle), np.where(fooled, middle, high)
        short = 0.998 * low[:, None, None, None]
        query.logits(jnp.asarray(batch.images + short * (far - batch.images), jnp.float32))
        query.best = dataclasses.replace(
            query.best, success=jnp.ones(4, bool), verified=jnp.zeros(4, bool)
        )

    labels = model.predict(batch.images)
    found = run(
        attack, model, np.asarray(batch.images), labels, batch.keys, norm="l2", norms=("l2",)
    )
    np.testing.assert_array_equal(found.success, model.predict(found.images) != labels)
    differs = labels != labels[::-1]
    assert np.asarray(found.success)[differs].all()
