"""The step of projected gradient methods."""

import functools

import jax

from abs_model.attacks._core.norms import ascent_direction, project


@functools.partial(jax.jit, static_argnames="norm")
def take_step(
    iterates: jax.Array,
    gradients: jax.Array,
    originals: jax.Array,
    *,
    epsilon: float | jax.Array,
    step_size: float | jax.Array,
    norm: str,
) -> jax.Array:
    """One step of steepest ascent, projected into the ball around the originals and to [0, 1]."""
    moved = iterates + step_size * ascent_direction(gradients, norm)
    return project(moved, originals, epsilon, norm)
