"""Sparse-RS: random search over which pixels to change, with scores alone; L0.

Croce, Andriushchenko, Singh, Flammarion and Hein, "Sparse-RS: a versatile framework for
query-efficient sparse black-box adversarial attacks", AAAI 2022 (https://arxiv.org/abs/2006.12834),
its L0 version. A set of pixels has random colors out of {0, 1} in every channel. Each step
exchanges a random part of the set for other pixels, of new random colors, and the exchange stays
where it raises the margin. The part shrinks by a schedule of the steps.
"""

import bisect
import functools
from typing import Any

import jax
import jax.numpy as jnp

from abs_model._runtime.checks import check_bool, check_count, check_number
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.best_so_far import BestSoFar
from abs_model.attacks._core.keys import split_keys
from abs_model.attacks._core.losses import margins
from abs_model.attacks._core.norms import choose
from abs_model.attacks._core.query import Answer, Query
from abs_model.attacks._core.result import AttackResult
from abs_model.attacks._core.run import Progress, run
from abs_model.attacks.registry import Access, Queries, register
from abs_model.models.classifier import Classifier

_NORMS = ("l0",)
# Beyond these of 10,000 steps, alpha is alpha_init over the divisor (the paper's appendix).
_STEPS = (0, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_DIVISORS = (1, 2, 4, 5, 6, 8, 10, 12, 15, 20)


@register(
    title="Sparse-RS",
    norms=_NORMS,
    access=Access.SCORES,
    source="Croce et al. 2022",
    smoke={"num_steps": 10},
    most_queries=lambda settings, norm, model: Queries(
        logits=1 + settings["num_restarts"] * (1 + settings["num_steps"])
    ),
    limits={"l0": "num_pixels"},
)
def sparse_rs(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    num_pixels: int,
    num_steps: int = 10_000,
    alpha_init: float = 0.3,
    minimize: bool = False,
    num_restarts: int = 1,
    targets: Any = None,
    progress: Progress | None = None,
) -> AttackResult:
    """Attacks a classifier with Sparse-RS on the margin of the logits; without gradients.

    The search of an image ends with its first success, or, with `minimize`, at a single pixel.
    Queries the classifier at most `1 + num_restarts * (num_steps + 1)` times; it stops when the
    search of all images of a batch has ended. Colors are drawn from those that differ from the
    original pixel's, so that every pixel of the set counts.

    Args:
        images, labels, targets, key, progress: As for every attack; see `abs_model.attacks`.
        model: The classifier; may be a black box.
        num_pixels: How many pixels are changed, the epsilon of L0; at most all.
        num_steps: Exchanges to try from each start; 10,000 in the paper, to which the schedule of
            alpha is relative.
        alpha_init: Share of the set that the first exchange takes, above 0 and at most 1; 0.3 in
            the paper for untargeted attacks, 0.1 for targeted ones.
        minimize: Whether to continue after success with a pixel less, drawn from the set, for that
            image: an attack of minimal distance, which the paper's is not.
        num_restarts: Starts to try, with `minimize` at a pixel less than the best so far.

    Returns:
        Per image the adversarial one of fewest pixels; where there is none, that of the highest
        margin.

    Raises:
        ValueError: An argument is invalid.
    """
    height, width, _ = model.image_shape
    num_pixels = check_count(
        "num_pixels", num_pixels, maximum=height * width, hint="; an image has no more pixels"
    )
    num_steps = check_count("num_steps", num_steps)
    alpha_init = check_number("alpha_init", alpha_init, minimum=0.0, maximum=1.0, exclusive=True)
    num_restarts = check_count("num_restarts", num_restarts)
    check_bool("minimize", minimize)

    def attack(query: Query, batch: Batch) -> None:
        query.logits(batch.images)
        for restart in range(num_restarts):
            number = restart * (num_steps + 1)
            budgets = _budgets(query.best, num_pixels, minimize)
            starts = _propose(
                batch, batch.images, query.best, budgets, number, alpha_init, num_pixels
            )
            here = query.logits(starts)
            for step in range(1, num_steps + 1):
                budgets = _budgets(query.best, num_pixels, minimize)
                if not bool(budgets.any()):
                    break
                share = share_of_pixels(step, num_steps, alpha_init)
                proposals = _propose(
                    batch, here.images, query.best, budgets, number + step, share, num_pixels
                )
                there = query.logits(proposals, near=here, classes=batch.classes)
                here = _accept(batch, here, there, budgets)
                if query.just_verified:
                    # The search must not be stuck at a margin that was wrong.
                    here = query.logits(here.images)
            query.settle()

    return run(
        attack, model, images, labels, key, norm="l0", norms=_NORMS, targets=targets,
        progress=progress,
    )  # fmt: skip


def share_of_pixels(step: int, num_steps: int, alpha_init: float) -> float:
    """The share of the pixels that a step exchanges: the paper's schedule of alpha.

    Args:
        step: From 0; 0 is the start.
        num_steps: To which the schedule, which is for 10,000 steps, is stretched.
        alpha_init: The first share.
    """
    return alpha_init / _DIVISORS[bisect.bisect_left(_STEPS, int(step / num_steps * 10_000))]


@functools.partial(jax.jit, static_argnames="minimize")
def _budgets(best: BestSoFar, num_pixels: int, minimize: bool) -> jax.Array:
    """How many pixels the search may change, int32 (n,); 0 where it has ended."""
    fewer = best.distances.astype(jnp.int32) - 1
    # The search of an image ends with an example that is verified.
    fewer = jnp.maximum(fewer, jnp.where(best.verified, 0, 1))
    if minimize:
        return jnp.where(best.success, fewer, num_pixels)
    return jnp.where(best.done, 0, num_pixels)


@jax.jit
def _accept(batch: Batch, here: Answer, there: Answer, budgets: jax.Array) -> Answer:
    """Goes where the margin is higher, or must be with fewer pixels."""
    over = _changed(batch, here.images).sum((1, 2)) > budgets
    higher = margins(there.logits, batch) > margins(here.logits, batch)
    return choose(over | higher, there, here)


@functools.partial(jax.jit, static_argnames="num_pixels")
def _propose(
    batch: Batch,
    images: jax.Array,
    best: BestSoFar,
    budgets: jax.Array,
    number: int,
    share: float,
    num_pixels: int,
) -> jax.Array:
    """Images with that share of their pixels exchanged.

    Where the number of changed pixels is not that of the budget (n,), it becomes that instead, with
    no exchange. Where there is no budget, they are the best images.
    """
    keys = split_keys(batch, number)

    def of_image(
        key: jax.Array, image: jax.Array, original: jax.Array, changed: jax.Array, budget: jax.Array
    ) -> jax.Array:
        out_key, in_key, color_key = jax.random.split(key, 3)
        surplus = jnp.maximum(changed.sum() - budget, 0)
        missing = jnp.maximum(budget - changed.sum(), 0)
        part = jnp.maximum((share * budget).astype(jnp.int32), 1)
        part = jnp.where((surplus > 0) | (missing > 0), 0, part)
        leaving = _draw(out_key, changed, part + surplus, num_pixels)
        # Those that leave may come back in another color: there may be no others.
        others = ~changed | (leaving & (part > 0))
        entering = _draw(in_key, others, part + missing, num_pixels)
        kept = jnp.where(leaving[..., None], original, image)
        return jnp.where(entering[..., None], _colors(color_key, original), kept)

    proposals = jax.vmap(of_image)(keys, images, batch.images, _changed(batch, images), budgets)
    return choose(budgets > 0, proposals, best.images)


def _changed(batch: Batch, images: jax.Array) -> jax.Array:
    """Which pixels differ from the original, bool (n, height, width)."""
    return jnp.any(images != batch.images, axis=3)


def _draw(key: jax.Array, pixels: jax.Array, count: jax.Array, most: int) -> jax.Array:
    """`count` random ones of the pixels, but no more than `most`, bool (height, width)."""
    scores = jnp.where(pixels, jax.random.uniform(key, pixels.shape), -1.0)
    places = jax.lax.top_k(scores.ravel(), most)[1]
    drawn = jnp.zeros(pixels.size, bool).at[places].set(jnp.arange(most) < count)
    return pixels & drawn.reshape(pixels.shape)


def _colors(key: jax.Array, original: jax.Array) -> jax.Array:
    """For each pixel a random color out of {0, 1} in every channel, but not the original one."""
    colors = jax.random.bernoulli(key, shape=original.shape).astype(original.dtype)
    same = jnp.all(colors == original, axis=2, keepdims=True)
    return jnp.where(same, 1 - colors, colors)
