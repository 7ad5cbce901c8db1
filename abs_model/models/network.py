"""Feed-forward networks as classifiers."""

import dataclasses
from typing import Any

import jax
from flax import nnx

from abs_model._runtime.pytrees import register_dataclass
from abs_model.models.classifier import STATIC, Classifier, as_seen

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
        return nnx.merge(self.graphdef, self.state)(as_seen(images, self.binary))

    def logits_to_confidences(self, logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits)
