"""The fast gradient method: one gradient, followed as far as it takes.

FGSM for L-infinity: Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial
Examples", ICLR 2015 (https://arxiv.org/abs/1412.6572); FGM is the same with the normalised gradient
for L2. All candidates lie on the line

    x(epsilon) = clip(x + epsilon * direction(gradient of the loss at x), 0, 1).

Foolbox 1.x looks at 1,000 epsilons, evenly spaced, and takes the first that fools. A coarse scan
and a bisection find it as precisely with a few dozen questions.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abs_model.attacks import best as bests
from abs_model.attacks.base import (
    AttackResult,
    ascent_direction,
    check_count,
    choose,
    per_image,
)
from abs_model.attacks.batch import Batch
from abs_model.attacks.best import Best
from abs_model.attacks.oracle import Oracle, State
from abs_model.attacks.running import Progress, run
from abs_model.classifiers import Classifier

# Of the scan, relative to the longest step: the first of Foolbox's 1,000 epsilons.
_SHORTEST = 1e-3


def fast_gradient(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    norm: str,
    num_epsilons: int = 40,
    num_bisections: int = 10,
    targets: Any = None,
    progress: Progress | None = None,
) -> AttackResult:
    """Searches the direction of the gradient for the closest adversarial image.

    Scans `num_epsilons` step sizes that grow geometrically, from a thousandth of the longest that
    makes sense to that: 1 for L-infinity, the diagonal of the box, sqrt(pixels), for L2. Then
    bisects between the first that fools and the one before. What it finds is therefore the first
    crossing of the boundary, unless the line leaves again what it entered within a single interval
    of the scan. Asks the classifier `1 + num_epsilons + num_bisections` times, once with gradient.

    The loss is the margin of the logits, whose gradient leads to the nearest class at any scale of
    the logits. Nothing is random.

    Args:
        model: The classifier.
        images: Float32 (N, height, width, channels) in [0, 1].
        labels: Integers (N,): the classes to lead away from.
        key: A `jax.random.key`, or one for each image, (N,); not used.
        norm: "l2" (FGM) or "linf" (FGSM).
        num_epsilons: Step sizes of the scan.
        num_bisections: Each halves the interval that the scan has found.
        targets: Integers (N,): classes to lead to; by default any but the label will do.
        progress: Called with the number of questions asked about each image of a batch so far.

    Returns:
        Per image the closest adversarial one; where there is none, that of the highest margin.

    Raises:
        ValueError: An argument isn't as described.
    """
    check_count("num_epsilons", num_epsilons)
    check_count("num_bisections", num_bisections)
    longest = 1.0 if norm == "linf" else float(np.sqrt(np.prod(model.image_shape)))
    epsilons = longest * np.geomspace(_SHORTEST, 1.0, num_epsilons + 1)[1:]

    def attack(oracle: Oracle, batch: Batch) -> Best:
        gradients, logits, state = oracle.gradients(batch.images, batch)
        best = bests.first(batch, batch.images, logits, norm)
        line = _begin(gradients, state, norm)
        for epsilon in epsilons:
            images = _at(batch, line, epsilon)
            logits, state = oracle.logits(images, state)
            line, best = _note(batch, line, best, epsilon, images, logits, state, norm)
        for _ in range(num_bisections):
            middle, images = _middle(batch, line)
            logits, state = oracle.logits(images, line.state)
            line, best = _halve(batch, line, best, middle, images, logits, state, norm)
        return best

    return run(
        attack, model, images, labels, key, norm=norm, norms=("l2", "linf"), targets=targets,
        progress=progress,
    )  # fmt: skip


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Line:
    """The line of each image's candidates, and the interval that holds its first crossing.

    Attributes:
        directions: Of length 1 in the norm, (n, height, width, channels).
        low: The largest epsilon known not to fool below `high`, (n,).
        high: The smallest known to fool, (n,); not yet known, infinity.
        state: Of an image near that of `high`.
    """

    directions: jax.Array
    low: jax.Array
    high: jax.Array
    state: State


@functools.partial(jax.jit, static_argnames="norm")
def _begin(gradients: jax.Array, state: State, norm: str) -> _Line:
    low = jnp.zeros(len(gradients))
    return _Line(ascent_direction(gradients, norm), low, jnp.full_like(low, jnp.inf), state)


@jax.jit
def _at(batch: Batch, line: _Line, epsilons: float | jax.Array) -> jax.Array:
    steps = per_image(jnp.broadcast_to(epsilons, line.low.shape)) * line.directions
    return jnp.clip(batch.images + steps, 0.0, 1.0)


@functools.partial(jax.jit, static_argnames="norm")
def _note(
    batch: Batch,
    line: _Line,
    best: Best,
    epsilon: float,
    images: jax.Array,
    logits: jax.Array,
    state: State,
    norm: str,
) -> tuple[_Line, Best]:
    """What the scan learns; nothing any more about images that it has found a crossing for."""
    fooled = batch.fooled(logits)
    searching = jnp.isinf(line.high)
    line = _Line(
        line.directions,
        jnp.where(searching & ~fooled, epsilon, line.low),
        jnp.where(searching & fooled, epsilon, line.high),
        choose(searching, state, line.state),
    )
    return line, bests.update(best, batch, images, logits, norm)


@jax.jit
def _middle(batch: Batch, line: _Line) -> tuple[jax.Array, jax.Array]:
    # Where nothing has fooled, the end of the line once more.
    middle = (line.low + jnp.where(jnp.isinf(line.high), line.low, line.high)) / 2
    return middle, _at(batch, line, middle)


@functools.partial(jax.jit, static_argnames="norm")
def _halve(
    batch: Batch,
    line: _Line,
    best: Best,
    middle: jax.Array,
    images: jax.Array,
    logits: jax.Array,
    state: State,
    norm: str,
) -> tuple[_Line, Best]:
    fooled = batch.fooled(logits)
    low, high = jnp.where(fooled, line.low, middle), jnp.where(fooled, middle, line.high)
    return _Line(line.directions, low, high, state), bests.update(best, batch, images, logits, norm)
