"""What an attack returns."""

import dataclasses

import jax

from abs_model._runtime.pytrees import register_dataclass


@register_dataclass
@dataclasses.dataclass(frozen=True)
class AttackResult:
    """What an attack found for each image.

    Attributes:
        images: float32 (N, height, width, channels) in [0, 1]: the adversarial images; where the
            attack failed, the closest that is adversarial at all (`carlini_wagner`), otherwise the
            one of the highest margin.
        success: bool (N,): whether the image is adversarial beyond doubt (see `models.decisions`),
            by the margin that the attack demands.
        distances: float32 (N,): from the original images to `images`, in the norm of the attack.
            0 where the original was wrong already.
        num_queries: int32 (N,): number of queries, with or without gradient, of
            each image of its batch, until the last of them was done; None where the attack does not
            count.
        num_gradients: int32 (N,): how often of these with gradient.
        num_zero_gradients: int32 (N,): how many of the image's gradients were zero, which tells an
            attack nothing; None where the attack does not count.
        num_nonfinite_gradients: int32 (N,): how many had an entry that was NaN or infinite, which
            attacks take for zero.
    """

    images: jax.Array
    success: jax.Array
    distances: jax.Array
    num_queries: jax.Array | None = None
    num_gradients: jax.Array | None = None
    num_zero_gradients: jax.Array | None = None
    num_nonfinite_gradients: jax.Array | None = None
