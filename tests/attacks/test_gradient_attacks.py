"""The fast gradient method and its iterations, which search the smallest epsilon."""

import functools

import foolbox
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import abs_model
from abs_model.attacks import bim, mim
from abs_model.attacks.fast_gradient import fast_gradient
from tests.function_classifiers import function_classifier, tracking_classifier
from tests.linear_classifiers import (
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
ATTACKS = [fast_gradient, bim, mim]
NORMS = ["l2", "linf"]
every_attack = pytest.mark.parametrize("attack", ATTACKS)
every_norm = pytest.mark.parametrize("norm", NORMS)


@every_attack
@every_norm
def test_finds_the_distance_of_the_boundary(attack, norm):
    model, w, bias = two_classes()
    images = grays(6)
    labels = model.predict(images)
    result = attack(model, images, labels, KEY, norm=norm)
    needed = boundary_distances(images, w, bias, norm)
    assert np.all(result.success)
    assert np.all(model.predict(result.images) != labels)
    check_bounds(result, images, norm, np.inf)
    assert np.all(result.distances >= needed * (1 - 1e-4))
    assert np.all(result.distances <= needed * 1.001)


@every_attack
@every_norm
def test_finds_boundaries_beyond_the_first_epsilon(attack, norm):
    """Images of 0.1 with the boundary at 0.5 or 0.9 everywhere: farther than the first epsilon."""
    images = np.full((2, *SHAPE), 0.1, np.float32)
    images[1] = 0.9
    w = np.ones(PIXELS) / PIXELS
    model = linear_classifier(np.stack([np.zeros(PIXELS), w], 1), np.array([0.0, -0.55]))
    result = attack(model, images, model.predict(images), KEY, norm=norm)
    scale = 1.0 if norm == "linf" else np.sqrt(PIXELS)
    np.testing.assert_allclose(result.distances, np.array([0.45, 0.35]) * scale, rtol=2e-3)


@every_attack
@every_norm
def test_targets_are_reached(attack, norm):
    model, images = three_classes(), grays(6)
    labels = model.predict(images)
    untargeted = attack(model, images, labels, KEY, norm=norm)
    runner_up = np.argsort(model.logits(images), axis=1)[:, 1]
    for shift in (1, 2):
        targets = (labels + shift) % 3
        result = attack(model, images, labels, KEY, norm=norm, targets=targets)
        assert np.all(result.success)
        np.testing.assert_array_equal(model.predict(result.images), targets)
        # That is where the untargeted attack goes, which may come upon the other class first.
        same = runner_up == targets
        assert np.all(untargeted.distances[same] <= result.distances[same] * 1.01)
        assert same.any()


@hypothesis.settings(max_examples=8, deadline=None)
@hypothesis.given(
    seed=st.integers(0, 1000), attack=st.sampled_from(ATTACKS), norm=st.sampled_from(NORMS)
)
def test_results_are_images_and_distances_theirs(seed, attack, norm):
    model = three_classes()
    random = np.random.default_rng(seed)
    # Many pixels at the ends of the range, as in MNIST.
    images = np.clip(random.uniform(-0.5, 1.5, (6, *SHAPE)), 0, 1).astype(np.float32)
    labels = random.integers(0, 3, 6)
    result = attack(model, images, labels, KEY, norm=norm)
    check_bounds(result, images, norm, np.inf)
    np.testing.assert_array_equal(result.success, model.predict(result.images) != labels)
    wrong = model.predict(images) != labels
    np.testing.assert_array_equal(np.asarray(result.distances) == 0, wrong)
    np.testing.assert_array_equal(np.asarray(result.images)[wrong], images[wrong])


@every_attack
@every_norm
@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_confidence_is_no_protection(attack, norm, scale):
    images = grays(6)
    labels = two_classes()[0].predict(images)
    plain, scaled = (
        attack(two_classes(scale=s)[0], images, labels, KEY, norm=norm) for s in (1, scale)
    )
    np.testing.assert_allclose(scaled.distances, plain.distances, rtol=1e-3)
    assert np.all(scaled.success)


@every_attack
@every_norm
def test_zero_gradient_is_no_trouble(attack, norm):
    model = linear_classifier(np.zeros((PIXELS, 3)), [0.0, 1.0, 0.0])
    images = grays(6)
    result = attack(model, images, np.ones(6, int), KEY, norm=norm)
    np.testing.assert_array_equal(result.images, images)
    assert not np.any(result.success)


@pytest.mark.parametrize(
    ("attack", "queries", "gradients"),
    [
        (functools.partial(fast_gradient, num_epsilons=5, num_bisections=3), 5, 1),
        (functools.partial(bim, num_steps=4, num_searches=3), 13, 10),
        (functools.partial(mim, num_steps=4, num_searches=3), 13, 10),
    ],
)
def test_progress_and_result_count_the_questions(attack, queries, gradients):
    seen = []
    result = attack(
        three_classes(), grays(4), np.zeros(4, int), KEY, norm="l2", progress=seen.append
    )
    assert seen == list(range(1, queries + 1))
    np.testing.assert_array_equal(result.num_queries, queries)
    np.testing.assert_array_equal(result.num_gradients, gradients)


@pytest.mark.parametrize(
    ("attack", "changes", "message"),
    [
        (fast_gradient, {"num_epsilons": 0}, "num_epsilons must be an integer of at least 1"),
        (fast_gradient, {"num_bisections": 0}, "num_bisections must be an integer of at least 1"),
        (fast_gradient, {"norm": "l0"}, "norm must be one of l2, linf, got 'l0'"),
        (bim, {"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        (bim, {"norm": "l0"}, "norm must be one of l2, linf, got 'l0'"),
        (mim, {"num_searches": 0}, "num_searches must be an integer of at least 1, got 0"),
        (mim, {"decay": -1.0}, "decay must be a finite number of at least 0.0, got -1.0"),
    ],
)
def test_faulty_arguments_are_named(attack, changes, message):
    with pytest.raises(ValueError, match=message):
        attack(three_classes(), grays(2), np.array([0, 1]), KEY, **({"norm": "l2"} | changes))


def test_fast_gradient_finds_the_first_crossing():
    def logits(images):
        """Class 1 where the mean brightness is in [0.55, 0.7] or above 0.9."""
        brightness = images.mean((1, 2, 3))
        inside = 0.075 - jnp.abs(brightness - 0.625)
        return jnp.stack([jnp.zeros_like(brightness), jnp.maximum(inside, brightness - 0.9)], 1)

    images = np.stack([np.full(SHAPE, value, np.float32) for value in (0.2, 0.3, 0.4)])
    model = function_classifier(logits, 2)
    result = fast_gradient(model, images, np.zeros(3, int), KEY, norm="linf")
    np.testing.assert_allclose(result.distances, [0.35, 0.25, 0.15], rtol=1e-3)


@pytest.mark.parametrize("attack", [bim, mim])
def test_questions_follow_states_of_images_nearby(attack):
    linear, _, _ = two_classes()
    model, asked = tracking_classifier(linear.batch_logits, 2)
    images = grays(4)
    attack(model, images, linear.predict(images), KEY, norm="linf")
    jax.effects_barrier()
    # A sixth or a fifth of an epsilon of 0.3.
    steps = [np.abs(image - state).max() for image, state in asked]
    assert 0 < max(steps) < 0.061


def momentum_iterates(gradient, images, epsilon, step_size, num_steps):
    """MIM for L-infinity as Dong et al. write it down (their eq. 6 and 7), in numpy."""
    momenta, iterates = np.zeros_like(images), images
    for _ in range(num_steps):
        gradients = gradient(iterates)
        momenta = momenta + gradients / np.abs(gradients).mean((1, 2, 3), keepdims=True)
        iterates = iterates + step_size * np.sign(momenta)
        iterates = np.clip(np.clip(iterates, images - epsilon, images + epsilon), 0, 1)
    return iterates


def test_mim_follows_the_sum_of_normalized_gradients():
    random = np.random.default_rng(0)
    weights = random.uniform(0.5, 2.0, SHAPE).astype(np.float32)
    # Near enough that gradients change their signs on the way.
    center = grays(1)[0] + random.uniform(-0.2, 0.2, SHAPE).astype(np.float32)
    images = grays(3)

    def losses(iterates):
        return -((weights * (iterates - center)) ** 2).sum((1, 2, 3))

    def gradient(iterates):
        return -2 * weights**2 * (iterates - center)

    # The classifier is never fooled.
    model = function_classifier(
        lambda images: jnp.stack([jnp.full(len(images), 1000.0), losses(images)], 1), 2
    )
    result = mim(model, images, np.zeros(3, int), KEY, norm="linf", num_steps=5, num_searches=1)
    paths = [momentum_iterates(gradient, images, 0.3, 0.06, steps) for steps in range(6)]
    highest = np.argmax([losses(path) for path in paths], axis=0)
    assert highest.min() > 1
    expected = np.stack([paths[best][i] for i, best in enumerate(highest)])
    np.testing.assert_allclose(result.images, expected, atol=1e-5)
    plain = mim(
        model, images, np.zeros(3, int), KEY, norm="linf", decay=0.0, num_steps=5, num_searches=1
    )
    assert np.abs(np.asarray(plain.images) - expected).max() > 0.05


@pytest.mark.parametrize("attack", [bim, mim])
@pytest.mark.parametrize("num_steps", [1, 2, 6])
def test_few_steps_reach_as_far_as_many(attack, num_steps):
    """The first epsilon is 0.3, too little for these images, whose boundary is 0.4 away."""
    model = linear_classifier(np.eye(2)[[1] * PIXELS], [0.6 * PIXELS, 0.0])
    images = np.full_like(grays(2), 0.2)
    result = attack(
        model, images, np.zeros(2, int), KEY, norm="linf", num_steps=num_steps, num_searches=1
    )
    assert not np.any(result.success)
    np.testing.assert_allclose(result.distances, 0.3, rtol=1e-5)


@pytest.fixture(scope="module")
def cnn(mnist_sample):
    """The CNN, and test images that it classifies correctly."""
    count = 25
    images = np.asarray(mnist_sample["test_images"][:count], np.float32).reshape(-1, 28, 28, 1)
    model = abs_model.load("cnn", batch_size=count)
    labels = np.asarray(mnist_sample["test_labels"][:count], np.int32)
    return model, images / 255, labels


def check_no_worse_than_foolbox(attack, cnn, ours):
    """Of the epsilons at which Foolbox's attack is tried, those near our median are 1% apart."""
    model, images, labels = cnn
    typical = float(np.median(ours))
    epsilons = typical * np.array([*np.linspace(0.9, 1.05, 16), 4.0])
    _, _, success = attack(
        abs_model.to_foolbox(model),
        jnp.asarray(images),
        jnp.asarray(labels),
        epsilons=list(epsilons),
    )
    theirs = np.median(np.where(success, epsilons[:, None], np.inf).min(0))
    assert np.isfinite(theirs) and typical <= 1.03 * theirs


@every_norm
def test_fast_gradient_is_no_worse_than_foolboxs(cnn, norm):
    attack = {
        "linf": foolbox.attacks.LinfFastGradientAttack(random_start=False),
        "l2": foolbox.attacks.L2FastGradientAttack(random_start=False),
    }[norm]
    check_no_worse_than_foolbox(attack, cnn, fast_gradient(*cnn, KEY, norm=norm).distances)


@every_norm
def test_bim_and_mim_are_no_worse_than_foolboxs_bim(cnn, norm):
    attack = {
        "linf": foolbox.attacks.LinfBasicIterativeAttack,
        "l2": foolbox.attacks.L2BasicIterativeAttack,
    }[norm](rel_stepsize=1 / 6, steps=10, random_start=False)
    simple = fast_gradient(*cnn, KEY, norm=norm).distances
    for ours in (bim, mim):
        found = np.asarray(ours(*cnn, KEY, norm=norm, num_searches=8).distances)
        check_no_worse_than_foolbox(attack, cnn, found)
        assert np.mean(found) < np.mean(simple)
