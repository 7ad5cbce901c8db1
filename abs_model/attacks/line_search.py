"""Searching ways for the place where an image first fools the classifier.

Images on a way are far from each other. So questions are asked from scratch: a warm-started answer
(`Oracle`) holds near the image it starts from, and farther away may find an image adversarial that
is not.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from abs_model.attacks import best as bests
from abs_model.attacks.base import distances, per_image
from abs_model.attacks.batch import Batch
from abs_model.attacks.best import Best
from abs_model.attacks.oracle import Oracle, State

# From shares of the way (n,), in 0 to 1, to images (n, height, width, channels).
Way = Callable[[jax.Array], jax.Array]


def search_line(
    oracle: Oracle,
    batch: Batch,
    way: Way,
    best: Best,
    norm: str,
    *,
    num_levels: int,
    num_bisections: int,
) -> tuple[jax.Array, Best]:
    """Goes along the way in equal steps, and bisects the step in which an image first fools.

    Queries the classifier at most `num_levels + num_bisections` times, and less where all images
    are done sooner.

    Args:
        oracle: The classifier.
        batch: The originals, which are where the ways begin.
        way: Images at given shares of their ways.
        best: What has been found; it is improved on.
        norm: Of the distances.
        num_levels: Steps of each way.
        num_bisections: Each halves the step of the first adversarial image.

    Returns:
        The share of the first adversarial image found, (n,), and 1 where there is none; `best`.
    """
    low = jnp.zeros(len(batch.images))
    high = jnp.full(len(batch.images), jnp.inf)
    step = 1.0 / num_levels
    shares, done = _next_shares(low, high, step, num_bisections)
    for _ in range(num_levels + num_bisections):
        images = way(shares)
        logits, _ = oracle.logits(images)
        low, high, shares, done, best = _narrow(
            batch, low, high, shares, done, images, logits, best, step, num_bisections, norm
        )
        if bool(done.all()):
            break
    return jnp.minimum(high, 1.0), best


@functools.partial(jax.jit, static_argnames="norm")
def between(originals: jax.Array, far: jax.Array, fractions: jax.Array, norm: str) -> jax.Array:
    """Images at the given fractions (n,) of the distances from the originals to `far`."""
    if norm == "linf":
        radius = per_image(fractions * distances(far, originals, "linf"))
        return jnp.clip(far, originals - radius, originals + radius)
    return originals + per_image(fractions) * (far - originals)


def approach(
    oracle: Oracle, batch: Batch, far: jax.Array, best: Best, norm: str, num_bisections: int
) -> tuple[jax.Array, Best, State]:
    """Bisects the ways from the originals to `far`; asks at most `num_bisections + 2` times.

    Returns:
        The adversarial ends of the last intervals, (n, ...), or `far` where that is not
        adversarial; `best`; the state there.
    """
    way = functools.partial(between, batch.images, far, norm=norm)
    shares, best = search_line(
        oracle, batch, way, best, norm, num_levels=1, num_bisections=num_bisections
    )
    near = way(shares)
    return near, best, oracle.logits(near)[1]


@functools.partial(jax.jit, static_argnames="norm")
def _narrow(
    batch: Batch,
    low: jax.Array,
    high: jax.Array,
    shares: jax.Array,
    done: jax.Array,
    images: jax.Array,
    logits: jax.Array,
    best: Best,
    step: float,
    num_bisections: int,
    norm: str,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, Best]:
    """What the answers say about where the first adversarial images lie, and the next shares."""
    fooled = batch.fooled(logits)
    low = jnp.where(~done & ~fooled, shares, low)
    high = jnp.where(~done & fooled, shares, high)
    best = bests.update(best, batch, images, logits, norm, confirmed=True)
    shares, done = _next_shares(low, high, step, num_bisections)
    return low, high, shares, done, best


@jax.jit
def _next_shares(
    low: jax.Array, high: jax.Array, step: float, num_bisections: int
) -> tuple[jax.Array, jax.Array]:
    """The shares to ask about, and whether there is nothing to ask about any more."""
    found = jnp.isfinite(high)
    # Both with some room for rounding.
    narrow = high - low <= 1.01 * step * 0.5**num_bisections
    done = narrow | (~found & (low > 1.0 - 0.5 * step))
    onward = jnp.where(found, (low + high) / 2, jnp.minimum(low + step, 1.0))
    return jnp.where(done, jnp.minimum(high, 1.0), onward), done
