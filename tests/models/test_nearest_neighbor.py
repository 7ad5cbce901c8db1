"""The nearest-neighbor baseline against a search over all pairs in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abs_model.data import Dataset, Split
from abs_model.models.nearest_neighbor import nearest_neighbor

CLASSES = 3


@pytest.fixture(scope="module")
def dataset():
    """Classes of different sizes; the last images are for validation."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (60, 4, 5, 1), dtype=np.uint8)
    labels = random.choice(CLASSES, 60, p=[0.6, 0.3, 0.1]).astype(np.int32)
    parts = (Split(images[part], labels[part]) for part in (slice(0, 45), slice(45, 60)))
    train, validation = parts
    return Dataset("noise", CLASSES, train, validation, validation)


def neighbors(images, dataset):
    """Squared distances (N, classes) to the nearest image of each class, and these images."""
    known = np.concatenate([dataset.train.images, dataset.validation.images]) / 255.0
    labels = np.concatenate([dataset.train.labels, dataset.validation.labels])
    distances = ((images[:, None] - known) ** 2).sum(axis=(2, 3, 4))
    columns = [np.where(labels == c, distances, np.inf) for c in range(CLASSES)]
    nearest = np.stack([known[column.argmin(1)] for column in columns], axis=1)
    return np.stack([column.min(1) for column in columns], axis=1), nearest


def test_logits_are_distances_to_the_nearest_image_of_each_class(dataset):
    images = np.random.default_rng(1).uniform(size=(7, 4, 5, 1)).astype(np.float32)
    # Dark ones too, to which the zeros that fill up small classes are nearest.
    images[:2] *= [[[[0.0]]], [[[0.05]]]]
    model = nearest_neighbor(dataset)
    expected, nearest = neighbors(np.float64(images), dataset)
    np.testing.assert_allclose(model.logits(images), -expected, rtol=1e-5)
    np.testing.assert_array_equal(model.predict(images), expected.argmin(1))
    scores = np.exp(-expected)
    np.testing.assert_allclose(
        model.confidences(images), scores / scores.sum(1, keepdims=True), rtol=1e-4
    )
    gradient = jax.grad(lambda x: model.logits(x)[:, 1].sum())(jnp.asarray(images))
    np.testing.assert_allclose(gradient, -2 * (images - nearest[:, 1]), atol=1e-5)


def test_training_and_validation_images_are_at_distance_zero_from_their_class(dataset):
    model = nearest_neighbor(dataset)
    for split in (dataset.train, dataset.validation):
        logits = np.asarray(model.logits(split.images.astype(np.float32) / 255))
        np.testing.assert_allclose(logits[np.arange(len(logits)), split.labels], 0, atol=1e-9)
