"""FAB: linearised boundaries, approached with a pull towards the original.

Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
ICML 2020 (https://arxiv.org/abs/1907.02044), Algorithm 1.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from abs_model._runtime.checks import check_count, check_number
from abs_model.attacks import best as bests
from abs_model.attacks.base import AttackResult, choose, lengths, per_image, random_start
from abs_model.attacks.batch import Batch
from abs_model.attacks.best import Best
from abs_model.attacks.confirmation import Confirmations
from abs_model.attacks.geometry import (
    Hyperplanes,
    farthest,
    nearest_boundaries,
    project_in_box,
)
from abs_model.attacks.losses import margins
from abs_model.attacks.oracle import Jacobian, Oracle, State
from abs_model.attacks.running import Progress, run, split_keys
from abs_model.classifiers import Classifier

_SEARCH_STEPS = 3
# The search aims a little to the adversarial side of the boundary, or rounding decides.
_LEAN = 0.01


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

    Each step linearises at x the boundary between the label and the class where it is nearest, of
    those ahead (`num_classes`). d
    leads from x, and d_0 from the original x_0, to the nearest points of this hyperplane that lie
    in [0, 1]. Then

        x <- clip((1 - alpha) (x + eta d) + alpha (x_0 + eta d_0))
        alpha = min(|d| / (|d| + |d_0|), alpha_max)

    and where this is adversarial, x <- (1 - beta) x_0 + beta x. At the end, three steps of false
    position on the margin look for the boundary between the original and what was found.

    The first start is the original image; further ones are drawn from the ball around it of half
    the smallest distance so far.

    Queries the classifier `4 + 2 * num_restarts * num_steps` times, `num_restarts * num_steps`
    times with gradients: those of up to `num_classes` logits, or with targets that of the margin.

    Args:
        model: The classifier.
        images: Float32 (N, height, width, channels) in [0, 1].
        labels: True labels, integers (N,).
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
        progress: Called with the number of queries per image of the current batch so far.

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

    def attack(oracle: Oracle, batch: Batch) -> Best:
        logits, beginning = oracle.logits(batch.images)
        original = best = bests.first(batch, batch.images, logits, norm)
        confirmations = Confirmations(oracle, batch, best, norm)
        for restart in range(num_restarts):
            iterates, state = batch.images, beginning
            if restart > 0:
                iterates, state = _draw(split_keys(batch, restart), batch, best, norm), None
            for _ in range(num_steps):
                gradients, logits, state = _ask(oracle, batch, iterates, state, num_classes)
                moved = _move(batch, iterates, gradients, logits, alpha_max, eta, norm=norm)
                logits, state = oracle.logits(moved, state)
                iterates, best = _step_back(batch, moved, logits, best, beta, norm)
                best, state = confirmations(best, state)
        best = confirmations.settled(best)
        return confirmations.settled(_search(oracle, batch, original, best, norm))

    return run(
        attack, model, images, labels, key, norm=norm, norms=("l2", "linf"), targets=targets,
        progress=progress,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames="norm")
def _draw(keys: jax.Array, batch: Batch, best: Best, norm: str) -> jax.Array:
    """Starts within half the smallest distance so far, or anywhere if nothing was found."""
    radius = jnp.where(best.success, best.distances, farthest(batch.images, norm))
    return random_start(keys, batch.images, 0.5 * radius, norm)


def _ask(
    oracle: Oracle, batch: Batch, iterates: jax.Array, state: State, num_classes: int
) -> tuple[Jacobian | jax.Array, jax.Array, State]:
    """Gradients of leading logits, or of the margin of a targeted attack; logits; the state."""
    if batch.targeted:
        return oracle.gradients(iterates, batch, state)
    return oracle.jacobian(iterates, state, leading=(batch.classes, num_classes))


@functools.partial(jax.jit, static_argnames="norm")
def _move(
    batch: Batch,
    iterates: jax.Array,
    gradients: Jacobian | jax.Array,
    logits: jax.Array,
    alpha_max: jax.Array,
    eta: jax.Array,
    *,
    norm: str,
) -> jax.Array:
    """The biased step: between what the projections of iterates and originals lead to."""
    if isinstance(gradients, Jacobian):
        planes = nearest_boundaries(gradients, logits, batch, norm=norm)
    else:
        planes = Hyperplanes(margins(logits, batch), gradients)
    back = jnp.sum(planes.normals * (batch.images - iterates), axis=(1, 2, 3))
    seen_from_originals = Hyperplanes(planes.values + back, planes.normals)
    way = project_in_box(iterates, planes, norm) - iterates
    way_0 = project_in_box(batch.images, seen_from_originals, norm) - batch.images
    length, length_0 = lengths(way, norm), lengths(way_0, norm)
    both = length + length_0
    alpha = per_image(jnp.minimum(length / jnp.where(both > 0, both, 1.0), alpha_max))
    moved = (1 - alpha) * (iterates + eta * way) + alpha * (batch.images + eta * way_0)
    return jnp.clip(moved, 0.0, 1.0)


@functools.partial(jax.jit, static_argnames="norm")
def _step_back(
    batch: Batch, moved: jax.Array, logits: jax.Array, best: Best, beta: jax.Array, norm: str
) -> tuple[jax.Array, Best]:
    """Where to go on from, and the best so far."""
    nearer = (1 - beta) * batch.images + beta * moved
    iterates = choose(batch.fooled(logits), nearer, moved)
    return iterates, bests.update(best, batch, moved, logits, norm)


def _search(oracle: Oracle, batch: Batch, original: Best, best: Best, norm: str) -> Best:
    """False position on the margin, between the originals and the best; asks three times."""
    # The best may lie far from the last iterate, whose state is of no use then.
    far, low, high, state = best.images, original.margins, best.margins, None
    start, end = jnp.zeros(len(far)), jnp.ones(len(far))
    for _ in range(_SEARCH_STEPS):
        middle, images = _interpolate(batch, far, start, end, low, high)
        logits, state = oracle.logits(images, state)
        start, end, low, high = _shrink(batch, start, end, low, high, middle, logits)
        best = bests.update(best, batch, images, logits, norm)
    return best


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
    part = part + _LEAN * (1 - part)
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
    beyond = batch.fooled(logits)
    return choose(beyond, (start, middle, low, new), (middle, end, new, high))
