"""Attacks against classifiers whose closest adversarial images are known in closed form."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abs_model.attacks import (
    AttackResult,
    Batch,
    ascend,
    ascent_direction,
    distances,
    log_odds,
    margins,
    pgd,
    project,
    random_start,
)
from abs_model.attacks._core.keys import image_keys
from abs_model.models.decisions import ATTACK_FACTOR, RELATIVE_ROUNDING
from tests.linear_classifiers import (
    FARTHEST,
    PIXELS,
    SHAPE,
    boundary_distances,
    check_bounds,
    grays,
    linear_classifier,
    three_classes,
    two_classes,
)

KEY = jax.random.key(3)
few_examples = hypothesis.settings(max_examples=10, deadline=None)


def attack(model, images, labels, **changes):
    settings = {"norm": "l2", "epsilon": 0.5, "step_size": 0.1, "num_steps": 10} | changes
    return pgd(model, images, labels, settings.pop("key", KEY), **settings)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("start_randomly", [False, True])
def test_success_starts_at_the_distance_of_the_boundary(norm, start_randomly):
    model, w, bias = two_classes()
    images = grays(6)
    labels = model.predict(images)
    needed = boundary_distances(images, w, bias, norm)
    for epsilon in [factor * d for d in needed for factor in (0.98, 1.02)]:
        result = attack(
            model, images, labels, norm=norm, epsilon=float(epsilon), step_size=float(epsilon) / 2,
            num_steps=20, random_start=start_randomly,
        )  # fmt: skip
        np.testing.assert_array_equal(result.success, needed < epsilon)
        check_bounds(result, images, norm, epsilon)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_keeps_the_closest_success(norm):
    model, w, bias = two_classes()
    images = grays(6)
    labels = model.predict(images)
    needed = boundary_distances(images, w, bias, norm)
    epsilon = 2.0 * float(needed.max())
    step = float(needed.max()) / 40
    result = attack(
        model, images, labels, norm=norm, epsilon=epsilon, step_size=step, num_steps=60,
        random_start=False,
    )  # fmt: skip
    assert np.all(result.success)
    assert np.all(model.predict(result.images) != labels)
    # The walk goes straight on to epsilon; the first step over the boundary is what counts.
    assert np.all(np.asarray(result.distances) >= needed * (1 - 1e-4))
    assert np.all(np.asarray(result.distances) <= needed + step * 1.01)


def test_clean_errors_are_successes_at_distance_zero():
    model, _, _ = two_classes()
    images = grays(6)
    labels = np.where(np.arange(6) % 2, model.predict(images), 1 - model.predict(images))
    result = attack(model, images, labels, epsilon=0.001, step_size=0.001, num_steps=3)
    np.testing.assert_array_equal(result.success, model.predict(images) != labels)
    np.testing.assert_array_equal(np.asarray(result.distances)[::2], 0.0)
    np.testing.assert_array_equal(np.asarray(result.images)[::2], images[::2])


def test_failures_hold_the_image_of_highest_loss():
    model, w, bias = two_classes()
    images = grays(6)
    labels = model.predict(images)
    epsilon = 0.5 * float(boundary_distances(images, w, bias, "l2").min())
    result = attack(
        model, images, labels, epsilon=epsilon, step_size=epsilon, num_steps=3, random_start=False
    )
    assert not np.any(result.success)
    # The ball's point of highest loss lies against the boundary, at epsilon.
    towards = np.where(labels == 1, -1, 1)[:, None] * w / np.linalg.norm(w)
    expected = images + epsilon * towards.reshape(-1, *SHAPE)
    np.testing.assert_allclose(result.images, expected, atol=1e-5)


@few_examples
@hypothesis.given(
    seed=st.integers(0, 1000),
    norm=st.sampled_from(["l2", "linf"]),
    shares=st.tuples(st.floats(0.0, 1.0, width=32), st.floats(0.0078125, 1.0, width=32)),
    start_randomly=st.booleans(),
)
def test_results_keep_to_the_bounds(seed, norm, shares, start_randomly):
    epsilon, step_size = np.multiply(shares, FARTHEST[norm])
    model = three_classes()
    random = np.random.default_rng(seed)
    # Many pixels at the ends of the range, as in MNIST.
    images = np.clip(random.uniform(-0.5, 1.5, (6, *SHAPE)), 0, 1).astype(np.float32)
    labels = random.integers(0, 3, 6)
    result = attack(
        model, images, labels, key=jax.random.key(seed), norm=norm, epsilon=epsilon,
        step_size=step_size, num_steps=3, random_start=start_randomly,
    )  # fmt: skip
    check_bounds(result, images, norm, epsilon)
    np.testing.assert_array_equal(result.success, model.predict(result.images) != labels)


def test_result_has_the_stated_types():
    result = attack(three_classes(), grays(6), np.zeros(6, np.int64))
    assert isinstance(result, AttackResult)
    assert (result.images.shape, result.images.dtype) == ((6, *SHAPE), jnp.float32)
    assert (result.success.shape, result.success.dtype) == ((6,), jnp.bool_)
    assert (result.distances.shape, result.distances.dtype) == ((6,), jnp.float32)


def test_same_key_same_result_other_key_other_start():
    model, images, labels = three_classes(), grays(6), np.arange(6) % 3
    first, again, other = (
        attack(model, images, labels, key=jax.random.key(seed), epsilon=0.01, num_steps=1)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.images, again.images)
    assert np.abs(np.asarray(first.images) - other.images).max() > 1e-5


def test_more_restarts_never_do_worse():
    model, w, bias = two_classes(seed=2)
    images = grays(6, seed=1)
    labels = model.predict(images)
    epsilon = float(np.median(boundary_distances(images, w, bias, "linf")))
    # A single tiny step: what is found depends on the start.
    settings = {"norm": "linf", "epsilon": 1.5 * epsilon, "step_size": epsilon, "num_steps": 1}
    fewer, more = (
        attack(model, images, labels, num_restarts=count, **settings) for count in (1, 6)
    )
    assert np.all(more.success >= np.asarray(fewer.success))
    both = np.asarray(fewer.success)
    assert np.all(np.asarray(more.distances)[both] <= np.asarray(fewer.distances)[both])
    assert not np.array_equal(more.images, fewer.images)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_epsilon_zero_leaves_images_alone(norm):
    model, images = three_classes(), grays(6)
    labels = np.array([0, 1, 2, 0, 1, 2])
    result = attack(model, images, labels, norm=norm, epsilon=0.0)
    np.testing.assert_array_equal(result.images, images)
    np.testing.assert_array_equal(result.distances, 0.0)
    np.testing.assert_array_equal(result.success, model.predict(images) != labels)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_large_epsilon_fools_every_image(norm):
    model, images = three_classes(), grays(6)
    epsilon = FARTHEST[norm]
    result = attack(
        model, images, model.predict(images), norm=norm, epsilon=epsilon, step_size=epsilon / 5
    )
    assert np.all(result.success)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_zero_gradient_is_no_trouble(norm):
    model = linear_classifier(np.zeros((PIXELS, 3)), [0.0, 1.0, 0.0])
    images = grays(6)
    result = attack(model, images, np.ones(6, int), norm=norm, random_start=False)
    np.testing.assert_array_equal(result.images, images)
    assert not np.any(result.success)


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_confidence_is_no_protection(scale):
    """Scaled logits have the same boundaries; float32 must not lose the way to them."""
    images = grays(6)
    labels = two_classes()[0].predict(images)
    settings = {"epsilon": 1.0, "step_size": 0.05, "num_steps": 20, "random_start": False}
    plain, scaled = (
        attack(two_classes(scale=s)[0], images, labels, **settings) for s in (1, scale)
    )
    np.testing.assert_allclose(scaled.images, plain.images, atol=1e-4)
    assert np.all(scaled.success)


def test_log_odds_point_where_cross_entropy_points():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)
    labels = jnp.asarray([0, 1, 2, 3, 0])

    def cross_entropy(logits):
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).sum()

    expected = jax.jit(jax.grad(cross_entropy))(logits)
    batch = Batch(jnp.zeros((5, 1, 1, 1)), labels, jax.random.split(KEY, 5), targeted=False)
    actual = jax.jit(jax.grad(lambda logits: log_odds(logits, batch).sum()))(logits)
    np.testing.assert_allclose(
        ascent_direction(actual[:, None, None], "l2"),
        ascent_direction(expected[:, None, None], "l2"),
        atol=1e-6,
    )


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("targeted", [False, True])
def test_margins_lead_from_the_label_or_to_the_target_at_any_scale(scale, targeted):
    logits = scale * jnp.array([[3.0, 2.9, -5.0], [1.0, 4.0, 3.0]])
    keys = jax.random.split(KEY, 2)
    batch = Batch(jnp.zeros((2, 1, 1, 1)), jnp.array([0, 2]), keys, targeted)
    sign = -1 if targeted else 1
    required = ATTACK_FACTOR * RELATIVE_ROUNDING * scale * np.array([3.0, 4.0])
    expected = sign * scale * np.array([-0.1, 1.0]) - required
    np.testing.assert_allclose(margins(logits, batch), expected, rtol=1e-5)
    gradient = jax.grad(lambda logits: margins(logits, batch).sum())(logits)
    np.testing.assert_array_equal(gradient, sign * np.array([[-1, 1, 0], [0, 1, -1]]))
    np.testing.assert_array_equal(batch.is_adversarial(logits), [targeted, not targeted])


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_ascend_takes_the_steps_of_pgd(norm):
    model, w, bias = two_classes()
    images = grays(6)
    labels = model.predict(images)
    epsilon = 0.9 * float(boundary_distances(images, w, bias, norm).min())
    settings = {"norm": norm, "epsilon": epsilon, "step_size": epsilon / 8, "num_steps": 5}
    last = jax.jit(
        lambda images, labels: ascend(
            model.logits, images, labels, KEY, random_start=False, **settings
        )
    )(images, labels)
    # Below the boundary the loss grows to the last step, so that pgd returns it.
    result = attack(model, images, labels, random_start=False, **settings)
    np.testing.assert_allclose(last, result.images, atol=1e-6)
    np.testing.assert_allclose(result.distances, 5 / 8 * epsilon, rtol=1e-4)


def test_progress_and_result_count_the_questions():
    seen = []
    result = attack(
        three_classes(), grays(4), np.zeros(4, int), num_steps=3, num_restarts=2,
        progress=seen.append,
    )  # fmt: skip
    assert seen == list(range(1, 10))
    np.testing.assert_array_equal(result.num_queries, 9)
    np.testing.assert_array_equal(result.num_gradients, 6)


def test_targets_are_reached():
    model, images = three_classes(), grays(6)
    labels = model.predict(images)
    for shift in (1, 2):
        targets = (labels + shift) % 3
        result = attack(model, images, labels, targets=targets, epsilon=4.0, step_size=0.4)
        assert np.all(result.success)
        np.testing.assert_array_equal(model.predict(result.images), targets)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_random_starts_fill_the_ball_evenly(norm):
    epsilon = 0.1
    images = jnp.full((2000, 2, 1, 1), 0.5)
    keys = image_keys(KEY, 2000)
    starts = jax.jit(random_start, static_argnames="norm")(keys, images, epsilon, norm)
    lengths = np.asarray(distances(starts, images, norm))
    assert lengths.max() <= epsilon * (1 + 1e-5)
    # In two dimensions a ball of half the radius, in either norm, has a quarter of the volume.
    assert np.mean(lengths < epsilon / 2) == pytest.approx(0.25, abs=0.04)
    np.testing.assert_allclose(np.mean(starts - images, axis=0), 0.0, atol=0.005)


@few_examples
@hypothesis.given(seed=st.integers(0, 1000), epsilon=st.floats(0.0, 2.0, width=32))
def test_projections(seed, epsilon):
    random = np.random.default_rng(seed)
    centers = random.uniform(0, 1, (4, *SHAPE)).astype(np.float32)
    images = (centers + random.normal(size=centers.shape)).astype(np.float32)
    # A second implementation, image by image.
    for norm in ("l2", "linf"):
        for image, center, result in zip(
            images, centers, project(images, centers, epsilon, norm), strict=True
        ):
            change = image.astype(np.float64) - center
            if norm == "linf":
                change = np.maximum(np.minimum(change, epsilon), -epsilon)
            else:
                change *= min(1.0, epsilon / np.linalg.norm(change))
            np.testing.assert_allclose(result, np.clip(center + change, 0, 1), atol=1e-5)
    np.testing.assert_array_equal(project(centers, centers, epsilon, "l2"), centers)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_ascent_directions_have_length_one(size):
    gradients = size * np.random.default_rng(0).normal(size=(3, *SHAPE))
    gradients = jnp.asarray(gradients, jnp.float32).at[1].set(0.0)
    direction = ascent_direction(gradients, "l2")
    lengths = distances(direction, jnp.zeros_like(direction), "l2")
    np.testing.assert_allclose(lengths, [1.0, 0.0, 1.0], rtol=1e-5)
    np.testing.assert_array_equal(ascent_direction(gradients, "linf"), np.sign(gradients))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "l1"}, "norm must be one of l2, linf, got 'l1'"),
        ({"epsilon": -0.1}, r"epsilon must be .* at least 0.0 and at most 7.7\d*, got -0.1"),
        ({"epsilon": float("nan")}, "epsilon must be"),
        ({"epsilon": "0.3"}, "epsilon must be"),
        ({"step_size": 0.0}, r"step_size must be .* above 0.0 and at most 7.7\d*, got 0.0"),
        ({"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        ({"num_steps": 1.5}, "num_steps must be"),
        ({"num_restarts": 0}, "num_restarts must be"),
        ({"num_restarts": 2, "random_start": False}, "num_restarts must be 1 without"),
        ({"targets": np.array([1, 1])}, "targets must differ from labels"),
        ({"targets": np.array([1])}, r"targets must be integers of shape \(2,\)"),
        ({"key": jax.random.split(KEY, 3)}, r"one for each image, \(2,\); got \(3,\)"),
        ({"key": 0}, "key must be a jax.random.key, got 0"),
        ({"labels": np.array([0, 3])}, "labels must lie in 0 to 2, got 0 to 3"),
        ({"labels": np.array([-1, 0])}, "labels must lie in 0 to 2, got -1 to 0"),
        ({"labels": np.array([0])}, r"labels must be integers of shape \(2,\)"),
        ({"labels": np.array([0.0, 1.0])}, "labels must be integers"),
        ({"images": grays(2)[:, :5]}, r"images must be .*\(N, 6, 5, 2\)"),
        ({"images": grays(2) * 2}, r"images must be .*\[0, 1\]"),
        ({"images": np.zeros((2, *SHAPE), np.uint8)}, "divide uint8 images by 255"),
    ],
)
def test_faulty_arguments_are_named(changes, message):
    arguments = {"images": grays(2), "labels": np.array([0, 1])} | changes
    images, labels = arguments.pop("images"), arguments.pop("labels")
    with pytest.raises(ValueError, match=message):
        attack(three_classes(), images, labels, **arguments)
