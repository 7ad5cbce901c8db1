"""Test beds for attacks: small MNIST images, and linear classifiers fitted to them.

On `black` images, as in MNIST, most pixels are 0 or 1, and the way to the closest adversarial image
runs into the ends of the range. On `gray` ones, the same between 0.25 and 0.75, it does not.
"""

import dataclasses

import numpy as np

from abs_model.data import Split
from benchmarks.linear import LinearClassifier, make_classifier

NAMES = ("gray", "black")
SHAPE = (8, 8, 1)
_NUM_CLASSES = 10
_NUM_STARTS = 1000
_NUM_STEPS = 200
_STEP_SIZE = 0.5
_MOMENTUM = 0.9


@dataclasses.dataclass(frozen=True)
class Bed:
    """A classifier, and images that it classifies correctly.

    Attributes:
        name: Of `NAMES`.
        model: Takes all images in one batch.
        surrogate: Fitted to other images.
        images: float32 (N, 8, 8, 1) in [0, 1], with 8 bits.
        labels: int32 (N,).
        starts: As `images`, but of the classifier's training: where attacks that see decisions
            only may begin.
    """

    name: str
    model: LinearClassifier
    surrogate: LinearClassifier
    images: np.ndarray
    labels: np.ndarray
    starts: np.ndarray


def make_bed(name: str, train: Split, held_out: Split, count: int) -> Bed:
    """Fits the classifiers to either half of `train`, and takes `count` images of `held_out`."""
    images, half = shrink(train.images, name), len(train.labels) // 2
    model, surrogate = (
        _fit(images[part], train.labels[part], count, f"linear, {name}")
        for part in (slice(half), slice(half, None))
    )
    candidates = shrink(held_out.images, name)
    right = np.flatnonzero(model.predict(candidates) == held_out.labels)[:count]
    labels = held_out.labels[right].astype(np.int32)
    return Bed(name, model, surrogate, candidates[right], labels, images[:_NUM_STARTS])


def shrink(images: np.ndarray, name: str) -> np.ndarray:
    """MNIST's images, uint8 (N, 28, 28, 1), as float32 (N, 8, 8, 1) of 16 shades.

    Means of 3 x 3 pixels without the outermost two, brightened by half.
    """
    means = images[:, 2:26, 2:26].reshape(-1, 8, 3, 8, 3, 1).mean((2, 4)) / 255
    shades = np.round(15 * np.minimum(1.5 * means, 1.0)) / 15
    values = shades if name == "black" else 0.25 + 0.5 * shades
    return (np.round(255 * values) / 255).astype(np.float32)


def _fit(images: np.ndarray, labels: np.ndarray, batch_size: int, name: str) -> LinearClassifier:
    """Softmax regression, by gradient descent with momentum."""
    mean = images.mean()
    inputs = images.reshape(len(images), -1).astype(np.float64) - mean
    # Shades of gray are half as far apart.
    scale = 1.0 / inputs.std()
    inputs = np.concatenate([scale * inputs, np.ones((len(inputs), 1))], axis=1)
    targets = np.eye(_NUM_CLASSES)[labels]
    weights = np.zeros((inputs.shape[1], _NUM_CLASSES))
    velocity = np.zeros_like(weights)
    step_size = _STEP_SIZE / np.mean((inputs**2).sum(1))
    for _ in range(_NUM_STEPS):
        scores = inputs @ (weights + _MOMENTUM * velocity)
        likely = np.exp(scores - scores.max(1, keepdims=True))
        gradient = inputs.T @ (likely / likely.sum(1, keepdims=True) - targets) / len(inputs)
        velocity = _MOMENTUM * velocity - step_size * gradient
        weights = weights + velocity
    slopes, biases = scale * weights[:-1], weights[-1]
    return make_classifier(slopes, biases - mean * slopes.sum(0), SHAPE, batch_size, name)
