"""What holds for every attack of the registry, in each of its norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abs_model._runtime.vectorize import FORMULATION
from abs_model.attacks import ATTACKS, Access, Batch, distances
from abs_model.attacks._core.keys import image_keys
from tests.attacks.cases import CASES, images_for, model_for, settings_for
from tests.recorded_programs import check_lowering, recorded_programs

KEY = jax.random.key(3)
COUNT = 6
ORDER = np.array([5, 1, 3, 0, 2, 4])


class Case:
    """An attack in a norm, with a model, images and what it finds in a batch of them all."""

    def __init__(self, name, norm):
        self.info, self.norm = ATTACKS[name], norm
        self.model = model_for(self.info).with_batch_size(COUNT)
        self.images = images_for(self.model, COUNT)
        self.labels = self.model.predict(self.images)
        self.keys = image_keys(KEY, COUNT)
        self.settings = settings_for(self.info, norm, self.model)
        self.queries = []
        with recorded_programs() as self.programs:
            self.result = self.attack(progress=self.queries.append)

    def attack(self, model=None, rows=slice(None), **changes):
        given = {"labels": self.labels[rows]} | changes
        return self.info.function(
            model or self.model, self.images[rows], key=self.keys[rows], **self.settings | given
        )


# The last case is kept, and tests are ordered by case.
@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def case(request):
    return Case(*request.param)


def test_bounds_and_distances(case):
    images = np.asarray(case.result.images)
    assert (images.shape, images.dtype) == (case.images.shape, np.float32)
    assert images.min() >= 0 and images.max() <= 1
    away = distances(case.result.images, jnp.asarray(case.images), case.norm)
    np.testing.assert_allclose(case.result.distances, away, rtol=1e-5, atol=1e-6)
    if case.info.within_epsilon:
        assert np.max(case.result.distances) <= case.settings["epsilon"] * (1 + 1e-5)


def test_success_is_honest(case):
    batch = Batch(
        case.images, jnp.asarray(case.labels), case.keys, False, case.model.logit_tolerance
    )
    adversarial = batch.is_adversarial(case.model.logits(case.result.images))
    np.testing.assert_array_equal(case.result.success, adversarial)


def test_neither_batch_nor_order_play_a_part(case):
    found = case.attack(case.model.with_batch_size(3), ORDER)
    np.testing.assert_allclose(found.images, case.result.images[ORDER], atol=1e-5)
    np.testing.assert_array_equal(found.success, case.result.success[ORDER])


def test_the_same_call_has_the_same_result(case):
    again = case.attack()
    for one, other in zip(jax.tree.leaves(case.result), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_programs_lower_for_accelerators(case, monkeypatch):
    monkeypatch.setenv(FORMULATION, "batched")
    assert case.programs
    for program in case.programs:
        check_lowering(*program)


def test_queries_are_counted(case):
    queries = np.asarray(case.result.num_queries)
    np.testing.assert_array_equal(queries, case.queries[-1])
    assert case.queries == sorted(case.queries) and case.queries[0] >= 1
    gradients = np.asarray(case.result.num_gradients)
    assert np.all(gradients <= queries)
    sees_gradients = case.info.access in (Access.GRADIENTS, Access.BINARY)
    np.testing.assert_array_equal(gradients > 0, sees_gradients)


def test_queries_are_at_most_as_many_as_declared(case):
    settings = case.info.defaults | case.settings
    most = case.info.most_queries(settings, case.norm, case.model)
    queries, gradients = np.max(case.result.num_queries), np.max(case.result.num_gradients)
    assert gradients <= most.gradients + most.jacobians
    if case.info.access is Access.ABS:  # which confirms what warm-started searches have found
        assert queries <= 1.1 * most.evaluations(case.model) + 5
    else:
        assert queries <= most.evaluations(case.model)


def test_misclassified_images_are_left_as_they_are(case):
    wrong = (case.labels + 1) % case.model.num_classes
    found = case.attack(labels=wrong)
    assert np.all(found.success)
    np.testing.assert_array_equal(found.distances, 0.0)
    np.testing.assert_array_equal(found.images, case.images)


def test_targets_are_what_success_means(case):
    targets = (case.labels + 2) % case.model.num_classes
    if not case.info.can_be_targeted:
        with pytest.raises(TypeError, match="targets"):
            case.attack(targets=targets)
        return
    found = case.attack(targets=targets)
    predictions = case.model.predict(found.images)
    np.testing.assert_array_equal(predictions[found.success], targets[found.success])
    # What is of the target's class beyond doubt is a success.
    batch = Batch(case.images, jnp.asarray(targets), case.keys, True, case.model.logit_tolerance)
    reached = batch.is_adversarial(case.model.logits(found.images))
    np.testing.assert_array_equal(found.success, reached)
