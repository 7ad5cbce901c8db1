"""Classifiers whose closest adversarial images are known in closed form, for tests of attacks."""

import numpy as np

from benchmarks.linear import make_classifier, plane_distances

SHAPE = (6, 5, 2)
PIXELS = 60
# The distance of black and white.
FARTHEST = {"linf": 1.0, "l2": PIXELS**0.5}


def linear_classifier(weights, biases, batch_size=4):
    return make_classifier(weights, biases, SHAPE, batch_size, "linear")


def two_classes(seed=0, scale=1.0):
    """Class 1 where w . x + b > 0, the boundary near gray."""
    w = np.random.default_rng(seed).normal(size=PIXELS)
    bias = -0.5 * w.sum()
    weights = np.stack([np.zeros(PIXELS), w], axis=1)
    return linear_classifier(weights * scale, np.array([0.0, bias]) * scale), w, bias


def three_classes(scale=1.0):
    weights = np.random.default_rng(7).normal(size=(PIXELS, 3))
    return linear_classifier(weights * scale, -0.5 * weights.sum(0) * scale)


def grays(count, seed=0):
    """Images far from black and white, so that the box plays no part in closed forms."""
    values = np.random.default_rng(seed).uniform(0.4, 0.6, size=(count, *SHAPE))
    return values.astype(np.float32)


def boundary_distances(images, w, bias, norm):
    """Closed form: |w . x + b| over the dual norm of w."""
    return plane_distances(images.reshape(len(images), -1) @ w + bias, w, norm)


def check_bounds(result, images, norm, epsilon):
    """Both bounds, with numpy in float64, and that the distances are those of the images."""
    found = np.asarray(result.images, np.float64)
    assert found.min() >= 0.0 and found.max() <= 1.0
    change = (found - images).reshape(len(images), -1)
    lengths = np.abs(change).max(1) if norm == "linf" else np.linalg.norm(change, axis=1)
    assert lengths.max() <= epsilon * (1 + 1e-5) + 1e-6
    np.testing.assert_allclose(result.distances, lengths, rtol=1e-5, atol=1e-6)
