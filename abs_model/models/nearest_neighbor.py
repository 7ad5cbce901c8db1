"""The nearest-neighbor baseline (Schott et al. 2019): exact to rounding, and differentiable."""

import dataclasses

import jax
import jax.numpy as jnp

from abs_model._runtime.pytrees import register_dataclass
from abs_model.data import Dataset
from abs_model.data.batches import group_by_class, to_float
from abs_model.models.classifier import Classifier

_BATCH_SIZE = 100


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class NearestNeighborClassifier(Classifier):
    """logit_c = -||x - t||^2, t the training image of class c nearest to x (Schott et al. 2019).

    The gradient is that of the distances to the neighbors found.

    Attributes:
        neighbors: Training images by class, (classes, most images of a class, pixels).
        counts: How many of these each class has, (classes,).
    """

    neighbors: jax.Array
    counts: jax.Array

    def batch_logits(self, images: jax.Array) -> jax.Array:
        pixels = images.reshape(len(images), -1)
        classes, most, size = self.neighbors.shape
        # ||x||^2 is missing, which all have in common.
        absent = jnp.arange(most) >= self.counts[:, None]
        offsets = jnp.where(absent, jnp.inf, jnp.sum(self.neighbors**2, axis=2))
        products = jax.lax.stop_gradient(pixels) @ self.neighbors.reshape(-1, size).T
        scores = offsets - 2 * products.reshape(-1, classes, most)
        nearest = self.neighbors[jnp.arange(classes), jnp.argmin(scores, axis=2)]
        # Computed again, because differences of large squares are inexact.
        return -jnp.sum((pixels[:, None] - nearest) ** 2, axis=2)

    def logits_to_confidences(self, logits: jax.Array) -> jax.Array:
        """Those of Gaussians of variance 1/2 around the neighbors, the likelihood of ABS."""
        return jax.nn.softmax(logits)


def nearest_neighbor(dataset: Dataset, name: str = "nearest_neighbor") -> NearestNeighborClassifier:
    """The classifier whose neighbors are all training images of a data set, validation included.

    Args:
        dataset: Gives the neighbors, the image shape and the number of classes.
        name: For tables and messages.
    """
    grouped = group_by_class(dataset.train_and_validation, dataset.num_classes)
    return NearestNeighborClassifier(
        name=name,
        image_shape=dataset.image_shape,
        num_classes=dataset.num_classes,
        batch_size=_BATCH_SIZE,
        neighbors=to_float(grouped.images).reshape(*grouped.images.shape[:2], -1),
        counts=grouped.counts,
    )
