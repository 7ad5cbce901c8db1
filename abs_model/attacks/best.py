"""The best that an attack has found so far."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from abs_model.attacks.base import choose, distances
from abs_model.attacks.batch import Batch
from abs_model.attacks.losses import margins


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Best:
    """For each image, the closest adversarial one; while there is none, that of highest margin.

    Attributes:
        images: float32 (n, height, width, channels).
        success: bool (n,): whether it is adversarial, and all its values are finite.
        distances: float32 (n,): from the original.
        margins: float32 (n,): see `losses.margins`.
        confirmed: bool (n,): whether an answer from scratch says so.
    """

    images: jax.Array
    success: jax.Array
    distances: jax.Array
    margins: jax.Array
    confirmed: jax.Array


@functools.partial(jax.jit, static_argnames="norm")
def first(
    batch: Batch, images: jax.Array, logits: jax.Array, norm: str, confirmed: bool = False
) -> Best:
    """The given images, which have these logits (n, classes), are the first found."""
    finite = jnp.isfinite(images).all((1, 2, 3))
    return Best(
        images,
        batch.fooled(logits) & finite,
        distances(images, batch.images, norm),
        jnp.where(finite, margins(logits, batch), -jnp.inf),
        jnp.full(len(images), confirmed),
    )


@functools.partial(jax.jit, static_argnames="norm")
def update(
    best: Best,
    batch: Batch,
    images: jax.Array,
    logits: jax.Array,
    norm: str,
    confirmed: bool = False,
) -> Best:
    """The better of what was found before and these images, which have these logits."""
    return closer(best, first(batch, images, logits, norm, confirmed))


@jax.jit
def closer(best: Best, new: Best) -> Best:
    """The better of two finds, for each image; the first where they are as good."""
    better = jnp.where(
        new.success,
        ~best.success | (new.distances < best.distances),
        ~best.success & (new.margins > best.margins),
    )
    return choose(better, new, best)
