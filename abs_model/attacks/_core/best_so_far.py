"""The best image that an attack has found so far."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from abs_model._runtime.pytrees import register_dataclass
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.losses import margins
from abs_model.attacks._core.norms import choose, distances


@register_dataclass
@dataclasses.dataclass(frozen=True)
class BestSoFar:
    """For each image, the closest adversarial one; while there is none, that of highest margin.

    Attributes:
        images: float32 (n, height, width, channels).
        success: bool (n,): whether the image is adversarial by the margin that the attack demands,
            and all its values are finite.
        distances: float32 (n,): from the original.
        margins: float32 (n,): see `losses.margins`.
        verified: bool (n,): whether a cold query says so.
    """

    images: jax.Array
    success: jax.Array
    distances: jax.Array
    margins: jax.Array
    verified: jax.Array

    @property
    def done(self) -> jax.Array:
        """bool (n,): whether the image is adversarial, and verified to be."""
        return self.success & self.verified


@functools.partial(jax.jit, static_argnames="norm")
def score(
    batch: Batch,
    images: jax.Array,
    logits: jax.Array,
    norm: str,
    thresholds: jax.Array | float = 0.0,
    verified: bool = False,
) -> BestSoFar:
    """The images with these logits (n, classes), as if they were all that was found.

    Args:
        batch: The originals.
        images: (n, height, width, channels).
        logits: (n, classes).
        norm: Norm of the distances.
        thresholds: Margin that success takes, (n,) or a number.
        verified: Whether the query was a cold one.
    """
    finite = jnp.isfinite(images).all((1, 2, 3))
    found = margins(logits, batch)
    return BestSoFar(
        images,
        batch.is_adversarial(logits) & (found >= thresholds) & finite,
        distances(images, batch.images, norm),
        jnp.where(finite, found, -jnp.inf),
        jnp.full(len(images), verified),
    )


@jax.jit
def closer(best: BestSoFar, new: BestSoFar) -> BestSoFar:
    """The better of two finds, for each image; the first where they are as good.

    Success counts first, then being adversarial at all, then the distance, and the margin of images
    that are not adversarial.
    """
    adversarial, was = new.margins > 0, best.margins > 0
    # A cold query replaces what only a warm one has said of an image as close.
    nearer = (new.distances < best.distances) | (
        new.verified & ~best.verified & (new.distances == best.distances)
    )
    without_success = jnp.where(adversarial, ~was | nearer, ~was & (new.margins > best.margins))
    better = jnp.where(new.success, ~best.success | nearer, ~best.success & without_success)
    return choose(better, new, best)


@functools.partial(jax.jit, static_argnames="norm")
def update(
    best: BestSoFar,
    batch: Batch,
    images: jax.Array,
    logits: jax.Array,
    norm: str,
    thresholds: jax.Array | float = 0.0,
    where: jax.Array | None = None,
    verified: bool = False,
) -> BestSoFar:
    """The better of what was found before and these images, which have these logits.

    Args:
        best: What was found before.
        batch: The originals.
        images: (n, height, width, channels).
        logits: (n, classes).
        norm: Norm of the distances.
        thresholds: Margin that success takes, (n,) or a number.
        where: Images for which it counts, bool (n,). All, by default.
        verified: Whether the query was a cold one.
    """
    found = closer(best, score(batch, images, logits, norm, thresholds, verified))
    return found if where is None else choose(where, found, best)
