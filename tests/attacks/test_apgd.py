"""Auto-PGD."""

import foolbox
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import abs_model
from abs_model.attacks import Batch, distances, pgd, random_start
from abs_model.attacks._core.keys import fold_in, image_keys
from abs_model.attacks._core.query import Answer
from abs_model.attacks.apgd import _check, _checkpoints, _Path, _Point, apgd, dlr
from abs_model.models.decisions import ATTACK_FACTOR, RELATIVE_ROUNDING
from tests.function_classifiers import function_classifier, tracking_classifier
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
LOSSES = ["ce", "dlr", "targeted_dlr"]
every_norm = pytest.mark.parametrize("norm", ["l2", "linf"])


def attack(model, images, labels, **changes):
    settings = {"norm": "l2", "epsilon": 0.5, "num_steps": 10} | changes
    return apgd(model, images, labels, settings.pop("key", KEY), **settings)


def four_classes(scale=1.0):
    """The first two of `two_classes`, and two that are never ahead."""
    model, w, bias = two_classes()
    weights = np.concatenate([model.weights, np.zeros((PIXELS, 2))], axis=1)
    biases = np.array([0.0, bias, -20.0, -30.0])
    return linear_classifier(weights * scale, biases * scale), w, bias


def batch_of(classes, targeted=False):
    count = len(classes)
    images = jnp.zeros((count, *SHAPE))
    return Batch(images, jnp.asarray(classes), jax.random.split(KEY, count), targeted)


@every_norm
@pytest.mark.parametrize("loss", LOSSES)
def test_success_starts_at_the_distance_of_the_boundary(norm, loss):
    model, w, bias = four_classes()
    images = grays(6)
    labels = model.predict(images)
    needed = boundary_distances(images, w, bias, norm)
    for epsilon in np.sort(needed)[[0, 3, 5]]:
        for factor in (0.98, 1.02):
            result = attack(
                model, images, labels, norm=norm, epsilon=float(factor * epsilon), loss=loss,
                num_steps=20, num_targets=1,
            )  # fmt: skip
            np.testing.assert_array_equal(result.success, needed < factor * epsilon)
            check_bounds(result, images, norm, factor * epsilon)


@hypothesis.settings(max_examples=8, deadline=None)
@hypothesis.given(
    seed=st.integers(0, 1000),
    norm=st.sampled_from(["l2", "linf"]),
    share=st.floats(0.0, 1.0, width=32),
    loss=st.sampled_from(LOSSES),
)
def test_results_keep_to_the_bounds(seed, norm, share, loss):
    epsilon = share * FARTHEST[norm]
    model, _, _ = four_classes()
    random = np.random.default_rng(seed)
    # Many pixels at the ends of the range, as in MNIST.
    images = np.clip(random.uniform(-0.5, 1.5, (6, *SHAPE)), 0, 1).astype(np.float32)
    labels = random.integers(0, 4, 6)
    result = attack(
        model, images, labels, key=jax.random.key(seed), norm=norm, epsilon=epsilon, loss=loss,
        num_targets=2,
    )  # fmt: skip
    check_bounds(result, images, norm, epsilon)
    np.testing.assert_array_equal(result.success, model.predict(result.images) != labels)
    wrong = model.predict(images) != labels
    np.testing.assert_array_equal(np.asarray(result.distances)[wrong], 0.0)


def quadratic():
    """Two logits, of which the other has a maximum near gray and is never ahead; its parameters."""
    random = np.random.default_rng(5)
    weights = random.uniform(0.5, 2.0, SHAPE)
    maximum = grays(1)[0] + random.uniform(-0.1, 0.1, SHAPE)

    def logits(images):
        squares = (jnp.asarray(weights) * (images - jnp.asarray(maximum)) ** 2).sum((1, 2, 3))
        return jnp.stack([jnp.full(len(images), 1000.0), -squares], 1)

    return logits, weights, maximum


@every_norm
def test_closes_in_on_a_maximum_inside_the_ball(norm):
    """Steps of twice epsilon would go to and fro between the ends of the ball for ever."""
    logits, _, maximum = quadratic()
    images = np.repeat(grays(1), 4, axis=0)
    epsilon = 0.3 if norm == "linf" else 1.5
    result = attack(
        function_classifier(logits, 2), images, np.zeros(4, int), norm=norm, epsilon=epsilon,
        num_steps=100, loss="ce",
    )  # fmt: skip
    assert np.all(distances(images, maximum, norm) > 0.09)
    assert np.all(distances(result.images, maximum, norm) < 0.02 * epsilon)


def papers_algorithm(loss, gradient, start, project, direction, epsilon, num_steps, checkpoints):
    """Algorithm 1 for a single image, in numpy: the best point, and where its steps began."""
    step_size, before, here, top = 2 * epsilon, start, start, start
    marks, rises, halved, checked, bases = [0], 0, False, loss(start), []
    for k in range(num_steps):
        bases.append(here)
        ahead = project(here + step_size * direction(gradient(here)))
        share = 0.75 if k > 0 else 1.0
        new = project(here + share * (ahead - here) + (1 - share) * (here - before))
        rises += loss(new) > loss(here)
        top = new if loss(new) > loss(top) else top
        before, here = here, new
        if k + 1 in checkpoints:
            few = rises < 0.75 * (k + 1 - marks[-1])
            stuck = not halved and loss(top) == checked
            halved, checked, rises = few or stuck, loss(top), 0
            marks.append(k + 1)
            if halved:
                step_size, here = step_size / 2, top
    return top, bases


@every_norm
def test_takes_the_steps_of_the_papers_algorithm(norm):
    logits, weights, maximum = quadratic()
    image, epsilon = grays(1), 0.3 if norm == "linf" else 1.5
    model, asked = tracking_classifier(logits, 2)
    result = attack(
        model, image, np.zeros(1, int), norm=norm, epsilon=epsilon, num_steps=20, loss="ce"
    )
    jax.effects_barrier()
    start = random_start(fold_in(image_keys(KEY, 1), jnp.zeros(1, int)), image, epsilon, norm)

    def project_numpy(x):
        change = x - image[0]
        if norm == "linf":
            return np.clip(image[0] + np.clip(change, -epsilon, epsilon), 0, 1)
        return np.clip(image[0] + change * min(1, epsilon / np.linalg.norm(change)), 0, 1)

    top, bases = papers_algorithm(
        lambda x: -(weights * (x - maximum) ** 2).sum(),
        lambda x: -2 * weights * (x - maximum),
        np.asarray(start[0], np.float64),
        project_numpy,
        np.sign if norm == "linf" else lambda g: g / np.linalg.norm(g),
        epsilon,
        20,
        _checkpoints(20),
    )
    # The start is asked about with the state of the original, and each step but the last with that
    # of the image that it began at.
    np.testing.assert_array_equal(asked[0][1][0], image[0])
    states = [state[0] for _, state in asked[1:20]]
    np.testing.assert_allclose(states, bases[:19], atol=1e-4)
    np.testing.assert_allclose(result.images[0], top, atol=1e-4)
    assert len({state.tobytes() for state in states}) < 19, "no step size was ever halved"


@pytest.mark.parametrize(
    ("rises", "checked", "halved_before", "halved"),
    [
        (6, 1.0, False, False),
        (5, 1.0, False, True),  # too few rises
        (6, 2.0, False, True),  # nothing higher than at the last checkpoint
        (6, 2.0, True, False),  # with shorter steps since
        (5, 2.0, True, True),
    ],
)
def test_step_sizes_are_halved_under_the_papers_conditions(rises, checked, halved_before, halved):
    def point(value):
        images = jnp.full((1, *SHAPE), value)
        return _Point(Answer(images, jnp.zeros((1, 3)), ()), jnp.array([value]))

    path = _Path(
        here=point(1.5), before=jnp.zeros((1, *SHAPE)), top=point(2.0), step_sizes=jnp.array([0.6]),
        rises=jnp.array([rises]), checked=jnp.array([checked]), halved=jnp.array([halved_before]),
    )  # fmt: skip
    after = _check(path, 0.75 * 8)
    np.testing.assert_allclose(after.step_sizes, 0.3 if halved else 0.6)
    np.testing.assert_array_equal(after.here.losses, 2.0 if halved else 1.5)
    assert (after.rises[0], after.checked[0], after.halved[0]) == (0, 2.0, halved)


def test_checkpoints_are_the_papers():
    assert _checkpoints(100) == {22, 41, 57, 70, 80, 87, 93, 99}
    assert _checkpoints(10) == {3, 5, 6, 7, 8, 9, 10}


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_dlr_is_the_papers(scale):
    logits = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    ordered = np.sort(logits, axis=1)[:, ::-1]
    labels = np.arange(8) % 6
    rows = np.arange(8)
    others = np.where(np.arange(6) == labels[:, None], -np.inf, logits).max(1)
    expected = -(logits[rows, labels] - others) / (ordered[:, 0] - ordered[:, 2])
    actual = dlr(scale * jnp.asarray(logits), batch_of(labels))
    np.testing.assert_allclose(actual, expected, rtol=1e-4)
    # For a target the label counts, which is ahead.
    labels, targets = logits.argmax(1), np.argsort(logits, axis=1)[rows, rows % 5]
    spread = ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2
    expected = -(logits[rows, labels] - logits[rows, targets]) / spread
    actual = dlr(scale * jnp.asarray(logits), batch_of(targets, targeted=True))
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


@pytest.mark.parametrize("targeted", [False, True])
def test_dlr_of_equal_logits_is_no_trouble(targeted):
    logits = jnp.ones((2, 5))
    values, gradients = jax.vmap(
        jax.value_and_grad(lambda row: dlr(row[None], batch_of([0], targeted))[0])
    )(logits)
    # No margin, which is less than what rounding may undo.
    np.testing.assert_allclose(values, -ATTACK_FACTOR * RELATIVE_ROUNDING, rtol=1e-5)
    assert np.all(np.isfinite(gradients)) and np.any(gradients != 0)


def test_targeted_dlr_finds_what_hides_behind_the_runner_up():
    def logits(images):
        """The runners-up are out of reach and give no gradient; class 3 comes up with contrast."""
        up = images.mean((1, 2, 3)) - images[:, :3].mean((1, 2, 3))
        constant = jnp.zeros(len(images))
        return jnp.stack([constant + 1, constant + 0.8, constant + 0.7, 20 * up, constant - 5], 1)

    model, images = function_classifier(logits, 5), grays(4)
    labels = np.zeros(4, int)
    np.testing.assert_array_equal(model.predict(images), labels)
    settings = {"norm": "linf", "epsilon": 0.2}
    assert not np.any(attack(model, images, labels, loss="dlr", **settings).success)
    for num_targets, success in [(2, False), (3, True)]:
        result = attack(
            model, images, labels, loss="targeted_dlr", num_targets=num_targets, **settings
        )
        np.testing.assert_array_equal(result.success, success)


@pytest.mark.parametrize("loss", LOSSES)
def test_targets_are_reached(loss):
    random = np.random.default_rng(7)
    weights = random.normal(size=(PIXELS, 4))
    model, images = linear_classifier(weights, -0.5 * weights.sum(0)), grays(6)
    labels = model.predict(images)
    for shift in (1, 2, 3):
        targets = (labels + shift) % 4
        result = attack(model, images, labels, targets=targets, epsilon=4.0, loss=loss)
        assert np.all(result.success)
        np.testing.assert_array_equal(model.predict(result.images), targets)


@pytest.mark.parametrize(("norm", "loss"), [("linf", "dlr"), ("l2", "targeted_dlr")])
def test_result_does_not_depend_on_the_split_into_calls_and_batches(norm, loss):
    model, images = four_classes()[0], grays(7)
    labels = model.predict(images)
    settings = {"norm": norm, "epsilon": 0.2, "num_restarts": 2, "loss": loss, "num_targets": 2}
    whole = attack(model.with_batch_size(7), images, labels, **settings)
    batched = attack(model.with_batch_size(3), images, labels, **settings)
    parts = [
        attack(model, images[part], labels[part], key=image_keys(KEY, 7)[part], **settings)
        for part in (slice(0, 2), slice(2, 7))
    ]
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    for other in (batched, joined):
        np.testing.assert_allclose(other.images, whole.images, atol=1e-5)
        np.testing.assert_array_equal(other.success, whole.success)


def test_same_key_same_result_other_key_other_start():
    model, images, labels = three_classes(), grays(6), np.arange(6) % 3
    first, again, other = (
        attack(model, images, labels, key=jax.random.key(seed), num_steps=1) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.images, again.images)
    assert np.abs(np.asarray(first.images) - other.images).max() > 1e-5


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_confidence_is_no_protection(loss, scale):
    images = grays(6)
    labels = four_classes()[0].predict(images)
    settings = {"epsilon": 1.0, "loss": loss, "num_targets": 1}
    plain, scaled = (
        attack(four_classes(scale=s)[0], images, labels, **settings) for s in (1, scale)
    )
    np.testing.assert_allclose(scaled.distances, plain.distances, rtol=0.05)
    assert np.all(scaled.success)


@every_norm
@pytest.mark.parametrize("loss", LOSSES)
def test_zero_gradient_is_no_trouble(norm, loss):
    model = linear_classifier(np.zeros((PIXELS, 4)), [0.0, 1.0, 0.0, 0.0])
    images = grays(6)
    result = attack(model, images, np.ones(6, int), norm=norm, loss=loss)
    assert np.all(np.isfinite(result.images))
    assert not np.any(result.success)


@every_norm
def test_epsilon_zero_leaves_images_alone(norm):
    model, images = three_classes(), grays(6)
    labels = np.array([0, 1, 2, 0, 1, 2])
    result = attack(model, images, labels, norm=norm, epsilon=0.0)
    np.testing.assert_array_equal(result.images, images)
    np.testing.assert_array_equal(result.success, model.predict(images) != labels)


@pytest.mark.parametrize(
    ("changes", "num_ascents"),
    [
        ({"num_restarts": 2}, 2),
        ({"num_restarts": 2, "loss": "targeted_dlr"}, 6),
        ({"num_targets": 2, "loss": "targeted_dlr"}, 2),
        ({"loss": "targeted_dlr", "targets": np.array([1, 2, 3])}, 1),
    ],
)
def test_progress_and_result_count_the_questions(changes, num_ascents):
    seen = []
    result = attack(
        four_classes()[0], grays(3), np.zeros(3, int), num_steps=3, progress=seen.append, **changes
    )
    assert seen == list(range(1, 2 + 4 * num_ascents))
    np.testing.assert_array_equal(result.num_queries, 1 + 4 * num_ascents)
    np.testing.assert_array_equal(result.num_gradients, 3 * num_ascents)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "l0"}, "norm must be one of l2, linf, got 'l0'"),
        ({"epsilon": -0.1}, r"epsilon must be .* of at least 0.0 and at most .*, got -0.1"),
        ({"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        ({"num_restarts": 0}, "num_restarts must be an integer of at least 1, got 0"),
        ({"num_targets": 0}, "num_targets must be an integer of at least 1, got 0"),
        ({"loss": "cw"}, "loss must be one of ce, dlr, targeted_dlr, got 'cw'"),
        ({"loss": "targeted_dlr"}, "at least 4 for the loss 'targeted_dlr', got 3; 'ce' will do"),
        ({"loss": "dlr", "targets": np.array([1, 2])}, "at least 4 for the loss 'dlr', got 3"),
    ],
)
def test_faulty_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        attack(three_classes(), grays(2), np.array([0, 1]), **changes)


def test_two_classes_have_no_dlr():
    model, _, _ = two_classes()
    images = grays(2)
    with pytest.raises(ValueError, match="must be at least 3 for the loss 'dlr', got 2"):
        attack(model, images, np.array([0, 1]))
    assert np.all(attack(model, images, model.predict(images), loss="ce", epsilon=2.0).success)


@every_norm
def test_is_no_worse_than_pgd_and_foolboxs_pgd(mnist_sample, norm):
    images = np.asarray(mnist_sample["test_images"][:25], np.float32).reshape(-1, 28, 28, 1) / 255
    labels = np.asarray(mnist_sample["test_labels"][:25], np.int32)
    model = abs_model.load("cnn", batch_size=25)
    # Half of the images hold out.
    epsilon = 0.06 if norm == "linf" else 0.87
    theirs, own = (
        np.sum(attack(model, images, labels, norm, epsilon, num_steps=10))
        for attack in (foolbox_pgd, own_pgd)
    )
    assert own >= theirs
    fewest = max(theirs, own)
    assert 5 < fewest < 20
    for loss in ("ce", "dlr"):
        result = attack(model, images, labels, norm=norm, epsilon=epsilon, num_steps=10, loss=loss)
        assert np.sum(result.success) >= fewest


def own_pgd(model, images, labels, norm, epsilon, num_steps):
    return pgd(
        model, images, labels, KEY, norm=norm, epsilon=epsilon, step_size=epsilon / 4,
        num_steps=num_steps,
    ).success  # fmt: skip


def foolbox_pgd(model, images, labels, norm, epsilon, num_steps):
    attacks = foolbox.attacks
    method = attacks.LinfProjectedGradientDescentAttack if norm == "linf" else attacks.L2PGD
    _, _, success = method(steps=num_steps, rel_stepsize=1 / 4)(
        abs_model.to_foolbox(model), jnp.asarray(images), jnp.asarray(labels), epsilons=[epsilon]
    )
    return success[0]
