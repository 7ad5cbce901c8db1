"""Cold checks of adversarial examples that warm-started queries have found.

A warm-started classifier (ABS) starts from latents found for an image nearby. Where these lead to a
poorer explanation by the label than there is, an image seems adversarial that is not.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.best_so_far import BestSoFar, closer, score
from abs_model.attacks._core.norms import choose, project
from abs_model.models.classifier import threshold

# How far beyond a rejected example to look: ever farther, then by bisection.
_OVERSHOOTS = (1.005, 1.01, 1.02, 1.05, 1.1, 1.2)
_NUM_BISECTIONS = 3


def search_beyond(
    cold_logits: Callable[[jax.Array], jax.Array],
    batch: Batch,
    found: BestSoFar,
    norm: str,
    thresholds: jax.Array | float,
    epsilon: float | None,
    binary: bool,
) -> BestSoFar:
    """What an attack has found, as cold queries see it.

    Where an example is rejected, points a little farther out are tried, and the way from the last
    rejected one to the first verified one is bisected. Queries the classifier up to 10 times, once
    where nothing is rejected.

    Args:
        cold_logits: From images to logits (n, classes), by a cold query.
        batch: The originals.
        found: By the attack.
        norm: Norm of the distances.
        thresholds: Margin that success takes, (n,) or a number.
        epsilon: Where the attack stays within one, the largest distance.
        binary: Whether the classifier sees thresholded images only.
    """
    logits = cold_logits(found.images)
    checked = score(batch, found.images, logits, norm, thresholds, verified=True)
    rejected = found.success & ~checked.success
    low, high = jnp.ones(len(rejected)), jnp.full(len(rejected), jnp.inf)
    for number in range(len(_OVERSHOOTS) + _NUM_BISECTIONS):
        beyond = _OVERSHOOTS[min(number, len(_OVERSHOOTS) - 1)]
        images, scales = _farther(batch, found, rejected, low, high, beyond, norm, epsilon)
        if not bool(_seen_differently(images, found.images, binary)):
            break
        new = score(batch, images, cold_logits(images), norm, thresholds, verified=True)
        low, high = _narrow(scales, low, high, new.success)
        # Elsewhere the result would depend on the other images of the batch.
        checked = choose(rejected, closer(checked, new), checked)
    return checked


@functools.partial(jax.jit, static_argnames=("norm", "epsilon"))
def _farther(
    batch: Batch,
    found: BestSoFar,
    rejected: jax.Array,
    low: jax.Array,
    high: jax.Array,
    beyond: float,
    norm: str,
    epsilon: float | None,
) -> tuple[jax.Array, jax.Array]:
    """The next images, those found where nothing is rejected, and their scales (n,)."""
    scales = jnp.where(jnp.isinf(high), beyond, (low + high) / 2).reshape(-1, 1, 1, 1)
    images = jnp.clip(batch.images + scales * (found.images - batch.images), 0.0, 1.0)
    if epsilon is not None and norm != "l0":
        images = project(images, batch.images, epsilon, norm)
    return choose(rejected, images, found.images), scales[:, 0, 0, 0]


@functools.partial(jax.jit, static_argnames="binary")
def _seen_differently(images: jax.Array, others: jax.Array, binary: bool) -> jax.Array:
    """Whether the classifier can see a difference in any image."""
    if binary:
        images, others = threshold(images), threshold(others)
    return jnp.any(images != others)


@jax.jit
def _narrow(
    scales: jax.Array, low: jax.Array, high: jax.Array, success: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return jnp.where(success, low, scales), jnp.where(success, scales, high)
