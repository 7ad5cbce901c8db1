"""The images under attack and what would count as success."""

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Images that are attacked at the same time.

    Attributes:
        images: The originals, float32 (n, height, width, channels) in [0, 1].
        classes: int32 (n,): the labels to lead away from, or the targets to lead to.
        keys: A `jax.random.key` for each image, (n,).
        targeted: Which of the two `classes` are.
    """

    images: jax.Array
    classes: jax.Array
    keys: jax.Array
    targeted: bool = dataclasses.field(metadata={"static": True})

    def fooled(self, logits: jax.Array) -> jax.Array:
        """bool (n,): whether images of these logits (n, classes) are adversarial."""
        predictions = logits.argmax(1)
        return predictions == self.classes if self.targeted else predictions != self.classes

    def signed(self, values: jax.Array) -> jax.Array:
        """`values`, which an untargeted attack makes large, so that this attack does, too."""
        return -values if self.targeted else values
