"""Moving adversarial images towards their originals, up to the decision boundary."""

import functools

import jax
import jax.numpy as jnp

from abs_model.attacks import best as bests
from abs_model.attacks.base import choose, distances, per_image
from abs_model.attacks.batch import Batch
from abs_model.attacks.best import Best
from abs_model.attacks.oracle import Oracle, State


def bisect(
    oracle: Oracle,
    batch: Batch,
    far: jax.Array,
    best: Best,
    norm: str,
    num_steps: int,
    state: State = None,
) -> tuple[jax.Array, Best, State]:
    """Bisects the ways from the originals to `far` for the boundary; asks `num_steps` times.

    Args:
        oracle: The classifier.
        batch: The originals.
        far: Images (n, height, width, channels), adversarial ones; others stay where they are.
        best: What has been found; it is improved on.
        norm: "l2": straight ways; "linf": the change is clipped to a shrinking size.
        num_steps: Each halves what is left of a way.
        state: Of images near the ways.

    Returns:
        The adversarial ends of the last intervals, (n, ...); `best`; a state near these ends.
    """
    low = jnp.zeros(len(far))
    high = jnp.ones(len(far))
    near = far
    for _ in range(num_steps):
        middle = (low + high) / 2
        images = between(batch.images, far, middle, norm)
        logits, state = oracle.logits(images, state)
        low, high, near, best = _halve(batch, low, high, near, images, logits, best, norm)
    return near, best, state


@functools.partial(jax.jit, static_argnames="norm")
def between(originals: jax.Array, far: jax.Array, fractions: jax.Array, norm: str) -> jax.Array:
    """Images at the given fractions (n,) of the distances from the originals to `far`."""
    if norm == "linf":
        radius = per_image(fractions * distances(far, originals, "linf"))
        return jnp.clip(far, originals - radius, originals + radius)
    return originals + per_image(fractions) * (far - originals)


@functools.partial(jax.jit, static_argnames="norm")
def _halve(
    batch: Batch,
    low: jax.Array,
    high: jax.Array,
    near: jax.Array,
    images: jax.Array,
    logits: jax.Array,
    best: Best,
    norm: str,
) -> tuple[jax.Array, jax.Array, jax.Array, Best]:
    middle = (low + high) / 2
    fooled = batch.fooled(logits)
    low, high = jnp.where(fooled, low, middle), jnp.where(fooled, middle, high)
    return low, high, choose(fooled, images, near), bests.update(best, batch, images, logits, norm)
