"""Linear classifiers, and how far their closest adversarial images are: exactly, in float64.

What a linear classifier gets wrong is a union of half-spaces, one for each other class, so that the
closest adversarial image is the closest over classes of points in a half-space and in [0, 1]. For
L2 and L-infinity that is clip(x + t v), v along the normal or its sign, at the t that reaches the
boundary, found by bisection; for L0 the pixels that gain most go first.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abs_model._runtime.pytrees import register_dataclass
from abs_model.models.classifier import Classifier

_NUM_BISECTIONS = 200  # down to neighboring floats


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearClassifier(Classifier):
    """Logits x . weights + biases.

    Attributes:
        weights: float32 (values, classes).
        biases: float32 (classes,).
    """

    weights: jax.Array
    biases: jax.Array

    def batch_logits(self, images: jax.Array) -> jax.Array:
        return images.reshape(images.shape[0], -1) @ self.weights + self.biases

    def logits_to_confidences(self, logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits)


def make_classifier(
    weights: Any, biases: Any, image_shape: tuple[int, int, int], batch_size: int, name: str
) -> LinearClassifier:
    """The classifier of weights (values, classes) and biases (classes,)."""
    return LinearClassifier(
        name=name,
        image_shape=image_shape,
        num_classes=len(biases),
        batch_size=batch_size,
        weights=jnp.asarray(weights, jnp.float32),
        biases=jnp.asarray(biases, jnp.float32),
    )


def exact_logits(model: LinearClassifier, images: Any) -> np.ndarray:
    """Logits (N, classes) in float64."""
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    return flat @ np.asarray(model.weights, np.float64) + np.asarray(model.biases, np.float64)


def exact_distances(
    model: LinearClassifier, images: Any, labels: Any, norm: str, *, box: bool = True
) -> np.ndarray:
    """The distances to the closest adversarial images, float64 (N,).

    Args:
        model: The classifier.
        images: (N, height, width, channels) in [0, 1].
        labels: Integers (N,).
        norm: "l2", "linf" or "l0".
        box: Whether adversarial images must lie in [0, 1]; those of L0 always do.

    Returns:
        0 where the classifier is wrong already, infinity where no image in [0, 1] is adversarial.
    """
    labels = np.asarray(labels)
    rows = np.arange(len(labels))
    logits, weights = exact_logits(model, images), np.asarray(model.weights, np.float64).T
    values = logits - logits[rows, labels][:, None]
    normals = weights - weights[labels][:, None]
    if norm == "l0":
        away = _fewest_pixels(np.asarray(images, np.float64), values, normals)
    elif box:
        away = _distances_in_box(images, values, normals, norm)
    else:
        away = plane_distances(values, normals, norm)
    away[rows, labels] = np.inf
    wrong = (np.delete(values[row], label).max() > 0 for row, label in enumerate(labels))
    return np.where(list(wrong), 0.0, away.min(1))


def plane_distances(values: np.ndarray, normals: np.ndarray, norm: str) -> np.ndarray:
    """In closed form: |value| over the dual norm of the normal, (...,); infinity where it is 0."""
    dual = np.abs(normals).sum(-1) if norm == "linf" else np.linalg.norm(normals, axis=-1)
    return np.where(dual > 0, np.abs(values) / np.where(dual > 0, dual, 1.0), np.inf)


def nearest_in_box(points: Any, normals: Any, values: Any, norm: str) -> np.ndarray:
    """The points z of [0, 1] nearest to `points` with value + <normal, z - point> = 0, in float64.

    Args:
        points: (..., d) in [0, 1].
        normals: (..., d).
        values: (...,).
        norm: "l2" or "linf".

    Returns:
        (..., d); where no point of [0, 1] is on the hyperplane, the one that comes closest to it in
        terms of the linear function.
    """
    points, normals, values = (np.asarray(x, np.float64) for x in (points, normals, values))
    sign = np.sign(values)[..., None]
    way = -sign * (np.sign(normals) if norm == "linf" else normals)
    slowest = np.where(way != 0, np.abs(way), np.inf).min(-1, keepdims=True)
    low, high = np.zeros_like(slowest), 1.0 / slowest
    for _ in range(_NUM_BISECTIONS):
        middle = (low + high) / 2
        change = np.clip(points + middle * way, 0, 1) - points
        before = (values[..., None] + (normals * change).sum(-1, keepdims=True)) * sign > 0
        low, high = np.where(before, middle, low), np.where(before, high, middle)
    return np.clip(points + high * way, 0, 1)


def _distances_in_box(
    images: Any, values: np.ndarray, normals: np.ndarray, norm: str
) -> np.ndarray:
    """From each image (N, ...) to each class's half-space, within [0, 1], (N, classes)."""
    flat = np.asarray(images, np.float64).reshape(len(images), 1, -1)
    change = nearest_in_box(flat, normals, values, norm) - flat
    away = np.abs(change).max(-1) if norm == "linf" else np.linalg.norm(change, axis=-1)
    reach = np.maximum(normals * (1 - flat), -normals * flat).sum(-1)
    return np.where(values + reach > 0, away, np.inf)


def _fewest_pixels(images: np.ndarray, values: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Likewise for L0, where a pixel changes in all channels."""
    flat = images.reshape(len(images), 1, -1)
    gains = np.maximum(normals * (1 - flat), -normals * flat)
    gains = gains.reshape(*gains.shape[:2], -1, images.shape[-1]).sum(-1)
    across = np.cumsum(-np.sort(-gains, axis=-1), axis=-1) + values[..., None] > 0
    return np.where(across.any(-1), 1.0 + across.argmax(-1), np.inf)
