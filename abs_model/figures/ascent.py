"""Gradient ascent on the score of a target class, for the figures that show where it leads.

Without an epsilon: images move as far as the ascent takes them, within [0, 1].
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abs_model._runtime.errors import UserError
from abs_model._runtime.precision import single_precision
from abs_model.models.classifier import Classifier

Score = Callable[[jax.Array, jax.Array], jax.Array]


def target_logits(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The logits of the targets, (N,), of logits (N, classes) and targets int (N,)."""
    return jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]


def target_margins(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """By how much the logits of the targets exceed the largest of the others, (N,)."""
    is_target = jax.nn.one_hot(targets, logits.shape[1], dtype=bool)
    return target_logits(logits, targets) - jnp.where(is_target, -jnp.inf, logits).max(axis=1)


@single_precision
def ascend(
    model: Classifier,
    images: np.ndarray,
    targets: np.ndarray,
    *,
    score: Score,
    step_length: float,
    num_steps: int,
    enough: float = np.inf,
) -> np.ndarray:
    """Steps of one L2 length along the gradient of a score, clipped to [0, 1] after each.

    Queries are warm: those that need exact confidences must query the result again.

    Args:
        model: The classifier.
        images: Where to start, float32 (N, height, width, channels).
        targets: Classes, int (N,).
        score: From logits and targets; larger for images that are more of the target.
        step_length: In L2; clipping may shorten a step.
        num_steps: How many.
        enough: Images whose confidence in the target is at least this move no further.

    Returns:
        All iterates, the start included, (N, num_steps + 1, height, width, channels).

    Raises:
        UserError: The model is a black box.
    """
    if not model.differentiable:
        raise UserError(f"model {model.name!r} is a black box; gradient ascent needs gradients")
    iterates = [np.asarray(images)]
    current, classes = jnp.asarray(images), jnp.asarray(targets, jnp.int32)
    state, done = None, False
    for _ in range(num_steps):
        if not done:
            moved, stays, state = _step(
                model, current, state, classes, step_length, enough, score=score
            )
            current, done = moved, bool(stays.all())
        iterates.append(np.asarray(current))
    return np.stack(iterates, axis=1)


@functools.partial(jax.jit, static_argnames="score")
def _step(
    model: Classifier,
    images: jax.Array,
    state: Any,
    targets: jax.Array,
    step_length: jax.Array,
    enough: jax.Array,
    *,
    score: Score,
) -> tuple[jax.Array, jax.Array, Any]:
    """The moved images, which of them stay where they are, bool (N,), and the model's state."""

    def total(images: jax.Array) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        if state is None:
            logits, found = model.cold_logits(images)
        else:
            required = jax.nn.one_hot(targets, model.num_classes, dtype=bool)
            logits, found = model.warm_logits(images, state, required)
        return score(logits, targets).sum(), (logits, found)

    gradients, (logits, found) = jax.grad(total, has_aux=True)(images)
    lengths = jnp.sqrt(jnp.sum(gradients**2, axis=(1, 2, 3), keepdims=True))
    # A gradient of zero stays zero.
    directions = gradients / jnp.where(lengths > 0, lengths, 1)
    stays = target_logits(model.logits_to_confidences(logits), targets) >= enough
    moved = jnp.clip(images + step_length * directions, 0, 1)
    return jnp.where(stays[:, None, None, None], images, moved), stays, found
