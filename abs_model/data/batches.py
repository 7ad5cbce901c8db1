"""Training images on the device, sorted by class, and the order in which an epoch visits them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from abs_model._runtime.pytrees import register_dataclass
from abs_model.data.arrays import Split


@register_dataclass
@dataclasses.dataclass(frozen=True)
class ImagesByClass:
    """Images sorted by class, so that no batch mixes classes.

    Attributes:
        images: uint8 (classes, most images of any class, height, width, channels); rows beyond a
            class's count are zeros and never visited.
        counts: int32 (classes,), images of each class.
    """

    images: jax.Array
    counts: jax.Array


def group_by_class(split: Split, num_classes: int) -> ImagesByClass:
    """Sorts a split's images by class.

    Raises:
        ValueError: A class has no image.
    """
    counts = np.bincount(split.labels, minlength=num_classes)
    if counts.min() == 0:
        missing = np.flatnonzero(counts == 0).tolist()
        raise ValueError(f"every class needs training images, there are none of classes {missing}")
    images = np.zeros((num_classes, counts.max(), *split.images.shape[1:]), np.uint8)
    for label in range(num_classes):
        images[label, : counts[label]] = split.images[split.labels == label]
    return ImagesByClass(jnp.asarray(images), jnp.asarray(counts, jnp.int32))


def epoch_order(data: ImagesByClass, key: jax.Array, length: int) -> jax.Array:
    """Which images an epoch visits: int32 (classes, length), each class in an order of its own.

    Every class's images come in a new random order. A class with fewer than `length` images starts
    again from the front of its order; one with more leaves a random rest out of this epoch.
    """
    classes, most = data.images.shape[:2]
    ranks = jax.random.uniform(key, (classes, most))
    exists = jnp.arange(most) < data.counts[:, None]
    order = jnp.argsort(jnp.where(exists, ranks, 2.0), axis=1)
    positions = jnp.arange(length) % data.counts[:, None]
    return jnp.take_along_axis(order, positions, axis=1)


def to_float(images: jax.Array) -> jax.Array:
    """uint8 pixels as float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255
