"""The images under attack and what would count as success."""

import dataclasses

import jax
import jax.numpy as jnp

from abs_model._runtime.pytrees import register_dataclass
from abs_model.models.decisions import ATTACK_FACTOR, uncertainty


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Images that are attacked at the same time.

    Attributes:
        images: The originals, float32 (n, height, width, channels) in [0, 1].
        classes: int32 (n,): the labels to lead away from, or the targets to lead to.
        keys: A `jax.random.key` for each image, (n,).
        targeted: Whether `classes` are targets.
        logit_tolerance: Tolerance of the classifier; see `abs_model.models.decisions`.
    """

    images: jax.Array
    classes: jax.Array
    keys: jax.Array
    targeted: bool = dataclasses.field(metadata={"static": True})
    logit_tolerance: float | jax.Array = 0.0

    def is_adversarial(self, logits: jax.Array) -> jax.Array:
        """bool (n,): whether images of these logits (n, classes) are adversarial beyond doubt."""
        is_class = jnp.arange(logits.shape[1]) == self.classes[:, None]
        own = jnp.where(is_class, logits, -jnp.inf).max(1)
        lead = self.signed(jnp.where(is_class, -jnp.inf, logits).max(1) - own)
        # False where a logit is NaN.
        return lead > self.required_margins(logits)

    def required_margins(self, logits: jax.Array) -> jax.Array:
        """float32 (n,): by how much images of these logits must be ahead; see `decisions`."""
        return ATTACK_FACTOR * uncertainty(logits, self.classes, self.logit_tolerance)

    def signed(self, values: jax.Array) -> jax.Array:
        """`values`, which an untargeted attack maximizes, with the sign that this one maximizes."""
        return -values if self.targeted else values
