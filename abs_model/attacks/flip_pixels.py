"""Attack on classifiers of thresholded images, among the flips of thresholded values.

Such a classifier sees of a value only whether it is above 0.5. An image's closest adversarial one
is then a matter of which values flip, and each has its price: across the threshold and no farther
(`snap`). Gradients that pass the threshold straight through tell what a flip, a change of 1, gains
to first order; attacks that follow them in small steps through images are guided poorly.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from abs_model._runtime.checks import check_count
from abs_model._runtime.pytrees import register_dataclass
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.best_so_far import BestSoFar
from abs_model.attacks._core.checks import NORMS, check_norm
from abs_model.attacks._core.keys import split_keys
from abs_model.attacks._core.losses import margins
from abs_model.attacks._core.norms import choose, per_image, random_start, snap
from abs_model.attacks._core.query import GradientAnswer, Query
from abs_model.attacks._core.result import AttackResult
from abs_model.attacks._core.run import Progress, run
from abs_model.attacks._search.edit_space import EditSpace
from abs_model.attacks._search.greedy import most_greedy_queries, search_greedily
from abs_model.attacks.registry import Access, Queries, register
from abs_model.models.classifier import Classifier, threshold

# Bisections of [0, 0.5]: to half the distance between neighboring values of an 8-bit image.
_NUM_LEVELS = 10
# Flips in L2 of less than 0.01 save nothing worth speaking of, but gain over cost would explode.
_SMALLEST_COST = 1e-4


def _most_queries(settings: Mapping[str, Any], norm: str, model: Classifier) -> Queries:
    if norm == "linf":
        walks = _NUM_LEVELS * settings["num_restarts"]
        return Queries(logits=1, gradients=walks * (1 + settings["num_steps"]))
    return most_greedy_queries(
        norm, settings["max_flips"], settings["num_candidates"], settings["num_rounds"]
    )


@register(
    title="Pixel flips",
    norms=NORMS,
    access=Access.BINARY,
    source="this project",
    smoke={"max_flips": 5, "num_rounds": 1, "num_steps": 3},
    most_queries=_most_queries,
    limits={"l0": "max_flips"},
)
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
    value x being (x - 0.5)^2 in L2 and 1 for each pixel in L0; see `_search.greedy`. Makes at most
    `1 + num_rounds * (1 + max_flips * (2 + num_candidates))` queries, in L2 up to `max_flips` more
    in each round for each round before it; `num_rounds * (1 + max_flips)` of them with gradient (of
    up to ten logits).

    For "linf" a level |x - 0.5| up to which flips are free is bisected 10 times. At each level the
    flips that gain most to first order are made at once, all of them at first, half as many where
    the margin doesn't rise, and in the end one by one. Queries at most
    `1 + 10 * num_restarts * (num_steps + 1)` times, all but once with gradient.

    Args:
        images, labels, progress: As for every attack; see `abs_model.attacks`.
        model: A classifier on thresholded images (`binary` is true).
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

    Returns:
        Per image the closest adversarial one; where there is none, that of the highest margin.

    Raises:
        ValueError: An argument is invalid; the model does not threshold images.
    """
    if not model.binary:
        raise ValueError(
            f"flip_pixels requires a model on thresholded images, and `binary` of {model.name!r} is"
            " False; use greedy_pixels for other models"
        )
    check_norm(norm)
    max_flips = check_count("max_flips", max_flips)
    num_candidates = check_count("num_candidates", num_candidates)
    num_rounds = check_count("num_rounds", num_rounds)
    num_steps = check_count("num_steps", num_steps)
    num_restarts = check_count("num_restarts", num_restarts)

    def attack(query: Query, batch: Batch) -> None:
        query.logits(batch.images)
        if norm == "linf":
            _search_levels(query, num_steps, num_restarts)
        else:
            search_greedily(
                query, Flips(norm), num_steps=max_flips, num_candidates=num_candidates,
                num_rounds=num_rounds,
            )  # fmt: skip

    return run(
        attack,
        model,
        images,
        labels,
        key,
        norm=norm,
        norms=NORMS,
        verify_regularly=False,
        progress=progress,
    )


@dataclasses.dataclass(frozen=True)
class Flips(EditSpace):
    """Flips of thresholded pixels ("l0") or values ("l2"); forms are thresholded images."""

    def forms(self, images: jax.Array) -> jax.Array:
        return threshold(images)

    def images(self, forms: jax.Array, originals: jax.Array) -> jax.Array:
        return snap(forms, originals)

    def costs(self, originals: jax.Array) -> jax.Array:
        if self.norm == "l0":
            return super().costs(originals)
        return self.units(jnp.maximum((originals - 0.5) ** 2, _SMALLEST_COST))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Walk:
    """Where the search at a level is.

    Attributes:
        here: The answer about the images, which are snapped, with gradients of their margins.
        sizes: How many flips to try next, int32 (n,); 0 where no flip is left to try.
        tried: Single flips that lowered the margin of these images, bool (n, height, width,
            channels).
    """

    here: GradientAnswer
    sizes: jax.Array
    tried: jax.Array


def _search_levels(query: Query, num_steps: int, num_restarts: int) -> None:
    batch = query.batch
    low = jnp.zeros(len(batch.images))
    for level in range(_NUM_LEVELS):
        levels, images = _start(batch, query.best, low)
        for restart in range(num_restarts):
            if bool(_reached(query.best, levels).all()):
                break
            if restart:
                images = _draw(batch, query.best, levels, level * num_restarts + restart)
            answer = query.gradients(images)
            walk = _begin(batch, answer, levels, query.best)
            for _ in range(num_steps):
                if not bool(walk.sizes.any()):
                    break
                answer = query.gradients(_propose(batch, walk, levels), near=walk.here)
                walk = _accept(batch, walk, answer, levels, query.best)
        query.settle()
        low = jnp.where(query.best.success & ~_reached(query.best, levels), levels, low)


@jax.jit
def _reached(best: BestSoFar, levels: jax.Array) -> jax.Array:
    """Whether something was found within the levels (n,), bool (n,)."""
    return best.success & (best.distances <= levels)


@jax.jit
def _start(batch: Batch, best: BestSoFar, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The next level (n,), and the best images without the flips above it."""
    # As long as an image isn't adversarial, all flips are free.
    levels = jnp.where(best.success, (low + best.distances) / 2, 1.0)
    return levels, jnp.where(_allowed(batch, levels), best.images, batch.images)


@jax.jit
def _draw(batch: Batch, best: BestSoFar, levels: jax.Array, number: int) -> jax.Array:
    """Images with random flips that are allowed, as from a random point within the level.

    The best ones where the level has been reached.
    """
    keys = split_keys(batch, number)
    points = random_start(keys, batch.images, levels, "linf")
    drawn = jnp.where(_allowed(batch, levels), snap(points, batch.images), batch.images)
    return choose(_reached(best, levels), best.images, drawn)


def _allowed(batch: Batch, levels: jax.Array) -> jax.Array:
    """Which flips are no larger than the levels (n,), bool (n, height, width, channels)."""
    flipped = snap(1 - threshold(batch.images), batch.images)
    return jnp.abs(flipped - batch.images) <= per_image(levels)


@jax.jit
def _begin(batch: Batch, answer: GradientAnswer, levels: jax.Array, best: BestSoFar) -> _Walk:
    tried = jnp.zeros(answer.images.shape, bool)
    sizes = jnp.full(len(answer.images), answer.images[0].size)
    return _with_sizes(batch, _Walk(answer, sizes, tried), levels, sizes, best)


def _with_sizes(
    batch: Batch, walk: _Walk, levels: jax.Array, sizes: jax.Array, best: BestSoFar
) -> _Walk:
    """The walk with sizes of at most the number of flips that promise something; 0 at success."""
    useful = (_gains(batch, walk, levels) > 0).sum((1, 2, 3))
    sizes = jnp.where(_reached(best, levels), 0, jnp.minimum(sizes, useful))
    return dataclasses.replace(walk, sizes=sizes)


def _gains(batch: Batch, walk: _Walk, levels: jax.Array) -> jax.Array:
    """What flips gain to first order; 0 for those that are not allowed or have been tried."""
    flips = 1 - 2 * threshold(walk.here.images)
    free = _allowed(batch, levels) & ~walk.tried
    return jnp.where(free, jnp.maximum(walk.here.gradients * flips, 0.0), 0.0)


@jax.jit
def _propose(batch: Batch, walk: _Walk, levels: jax.Array) -> jax.Array:
    """Images with the flips of highest gain made."""
    gains = _gains(batch, walk, levels)
    flat = gains.reshape(len(gains), -1)
    ranks = jnp.argsort(jnp.argsort(-flat, axis=1), axis=1).reshape(gains.shape)
    forms = threshold(walk.here.images)
    flipped = (ranks < per_image(walk.sizes)) & (gains > 0)
    return snap(jnp.where(flipped, 1 - forms, forms), batch.images)


@jax.jit
def _accept(
    batch: Batch, walk: _Walk, answer: GradientAnswer, levels: jax.Array, best: BestSoFar
) -> _Walk:
    """The walk, which goes where the margin is higher."""
    there = _Walk(answer, 2 * walk.sizes, jnp.zeros_like(walk.tried))
    single = per_image(walk.sizes == 1)
    tried = walk.tried | (single & (answer.images != walk.here.images))
    stay = dataclasses.replace(walk, sizes=jnp.maximum(walk.sizes // 2, 1), tried=tried)
    higher = margins(answer.logits, batch) > margins(walk.here.logits, batch)
    walk = choose(higher & (walk.sizes > 0), there, stay)
    return _with_sizes(batch, walk, levels, walk.sizes, best)
