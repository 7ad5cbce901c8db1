"""HopSkipJump: gradient descent along the decision boundary, with gradients made of decisions.

Chen, Jordan, Wainwright, "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack", IEEE
Symposium on Security and Privacy 2020 (https://arxiv.org/abs/1904.02144), algorithm 2. Step t from
a point on the boundary:

1. Query B_t = B_0 sqrt(t) points around it, x + delta u_b with random u_b of length 1. The
   mean of (phi_b - mean phi) u_b, where phi_b is 1 for an adversarial point and -1 for others,
   estimates the direction in which the margin grows (eq. 16).
2. Move by distance / sqrt(t) in that direction (its sign, for L-infinity), halved until the image
   is adversarial.
3. Bisect the way to the original for the boundary.
"""

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from abs_model._runtime.checks import check_count, check_number
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.checks import check_norm
from abs_model.attacks._core.keys import split_keys
from abs_model.attacks._core.norms import choose, distances, per_image
from abs_model.attacks._core.query import Answer, Query
from abs_model.attacks._core.result import AttackResult
from abs_model.attacks._core.run import Progress, run
from abs_model.attacks._search.gradient_direction import estimate_direction
from abs_model.attacks._search.line_search import bisect_to_boundary, most_bisection_queries
from abs_model.attacks._search.starting_points import (
    most_starting_queries,
    read_starting_points,
    search_starting_points,
)
from abs_model.attacks.registry import Access, Queries, register
from abs_model.models.classifier import Classifier

_NORMS = ("l2", "linf")
# Lengths of a move that are tried, before an image stays where it is for this step.
_NUM_LENGTHS = 16
_FIRST_DELTA = 0.1
_LEAST_CHANGE = 1e-6


def _most_queries(settings: Mapping[str, Any], norm: str, model: Classifier) -> Queries:
    bisections = _bisections(math.prod(model.image_shape), settings["gamma"], norm)
    approach = most_bisection_queries(bisections)
    start = 1 + most_starting_queries(settings["starting_points"]) + approach
    sizes = _sizes(*(settings[k] for k in ("num_steps", "initial_num_evals", "max_num_evals")))
    steps = (size + _NUM_LENGTHS + approach for size in sizes)
    return Queries(logits=min(start + sum(steps), settings["max_queries"] or math.inf))


def _sizes(num_steps: int, initial_num_evals: int, max_num_evals: int) -> list[int]:
    """How many points each step's estimate of the direction has."""
    return [
        min(math.floor(initial_num_evals * math.sqrt(step + 1)), max_num_evals)
        for step in range(num_steps)
    ]


@register(
    title="HopSkipJump",
    norms=_NORMS,
    access=Access.DECISIONS,
    source="Chen et al. 2020",
    smoke={"num_steps": 2, "max_num_evals": 8},
    resources=("starting_points",),
    most_queries=_most_queries,
)
def hop_skip_jump(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    norm: str,
    num_steps: int = 64,
    initial_num_evals: int = 100,
    max_num_evals: int = 10_000,
    gamma: float = 1.0,
    max_queries: int | None = None,
    starting_points: Any = None,
    targets: Any = None,
    progress: Progress | None = None,
) -> AttackResult:
    """Attacks a classifier with HopSkipJump, which sees only decisions.

    Defaults are those of Foolbox, and of the authors' code but for the number of steps. With d
    values in an image, delta is 0.1 in the first step and then gamma / d times the distance in the
    attack's norm, and bisection narrows the way down to gamma d^-1.5 of it for L2, gamma d^-2 for
    L-infinity.

    Queries, with b = 2 + ceil(log2(d^1.5 / gamma)) for L2 (17 on MNIST) and
    2 + ceil(log2(d^2 / gamma)) for L-infinity (22):

    - 1 for the originals, 1 for a starting point (at most 43 without `starting_points`), b for a
      first bisection;
    - in step t, min(floor(initial_num_evals * sqrt(t)), max_num_evals) for the direction, at most
      16 for the length of the move, and b for a bisection.

    With the defaults, on MNIST: some 36,700 in L2 and 37,000 in L-infinity.

    Args:
        model, images, labels, key, progress: As for every attack; see `abs_model.attacks`.
        norm: "l2" or "linf".
        num_steps: Steps along the boundary.
        initial_num_evals: Points in the first estimate of the direction, B_0.
        max_num_evals: Most points in any.
        gamma: Scale of delta and of the bisections' last interval; above 0.
        max_queries: Most queries per image: no step starts that could exceed it. The same
            number of steps is taken for every image.
        starting_points: Float32 (M, height, width, channels) in [0, 1]: images to start from, such
            as training images; each attacked image starts from the closest one that is adversarial
            for it. Noise and grays by default.
        targets: Target classes, integers (N,); by default any class but the label. Noise is rarely
            of a given class, so that they call for `starting_points`.

    Returns:
        Per image the closest adversarial one; where no starting point was found, that of the
        highest margin.

    Raises:
        ValueError: An argument is invalid, or `max_queries` is too few for the start.
    """
    num_steps = check_count("num_steps", num_steps)
    initial_num_evals = check_count("initial_num_evals", initial_num_evals)
    max_num_evals = check_count("max_num_evals", max_num_evals)
    gamma = check_number("gamma", gamma, minimum=0.0, exclusive=True)
    check_norm(norm, _NORMS)
    points = read_starting_points(starting_points, model.image_shape)
    num_values = math.prod(model.image_shape)
    num_bisections = _bisections(num_values, gamma, norm)
    sizes = _sizes(num_steps, initial_num_evals, max_num_evals)
    if max_queries is not None:
        max_queries = check_count("max_queries", max_queries)
        for_start = most_starting_queries(points)
        sizes = _affordable(sizes, max_queries, for_start, most_bisection_queries(num_bisections))

    def attack(query: Query, batch: Batch) -> None:
        query.logits(batch.images)
        search_starting_points(query, points)
        idle = ~query.best.success | (query.best.distances == 0)
        here = bisect_to_boundary(query, query.best.images, num_bisections)
        for step, size in enumerate(sizes):
            delta = _delta(here.images, batch.images, step, gamma, norm)
            direction = estimate_direction(query, here, delta, split_keys(batch, step), size)
            moved = _move(query, here.images, direction, idle, step)
            here = bisect_to_boundary(query, moved, num_bisections)

    return run(
        attack, model, images, labels, key, norm=norm, norms=_NORMS, targets=targets,
        progress=progress,
    )  # fmt: skip


def _bisections(num_values: int, gamma: float, norm: str) -> int:
    power = 1.5 if norm == "l2" else 2.0
    return max(1, math.ceil(math.log2(num_values**power / gamma)))


def _affordable(sizes: list[int], max_queries: int, for_start: int, for_approach: int) -> list[int]:
    """The numbers of evaluations of the first steps, as many as `max_queries` allow for.

    By the most queries of a step, so that it does not depend on the other images of a batch.
    """
    remaining = max_queries - (1 + for_start + for_approach)
    if remaining < 0:
        raise ValueError(
            f"max_queries must be at least {max_queries - remaining}, which finding and bisecting a"
            f" start can take; got {max_queries}"
        )
    costs = itertools.accumulate(size + _NUM_LENGTHS + for_approach for size in sizes)
    return [size for size, cost in zip(sizes, costs, strict=True) if cost <= remaining]


@functools.partial(jax.jit, static_argnames="norm")
def _delta(
    points: jax.Array, originals: jax.Array, step: int, gamma: float, norm: str
) -> jax.Array:
    """How far from the points to query, (n,)."""
    num_values = points[0].size
    delta = gamma / num_values * distances(points, originals, norm)
    # Shorter ones would be lost in the rounding of float32.
    delta = jnp.maximum(delta, _LEAST_CHANGE * math.sqrt(num_values))
    return jnp.where(step == 0, _FIRST_DELTA, delta)


def _move(
    query: Query, points: jax.Array, direction: jax.Array, idle: jax.Array, step: int
) -> jax.Array:
    """Moves by the largest length tried that is adversarial; not at all where `idle` or none is."""
    length = _first_length(points, query.batch.images, step, query.norm)
    done, moved = idle, points
    for _ in range(_NUM_LENGTHS):
        answer = query.decisions(_ahead(points, direction, length, done, moved))
        done, moved, length = _try(query.batch, done, moved, length, answer)
        if bool(done.all()):
            break
    return moved


@functools.partial(jax.jit, static_argnames="norm")
def _first_length(points: jax.Array, originals: jax.Array, step: int, norm: str) -> jax.Array:
    return distances(points, originals, norm) / jnp.sqrt(step + 1.0)


@jax.jit
def _ahead(
    points: jax.Array, direction: jax.Array, length: jax.Array, done: jax.Array, moved: jax.Array
) -> jax.Array:
    # What is done must gain nothing by waiting for the others.
    return choose(done, moved, jnp.clip(points + per_image(length) * direction, 0.0, 1.0))


@jax.jit
def _try(
    batch: Batch, done: jax.Array, moved: jax.Array, length: jax.Array, answer: Answer
) -> tuple[jax.Array, jax.Array, jax.Array]:
    new = batch.is_adversarial(answer.logits) & ~done
    return done | new, choose(new, answer.images, moved), length / 2
