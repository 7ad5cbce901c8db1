"""Taking changes of adversarial images back, value by value; the core of the pointwise attack.

Every image goes through its own beginnings, and for each through its own changed values in its own
random order, at its own pace, so that one question serves all images of a batch:

1. Blocks of 64, then 16, then 4 values that follow each other in the order are set back at the same
   time where the image stays adversarial. That is for speed only.
2. Single values are set back, round and round, until a whole round has brought nothing.
3. For L2, each value in turn is set back, else moved by a hundredth of its change; where that
   leaves the image adversarial, the rest of the way is bisected. Also until a whole round has
   brought nothing.

So in the end no single value can be set back, and for L2 none can move by a hundredth of its
change (changes below 0.001 are only set back).
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from abs_model.attacks import best as bests
from abs_model.attacks.base import choose, per_image
from abs_model.attacks.batch import Batch
from abs_model.attacks.best import Best
from abs_model.attacks.oracle import Oracle, State

_BLOCKS = (64, 16, 4, 1)
_SINGLES = len(_BLOCKS) - 1  # the stage of single values
_REFINING = len(_BLOCKS)  # the stage after it
_SMALL_SHARE = 0.01
_NUM_BISECTIONS = 7
# A change below this is set back or left: in float32 a hundredth of it may be nothing.
_LEAST_CHANGE = 1e-3
# Looking whether all images are done waits for the classifier.
_CHECK_EVERY = 10


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Beginnings:
    """Where to begin, for n images; or s times n of them, with another leading axis.

    Attributes:
        images: (n, height, width, channels).
        state: The classifier's, at these images.
        usable: Whether there is something to set back: an adversarial image with a change, (n,).
        ranks: The place of each value in the order, int32 (n, height, width, channels), or of each
            pixel, (n, height, width, 1).
    """

    images: jax.Array
    state: State
    usable: jax.Array
    ranks: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Resetting:
    """How far each image has got.

    Attributes:
        restart: int32 (n,): the number of the present beginning.
        at: The adversarial images, their state, and the order.
        stage: int32 (n,): the place in `_BLOCKS`, or `_REFINING`.
        pointer: int32 (n,): the rank to go on from.
        failures: int32 (n,): single values in a row that have brought nothing.
        phase: int32 (n,), while refining: questions about the present value.
        low: float32 (n,), while refining: where the present value is not adversarial any more.
        done: bool (n,): whether the last beginning is done with.
    """

    restart: jax.Array
    at: Beginnings
    stage: jax.Array
    pointer: jax.Array
    failures: jax.Array
    phase: jax.Array
    low: jax.Array
    done: jax.Array


def reset_values(
    oracle: Oracle,
    batch: Batch,
    beginnings: Sequence[jax.Array],
    keys: Sequence[jax.Array],
    best: Best,
    norm: str,
    max_questions: int | None = None,
) -> Best:
    """Takes changes back as far as images stay adversarial, from one beginning after the other.

    Asks once about each beginning, and then until every image has gone through all.

    Args:
        oracle: The classifier.
        batch: The originals.
        beginnings: Images, each (n, height, width, channels); those that are not adversarial are
            passed over.
        keys: For each beginning, a key for each image, (n,): of the order.
        best: What has been found; it is improved on.
        norm: Of the distances. "l0": pixels are set back, in all channels; "l2": values are, and
            then move.
        max_questions: Ends the search; at least the number of beginnings. No limit by default.
    """
    parts = []
    for images, order_keys in zip(beginnings, keys, strict=True):
        logits, state = oracle.logits(images)
        best = bests.update(best, batch, images, logits, norm)
        parts.append(_beginning(batch, images, logits, state, order_keys, norm))
    all_beginnings = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    resetting, candidates = _begin(batch, parts[0], norm)
    asked = len(parts)
    while max_questions is None or asked < max_questions:
        if asked % _CHECK_EVERY == 0 and bool(resetting.done.all()):
            break
        logits, following = oracle.logits(candidates, resetting.at.state)
        resetting, best, candidates = _advance(
            batch, all_beginnings, resetting, best, candidates, logits, following, norm
        )
        asked += 1
    return best


@functools.partial(jax.jit, static_argnames="norm")
def _beginning(
    batch: Batch, images: jax.Array, logits: jax.Array, state: State, keys: jax.Array, norm: str
) -> Beginnings:
    changed = _changed(batch, images, norm)

    def order(key: jax.Array, changed: jax.Array) -> jax.Array:
        # Changed values come first, so that they fill blocks.
        places = jax.random.uniform(key, changed.shape) + ~changed
        return places.ravel().argsort().argsort().reshape(changed.shape)

    usable = batch.fooled(logits) & changed.any((1, 2, 3))
    return Beginnings(images, state, usable, jax.vmap(order)(keys, changed))


@functools.partial(jax.jit, static_argnames="norm")
def _begin(batch: Batch, beginning: Beginnings, norm: str) -> tuple[Resetting, jax.Array]:
    none = jnp.zeros(len(beginning.images), jnp.int32)
    resetting = Resetting(
        restart=none, at=beginning, stage=none, pointer=none, failures=none, phase=none,
        low=jnp.zeros(none.shape), done=jnp.zeros(none.shape, bool),
    )  # fmt: skip
    return resetting, _candidates(batch, resetting, norm)


@functools.partial(jax.jit, static_argnames="norm")
def _advance(
    batch: Batch,
    beginnings: Beginnings,
    resetting: Resetting,
    best: Best,
    candidates: jax.Array,
    logits: jax.Array,
    following: State,
    norm: str,
) -> tuple[Resetting, Best, jax.Array]:
    """Keeps the candidates that are adversarial, and makes the next ones."""
    best = bests.update(best, batch, candidates, logits, norm)
    fooled = batch.fooled(logits) & resetting.at.usable & ~resetting.done
    selected, end = _select(batch, resetting, norm)
    settled, moved, low = _judge(batch, resetting, candidates, fooled, selected)
    phase = jnp.where(settled, 0, resetting.phase + 1)
    failures = jnp.where(moved, 0, resetting.failures + settled)
    images, state = choose(
        fooled, (candidates, following), (resetting.at.images, resetting.at.state)
    )
    resetting = dataclasses.replace(
        resetting, at=dataclasses.replace(resetting.at, images=images, state=state),
        phase=phase, low=low, failures=failures,
        pointer=jnp.where(settled, end, resetting.pointer),
    )  # fmt: skip
    resetting, finished = _end_round(batch, resetting, norm)
    resetting = _restart(beginnings, resetting, finished)
    return resetting, best, _candidates(batch, resetting, norm)


def _judge(
    batch: Batch,
    resetting: Resetting,
    candidates: jax.Array,
    fooled: jax.Array,
    selected: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Whether the values asked about are settled for this round and have moved; the new `low`."""
    present, asked, original = (
        jnp.sum(jnp.where(selected, images, 0.0), (1, 2, 3))
        for images in (resetting.at.images, candidates, batch.images)
    )
    refining, phase = resetting.stage == _REFINING, resetting.phase
    small = jnp.abs(present - original) < _LEAST_CHANGE
    last = phase == 1 + _NUM_BISECTIONS
    settled_value = jnp.where(phase == 0, fooled | small, jnp.where(phase == 1, ~fooled, last))
    moved_value = settled_value & (fooled | (phase > 1))
    low = jnp.where(fooled, resetting.low, asked)
    return ~refining | settled_value, jnp.where(refining, moved_value, fooled), low


def _end_round(batch: Batch, resetting: Resetting, norm: str) -> tuple[Resetting, jax.Array]:
    """Goes on to the next stage where a round is over; says which images have finished the last."""
    stage = resetting.stage
    changed = _changed(batch, resetting.at.images, norm)
    beyond = changed & (resetting.at.ranks >= per_image(resetting.pointer))
    count = changed.sum((1, 2, 3))
    over = jnp.where(stage < _SINGLES, ~beyond.any((1, 2, 3)), resetting.failures >= count)
    last = _REFINING if norm == "l2" else _SINGLES
    finished = (over & (stage == last)) | (count == 0) | ~resetting.at.usable
    resetting = dataclasses.replace(
        resetting,
        stage=jnp.where(over, jnp.minimum(stage + 1, last), stage),
        pointer=jnp.where(over, 0, resetting.pointer),
        # Blocks that failed say nothing about single values.
        failures=jnp.where(over | (stage < _SINGLES), 0, resetting.failures),
    )
    return resetting, finished


def _restart(beginnings: Beginnings, resetting: Resetting, finished: jax.Array) -> Resetting:
    """Puts the next beginning in the place of what is finished; the last one ends it."""
    count = len(beginnings.images)
    following = resetting.restart + 1
    renewed = finished & (following < count)

    def load(resetting: Resetting) -> Resetting:
        rows = jnp.arange(len(following))
        place = jnp.minimum(following, count - 1)
        following_at = jax.tree.map(lambda leaf: leaf[place, rows], beginnings)
        none = jnp.zeros_like(following)
        fresh = Resetting(
            following, following_at, none, none, none, none, resetting.low, resetting.done
        )
        return choose(renewed, fresh, resetting)

    # Copies of what the classifier holds for all images, only when needed.
    resetting = lax.cond(renewed.any(), load, lambda resetting: resetting, resetting)
    return dataclasses.replace(resetting, done=resetting.done | (finished & ~renewed))


def _select(batch: Batch, resetting: Resetting, norm: str) -> tuple[jax.Array, jax.Array]:
    """The values to ask about next, and the rank after the last of them, (n,)."""
    ranks, pointer = resetting.at.ranks, per_image(resetting.pointer)
    changed = _changed(batch, resetting.at.images, norm)
    total = ranks[0].size
    ahead = jnp.where(changed, (ranks - pointer) % total, total)
    first = (pointer + ahead.min((1, 2, 3), keepdims=True)) % total
    size = jnp.array([*_BLOCKS, 1])[resetting.stage]
    end = first + per_image(size)
    return changed & (ranks >= first) & (ranks < end), end[:, 0, 0, 0]


def _candidates(batch: Batch, resetting: Resetting, norm: str) -> jax.Array:
    """The images with the selected values set back or, while refining, moved."""
    images, phase = resetting.at.images, per_image(resetting.phase)
    nudged = images + _SMALL_SHARE * (batch.images - images)
    halfway = (images + per_image(resetting.low)) / 2
    values = jnp.where(phase == 0, batch.images, jnp.where(phase == 1, nudged, halfway))
    selected, _ = _select(batch, resetting, norm)
    return jnp.where(selected & per_image(~resetting.done), values, images)


def _changed(batch: Batch, images: jax.Array, norm: str) -> jax.Array:
    """Which values differ from the original, or which pixels for "l0", (n, h, w, 1)."""
    changed = images != batch.images
    return changed.any(axis=3, keepdims=True) if norm == "l0" else changed
