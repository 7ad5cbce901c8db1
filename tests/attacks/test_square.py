"""The Square attack on linear classifiers, and beside PGD."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import abs_model
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.best_so_far import score
from abs_model.attacks._core.keys import image_keys
from abs_model.attacks.pgd import pgd
from abs_model.attacks.square import (
    _bumps,
    _propose,
    _start,
    share_of_image,
    side_of_square,
    square,
)
from tests.linear_classifiers import (
    FARTHEST,
    boundary_distances,
    check_bounds,
    grays,
    three_classes,
    two_classes,
)
from tests.minimal_norm import KEY, walled

norms = pytest.mark.parametrize("norm", ["l2", "linf"])


def attack(model, images, labels, **changes):
    settings = {"norm": "linf", "epsilon": 0.1, "num_steps": 30} | changes
    return square(model, images, labels, settings.pop("key", KEY), **settings)


def batch_of(images):
    return Batch(
        jnp.asarray(images), jnp.zeros(len(images), int), image_keys(KEY, len(images)), False
    )


def test_the_share_of_the_image_is_halved_at_the_papers_steps():
    shares = [share_of_image(step, 10_000, 0.8) for step in range(10_000)]
    places = np.flatnonzero(np.diff(shares)) + 1
    np.testing.assert_array_equal(places, [11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001])
    np.testing.assert_allclose(np.unique(shares), 0.8 / 2.0 ** np.arange(9, -1, -1))
    tenth = [share_of_image(step, 1000, 0.8) for step in range(1000)]
    assert tenth == shares[::10]


def test_sides_of_squares():
    shape = (28, 28, 1)
    assert [side_of_square(p, shape, "linf") for p in (1.0, 0.8, 0.1, 1e-9)] == [28, 25, 9, 1]
    # Odd, so that they have a middle, and at least 3.
    assert [side_of_square(p, shape, "l2") for p in (1.0, 0.8, 0.08, 1e-9)] == [27, 25, 9, 3]
    assert [side_of_square(1.0, (2, 9, 3), norm) for norm in ("l2", "linf")] == [1, 2]


@pytest.mark.parametrize("side", [1, 3, 5, 9])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_pattern_is_that_of_equation_2(side, transposed):
    def eta(height, width):
        """As in the paper, rows and columns counted from 1."""
        values = np.zeros((height, width))
        n = max(height, width) // 2
        for r in range(1, height + 1):
            for s in range(1, width + 1):
                reach = n - max(abs(r - height // 2 - 1), abs(s - width // 2 - 1))
                values[r - 1, s - 1] = sum(1 / (n + 1 - k) ** 2 for k in range(reach + 1))
        return values

    half = side // 2
    expected = np.concatenate([eta(half, side), -eta(side - half, side)])
    # The square's first pixel is in row 2 and column 1.
    places = [jnp.asarray(x) for x in np.mgrid[-2:12, -1:13]]
    turned = places[::-1] if transposed else places
    found = np.array(_bumps(*turned, side, jnp.array(transposed)))
    np.testing.assert_allclose(found[2 : 2 + side, 1 : 1 + side], expected, rtol=1e-5)
    found[2 : 2 + side, 1 : 1 + side] = 0
    assert not found.any()


def nothing(batch):
    """No success so far."""
    return score(batch, batch.images, jnp.zeros((len(batch.images), 3)), "l2")


@pytest.mark.parametrize("side", [1, 2, 4, 5])
def test_linf_steps_change_one_square_to_the_ends_of_the_ball(side):
    batch = batch_of(walled(20))
    start = np.asarray(_start(batch, nothing(batch), 0, 0.3, "linf"))
    ends = [np.clip(batch.images + sign * 0.3, 0, 1) for sign in (-1, 1)]
    moved = np.asarray(_propose(batch, jnp.asarray(start), nothing(batch), 1, side, 0.3, "linf"))
    for values in (start, moved):
        assert np.minimum(abs(values - ends[0]), abs(values - ends[1])).max() < 1e-6
    changed = (np.abs(moved - start) > 1e-6).any(3)
    assert changed.any((1, 2)).all()
    for of_image in changed:
        for axis in (0, 1):
            places = np.flatnonzero(of_image.any(axis))
            assert places[-1] - places[0] < side


def test_linf_starts_from_vertical_stripes():
    batch = batch_of(grays(20))
    change = np.asarray(_start(batch, nothing(batch), 0, 0.2, "linf")) - grays(20)
    np.testing.assert_allclose(np.abs(change), 0.2, atol=1e-6)
    np.testing.assert_allclose(change, change[:, :1] + 0 * change, atol=1e-6)
    assert 0.3 < np.mean(change > 0) < 0.7
    assert np.std(change[:, 0], axis=(1, 2)).max() > 0


def test_l2_steps_keep_the_length_and_empty_a_window():
    batch = batch_of(grays(20))
    images = _start(batch, nothing(batch), 0, 0.3, "l2")
    for number in range(1, 6):
        before = np.asarray(images - batch.images)
        images = _propose(batch, images, nothing(batch), number, 3, 0.3, "l2")
        change = np.asarray(images - batch.images)
        np.testing.assert_allclose(np.linalg.norm(change.reshape(20, -1), axis=1), 0.3, rtol=1e-4)
        changed = (np.abs(change - before) > 1e-6).any(3).sum((1, 2))
        assert changed.max() <= 2 * 9 and changed.min() > 0
    emptied = (np.abs(change).max(3) == 0).sum((1, 2))
    assert emptied.max() >= 3


# Windows of at least 3 x 3 can't follow weights without any structure closely.
@pytest.mark.parametrize(("norm", "share"), [("l2", 0.45), ("linf", 0.9)])
def test_success_is_where_the_boundary_is_within_epsilon(norm, share):
    model, w, bias = two_classes()
    images = grays(6)
    labels = model.predict(images)
    needed = boundary_distances(images, w, bias, norm)
    for epsilon in (0.95 * needed.max(), np.median(needed) / share):
        result = attack(model, images, labels, norm=norm, epsilon=float(epsilon), num_steps=400)
        check_bounds(result, images, norm, epsilon)
        success = np.asarray(result.success)
        assert not success[needed > epsilon].any()
        assert success[needed <= share * epsilon].sum() >= 1
        assert success[needed <= share * epsilon].all()
        np.testing.assert_array_equal(success, model.predict(result.images) != labels)


@norms
def test_more_steps_come_near_the_highest_margin_of_the_ball(norm):
    model, w, bias = two_classes()
    images = grays(6)
    labels = model.predict(images)
    needed = boundary_distances(images, w, bias, norm)
    epsilon = 0.9 * float(needed.min())

    def shares(num_steps):
        """How much of what can be gained in the ball is gained."""
        result = attack(model, images, labels, norm=norm, epsilon=epsilon, num_steps=num_steps)
        assert not np.any(result.success)
        found = np.asarray(result.images).reshape(6, -1) @ w + bias
        start = images.reshape(6, -1) @ w + bias
        dual = np.abs(w).sum() if norm == "linf" else np.linalg.norm(w)
        return np.abs(found - start) / (epsilon * dual)

    few, many = shares(10), shares(1000)
    assert many.max() <= 1.001
    assert np.mean(few) < 0.6 * np.mean(many)
    assert np.mean(many) > (0.99 if norm == "linf" else 0.6)


@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(
    seed=st.integers(0, 1000),
    norm=st.sampled_from(["l2", "linf"]),
    share=st.floats(0.0, 1.0, width=32),
    p_init=st.floats(0.125, 1.0, width=32),
)
def test_results_keep_to_the_bounds(seed, norm, share, p_init):
    epsilon = share * FARTHEST[norm]
    model, images = three_classes(), walled(6, seed)
    labels = np.random.default_rng(seed).integers(0, 3, 6)
    result = attack(
        model, images, labels, key=jax.random.key(seed), norm=norm, epsilon=epsilon, p_init=p_init,
        num_steps=10,
    )  # fmt: skip
    check_bounds(result, images, norm, epsilon)
    np.testing.assert_array_equal(result.success, model.predict(result.images) != labels)


@norms
def test_clean_errors_and_epsilon_zero(norm):
    model, images = three_classes(), grays(6)
    labels = np.array([0, 1, 2, 0, 1, 2])
    wrong = model.predict(images) != labels
    assert wrong.any() and not wrong.all()
    for epsilon in (0.0, 1.0):
        result = attack(model, images, labels, norm=norm, epsilon=epsilon)
        np.testing.assert_array_equal(np.asarray(result.images)[wrong], images[wrong])
        np.testing.assert_array_equal(np.asarray(result.distances)[wrong], 0.0)
        assert np.all(np.asarray(result.success)[wrong])
    result = attack(model, images, labels, norm=norm, epsilon=0.0)
    np.testing.assert_array_equal(result.images, images)
    np.testing.assert_array_equal(result.success, wrong)


@norms
def test_result_depends_on_the_key_but_not_on_the_split_into_batches(norm):
    model, images = three_classes(), walled(6)
    labels = model.predict(images)
    settings = {"norm": norm, "epsilon": 0.4 if norm == "l2" else 0.1, "num_restarts": 2}
    whole = attack(model.with_batch_size(6), images, labels, **settings)
    # Else the rest would say little.
    assert 0 < np.sum(whole.success) < 6
    again = attack(model.with_batch_size(6), images, labels, **settings)
    np.testing.assert_array_equal(again.images, whole.images)
    other = attack(model, images, labels, key=jax.random.key(99), **settings)
    assert np.abs(np.asarray(other.images) - whole.images).max() > 1e-3
    batched = attack(model.with_batch_size(3), images, labels, **settings)
    np.testing.assert_allclose(batched.images, whole.images, atol=1e-5)
    for rows in (np.array([0, 2, 4]), np.array([5, 1, 3])):
        part = attack(model, images[rows], labels[rows], key=image_keys(KEY, 6)[rows], **settings)
        np.testing.assert_allclose(part.images, whole.images[rows], atol=1e-5)


@norms
def test_scale_of_the_logits_is_no_protection(norm):
    images = grays(6)
    labels = three_classes().predict(images)
    settings = {"norm": norm, "epsilon": 0.3 if norm == "l2" else 0.05, "num_steps": 100}
    plain = attack(three_classes(), images, labels, **settings)
    assert 0 < np.sum(plain.success)
    for scale in (1e-3, 1e4):
        scaled = attack(three_classes(scale), images, labels, **settings)
        np.testing.assert_array_equal(scaled.success, plain.success)
        np.testing.assert_allclose(scaled.images, plain.images, atol=1e-4)


def test_restarts_only_add():
    model, images = three_classes(), grays(12)
    labels = model.predict(images)
    settings = {"norm": "linf", "epsilon": 0.03, "num_steps": 5}
    fewer, more = (
        attack(model, images, labels, num_restarts=count, **settings) for count in (1, 8)
    )
    assert np.all(np.asarray(more.success) >= np.asarray(fewer.success))
    assert np.sum(more.success) > np.sum(fewer.success)


def test_targets_are_reached():
    model, images = three_classes(), grays(6)
    labels = model.predict(images)
    for shift in (1, 2):
        targets = (labels + shift) % 3
        result = attack(model, images, labels, targets=targets, epsilon=0.4, num_steps=200)
        assert np.all(result.success)
        np.testing.assert_array_equal(model.predict(result.images), targets)


def test_counts_the_questions_and_stops_when_all_are_fooled():
    seen = []
    model, images = three_classes(), grays(4)
    result = attack(
        model, images, model.predict(images), epsilon=1e-4, num_steps=3, num_restarts=2,
        progress=seen.append,
    )  # fmt: skip
    assert seen == list(range(1, 10))
    np.testing.assert_array_equal(result.num_queries, 9)
    np.testing.assert_array_equal(result.num_gradients, 0)
    easy = attack(model, images, model.predict(images), epsilon=0.5, num_steps=1000)
    assert np.all(easy.success) and np.max(easy.num_queries) < 300


def test_the_cnn_is_about_as_easy_for_it_as_for_pgd(mnist_sample):
    model = abs_model.load("cnn").with_batch_size(20)
    images = mnist_sample["test_images"][:20].reshape(-1, 28, 28, 1).astype(np.float32) / 255
    labels = mnist_sample["test_labels"][:20].astype(np.int32)
    ours = attack(model, images, labels, epsilon=0.15, num_steps=300)
    steps = {"norm": "linf", "epsilon": 0.15, "step_size": 0.015, "num_steps": 40}
    theirs = pgd(model, images, labels, KEY, **steps)
    assert np.mean(theirs.success) >= 0.9
    assert np.mean(ours.success) >= np.mean(theirs.success) - 0.1
    check_bounds(ours, images, "linf", 0.15)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "l0"}, "norm must be one of l2, linf, got 'l0'"),
        ({"epsilon": -0.1}, r"epsilon must be a finite number .* 0.0 and at most 1, got -0.1"),
        ({"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        ({"p_init": 0.0}, "p_init must be a finite number above 0.0 and at most 1, got 0.0"),
        ({"p_init": 1.5}, "p_init must be .* and at most 1, got 1.5"),
        ({"num_restarts": 0}, "num_restarts must be an integer of at least 1, got 0"),
    ],
)
def test_faulty_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        attack(three_classes(), grays(2), np.array([0, 1]), **changes)
