"""What every attack that looks for the closest adversarial image has to fulfil, for its tests.

`attack` is always called as attack(model, images, labels, key, **settings).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import abs_model
from abs_model import register_dataclass
from abs_model.attacks import distances
from abs_model.attacks._core.keys import image_keys
from benchmarks.linear import LinearClassifier, exact_distances
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


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class WavyClassifier(LinearClassifier):
    """Boundaries are everywhere, and which one is found depends on the way."""

    def batch_logits(self, images):
        return super().batch_logits(jnp.sin(20 * images))


def wavy_classes():
    """Class 0 is so far ahead of two others that their boundaries are several waves away."""
    linear = three_classes()
    settings = {field.name: getattr(linear, field.name) for field in dataclasses.fields(linear)}
    return WavyClassifier(**settings | {"biases": jnp.array([40.0, 0.0, 0.0])})


def check_closed_form(attack, norm, tolerance, /, **settings):
    """Two linear classes, the images far from black and white."""
    model, w, bias = two_classes()
    images = grays(6)
    result = attack(model, images, model.predict(images), KEY, **settings)
    needed = boundary_distances(images, w, bias, norm)
    assert np.all(result.success)
    assert np.all(np.asarray(result.distances) >= needed * (1 - 1e-4))
    np.testing.assert_allclose(result.distances, needed, rtol=tolerance)


def check_nearest_class(attack, norm, tolerance, /, **settings):
    """Three linear classes, of which either other may be the nearest."""
    model, images = three_classes(), grays(9)
    labels = model.predict(images)
    needed = exact_distances(model, images, labels, norm, box=False)
    result = attack(model, images, labels, KEY, **settings)
    assert np.all(result.success)
    np.testing.assert_allclose(result.distances, needed, rtol=tolerance)
    assert len(set(model.predict(result.images))) == 3


def check_leading_classes(attack, **settings):
    """Three classes ahead of 50 others: gradients of four are as good as those of all."""
    three, random = three_classes(), np.random.default_rng(0)
    weights = np.concatenate([three.weights, random.normal(size=(PIXELS, 50))], axis=1)
    biases = np.concatenate([three.biases, np.full(50, -40.0)])
    model, images = linear_classifier(weights, biases), grays(9)
    labels = three.predict(images)
    alone = attack(three, images, labels, KEY, **settings)
    every = attack(model, images, labels, KEY, **settings, num_classes=53)
    few = attack(model, images, labels, KEY, **settings, num_classes=4)
    assert np.all(every.success)
    np.testing.assert_allclose(few.images, every.images, atol=1e-6)
    np.testing.assert_allclose(few.images, alone.images, atol=1e-4)
    # With the label and the class ahead alone, some miss the nearest boundary.
    two = attack(model, images, labels, KEY, **settings, num_classes=2)
    assert np.any(np.asarray(two.distances) > 1.01 * np.asarray(every.distances))


def check_targets(attack, tolerance, **settings):
    """Three linear classes in L2, to the nearest image of a class."""
    model, images = three_classes(), grays(6)
    labels = model.predict(images)
    for shift in (1, 2):
        targets = (labels + shift) % 3
        result = attack(model, images, labels, KEY, targets=targets, **settings)
        assert np.all(result.success)
        np.testing.assert_array_equal(model.predict(result.images), targets)
        needed = [_nearest_take_class(model, *pair) for pair in zip(images, targets, strict=True)]
        assert np.all(np.asarray(result.distances) >= np.multiply(needed, 1 - 1e-4))
        np.testing.assert_allclose(result.distances, needed, rtol=tolerance)


def _nearest_take_class(model, image, target):
    """The L2 distance to where a linear classifier says `target`, by trying all active sets."""
    weights, biases = np.asarray(model.weights, np.float64), np.asarray(model.biases, np.float64)
    others = [k for k in range(3) if k != target]
    a, b = (weights[:, [target]] - weights[:, others]).T, biases[target] - biases[others]
    x = image.reshape(-1).astype(np.float64)
    found = []
    for active in ([], [0], [1], [0, 1]):
        move = np.linalg.pinv(a[active]) @ -(a[active] @ x + b[active]) if active else 0 * x
        if np.all(a @ (x + move) + b >= -1e-9):
            found.append(np.linalg.norm(move))
    return min(found)


def walled(count, seed=0):
    """Images with many pixels at the ends of the range, as in MNIST."""
    values = np.random.default_rng(seed).uniform(-0.5, 1.5, (count, *SHAPE))
    return np.clip(values, 0, 1).astype(np.float32)


def check_closed_form_at_the_walls(attack, norm, tolerance, /, **settings):
    """Two linear classes, where the way to the boundary meets the ends of the range."""
    model, _, _ = two_classes()
    images = walled(6)
    labels = model.predict(images)
    needed = exact_distances(model, images, labels, norm)
    # Else this would be no more than `check_closed_form`.
    assert np.all(needed > 1.05 * exact_distances(model, images, labels, norm, box=False))
    result = attack(model, images, labels, KEY, **settings)
    assert np.all(result.success)
    assert np.all(np.asarray(result.distances) >= needed * (1 - 1e-4))
    np.testing.assert_allclose(result.distances, needed, rtol=tolerance)


def check_clean_errors(attack, **settings):
    model, _, _ = two_classes()
    images = grays(6)
    predictions = model.predict(images)
    labels = np.where(np.arange(6) % 2, predictions, 1 - predictions)
    result = attack(model, images, labels, KEY, **settings)
    assert np.all(result.success)
    np.testing.assert_array_equal(np.asarray(result.distances)[::2], 0.0)
    np.testing.assert_array_equal(np.asarray(result.images)[::2], images[::2])
    assert np.all(np.asarray(result.distances)[1::2] > 0)


def check_bounds_and_success(attack, norm, seed, /, **settings):
    """On any images and labels, the result is in [0, 1] and what it says of itself is true."""
    model, images = three_classes(), walled(6, seed)
    labels = np.random.default_rng(seed).integers(0, 3, 6)
    result = attack(model, images, labels, jax.random.key(seed), **settings)
    if norm == "l0":
        found = np.asarray(result.images)
        assert found.min() >= 0 and found.max() <= 1
        np.testing.assert_array_equal(result.distances, (found != images).any(3).sum((1, 2)))
    else:
        check_bounds(result, images, norm, np.inf)
    np.testing.assert_array_equal(result.success, model.predict(result.images) != labels)


def check_split(attack, **settings):
    """Neither batch size nor the other images of a call play a part."""
    model, images = wavy_classes(), walled(6)
    labels = model.predict(images)
    whole = attack(model.with_batch_size(6), images, labels, KEY, **settings)
    again = attack(model.with_batch_size(6), images, labels, KEY, **settings)
    np.testing.assert_array_equal(whole.images, again.images)
    batched = attack(model.with_batch_size(3), images, labels, KEY, **settings)
    np.testing.assert_allclose(batched.images, whole.images, atol=1e-5)
    keys = image_keys(KEY, 6)
    for rows in (np.array([0, 2, 4]), np.array([5, 1, 3])):
        part = attack(model, images[rows], labels[rows], keys[rows], **settings)
        np.testing.assert_allclose(part.images, whole.images[rows], atol=1e-5)


def check_scales(attack, rtol, **settings):
    """Scaled logits have the same boundaries."""
    images = grays(6)
    labels = three_classes().predict(images)
    plain = attack(three_classes(), images, labels, KEY, **settings)
    for scale in (1e-3, 1e4):
        scaled = attack(three_classes(scale), images, labels, KEY, **settings)
        assert np.all(scaled.success)
        np.testing.assert_allclose(scaled.distances, plain.distances, rtol=rtol)


def check_zero_gradients(attack, **settings):
    model = linear_classifier(np.zeros((PIXELS, 3)), [0.0, 1.0, 0.0])
    images = walled(6)
    result = attack(model, images, np.ones(6, int), KEY, **settings)
    assert not np.any(result.success)
    assert np.all(np.isfinite(result.images))


def compare_with_foolbox(mnist_sample, count, norm, foolbox_attack, attack, /, **settings):
    """Median distances on the small network: Foolbox's, and the attack's; and both's successes.

    Foolbox is given one image at a time: some of its attacks do worse the more images there are.
    """
    model = abs_model.load("cnn").with_batch_size(count)
    images = mnist_sample["test_images"][:count].reshape(-1, 28, 28, 1).astype(np.float32) / 255
    labels = mnist_sample["test_labels"][:count].astype(np.int32)
    result = attack(model, images, labels, KEY, **settings)
    their_model = abs_model.to_foolbox(model.with_batch_size(1))
    pairs = zip(jnp.asarray(images)[:, None], jnp.asarray(labels)[:, None], strict=True)
    found = jnp.concatenate(
        [foolbox_attack(their_model, *pair, epsilons=None)[1] for pair in pairs]
    )
    away = np.asarray(distances(found, jnp.asarray(images), norm))
    theirs = np.where(model.predict(found) != labels, away, np.inf)
    ours = np.where(result.success, result.distances, np.inf)
    assert np.median(ours) <= 1.03 * np.median(theirs)
    assert np.isfinite(np.median(theirs))
    return theirs, ours
