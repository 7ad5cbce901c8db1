"""Feed-forward networks as classifiers."""

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import jax
import numpy as np
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
        state: The module's parameters and other variables; `with_state` replaces them.
        graphdef: Its structure, from `nnx.split`.
        folded: A pytree that is called with images and computes the same from prepared weights; see
            `with_folded_weights`. It is not part of a fingerprint, because it follows from the
            others.
    """

    state: PyTree
    graphdef: nnx.GraphDef = dataclasses.field(metadata=STATIC)
    folded: Callable[[jax.Array], jax.Array] | None = dataclasses.field(
        default=None, metadata={"identifies": False}
    )

    def with_folded_weights(self) -> Self:
        """The same classifier, whose weights are prepared once instead of in each query.

        A module's method `folded(image_shape)` prepares them, and returns a pytree that is called
        with images. A classifier whose module has no such method is returned as it is.
        """
        network = nnx.merge(self.graphdef, self.state)
        if not hasattr(network, "folded"):
            return self
        # With NumPy, because a program for so little would take longer to compile than to run.
        nnx.update(network, jax.tree.map(np.asarray, self.state))
        return dataclasses.replace(self, folded=jax.device_put(network.folded(self.image_shape)))

    def with_state(self, state: PyTree) -> Self:
        """The same network with other parameters, folded again where the present ones are.

        Args:
            state: Variables with the structure, shapes and dtypes of the present ones.
        """
        other = dataclasses.replace(self, state=state, folded=None)
        return other if self.folded is None else other.with_folded_weights()

    def batch_logits(self, images: jax.Array) -> jax.Array:
        network = self.folded
        if network is None:
            network = nnx.merge(self.graphdef, self.state)
        return network(as_seen(images, self.binary))

    def logits_to_confidences(self, logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits)
