"""Feed-forward networks as classifiers."""

import dataclasses
from typing import Any

import jax
from flax import nnx

from abs_model._runtime.pytrees import register_dataclass
from abs_model.models.classifier import STATIC, Classifier, straight_through_threshold

PyTree = Any


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class NetworkClassifier(Classifier):
    """A feed-forward network: a Flax module from images to logits.

    A `binary` one thresholds images first (the paper's Binary CNN); its gradient passes the
    threshold straight through.

    Attributes:
        state: The module's parameters and other variables.
        graphdef: Its structure, from `nnx.split`.
    """

    state: PyTree
    graphdef: nnx.GraphDef = dataclasses.field(metadata=STATIC)

    def batch_logits(self, images: jax.Array) -> jax.Array:
        seen = straight_through_threshold(images) if self.binary else images
        return nnx.merge(self.graphdef, self.state)(seen)

    def logits_to_confidences(self, logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits)
