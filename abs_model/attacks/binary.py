"""Attack on classifiers of thresholded images, among the flips of thresholded values.

Such a classifier sees of a value only whether it is above 0.5. An image's closest adversarial one
is then a matter of which values flip, and each has its price: across the threshold and no farther
(`snap`). Gradients that pass the threshold straight through tell what a flip, a change of 1, gains
to first order; attacks that follow them in small steps through images are guided poorly.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from abs_model._runtime.checks import check_count
from abs_model.attacks import best as bests
from abs_model.attacks.base import AttackResult, choose, per_image, random_start, snap
from abs_model.attacks.batch import Batch
from abs_model.attacks.best import Best
from abs_model.attacks.changes import Space
from abs_model.attacks.checks import check_norm
from abs_model.attacks.confirmation import Confirmations
from abs_model.attacks.greedy import search
from abs_model.attacks.losses import margins
from abs_model.attacks.oracle import Oracle, State
from abs_model.attacks.running import Progress, run, split_keys
from abs_model.classifiers import Classifier, threshold

_NORMS = ("l0", "l2", "linf")
# Bisections of [0, 0.5]: to half the distance between neighboring values of an 8-bit image.
_NUM_LEVELS = 10
# Flips in L2 of less than 0.01 save nothing worth speaking of, but gain over cost would explode.
_SMALLEST_COST = 1e-4


def flip_pixels(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    norm: str,
    max_flips: int = 100,
    num_candidates: int = 5,
    num_rounds: int = 3,
    num_steps: int = 10,
    num_restarts: int = 5,
    progress: Progress | None = None,
) -> AttackResult:
    """Attacks a classifier of thresholded images by flipping values; minimal distance.

    For "l0" and "l2" one flip follows the other: that of the highest gain over cost, the cost of a
    value x being (x - 0.5)^2 in L2 and 1 for each pixel in L0; see `abs_model.attacks.greedy`. Asks
    at most `1 + num_rounds * (1 + max_flips * (2 + num_candidates))` times,
    `num_rounds * (1 + max_flips)` times with gradient (of all logits).

    For "linf" a level |x - 0.5| up to which flips are free is bisected 10 times. At each level the
    flips that gain most to first order are made at once, all of them at first, half as many where
    the margin doesn't rise, and in the end one by one. Queries at most
    `1 + 10 * num_restarts * (num_steps + 1)` times, all but once with gradient.

    Args:
        model: A classifier whose attribute `binary` is true.
        images: Float32 (N, height, width, channels) in [0, 1].
        labels: True labels, integers (N,).
        key: A `jax.random.key`, or one for each image, (N,): of halves undone and random starts,
            and of the choice where there is no gradient.
        norm: "l0", "l2" or "linf".
        max_flips: For "l0" and "l2", the most pixels or values to flip.
        num_candidates: For "l0" and "l2", how many are tried in each step.
        num_rounds: For "l0" and "l2", the search is repeated from the best found with a random half
            of its flips undone.
        num_steps: For "linf", sets of flips to try from each start.
        num_restarts: For "linf", starts at each level: the best found with the flips above the
            level undone, then random ones.
        progress: Called with the number of queries per image of the current batch so far.

    Returns:
        Per image the closest adversarial one; where there is none, that of the highest margin.

    Raises:
        ValueError: An argument isn't as described; the model does not threshold images.
    """
    if not getattr(model, "binary", False):
        raise ValueError(
            f"model {model.name!r} doesn't threshold images (its attribute `binary` is not true),"
            " which flip_pixels is for; greedy_pixels is its like for others"
        )
    check_norm(norm, _NORMS)
    max_flips = check_count("max_flips", max_flips)
    num_candidates = check_count("num_candidates", num_candidates)
    num_rounds = check_count("num_rounds", num_rounds)
    num_steps = check_count("num_steps", num_steps)
    num_restarts = check_count("num_restarts", num_restarts)

    def attack(oracle: Oracle, batch: Batch) -> Best:
        best = bests.first(batch, batch.images, oracle.logits(batch.images)[0], norm)
        if norm == "linf":
            return _search_levels(oracle, batch, best, num_steps, num_restarts)
        return search(
            oracle, batch, best, Flips(norm), num_steps=max_flips, num_candidates=num_candidates,
            num_rounds=num_rounds,
        )  # fmt: skip

    return run(attack, model, images, labels, key, norm=norm, norms=_NORMS, progress=progress)


@dataclasses.dataclass(frozen=True)
class Flips(Space):
    """Flips of thresholded pixels ("l0") or values ("l2"); forms are thresholded images."""

    def forms(self, images: jax.Array) -> jax.Array:
        return threshold(images)

    def images(self, forms: jax.Array, originals: jax.Array) -> jax.Array:
        return snap(forms, originals)

    def costs(self, originals: jax.Array) -> jax.Array:
        if self.norm == "l0":
            return super().costs(originals)
        return self.units(jnp.maximum((originals - 0.5) ** 2, _SMALLEST_COST))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Walk:
    """Where the search at a level is.

    Attributes:
        images: Snapped ones.
        gradients: Of their margins.
        margins: (n,).
        state: Of the classifier.
        sizes: How many flips to try next, int32 (n,); 0 where no flip is left to try.
        tried: Single flips that lowered the margin of these images, bool (n, height, width,
            channels).
    """

    images: jax.Array
    gradients: jax.Array
    margins: jax.Array
    state: State
    sizes: jax.Array
    tried: jax.Array


def _search_levels(
    oracle: Oracle, batch: Batch, best: Best, num_steps: int, num_restarts: int
) -> Best:
    low = jnp.zeros(len(batch.images))
    confirmations = Confirmations(oracle, batch, best, "linf")
    for level in range(_NUM_LEVELS):
        levels, images = _start(batch, best, low)
        for restart in range(num_restarts):
            if bool(_reached(best, levels).all()):
                break
            if restart:
                images = _draw(batch, levels, level * num_restarts + restart)
            answer = oracle.gradients(images, batch)
            walk, best = _begin(batch, images, levels, *answer, best)
            for _ in range(num_steps):
                if not bool(walk.sizes.any()):
                    break
                proposals = _propose(batch, walk, levels)
                answer = oracle.gradients(proposals, batch, walk.state)
                walk, best = _accept(batch, walk, proposals, levels, *answer, best)
        best = confirmations.now(best)
        low = jnp.where(best.success & ~_reached(best, levels), levels, low)
    return best


@jax.jit
def _reached(best: Best, levels: jax.Array) -> jax.Array:
    """Whether something was found within the levels (n,), bool (n,)."""
    return best.success & (best.distances <= levels)


@jax.jit
def _start(batch: Batch, best: Best, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The next level (n,), and the best images without the flips above it."""
    # As long as an image isn't fooled, all flips are free.
    levels = jnp.where(best.success, (low + best.distances) / 2, 1.0)
    return levels, jnp.where(_allowed(batch, levels), best.images, batch.images)


@jax.jit
def _draw(batch: Batch, levels: jax.Array, number: int) -> jax.Array:
    """Images with random flips that are allowed, as from a random point within the level."""
    keys = split_keys(batch, number)
    points = random_start(keys, batch.images, levels, "linf")
    return jnp.where(_allowed(batch, levels), snap(points, batch.images), batch.images)


def _allowed(batch: Batch, levels: jax.Array) -> jax.Array:
    """Which flips are no larger than the levels (n,), bool (n, height, width, channels)."""
    flipped = snap(1 - threshold(batch.images), batch.images)
    return jnp.abs(flipped - batch.images) <= per_image(levels)


@jax.jit
def _begin(
    batch: Batch,
    images: jax.Array,
    levels: jax.Array,
    gradients: jax.Array,
    logits: jax.Array,
    state: State,
    best: Best,
) -> tuple[_Walk, Best]:
    found = bests.update(best, batch, images, logits, "linf")
    best = choose(_reached(best, levels), best, found)
    tried = jnp.zeros(images.shape, bool)
    sizes = jnp.full(len(images), images[0].size)
    walk = _Walk(images, gradients, margins(logits, batch), state, sizes, tried)
    return _with_sizes(batch, walk, levels, sizes, best), best


def _with_sizes(
    batch: Batch, walk: _Walk, levels: jax.Array, sizes: jax.Array, best: Best
) -> _Walk:
    """The walk with sizes of at most the number of flips that promise something; 0 at success."""
    useful = (_gains(batch, walk, levels) > 0).sum((1, 2, 3))
    sizes = jnp.where(_reached(best, levels), 0, jnp.minimum(sizes, useful))
    return dataclasses.replace(walk, sizes=sizes)


def _gains(batch: Batch, walk: _Walk, levels: jax.Array) -> jax.Array:
    """What flips gain to first order; 0 for those that are not allowed or have been tried."""
    flips = 1 - 2 * threshold(walk.images)
    free = _allowed(batch, levels) & ~walk.tried
    return jnp.where(free, jnp.maximum(walk.gradients * flips, 0.0), 0.0)


@jax.jit
def _propose(batch: Batch, walk: _Walk, levels: jax.Array) -> jax.Array:
    """Images with the flips of highest gain made."""
    gains = _gains(batch, walk, levels)
    flat = gains.reshape(len(gains), -1)
    ranks = jnp.argsort(jnp.argsort(-flat, axis=1), axis=1).reshape(gains.shape)
    forms = threshold(walk.images)
    flipped = (ranks < per_image(walk.sizes)) & (gains > 0)
    return snap(jnp.where(flipped, 1 - forms, forms), batch.images)


@jax.jit
def _accept(
    batch: Batch,
    walk: _Walk,
    proposals: jax.Array,
    levels: jax.Array,
    gradients: jax.Array,
    logits: jax.Array,
    state: State,
    best: Best,
) -> tuple[_Walk, Best]:
    """The walk, which goes where the margin is higher, and the best found."""
    best = choose(walk.sizes > 0, bests.update(best, batch, proposals, logits, "linf"), best)
    fresh = jnp.zeros_like(walk.tried)
    there = _Walk(proposals, gradients, margins(logits, batch), state, 2 * walk.sizes, fresh)
    single = per_image(walk.sizes == 1)
    tried = walk.tried | (single & (proposals != walk.images))
    here = dataclasses.replace(walk, sizes=jnp.maximum(walk.sizes // 2, 1), tried=tried)
    better = (there.margins > walk.margins) & (walk.sizes > 0)
    walk = choose(better, there, here)
    return _with_sizes(batch, walk, levels, walk.sizes, best), best
