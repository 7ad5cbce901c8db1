"""Classifiers whose closest adversarial images are known in closed form, for tests of attacks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from abs_model.classifiers import Classifier

SHAPE = (6, 5, 2)
PIXELS = 60
# The distance of black and white.
FARTHEST = {"linf": 1.0, "l2": PIXELS**0.5}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearClassifier(Classifier):
    """Logits x . weights + biases."""

    weights: jax.Array
    biases: jax.Array

    def batch_logits(self, images):
        return images.reshape(images.shape[0], -1) @ self.weights + self.biases

    def logits_to_confidences(self, logits):
        return jax.nn.softmax(logits)


def linear_classifier(weights, biases, batch_size=4):
    return LinearClassifier(
        name="linear",
        image_shape=SHAPE,
        num_classes=len(biases),
        batch_size=batch_size,
        weights=jnp.asarray(weights, jnp.float32),
        biases=jnp.asarray(biases, jnp.float32),
    )


def two_classes(seed=0, scale=1.0):
    """Class 1 where w . x + b > 0, the boundary near grey."""
    w = np.random.default_rng(seed).normal(size=PIXELS)
    bias = -0.5 * w.sum()
    weights = np.stack([np.zeros(PIXELS), w], axis=1)
    return linear_classifier(weights * scale, np.array([0.0, bias]) * scale), w, bias


def three_classes(scale=1.0):
    weights = np.random.default_rng(7).normal(size=(PIXELS, 3))
    return linear_classifier(weights * scale, -0.5 * weights.sum(0) * scale)


def greys(count, seed=0):
    """Images far from black and white, so that the box plays no part in closed forms."""
    values = np.random.default_rng(seed).uniform(0.4, 0.6, size=(count, *SHAPE))
    return values.astype(np.float32)


def boundary_distances(images, w, bias, norm):
    """Closed form: |w . x + b| over the dual norm of w."""
    dual = np.abs(w).sum() if norm == "linf" else np.linalg.norm(w)
    return np.abs(images.reshape(len(images), -1) @ w + bias) / dual


def check_bounds(result, images, norm, epsilon):
    """Both bounds, with numpy in float64, and that the distances are those of the images."""
    found = np.asarray(result.images, np.float64)
    assert found.min() >= 0.0 and found.max() <= 1.0
    change = (found - images).reshape(len(images), -1)
    lengths = np.abs(change).max(1) if norm == "linf" else np.linalg.norm(change, axis=1)
    assert lengths.max() <= epsilon * (1 + 1e-5) + 1e-6
    np.testing.assert_allclose(result.distances, lengths, rtol=1e-5, atol=1e-6)
