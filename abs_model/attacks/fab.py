"""FAB: linearized boundaries, approached with a pull towards the original.

Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
ICML 2020 (https://arxiv.org/abs/1907.02044), Algorithm 1.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from abs_model._runtime.checks import check_count, check_number
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.best_so_far import BestSoFar
from abs_model.attacks._core.keys import split_keys
from abs_model.attacks._core.losses import margins
from abs_model.attacks._core.norms import choose, lengths, max_distance, per_image, random_start
from abs_model.attacks._core.query import Answer, GradientAnswer, JacobianAnswer, Query
from abs_model.attacks._core.result import AttackResult
from abs_model.attacks._core.run import Progress, run
from abs_model.attacks._search.linearized_boundary import (
    LinearizedBoundaries,
    nearest_boundaries,
    project_in_box,
)
from abs_model.attacks.registry import Access, Queries, register
from abs_model.models.classifier import Classifier

_NORMS = ("l2", "linf")
_SEARCH_STEPS = 3
# The search aims a little to the adversarial side of the boundary, or rounding decides.
_FALSE_POSITION_BIAS = 0.01


def _most_queries(settings: Mapping[str, Any], norm: str, model: Classifier) -> Queries:
    steps = settings["num_restarts"] * settings["num_steps"]
    # With targets, gradients instead of Jacobians.
    return Queries(logits=1 + steps + _SEARCH_STEPS, jacobians=steps)


@register(
    title="FAB",
    norms=_NORMS,
    access=Access.GRADIENTS,
    source="Croce and Hein 2020",
    smoke={"num_restarts": 1, "num_steps": 5},
    most_queries=_most_queries,
    newer=("num_classes",),
)
def fab(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    norm: str,
    num_steps: int = 100,
    num_restarts: int = 1,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    num_classes: int = 10,
    targets: Any = None,
    progress: Progress | None = None,
) -> AttackResult:
    """Looks for the closest adversarial images with the Fast Adaptive Boundary attack.

    Each step linearizes, at x, the boundaries between the label and the `num_classes` leading
    classes, and takes the nearest. d leads from x, and d_0 from the original x_0, to the nearest
    point of this hyperplane in [0, 1]. Then

        x <- clip((1 - alpha) (x + eta d) + alpha (x_0 + eta d_0))
        alpha = min(|d| / (|d| + |d_0|), alpha_max)

    and where this is adversarial, x <- (1 - beta) x_0 + beta x. At the end, three steps of false
    position on the margin look for the boundary between the original and what was found.

    The first start is the original image; further ones are drawn from the ball around it of half
    the smallest distance so far.

    Queries the classifier `4 + 2 * num_restarts * num_steps` times, `num_restarts * num_steps`
    times with gradients: those of up to `num_classes` logits, or with targets that of the margin.

    Args:
        model, images, labels, progress: As for every attack; see `abs_model.attacks`.
        key: A `jax.random.key`, or one for each image, (N,): of the restarts.
        norm: "l2" or "linf".
        num_steps: Steps from each start; 100 as in the paper.
        num_restarts: Starts to try; each costs `2 * num_steps` queries.
        alpha_max: Most weight of the point near the original, 0 to 1; 0.1 as in the paper.
        eta: How far to go along the ways to the hyperplane, at least 1; 1.05 as in the paper.
        beta: How much of the way is left by the step back, 0 to 1; 0.9 as in the paper.
        num_classes: Classes whose gradients are taken, at least 2: in each step the label and those
            of the largest other logits. Time and memory grow with it. With targets it plays no
            part.
        targets: Target classes, integers (N,); by default any class but the label. Then the
            boundary is that between the target and the class ahead of all others. (The targeted
            version of AutoAttack looks at target and label, and takes any other class as well.)

    Returns:
        Per image the closest adversarial one; where there is none, that of the highest margin.

    Raises:
        ValueError: An argument is invalid.
    """
    num_steps = check_count("num_steps", num_steps)
    num_restarts = check_count("num_restarts", num_restarts)
    eta = check_number("eta", eta, minimum=1.0)
    alpha_max = check_number("alpha_max", alpha_max, minimum=0.0, maximum=1.0)
    beta = check_number("beta", beta, minimum=0.0, maximum=1.0)
    num_classes = check_count("num_classes", num_classes, minimum=2)

    def attack(query: Query, batch: Batch) -> None:
        original = query.logits(batch.images)
        first_margins = query.best.margins
        for restart in range(num_restarts):
            images: jax.Array = batch.images
            near: Answer | None = original
            if restart > 0:
                images, near = _draw(split_keys(batch, restart), batch, query.best, norm), None
            for _ in range(num_steps):
                linear = _linearize(query, images, near, num_classes)
                near = query.logits(_move(batch, linear, alpha_max, eta, norm=norm), near=linear)
                images = _step_back(batch, near, beta)
        query.settle()
        _search(query, first_margins)

    return run(
        attack, model, images, labels, key, norm=norm, norms=_NORMS, targets=targets,
        progress=progress,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames="norm")
def _draw(keys: jax.Array, batch: Batch, best: BestSoFar, norm: str) -> jax.Array:
    """Starts within half the smallest distance so far, or anywhere if nothing was found."""
    radius = jnp.where(best.success, best.distances, max_distance(batch.images, norm))
    return random_start(keys, batch.images, 0.5 * radius, norm)


def _linearize(
    query: Query, images: jax.Array, near: Answer | None, num_classes: int
) -> GradientAnswer | JacobianAnswer:
    """Gradients of the leading logits, or of the margin of a targeted attack.

    Not recorded, because the paper takes what steps lead to, before they go back.
    """
    if query.batch.targeted:
        return query.gradients(images, near, record=False)
    return query.jacobian(images, near, num_classes=num_classes, record=False)


@functools.partial(jax.jit, static_argnames="norm")
def _move(
    batch: Batch,
    answer: GradientAnswer | JacobianAnswer,
    alpha_max: jax.Array,
    eta: jax.Array,
    *,
    norm: str,
) -> jax.Array:
    """The biased step: between what the projections of iterates and originals lead to."""
    iterates = answer.images
    if isinstance(answer, JacobianAnswer):
        planes = nearest_boundaries(answer.jacobian, answer.logits, batch, norm=norm)
    else:
        planes = LinearizedBoundaries(margins(answer.logits, batch), answer.gradients)
    back = jnp.sum(planes.normals * (batch.images - iterates), axis=(1, 2, 3))
    seen_from_originals = LinearizedBoundaries(planes.values + back, planes.normals)
    way = project_in_box(iterates, planes, norm) - iterates
    way_0 = project_in_box(batch.images, seen_from_originals, norm) - batch.images
    length, length_0 = lengths(way, norm), lengths(way_0, norm)
    both = length + length_0
    alpha = per_image(jnp.minimum(length / jnp.where(both > 0, both, 1.0), alpha_max))
    moved = (1 - alpha) * (iterates + eta * way) + alpha * (batch.images + eta * way_0)
    return jnp.clip(moved, 0.0, 1.0)


@jax.jit
def _step_back(batch: Batch, answer: Answer, beta: jax.Array) -> jax.Array:
    """The next iterates: nearer to the originals where the last ones are adversarial."""
    nearer = (1 - beta) * batch.images + beta * answer.images
    return choose(batch.is_adversarial(answer.logits), nearer, answer.images)


def _search(query: Query, low: jax.Array) -> None:
    """False position on the margin, between the originals and the best; queries three times.

    Args:
        query: The session.
        low: The margins of the originals, (n,).
    """
    batch = query.batch
    # The best may lie far from the last iterate, whose state is of no use then.
    far, high, answer = query.best.images, query.best.margins, None
    start, end = jnp.zeros(len(far)), jnp.ones(len(far))
    for _ in range(_SEARCH_STEPS):
        middle, images = _interpolate(batch, far, start, end, low, high)
        answer = query.logits(images, near=answer)
        start, end, low, high = _shrink(batch, start, end, low, high, middle, answer.logits)


@jax.jit
def _interpolate(
    batch: Batch,
    far: jax.Array,
    start: jax.Array,
    end: jax.Array,
    low: jax.Array,
    high: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Just beyond where the margin would be 0 if it grew linearly.

    Returns:
        Which part of the way that is, and the images there.
    """
    growth = high - low
    part = jnp.clip(-low / jnp.where(growth > 0, growth, 1.0), 0.0, 1.0)
    part = part + _FALSE_POSITION_BIAS * (1 - part)
    middle = start + part * (end - start)
    return middle, jnp.clip(batch.images + per_image(middle) * (far - batch.images), 0.0, 1.0)


@jax.jit
def _shrink(
    batch: Batch,
    start: jax.Array,
    end: jax.Array,
    low: jax.Array,
    high: jax.Array,
    middle: jax.Array,
    logits: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The part of the interval that holds the boundary, and the margins at its ends."""
    new = margins(logits, batch)
    beyond = batch.is_adversarial(logits)
    return choose(beyond, (start, middle, low, new), (middle, end, new, high))
