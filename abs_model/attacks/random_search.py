"""Where a random search is that goes wherever the margin is higher (`square`, `sparse_rs`)."""

import dataclasses
from typing import Self

import jax

from abs_model.attacks.batch import Batch
from abs_model.attacks.losses import margins
from abs_model.attacks.oracle import Oracle, State


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Walk:
    """Images (n, height, width, channels), their margins (n,), the classifier's state there."""

    images: jax.Array
    margins: jax.Array
    state: State

    @classmethod
    def at(cls, batch: Batch, images: jax.Array, logits: jax.Array, state: State) -> Self:
        """At images about which the classifier was asked."""
        return cls(images, margins(logits, batch), state)

    def again(self, oracle: Oracle, batch: Batch) -> Self:
        """At the same images, about which the classifier is asked from scratch."""
        return self.at(batch, self.images, *oracle.logits(self.images))
