"""Searches along paths for the place where an image first becomes adversarial.

Images on a path are far from each other, so no query starts from another: a warm-started one is
right near the image it starts from, and farther away may find an image adversarial that is not.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.norms import distances, per_image
from abs_model.attacks._core.query import Answer, Query

# From fractions of the path (n,), in 0 to 1, to images (n, height, width, channels).
Path = Callable[[jax.Array], jax.Array]


def search_line(query: Query, path: Path, *, num_levels: int, num_bisections: int) -> jax.Array:
    """Follows the path in equal steps, and bisects the step in which an image becomes adversarial.

    Queries the classifier at most `num_levels + num_bisections` times, and less where all images
    are done sooner.

    Args:
        query: The session.
        path: Images at given fractions of their paths, which start at the originals.
        num_levels: Steps of each path.
        num_bisections: Each halves the step of the first adversarial image.

    Returns:
        The fraction of the first adversarial image found, (n,), and 1 where there is none.
    """
    low = jnp.zeros(len(query.batch.images))
    high = jnp.full(len(query.batch.images), jnp.inf)
    step = 1.0 / num_levels
    fractions, done = _next_fractions(low, high, step, num_bisections)
    for _ in range(num_levels + num_bisections):
        answer = query.decisions(path(fractions))
        low, high, fractions, done = _narrow(
            query.batch, low, high, fractions, done, answer.logits, step, num_bisections
        )
        if bool(done.all()):
            break
    return jnp.minimum(high, 1.0)


@functools.partial(jax.jit, static_argnames="norm")
def interpolate(originals: jax.Array, far: jax.Array, fractions: jax.Array, norm: str) -> jax.Array:
    """Images at the given fractions (n,) of the distances from the originals to `far`."""
    if norm == "linf":
        radius = per_image(fractions * distances(far, originals, "linf"))
        between = jnp.clip(far, originals - radius, originals + radius)
    else:
        between = originals + per_image(fractions) * (far - originals)
    # Rounding must not move the end of the line, which may lie just across the boundary.
    return jnp.where(per_image(fractions) >= 1, far, between)


def bisect_to_boundary(query: Query, far: jax.Array, num_bisections: int) -> Answer:
    """Bisects the lines from the originals to `far`.

    Makes at most `most_bisection_queries(num_bisections)` queries.

    Returns:
        The answer about the adversarial ends of the last intervals, or about `far` where that is
        not adversarial.
    """
    path = functools.partial(interpolate, query.batch.images, far, norm=query.norm)
    fractions = search_line(query, path, num_levels=1, num_bisections=num_bisections)
    return query.logits(path(fractions))


def most_bisection_queries(num_bisections: int) -> int:
    """Most queries of `bisect_to_boundary`."""
    return num_bisections + 2


@jax.jit
def _narrow(
    batch: Batch,
    low: jax.Array,
    high: jax.Array,
    fractions: jax.Array,
    done: jax.Array,
    logits: jax.Array,
    step: float,
    num_bisections: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Where the first adversarial images lie, as far as the logits tell, and the next fractions."""
    adversarial = batch.is_adversarial(logits)
    low = jnp.where(~done & ~adversarial, fractions, low)
    high = jnp.where(~done & adversarial, fractions, high)
    fractions, done = _next_fractions(low, high, step, num_bisections)
    return low, high, fractions, done


@jax.jit
def _next_fractions(
    low: jax.Array, high: jax.Array, step: float, num_bisections: int
) -> tuple[jax.Array, jax.Array]:
    """The fractions to query next, and whether the search is over, (n,)."""
    found = jnp.isfinite(high)
    # Both with some room for rounding.
    narrow = high - low <= 1.01 * step * 0.5**num_bisections
    done = narrow | (~found & (low > 1.0 - 0.5 * step))
    onward = jnp.where(found, (low + high) / 2, jnp.minimum(low + step, 1.0))
    return jnp.where(done, jnp.minimum(high, 1.0), onward), done
