"""Iterative fast gradient methods, with the smallest epsilon at which they succeed.

`bim`, the basic iterative method: Kurakin, Goodfellow and Bengio, "Adversarial Examples in the
Physical World", ICLR workshop 2017 (https://arxiv.org/abs/1607.02533). From the original image,

    x <- project(x + step_size * direction(gradient of the loss at x))

`mim`, the momentum iterative method: Dong et al., "Boosting Adversarial Attacks with Momentum",
CVPR 2018 (https://arxiv.org/abs/1710.06081). It follows the direction of

    m <- decay * m + gradient / mean of |gradient|

Both take few and long steps within a ball of a given epsilon. The smallest epsilon that succeeds is
searched for each image, as in Foolbox 1.x.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from abs_model._runtime.checks import check_count, check_number
from abs_model.attacks import best as bests
from abs_model.attacks.base import AttackResult, per_image
from abs_model.attacks.batch import Batch
from abs_model.attacks.best import Best
from abs_model.attacks.confirmation import Confirmations
from abs_model.attacks.oracle import Oracle
from abs_model.attacks.pgd import take_step
from abs_model.attacks.running import Progress, run
from abs_model.classifiers import Classifier

# Of the first epsilon, relative to the longest change in the norm.
_FIRST = 0.3
_GROWTH = 1.5  # of an epsilon that fails, as in Foolbox 1.x


def bim(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    norm: str,
    num_steps: int = 10,
    num_searches: int = 20,
    targets: Any = None,
    progress: Progress | None = None,
) -> AttackResult:
    """Attacks with the basic iterative method at the smallest epsilon that succeeds.

    The first epsilon is 0.3 for L-infinity and 0.3 sqrt(pixels) for L2 (a root mean square of 0.3);
    while it fails it grows by half, then the interval between the largest that fails and the
    distance of the closest adversarial image found is halved. Steps are epsilon / 6 long. These are
    the settings of Foolbox 1.x, where 20 searches come after the growth, and the interval ends at
    the smallest epsilon that succeeds; here the 20 include the growth. Fewer than 6 steps are
    epsilon / num_steps long, so that they can reach epsilon. Every iterate counts. Asks the
    classifier `1 + num_searches * num_steps` times, of these
    `1 + num_searches * (num_steps - 1)` times with gradient: that of the original image serves
    every search.

    The loss is the margin of the logits, whose gradient leads to the nearest class at any scale of
    the logits. Nothing is random.

    Args:
        model: The classifier.
        images: Float32 (N, height, width, channels) in [0, 1].
        labels: True labels, integers (N,).
        key: A `jax.random.key`, or one for each image, (N,); not used.
        norm: "l2" or "linf".
        num_steps: Steps within each epsilon.
        num_searches: Epsilons to try.
        targets: Target classes, integers (N,); by default any class but the label.
        progress: Called with the number of queries per image of the current batch so far.

    Returns:
        Per image the closest adversarial one; where there is none, that of the highest margin.

    Raises:
        ValueError: An argument is invalid.
    """
    return _attack(
        model, images, labels, key, norm=norm, relative_step=1 / 6, decay=0.0,
        num_steps=num_steps, num_searches=num_searches, targets=targets, progress=progress,
    )  # fmt: skip


def mim(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    norm: str,
    decay: float = 1.0,
    num_steps: int = 10,
    num_searches: int = 20,
    targets: Any = None,
    progress: Progress | None = None,
) -> AttackResult:
    """Attacks with the momentum iterative method at the smallest epsilon that succeeds.

    All is as in `bim` but that gradients add up, and that steps are epsilon / 5 long, fewer than 5
    of them epsilon / num_steps.

    Args:
        model: The classifier.
        images: Float32 (N, height, width, channels) in [0, 1].
        labels: True labels, integers (N,).
        key: A `jax.random.key`, or one for each image, (N,); not used.
        norm: "l2" or "linf".
        decay: Of the sum of gradients with each step, at least 0; 1 in the paper.
        num_steps: Steps within each epsilon.
        num_searches: Epsilons to try.
        targets: Target classes, integers (N,); by default any class but the label.
        progress: Called with the number of queries per image of the current batch so far.

    Returns:
        Per image the closest adversarial one; where there is none, that of the highest margin.

    Raises:
        ValueError: An argument is invalid.
    """
    decay = check_number("decay", decay, minimum=0.0)
    return _attack(
        model, images, labels, key, norm=norm, relative_step=1 / 5, decay=decay,
        num_steps=num_steps, num_searches=num_searches, targets=targets, progress=progress,
    )  # fmt: skip


def _attack(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    norm: str,
    relative_step: float,
    decay: float,
    num_steps: int,
    num_searches: int,
    targets: Any,
    progress: Progress | None,
) -> AttackResult:
    num_steps = check_count("num_steps", num_steps)
    num_searches = check_count("num_searches", num_searches)
    relative_step = max(relative_step, 1 / num_steps)
    longest = 1.0 if norm == "linf" else math.sqrt(math.prod(model.image_shape))

    def attack(oracle: Oracle, batch: Batch) -> Best:
        start, logits, start_state = oracle.gradients(batch.images, batch)
        best = bests.first(batch, batch.images, logits, norm)
        confirmations = Confirmations(oracle, batch, best, norm)
        search = _begin(batch, _FIRST * longest)
        for _ in range(num_searches):
            gradients, state, momenta = start, start_state, jnp.zeros_like(start)
            iterates, before = batch.images, best
            for step in range(1, num_steps + 1):
                iterates, momenta = _step(
                    batch, iterates, momenta, gradients, search.epsilons, decay, relative_step, norm
                )
                if step < num_steps:
                    gradients, logits, state = oracle.gradients(iterates, batch, state)
                    best = bests.update(best, batch, iterates, logits, norm)
            best = confirmations.last(best, iterates)
            search = _narrow(search, before, best, longest)
        return best

    return run(
        attack, model, images, labels, key, norm=norm, norms=("l2", "linf"), targets=targets,
        progress=progress,
    )  # fmt: skip


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Search:
    """Of the smallest epsilon that succeeds.

    Attributes:
        epsilons: The next to try, (n,).
        low: The largest that has failed, (n,).
        high: The distance of the closest adversarial image, (n,); while there is none, infinity.
    """

    epsilons: jax.Array
    low: jax.Array
    high: jax.Array


@jax.jit
def _begin(batch: Batch, epsilon: float) -> _Search:
    low = jnp.zeros(len(batch.classes))
    return _Search(jnp.full_like(low, epsilon), low, jnp.full_like(low, jnp.inf))


@jax.jit
def _narrow(search: _Search, before: Best, best: Best, longest: float) -> _Search:
    """What is left to search after an attempt, by the best before it and after it."""
    # Each epsilon is below the best distance.
    fooled = best.success & (~before.success | (best.distances < before.distances))
    low = jnp.where(fooled, search.low, search.epsilons)
    high = jnp.where(fooled, best.distances, search.high)
    # A larger epsilon, whose steps are longer, can find a closer image than a smaller that failed.
    low = jnp.where(low < high, low, 0.0)
    grown = jnp.minimum(_GROWTH * low, longest)
    return _Search(jnp.where(jnp.isinf(high), grown, (low + high) / 2), low, high)


@functools.partial(jax.jit, static_argnames="norm")
def _step(
    batch: Batch,
    iterates: jax.Array,
    momenta: jax.Array,
    gradients: jax.Array,
    epsilons: jax.Array,
    decay: float,
    relative_step: float,
    norm: str,
) -> tuple[jax.Array, jax.Array]:
    """The next iterates, and the sums of gradients that led there."""
    sizes = jnp.abs(gradients).mean((1, 2, 3))
    momenta = decay * momenta + gradients / per_image(jnp.where(sizes > 0, sizes, 1.0))
    step_size = per_image(relative_step * epsilons)
    moved = take_step(
        iterates, momenta, batch.images, epsilon=epsilons, step_size=step_size, norm=norm
    )
    return moved, momenta
