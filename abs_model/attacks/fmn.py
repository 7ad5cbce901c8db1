"""FMN: gradient steps within a ball whose radius adapts until it just reaches the boundary.

Pintor, Roli, Brendel and Biggio, "Fast minimum-norm adversarial attacks through adaptive norm
constraints", NeurIPS 2021 (https://arxiv.org/abs/2102.12827), Algorithm 1.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from abs_model._runtime.checks import check_count, check_number
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.best_so_far import BestSoFar
from abs_model.attacks._core.checks import NORMS
from abs_model.attacks._core.losses import margins
from abs_model.attacks._core.norms import (
    ascent_direction,
    distances,
    dual_norms,
    max_distance,
    project,
)
from abs_model.attacks._core.query import GradientAnswer, Query
from abs_model.attacks._core.result import AttackResult
from abs_model.attacks._core.run import Progress, run
from abs_model.attacks.registry import Access, Queries, register
from abs_model.models.classifier import Classifier

# Where the annealing ends: the authors' settings, which Foolbox shares.
_LAST_STEP = 0.01  # as a part of the first
_LAST_GAMMA = 0.001
# How far beyond a linearized boundary to go: else rounding decides whether it is ever crossed.
_OVERSHOOT = 0.001


@register(
    title="FMN",
    norms=NORMS,
    access=Access.GRADIENTS,
    source="Pintor et al. 2021",
    smoke={"num_steps": 10},
    most_queries=lambda settings, norm, model: Queries(gradients=1 + settings["num_steps"]),
)
def fmn(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    norm: str,
    num_steps: int = 100,
    step_size: float = 1.0,
    gamma: float = 0.05,
    targets: Any = None,
    progress: Progress | None = None,
) -> AttackResult:
    """Looks for the closest adversarial images with the Fast Minimum-Norm attack.

    Each step moves x along the gradient of the margin, normalized in L2, and projects it to within
    epsilon of the original and to [0, 1]. Before that, epsilon is set: for "l2" and "linf"

        min((1 - gamma) epsilon, smallest distance found)    where x is adversarial
        (1 + gamma) epsilon                                  where only an earlier x was
        distance of x + |margin| / dual norm of its gradient where none was: up to the boundary,
                                                             linearized at x

    For "l0", where epsilon is a number of pixels that starts at 1, it grows and shrinks by gamma,
    rounded down, and by at least one pixel. A pixel counts once, whatever its channels; those that
    change most are kept. Step size and gamma fall to 1/100 of the first and to 0.001 along a
    cosine.

    Queries the classifier `num_steps + 1` times, each time with gradient.

    Args:
        model, images, labels, targets, progress: As for every attack; see `abs_model.attacks`.
        key: A `jax.random.key`, or one for each image, (N,). Nothing here is random.
        norm: "l2", "linf" or "l0".
        num_steps: Number of steps; 100 as in Foolbox.
        step_size: Length in L2 of the first step, whatever `norm`; above 0. 1.0 as in Foolbox.
        gamma: First relative change of epsilon, 0.001 to 1; 0.05 as in the paper and Foolbox.

    Returns:
        Per image the closest adversarial one; where there is none, that of the highest margin.

    Raises:
        ValueError: An argument is invalid.
    """
    num_steps = check_count("num_steps", num_steps)
    step_size = check_number("step_size", step_size, minimum=0.0, exclusive=True)
    gamma = check_number("gamma", gamma, minimum=_LAST_GAMMA, maximum=1.0)

    def attack(query: Query, batch: Batch) -> None:
        epsilon = _first_epsilon(batch, norm)
        answer = query.gradients(batch.images)
        for step in range(num_steps):
            warmth = (1 + math.cos(math.pi * step / num_steps)) / 2
            images, epsilon = _step(
                batch, answer, epsilon, query.best,
                step_size=step_size * (_LAST_STEP + (1 - _LAST_STEP) * warmth),
                gamma=_LAST_GAMMA + (gamma - _LAST_GAMMA) * warmth,
                norm=norm,
            )  # fmt: skip
            answer = query.gradients(images, near=answer)

    return run(
        attack, model, images, labels, key, norm=norm, norms=NORMS,
        targets=targets, progress=progress,
    )  # fmt: skip


def _first_epsilon(batch: Batch, norm: str) -> jax.Array:
    return jnp.full(len(batch.images), 1.0 if norm == "l0" else jnp.inf)


@functools.partial(jax.jit, static_argnames="norm")
def _step(
    batch: Batch,
    answer: GradientAnswer,
    epsilon: jax.Array,
    best: BestSoFar,
    *,
    step_size: jax.Array,
    gamma: jax.Array,
    norm: str,
) -> tuple[jax.Array, jax.Array]:
    """The next iterates and epsilons."""
    epsilon = _adapt(batch, answer, epsilon, best, gamma, norm)
    moved = answer.images + step_size * ascent_direction(answer.gradients, "l2")
    return _within(batch.images, moved, epsilon, norm), epsilon


def _adapt(
    batch: Batch,
    answer: GradientAnswer,
    epsilon: jax.Array,
    best: BestSoFar,
    gamma: jax.Array,
    norm: str,
) -> jax.Array:
    """The next epsilons, (n,)."""
    larger, smaller = epsilon * (1 + gamma), epsilon * (1 - gamma)
    if norm == "l0":
        larger = jnp.maximum(epsilon + 1, jnp.floor(larger))
        smaller = jnp.maximum(jnp.minimum(epsilon - 1, jnp.floor(smaller)), 1.0)
    else:
        steepness = dual_norms(answer.gradients, norm)
        missing = jnp.abs(margins(answer.logits, batch)) / jnp.where(steepness > 0, steepness, 1.0)
        boundary = (1 + _OVERSHOOT) * (distances(answer.images, batch.images, norm) + missing)
        larger = jnp.where(best.success, larger, jnp.where(steepness > 0, boundary, jnp.inf))
    smaller = jnp.minimum(smaller, best.distances)
    following = jnp.where(batch.is_adversarial(answer.logits), smaller, larger)
    return jnp.minimum(following, max_distance(batch.images, norm))


def _within(originals: jax.Array, images: jax.Array, epsilon: jax.Array, norm: str) -> jax.Array:
    """Images moved into [0, 1] and then to within epsilon (n,) of the originals.

    In this order, because what clipping takes away shall not count towards epsilon.
    """
    clipped = jnp.clip(images, 0.0, 1.0)
    if norm != "l0":
        return project(clipped, originals, epsilon, norm)
    sizes = jnp.sum((clipped - originals) ** 2, axis=3)
    flat = sizes.reshape(len(sizes), -1)
    ranks = jnp.argsort(jnp.argsort(-flat, axis=1), axis=1)
    kept = (ranks < epsilon[:, None]).reshape(*sizes.shape, 1)
    return jnp.where(kept, clipped, originals)
