"""DeepFool against linear classifiers and Foolbox."""

import foolbox
import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from abs_model.attacks import Batch
from abs_model.attacks._core.keys import image_keys
from abs_model.attacks._core.norms import dual_norms
from abs_model.attacks._core.query import Jacobian, JacobianAnswer
from abs_model.attacks.deepfool import _step, deepfool
from tests import minimal_norm
from tests.linear_classifiers import (
    SHAPE,
    boundary_distances,
    grays,
    linear_classifier,
    three_classes,
    two_classes,
)
from tests.minimal_norm import KEY

both_norms = pytest.mark.parametrize("norm", ["l2", "linf"])


@both_norms
def test_one_step_leads_over_a_linear_boundary_by_the_overshoot(norm):
    model, w, bias = two_classes()
    images = grays(6)
    needed = boundary_distances(images, w, bias, norm)
    for overshoot in (0.02, 0.3):
        settings = {"norm": norm, "num_steps": 1, "overshoot": overshoot}
        result = deepfool(model, images, model.predict(images), KEY, **settings)
        assert np.all(result.success)
        np.testing.assert_allclose(result.distances, (1 + overshoot) * needed, rtol=1e-3)


@both_norms
def test_the_nearest_class_is_found(norm):
    minimal_norm.check_nearest_class(deepfool, norm, 0.021, norm=norm)


@both_norms
def test_few_of_many_classes_are_enough_where_the_others_are_far_behind(norm):
    minimal_norm.check_leading_classes(deepfool, norm=norm)


@both_norms
def test_steps_go_on_where_the_range_ends(norm):
    """The first step loses what is clipped; more of them still reach the boundary."""
    model, _, _ = two_classes()
    images = minimal_norm.walled(6)
    labels = model.predict(images)
    one, more = (
        deepfool(model, images, labels, KEY, norm=norm, num_steps=steps) for steps in (1, 50)
    )
    assert not np.any(one.success)
    assert np.all(more.success)
    minimal_norm.check_closed_form_at_the_walls(deepfool, norm, 0.01, norm=norm)


def test_stops_asking_when_all_are_done():
    model, images = three_classes(), grays(3)
    seen = []
    result = deepfool(model, images, model.predict(images), KEY, norm="l2", progress=seen.append)
    assert seen == [1, 2]
    np.testing.assert_array_equal(result.num_gradients, 2)


def test_images_stay_where_they_fool_the_classifier():
    """Else what is found would depend on how long others of the batch take."""
    images = jnp.asarray(grays(2))
    batch = Batch(images, jnp.array([0, 0]), image_keys(KEY, 2), targeted=False)
    model = three_classes()
    gradients = jnp.broadcast_to(model.weights.T.reshape(1, 3, *SHAPE), (2, 3, *SHAPE))
    jacobian = Jacobian(gradients, jnp.broadcast_to(jnp.arange(3), (2, 3)))
    moved, total = _step(
        batch, JacobianAnswer(images, model.logits(images), (), jacobian), jnp.zeros_like(images),
        jnp.array([True, False]), 0.02, norm="l2",
    )  # fmt: skip
    np.testing.assert_array_equal(jnp.any(moved != images, axis=(1, 2, 3)), [False, True])
    np.testing.assert_array_equal(jnp.any(total != 0, axis=(1, 2, 3)), [False, True])


@both_norms
def test_ties_are_left(norm):
    """Logits of the original that tie give a step of length 0."""
    model, w, _ = two_classes()
    images = np.full_like(grays(1), 0.5)
    assert boundary_distances(images, w, -0.5 * w.sum(), norm) == pytest.approx(0, abs=1e-6)
    exact = linear_classifier(model.weights, -images.reshape(1, -1)[0] @ np.asarray(model.weights))
    labels = exact.predict(images)
    result = deepfool(exact, images, labels, KEY, norm=norm)
    assert np.all(result.success)
    assert np.all(np.asarray(result.distances) < 2e-4)


@both_norms
def test_any_scale_of_the_logits_will_do(norm):
    minimal_norm.check_scales(deepfool, 1e-3, norm=norm)


@both_norms
def test_general_properties(norm):
    minimal_norm.check_clean_errors(deepfool, norm=norm)
    minimal_norm.check_zero_gradients(deepfool, norm=norm, num_steps=3)


@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(seed=st.integers(0, 1000), norm=st.sampled_from(["l2", "linf"]))
def test_results_keep_to_the_range(seed, norm):
    minimal_norm.check_bounds_and_success(deepfool, norm, seed, norm=norm, num_steps=3)


@both_norms
def test_dual_norms_bound_the_growth_of_linear_functions(norm):
    gradients = np.random.default_rng(0).normal(size=(4, 3, 6, 5, 2)) * 1e-30
    flat = np.abs(gradients.reshape(4, 3, -1))
    expected = flat.sum(2) if norm == "linf" else np.sqrt((flat**2).sum(2))
    actual = dual_norms(jnp.asarray(gradients, jnp.float32), norm)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)
    np.testing.assert_array_equal(dual_norms(jnp.zeros((2, 6, 5, 2)), norm), 0.0)


@pytest.mark.parametrize(
    ("norm", "attack"),
    [("l2", foolbox.attacks.L2DeepFoolAttack), ("linf", foolbox.attacks.LinfDeepFoolAttack)],
)
def test_no_worse_than_foolbox(mnist_sample, norm, attack):
    theirs, ours = minimal_norm.compare_with_foolbox(
        mnist_sample, 3, norm, attack(steps=50), deepfool, norm=norm
    )
    # The same method: most images end in the same place.
    both = np.isfinite(theirs) & np.isfinite(ours) & (theirs > 0)
    np.testing.assert_allclose(np.median(ours[both] / theirs[both]), 1.0, atol=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "l0"}, "norm must be one of l2, linf, got 'l0'"),
        ({"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        ({"num_classes": 2.5}, "num_classes must be an integer of at least 2, got 2.5"),
        ({"num_classes": 1}, "num_classes must be an integer of at least 2, got 1"),
        ({"overshoot": -0.1}, "overshoot must be a finite number of at least 0.0, got -0.1"),
    ],
)
def test_faulty_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        deepfool(three_classes(), grays(2), np.array([0, 1]), KEY, **({"norm": "l2"} | changes))
