"""Undoing edits of adversarial images that success doesn't need: backward elimination."""

import functools

import jax
import jax.numpy as jnp

from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.norms import choose
from abs_model.attacks._core.query import GradientAnswer, Query
from abs_model.attacks._search.edit_space import EditSpace


def eliminate(query: Query, space: EditSpace) -> None:
    """Takes back edits that success doesn't need, one after the other.

    Begins with those whose undoing loses least, to first order, per cost. Queries once with
    gradient, and as often as the image with most edits has them.

    Args:
        query: The session; only images that succeeded change.
        space: What is edited.
    """
    batch = query.batch
    first = query.gradients(query.best.images)
    ranks = _order(batch, first, query.best.success, space=space)
    here = first.plain()
    for rank in range(int(ranks.max()) + 1):
        before = query.best
        answer = query.logits(_undo(batch, before.images, ranks, rank), near=here)
        here = choose(query.best.distances < before.distances, answer, here)


@functools.partial(jax.jit, static_argnames="space")
def _order(
    batch: Batch, here: GradientAnswer, success: jax.Array, *, space: EditSpace
) -> jax.Array:
    """Number of each value's unit in the order of undoing; -1 where there is nothing to undo."""
    originals, forms = space.forms(batch.images), space.forms(here.images)
    losses = space.units(here.gradients * (forms - originals)) / space.costs(batch.images)
    changed = space.changed(forms, originals) & success[:, None]
    ranks = jnp.argsort(jnp.argsort(jnp.where(changed, losses, jnp.inf), axis=1), axis=1)
    return space.spread(jnp.where(changed, ranks, -1), forms.shape[1:])


@jax.jit
def _undo(batch: Batch, images: jax.Array, ranks: jax.Array, rank: int) -> jax.Array:
    return jnp.where(ranks == rank, batch.images, images)
