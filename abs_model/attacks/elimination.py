"""Undoing changes of adversarial images that success doesn't need: backward elimination."""

import functools

import jax
import jax.numpy as jnp

from abs_model.attacks import best as bests
from abs_model.attacks.base import choose
from abs_model.attacks.batch import Batch
from abs_model.attacks.best import Best
from abs_model.attacks.changes import Space
from abs_model.attacks.oracle import Oracle, State


def eliminate(oracle: Oracle, batch: Batch, best: Best, space: Space) -> Best:
    """Takes back changes that success doesn't need, one after the other.

    Begins with those whose undoing loses least, to first order, per cost. Queries once with
    gradient and as often as the image with most changes has them.

    Args:
        oracle: The classifier.
        batch: The originals.
        best: What has been found; only images that are fooled change.
        space: Of the changes.
    """
    gradients, _, state = oracle.gradients(best.images, batch)
    ranks = _order(batch, best, gradients, space=space)
    for rank in range(int(ranks.max()) + 1):
        images = _undo(batch, best.images, ranks, rank)
        logits, new_state = oracle.logits(images, state)
        best, state = _improve(batch, best, images, logits, state, new_state, space=space)
    return best


@functools.partial(jax.jit, static_argnames="space")
def _order(batch: Batch, best: Best, gradients: jax.Array, *, space: Space) -> jax.Array:
    """Number of each value's unit in the order of undoing; -1 where there is nothing to undo."""
    originals, forms = space.forms(batch.images), space.forms(best.images)
    losses = space.units(gradients * (forms - originals)) / space.costs(batch.images)
    changed = space.changed(forms, originals) & best.success[:, None]
    ranks = jnp.argsort(jnp.argsort(jnp.where(changed, losses, jnp.inf), axis=1), axis=1)
    return space.spread(jnp.where(changed, ranks, -1), forms.shape[1:])


@jax.jit
def _undo(batch: Batch, images: jax.Array, ranks: jax.Array, rank: int) -> jax.Array:
    return jnp.where(ranks == rank, batch.images, images)


@functools.partial(jax.jit, static_argnames="space")
def _improve(
    batch: Batch,
    best: Best,
    images: jax.Array,
    logits: jax.Array,
    state: State,
    new_state: State,
    *,
    space: Space,
) -> tuple[Best, State]:
    found = bests.update(best, batch, images, logits, space.norm)
    closer = found.distances < best.distances
    return found, choose(closer, new_state, state)
