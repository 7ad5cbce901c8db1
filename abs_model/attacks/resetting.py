"""Taking changes of adversarial images back, value by value; the core of the pointwise attack.

Every image goes through its own beginnings, and for each through its own changed values in its own
random order, at its own pace, so that one query serves all images of a batch:

1. Blocks of 64, then 16, then 4 values that follow each other in the order are set back at the same
   time where the image stays adversarial. That is for speed only.
2. Single values are set back, round and round, until a whole round has brought nothing.
3. For L2, each value in turn is set back, else moved by a hundredth of its change; where that
   leaves the image adversarial, the rest of the way is bisected. Also until a whole round has
   brought nothing.

What warm-started answers (ABS) have led to is confirmed by one from scratch after every 20
questions, or taken back. So in the end no single value can be set back, and for L2 none can move by
a hundredth of its change (changes below 0.001 are only set back).
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

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
# Questions after which images are asked about from scratch, since answers that are warm-started
# from the image before can be wrong, and after which what is finished begins anew.
_CONFIRM_EVERY = 20


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
        finished: bool (n,): whether the last stage is over; waits to be confirmed.
        done: bool (n,): whether this was the last beginning.
    """

    restart: jax.Array
    at: Beginnings
    stage: jax.Array
    pointer: jax.Array
    failures: jax.Array
    phase: jax.Array
    low: jax.Array
    finished: jax.Array
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

    Asks once about each beginning, and then until every image has gone through all, with one more
    query after every 20 to confirm what has been found.

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
    confirmed, candidates = _begin(batch, all_beginnings, norm)
    asked = len(parts)
    while not bool(confirmed.done.all()):
        size = _CONFIRM_EVERY
        if max_questions is not None:
            size = min(size, max_questions - asked - 1)
        if size < 1:
            break
        resetting = confirmed
        for _ in range(size):
            logits, following = oracle.logits(candidates, resetting.at.state)
            resetting, candidates = _advance(batch, resetting, candidates, logits, following, norm)
        logits, state = oracle.logits(resetting.at.images)
        asked += size + 1
        confirmed, best, candidates = _confirm(
            batch, all_beginnings, confirmed, resetting, best, logits, state, norm
        )
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
def _begin(batch: Batch, beginnings: Beginnings, norm: str) -> tuple[Resetting, jax.Array]:
    first = jax.tree.map(lambda leaf: leaf[0], beginnings)
    none = jnp.zeros(len(first.usable), jnp.int32)
    over = jnp.ones(none.shape, bool)
    before = Resetting(
        restart=none - 1, at=first, stage=none, pointer=none, failures=none, phase=none,
        low=jnp.zeros(none.shape), finished=over, done=over,
    )  # fmt: skip
    resetting = _restart(beginnings, before)
    return resetting, _candidates(batch, resetting, norm)


@functools.partial(jax.jit, static_argnames="norm")
def _advance(
    batch: Batch,
    resetting: Resetting,
    candidates: jax.Array,
    logits: jax.Array,
    following: State,
    norm: str,
) -> tuple[Resetting, jax.Array]:
    """Keeps the candidates that are adversarial, and makes the next ones."""
    fooled = batch.fooled(logits)
    selected, end = _select(batch, resetting, norm)
    settled, moved, low = _judge(batch, resetting, candidates, fooled, selected)
    images, state = choose(
        fooled, (candidates, following), (resetting.at.images, resetting.at.state)
    )
    new = dataclasses.replace(
        resetting,
        at=dataclasses.replace(resetting.at, images=images, state=state),
        pointer=jnp.where(settled, end, resetting.pointer),
        failures=jnp.where(moved, 0, resetting.failures + settled),
        phase=jnp.where(settled, 0, resetting.phase + 1),
        low=low,
    )
    new = _end_round(batch, new, norm)
    resetting = choose(resetting.finished, resetting, new)
    return resetting, _candidates(batch, resetting, norm)


@functools.partial(jax.jit, static_argnames="norm")
def _confirm(
    batch: Batch,
    beginnings: Beginnings,
    confirmed: Resetting,
    resetting: Resetting,
    best: Best,
    logits: jax.Array,
    state: State,
    norm: str,
) -> tuple[Resetting, Best, jax.Array]:
    """What is adversarial by answers from scratch; and the next beginning for what is finished.

    Elsewhere the changes since `confirmed` are taken for a failure, so that it comes to an end.
    """
    best = bests.update(best, batch, resetting.at.images, logits, norm)
    same_stage = resetting.stage == confirmed.stage
    back = dataclasses.replace(
        resetting,
        at=confirmed.at,
        failures=jnp.where(same_stage, confirmed.failures, 0) + 1,
        phase=jnp.zeros_like(resetting.phase),
        finished=jnp.zeros_like(resetting.finished),
    )
    renewed_state = dataclasses.replace(
        resetting, at=dataclasses.replace(resetting.at, state=state)
    )
    # What is done, and has been confirmed, may have had nothing usable.
    holds = batch.fooled(logits) | confirmed.done
    resetting = _restart(beginnings, choose(holds, renewed_state, back))
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


def _end_round(batch: Batch, resetting: Resetting, norm: str) -> Resetting:
    """Goes on to the next stage where a round is over."""
    stage = resetting.stage
    changed = _changed(batch, resetting.at.images, norm)
    beyond = changed & (resetting.at.ranks >= per_image(resetting.pointer))
    count = changed.sum((1, 2, 3))
    over = jnp.where(stage < _SINGLES, ~beyond.any((1, 2, 3)), resetting.failures >= count)
    last = _REFINING if norm == "l2" else _SINGLES
    return dataclasses.replace(
        resetting,
        stage=jnp.where(over, jnp.minimum(stage + 1, last), stage),
        pointer=jnp.where(over, 0, resetting.pointer),
        # Blocks that failed say nothing about single values.
        failures=jnp.where(over | (stage < _SINGLES), 0, resetting.failures),
        finished=(over & (stage == last)) | (count == 0),
    )


def _restart(beginnings: Beginnings, resetting: Resetting) -> Resetting:
    """Puts the next usable beginning in the place of what is finished; after the last, it ends."""
    count = len(beginnings.images)
    numbers = jnp.arange(count)[:, None]
    usable = beginnings.usable & (numbers > resetting.restart)
    following = jnp.where(usable, numbers, count).min(0)
    renewed = resetting.finished & (following < count)
    place, rows = jnp.minimum(following, count - 1), jnp.arange(len(following))
    none, never = jnp.zeros_like(resetting.restart), jnp.zeros_like(renewed)
    fresh = Resetting(
        restart=following, at=jax.tree.map(lambda leaf: leaf[place, rows], beginnings), stage=none,
        pointer=none, failures=none, phase=none, low=resetting.low, finished=never, done=never,
    )  # fmt: skip
    resetting = choose(renewed, fresh, resetting)
    return dataclasses.replace(resetting, done=resetting.finished)


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
    return jnp.where(selected & per_image(~resetting.finished), values, images)


def _changed(batch: Batch, images: jax.Array, norm: str) -> jax.Array:
    """Which values differ from the original, or which pixels for "l0", (n, h, w, 1)."""
    changed = images != batch.images
    return changed.any(axis=3, keepdims=True) if norm == "l0" else changed
