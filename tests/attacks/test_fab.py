"""FAB and its projection, against linear classifiers and a slow projection."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abs_model.attacks import Batch
from abs_model.attacks._core.keys import image_keys
from abs_model.attacks._core.query import Jacobian, JacobianAnswer
from abs_model.attacks._search.linearized_boundary import LinearizedBoundaries, project_in_box
from abs_model.attacks.fab import _move, fab
from benchmarks.linear import nearest_in_box
from tests import minimal_norm
from tests.linear_classifiers import SHAPE, grays, three_classes, two_classes
from tests.minimal_norm import KEY

both_norms = pytest.mark.parametrize("norm", ["l2", "linf"])
project = jax.jit(project_in_box, static_argnames="norm")


@both_norms
@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    seed=st.integers(0, 10_000),
    part=st.floats(1e-4, 0.999),
    sign=st.sampled_from([-1, 1]),
    scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
    sparse=st.booleans(),
)
def test_projection_agrees_with_bisection(norm, seed, part, sign, scale, sparse):
    """`part` of what the linear function can change within the box is asked for."""
    random = np.random.default_rng(seed)
    image = minimal_norm.walled(1, seed)
    # Entries of very different sizes, as gradients have.
    normal = (random.normal(size=SHAPE) * 10.0 ** random.uniform(-4, 0, SHAPE)).astype(np.float32)
    normal *= random.uniform(size=SHAPE) < 0.3 if sparse else 1
    towards = -sign * normal
    corner = np.where(towards > 0, 1.0, np.where(towards < 0, 0.0, image[0]))
    reach = np.abs(np.sum(normal * (corner - image[0]), dtype=np.float64))
    value = np.float32(sign * part * reach)
    planes = LinearizedBoundaries(jnp.array([scale * value]), jnp.asarray(scale * normal)[None])
    found = np.asarray(project(jnp.asarray(image), planes, norm=norm), np.float64)[0]
    assert found.min() >= 0 and found.max() <= 1
    left = value + np.sum(normal * (found - image[0]), dtype=np.float64)
    assert abs(left) <= 1e-5 * reach
    expected = nearest_in_box(image.reshape(-1), normal.reshape(-1), value, norm).reshape(SHAPE)
    order = np.inf if norm == "linf" else 2
    length, shortest = (
        np.linalg.norm((point - image[0]).reshape(-1), order) for point in (found, expected)
    )
    assert length == pytest.approx(shortest, rel=1e-4, abs=1e-6)


@both_norms
def test_projection_to_a_hyperplane_out_of_reach_is_the_corner_nearest_to_it(norm):
    images = jnp.asarray(minimal_norm.walled(2))
    normals = jnp.asarray(np.random.default_rng(1).normal(size=images.shape), jnp.float32)
    normals = normals.at[:, 0, 0, 0].set(0.0)
    found = np.asarray(project(images, LinearizedBoundaries(jnp.full(2, -1e3), normals), norm=norm))
    expected = np.where(normals > 0, 1.0, np.where(normals < 0, 0.0, images))
    np.testing.assert_array_equal(found, expected)


@both_norms
def test_projection_along_a_zero_normal_stays(norm):
    images = jnp.asarray(minimal_norm.walled(2))
    planes = LinearizedBoundaries(jnp.array([-1.0, 0.0]), jnp.zeros_like(images))
    np.testing.assert_array_equal(project(images, planes, norm=norm), images)


@both_norms
@pytest.mark.parametrize("near", [False, True])
def test_a_step_is_drawn_towards_the_original(norm, near):
    """By alpha_max, or less where the image is nearer to the boundary than the original is."""
    model, w, bias = two_classes()
    original, image = (values[0].reshape(-1) for values in (grays(1), grays(1, seed=1)))
    if near:
        image = original + 0.999 * (nearest_in_box(
            original, w, w @ original + bias, norm) - original)  # fmt: skip
    way, way_0 = (nearest_in_box(x, w, w @ x + bias, norm) - x for x in (image, original))
    length, length_0 = (np.linalg.norm(x, np.inf if norm == "linf" else 2) for x in (way, way_0))
    alpha = min(0.3, length / (length + length_0))
    assert near == (alpha < 0.3)
    expected = (1 - alpha) * (image + 1.05 * way) + alpha * (original + 1.05 * way_0)
    images = jnp.asarray(image.reshape(1, *SHAPE), jnp.float32)
    originals = jnp.asarray(original.reshape(1, *SHAPE), jnp.float32)
    label = int(model.predict(originals)[0])
    batch = Batch(originals, jnp.array([label]), image_keys(KEY, 1), targeted=False)
    jacobian = Jacobian(model.weights.T.reshape(1, 2, *SHAPE), jnp.array([[0, 1]]))
    answer = JacobianAnswer(images, model.logits(images), (), jacobian)
    moved = _move(batch, answer, 0.3, 1.05, norm=norm)
    np.testing.assert_allclose(moved.reshape(-1), expected, atol=1e-5)


@both_norms
def test_closed_forms_are_reached(norm):
    minimal_norm.check_closed_form(fab, norm, 0.002, norm=norm, num_steps=20)
    minimal_norm.check_nearest_class(fab, norm, 0.002, norm=norm, num_steps=20)


@both_norms
def test_few_of_many_classes_are_enough_where_the_others_are_far_behind(norm):
    minimal_norm.check_leading_classes(fab, norm=norm, num_steps=5)


def test_the_number_of_classes_is_checked():
    with pytest.raises(ValueError, match="num_classes must be an integer of at least 2, got 1"):
        fab(three_classes(), grays(2), np.array([0, 1]), KEY, norm="l2", num_classes=1)


@both_norms
def test_the_range_of_images_is_taken_into_account(norm):
    minimal_norm.check_closed_form_at_the_walls(fab, norm, 0.005, norm=norm, num_steps=20)


def test_targets_are_reached_by_short_ways():
    minimal_norm.check_targets(fab, 0.02, norm="l2")


@both_norms
def test_any_scale_of_the_logits_will_do(norm):
    minimal_norm.check_scales(fab, 2e-3, norm=norm, num_steps=10)


@both_norms
def test_general_properties(norm):
    minimal_norm.check_clean_errors(fab, norm=norm, num_steps=3)
    minimal_norm.check_split(fab, norm=norm, num_steps=3, num_restarts=2)
    minimal_norm.check_zero_gradients(fab, norm=norm, num_steps=3, num_restarts=2)


@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(seed=st.integers(0, 1000), norm=st.sampled_from(["l2", "linf"]))
def test_results_keep_to_the_range(seed, norm):
    minimal_norm.check_bounds_and_success(fab, norm, seed, norm=norm, num_steps=3, num_restarts=2)


def test_restarts_depend_on_the_key_and_never_do_worse():
    model = minimal_norm.wavy_classes()
    images = minimal_norm.walled(6)
    labels = model.predict(images)
    settings = {"norm": "l2", "num_steps": 10}
    once = fab(model, images, labels, KEY, **settings)
    first, again, other = (
        fab(model, images, labels, jax.random.key(seed), num_restarts=4, **settings)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.images, again.images)
    assert np.abs(np.asarray(first.images) - other.images).max() > 1e-3
    assert np.all(once.success)
    assert np.all(np.asarray(first.distances) <= np.asarray(once.distances))
    assert np.any(np.asarray(first.distances) < 0.99 * np.asarray(once.distances))


def test_progress_and_result_count_the_questions():
    seen = []
    result = fab(
        three_classes(), grays(3), np.zeros(3, int), KEY, norm="l2", num_steps=3, num_restarts=2,
        progress=seen.append,
    )  # fmt: skip
    assert seen == list(range(1, 4 + 2 * 2 * 3 + 1))
    np.testing.assert_array_equal(result.num_queries, seen[-1])
    np.testing.assert_array_equal(result.num_gradients, 2 * 3)
