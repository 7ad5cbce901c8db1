"""Attacks of random noise, against NumPy searches of the same noise, and against Foolbox."""

import foolbox
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import abs_model
from abs_model.attacks import distances, gaussian_noise, salt_and_pepper
from abs_model.attacks._core.keys import fold_in, image_keys
from tests.linear_classifiers import (
    PIXELS,
    SHAPE,
    check_bounds,
    grays,
    linear_classifier,
    three_classes,
    two_classes,
)
from tests.minimal_norm import walled

KEY = jax.random.key(3)
ATTACKS = {
    gaussian_noise: {"num_directions": 3, "num_epsilons": 20},
    salt_and_pepper: {"num_restarts": 3, "num_epsilons": 10},
}
few_examples = hypothesis.settings(max_examples=10, deadline=None)
both_attacks = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)


def run(attack, model, images, labels, key=KEY, **changes):
    return attack(model, images, labels, key, **(ATTACKS[attack] | changes))


def keys_of(number, count):
    return fold_in(image_keys(KEY, count), jnp.full(count, number))


def test_gaussian_noise_stops_where_the_noise_first_fools():
    model, w, bias = two_classes()
    images = grays(8)
    labels = model.predict(images)
    num_levels, num_directions = 50, 4
    result = run(
        gaussian_noise, model, images, labels, num_directions=num_directions,
        num_epsilons=num_levels,
    )  # fmt: skip
    sides = np.where(labels == 1, -1, 1)
    expected = np.full(8, np.inf)
    for number in range(num_directions):
        for index, key in enumerate(keys_of(number, 8)):
            noise = np.asarray(jax.random.normal(key, SHAPE), np.float64)

            def changed(share, index=index, noise=noise):
                return np.clip(images[index] + share * noise, 0, 1)

            def margin(share, index=index, changed=changed):
                return sides[index] * (changed(share).ravel() @ w + bias)

            for level in range(1, num_levels + 1):
                if margin(level / num_levels) > 0:
                    # Much finer than the attack's bisection.
                    shares = np.linspace((level - 1) / num_levels, level / num_levels, 20_001)
                    crossing = next(share for share in shares if margin(share) > 0)
                    length = np.linalg.norm(changed(crossing) - images[index])
                    expected[index] = min(expected[index], length)
                    break
    assert 0 < np.isfinite(expected).sum()
    np.testing.assert_array_equal(result.success, np.isfinite(expected))
    found = np.isfinite(expected)
    np.testing.assert_allclose(result.distances[found], expected[found], rtol=2e-3)


def draw_salt_and_pepper(key, image):
    """The attack's noise, from its key: the images with 0, 1, 2... changed pixels."""
    place_key, color_key = jax.random.split(key)
    colors = np.asarray(jax.random.bernoulli(color_key, 0.5, (6, 5, 1)), np.float32)
    same = (image == colors).all(axis=2, keepdims=True)
    order = np.argsort((np.asarray(jax.random.uniform(place_key, same.shape)) + same).ravel())
    images = [image]
    for pixel in order[: (~same).sum()]:
        rows, columns = np.unravel_index(pixel, (6, 5))
        images.append(images[-1].copy())
        images[-1][rows, columns] = colors[rows, columns]
    return images


def far_from_the_boundary():
    """A linear classifier that takes several pixels to fool, from class 0."""
    _, w, bias = two_classes()
    return linear_classifier(np.stack([0 * w, w], axis=1), [2.5, bias]), w, bias - 2.5


def search_salt_and_pepper(image, key, margin, num_restarts, num_epsilons):
    """What the attack looks for, question by question: the fewest pixels, or None."""

    def draw(number):
        images = draw_salt_and_pepper(jax.random.fold_in(key, number), image)
        fools = [margin(changed) > 0 for changed in images]
        return lambda count: fools[min(count, len(fools) - 1)], len(fools) - 1

    fools, available = draw(0)
    fewest = None
    for level in range(1, num_epsilons + 1):
        if fools(round(level / num_epsilons * available)):
            low, high = (level - 1) / num_epsilons, level / num_epsilons
            for _ in range(2):
                middle = (low + high) / 2
                low, high = (low, middle) if fools(round(middle * available)) else (middle, high)
            fewest = round(high * available)
            break
    fools, available = draw(1)
    for question in range((num_restarts - 1) * num_epsilons):
        rising = round((question % num_epsilons + 1) / num_epsilons * available)
        count = rising if fewest is None else fewest - 1
        if fools(count):
            fewest = count
        else:
            fools, available = draw(question + 2)
    return fewest


@pytest.mark.parametrize("make_images", [grays, walled])
def test_salt_and_pepper_does_as_a_search_one_by_one(make_images):
    model, w, bias = far_from_the_boundary()
    images = make_images(12)
    labels = model.predict(images)
    settings = {"num_restarts": 4, "num_epsilons": 10}
    result = run(salt_and_pepper, model, images, labels, **settings)
    sides = np.where(labels == 1, -1, 1)
    expected = [
        search_salt_and_pepper(
            image, key, lambda changed, side=side: side * (changed.ravel() @ w + bias), **settings
        )
        for image, key, side in zip(images, image_keys(KEY, 12), sides, strict=True)
    ]
    np.testing.assert_array_equal(result.success, [fewest is not None for fewest in expected])
    np.testing.assert_array_equal(result.distances[result.success], [x for x in expected if x])
    assert len(set(expected)) > 3


def test_salt_and_pepper_pixels_are_black_or_white_in_all_channels():
    model = three_classes()
    images = grays(6)
    result = run(salt_and_pepper, model, images, model.predict(images))
    found = np.asarray(result.images)
    changed = (found != images).any(3)
    np.testing.assert_array_equal(result.distances, changed.sum((1, 2)))
    assert set(np.unique(found[changed])) == {0.0, 1.0}
    np.testing.assert_array_equal(found[changed][:, 0], found[changed][:, 1])


@both_attacks
def test_questions_when_nothing_fools(attack):
    model = linear_classifier(np.zeros((PIXELS, 2)), [1.0, 0.0])
    seen = []
    result = run(attack, model, grays(3), np.zeros(3, int), progress=seen.append)
    assert not np.any(result.success)
    # No image fools, and so there are no bisections.
    levels = ATTACKS[attack]["num_epsilons"]
    np.testing.assert_array_equal(result.num_queries, 1 + 3 * levels)
    np.testing.assert_array_equal(result.num_gradients, 0)
    assert seen == list(range(1, 2 + 3 * levels))


@both_attacks
def test_most_questions_are_those_documented(attack):
    model = three_classes()
    images = grays(12)
    result = run(attack, model, images, model.predict(images))
    levels = ATTACKS[attack]["num_epsilons"]
    bisections = 3 * 10 if attack is gaussian_noise else 2
    assert np.all(result.num_queries <= 1 + 3 * levels + bisections)
    # Not all of a batch's images are done after the first step.
    assert np.all(result.num_queries > 1 + 3 + bisections)


@both_attacks
def test_more_draws_never_do_worse(attack):
    model = three_classes()
    images = grays(8)
    labels = model.predict(images)
    name = next(iter(ATTACKS[attack]))
    fewer, more = (run(attack, model, images, labels, **{name: count}) for count in (1, 6))
    assert np.all(more.success >= np.asarray(fewer.success))
    both = np.asarray(fewer.success)
    assert np.all(np.asarray(more.distances)[both] <= np.asarray(fewer.distances)[both])
    assert np.any(np.asarray(more.distances)[both] < np.asarray(fewer.distances)[both])


@both_attacks
@few_examples
@hypothesis.given(seed=st.integers(0, 1000))
def test_results_keep_to_the_bounds(attack, seed):
    model = three_classes()
    random = np.random.default_rng(seed)
    images = np.clip(random.uniform(-0.5, 1.5, (6, *SHAPE)), 0, 1).astype(np.float32)
    labels = random.integers(0, 3, 6)
    result = run(attack, model, images, labels, key=jax.random.key(seed))
    if attack is gaussian_noise:
        check_bounds(result, images, "l2", np.inf)
    else:
        changed = (np.asarray(result.images) != images).any(3).sum((1, 2))
        np.testing.assert_array_equal(result.distances, changed)
    np.testing.assert_array_equal(result.success, model.predict(result.images) != labels)
    clean_errors = model.predict(images) != labels
    np.testing.assert_array_equal(np.asarray(result.distances)[clean_errors], 0.0)


@both_attacks
def test_same_key_same_result_other_key_another(attack):
    model, images = three_classes(), grays(6)
    labels = model.predict(images)
    first, again, other = (
        run(attack, model, images, labels, key=jax.random.key(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.images, again.images)
    assert np.abs(np.asarray(first.images) - other.images).max() > 1e-3


@both_attacks
@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_the_scale_of_the_logits_plays_no_part(attack, scale):
    images = grays(6)
    labels = two_classes()[0].predict(images)
    plain, scaled = (run(attack, two_classes(scale=s)[0], images, labels) for s in (1, scale))
    np.testing.assert_allclose(scaled.images, plain.images, atol=1e-4)
    np.testing.assert_array_equal(scaled.success, plain.success)


@pytest.fixture(scope="module")
def subjects(mnist_sample):
    """The CNN, and images that it classifies correctly."""
    model = abs_model.load("cnn", batch_size=20)
    images = mnist_sample["test_images"][:25].reshape(-1, 28, 28, 1).astype(np.float32) / 255
    labels = mnist_sample["test_labels"][:25]
    right = np.flatnonzero(model.predict(images) == labels)[:20]
    return model, jnp.asarray(images[right]), jnp.asarray(labels[right], jnp.int32)


def test_gaussian_noise_fools_as_many_as_foolbox_at_any_distance(subjects):
    model, images, labels = subjects
    ours = run(gaussian_noise, model, images, labels, num_directions=20, num_epsilons=15)
    epsilons = [4.0, 5.0, 6.0]
    # The variant that makes up for what clipping takes from the length.
    attack = foolbox.attacks.L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack(repeats=20)
    _, _, success = attack(abs_model.to_foolbox(model), images, labels, epsilons=epsilons)
    theirs = np.asarray(success).mean(1)
    fooled = [float((ours.distances <= epsilon).mean()) for epsilon in epsilons]
    assert np.mean(fooled) >= np.mean(theirs) - 0.03
    assert 0.1 < np.mean(fooled) < 0.9


def test_salt_and_pepper_needs_no_more_pixels_than_foolbox(subjects):
    model, images, labels = subjects
    ours = run(salt_and_pepper, model, images, labels, num_restarts=10, num_epsilons=20)
    assert np.all(ours.success)
    steps = int(ours.num_queries.max())
    attack = foolbox.attacks.SaltAndPepperNoiseAttack(steps=steps)
    _, (found,), (success,) = attack(abs_model.to_foolbox(model), images, labels, epsilons=[None])
    theirs = np.asarray(distances(found, images, "l0"))[np.asarray(success)]
    assert np.median(ours.distances) <= 1.03 * np.median(theirs)


@pytest.mark.parametrize(
    ("attack", "changes", "message"),
    [
        (gaussian_noise, {"num_directions": 0}, "num_directions must be an integer of at least 1"),
        (gaussian_noise, {"num_epsilons": 2.5}, "num_epsilons must be an integer"),
        (salt_and_pepper, {"num_restarts": 0}, "num_restarts must be an integer of at least 1"),
        (salt_and_pepper, {"num_epsilons": 0}, "num_epsilons must be an integer"),
        (salt_and_pepper, {"key": 0}, "key must be a jax.random.key, got 0"),
    ],
)
def test_faulty_arguments_are_named(attack, changes, message):
    with pytest.raises(ValueError, match=message):
        run(attack, three_classes(), grays(2), np.array([0, 1]), **changes)
