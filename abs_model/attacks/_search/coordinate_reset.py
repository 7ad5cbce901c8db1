"""Sets changed values of adversarial images back; the core of the pointwise attack.

Every image goes through its own starting points, and for each through its own changed values in its
own random order, at its own pace, so that one query serves all images of a batch:

1. Blocks of 64, then 16, then 4 values that follow each other in the order are set back at the same
   time where the image stays adversarial. That is for speed only.
2. Single values are set back, round and round, until a whole round has brought nothing.
3. For L2, each value in turn is set back, else moved by a hundredth of its change; where that
   leaves the image adversarial, the rest of the way is bisected. Also until a whole round has
   brought nothing.

The steps follow warm decisions, which may be wrong (ABS): a cold query after every 20 verifies the
images, or takes them back. So in the end no single value can be set back, and for L2 none can move
by a hundredth of its change (changes below 0.001 are only set back).
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from abs_model._runtime.pytrees import register_dataclass
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.norms import choose, per_image
from abs_model.attacks._core.query import Answer, Query

_BLOCKS = (64, 16, 4, 1)
_SINGLES = len(_BLOCKS) - 1  # the stage of single values
_REFINING = len(_BLOCKS)  # the stage after it
_SMALL_SHARE = 0.01
_NUM_BISECTIONS = 7
# A change below this is set back or left: in float32 a hundredth of it may be nothing.
_LEAST_CHANGE = 1e-3
# Queries after which images are verified, and after which what is finished starts again.
_VERIFY_EVERY = 20


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Start:
    """Where to start, for n images; or s times n of them, with another leading axis.

    Attributes:
        answer: About the images, (n, height, width, channels).
        usable: Whether there is something to set back: an adversarial image with a change, (n,).
        ranks: The place of each value in the order, int32 (n, height, width, channels), or of each
            pixel, (n, height, width, 1).
    """

    answer: Answer
    usable: jax.Array
    ranks: jax.Array


@register_dataclass
@dataclasses.dataclass(frozen=True)
class ResetState:
    """How far each image has got.

    Attributes:
        restart: int32 (n,): the number of the present starting point.
        at: The adversarial images, and the order.
        stage: int32 (n,): the place in `_BLOCKS`, or `_REFINING`.
        pointer: int32 (n,): the rank to continue from.
        failures: int32 (n,): single values in a row that have brought nothing.
        phase: int32 (n,), while refining: queries about the present value.
        low: float32 (n,), while refining: where the present value is not adversarial any more.
        finished: bool (n,): whether the last stage is over; waits to be verified.
        done: bool (n,): whether this was the last starting point.
    """

    restart: jax.Array
    at: Start
    stage: jax.Array
    pointer: jax.Array
    failures: jax.Array
    phase: jax.Array
    low: jax.Array
    finished: jax.Array
    done: jax.Array


def reset_coordinates(
    query: Query,
    starts: Sequence[jax.Array],
    keys: Sequence[jax.Array],
    max_queries: int | None = None,
) -> None:
    """Takes changes back as far as images stay adversarial, from one starting point after another.

    For L0 pixels are set back, in all channels; for L2 values are, and then move. Queries each
    starting point once, and then until every image has gone through all, with one more query after
    every 20 to verify what has been found.

    Args:
        query: The session.
        starts: Images, each (n, height, width, channels); those that are not adversarial are
            passed over.
        keys: For each of them, a key for each image, (n,): of the order.
        max_queries: Ends the search; at least the number of starting points. No limit by default.
    """
    batch, norm = query.batch, query.norm
    parts = [
        _start(batch, query.logits(images), order_keys, norm)
        for images, order_keys in zip(starts, keys, strict=True)
    ]
    all_starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    verified, candidates = _begin(batch, all_starts, norm)
    count = len(parts)
    while not bool(verified.done.all()):
        size = _VERIFY_EVERY
        if max_queries is not None:
            size = min(size, max_queries - count - 1)
        if size < 1:
            break
        current = verified
        for _ in range(size):
            # Not recorded, because warm decisions may be wrong: what they lead to counts.
            answer = query.logits(candidates, near=current.at.answer, record=False)
            current, candidates = _advance(batch, current, answer, norm)
        answer = query.logits(current.at.answer.images)
        count += size + 1
        verified, candidates = _verify(batch, all_starts, verified, current, answer, norm)


@functools.partial(jax.jit, static_argnames="norm")
def _start(batch: Batch, answer: Answer, keys: jax.Array, norm: str) -> Start:
    changed = _changed(batch, answer.images, norm)

    def order(key: jax.Array, changed: jax.Array) -> jax.Array:
        # Changed values come first, so that they fill blocks.
        places = jax.random.uniform(key, changed.shape) + ~changed
        return places.ravel().argsort().argsort().reshape(changed.shape)

    usable = batch.is_adversarial(answer.logits) & changed.any((1, 2, 3))
    return Start(answer, usable, jax.vmap(order)(keys, changed))


@functools.partial(jax.jit, static_argnames="norm")
def _begin(batch: Batch, starts: Start, norm: str) -> tuple[ResetState, jax.Array]:
    first = jax.tree.map(lambda leaf: leaf[0], starts)
    none = jnp.zeros(len(first.usable), jnp.int32)
    over = jnp.ones(none.shape, bool)
    before = ResetState(
        restart=none - 1, at=first, stage=none, pointer=none, failures=none, phase=none,
        low=jnp.zeros(none.shape), finished=over, done=over,
    )  # fmt: skip
    state = _restart(starts, before)
    return state, _candidates(batch, state, norm)


@functools.partial(jax.jit, static_argnames="norm")
def _advance(
    batch: Batch, state: ResetState, answer: Answer, norm: str
) -> tuple[ResetState, jax.Array]:
    """Keeps the candidates that are adversarial, and makes the next ones."""
    adversarial = batch.is_adversarial(answer.logits)
    selected, end = _select(batch, state, norm)
    settled, moved, low = _judge(batch, state, answer.images, adversarial, selected)
    new = dataclasses.replace(
        state,
        at=dataclasses.replace(state.at, answer=choose(adversarial, answer, state.at.answer)),
        pointer=jnp.where(settled, end, state.pointer),
        failures=jnp.where(moved, 0, state.failures + settled),
        phase=jnp.where(settled, 0, state.phase + 1),
        low=low,
    )
    new = _end_round(batch, new, norm)
    state = choose(state.finished, state, new)
    return state, _candidates(batch, state, norm)


@functools.partial(jax.jit, static_argnames="norm")
def _verify(
    batch: Batch,
    starts: Start,
    verified: ResetState,
    state: ResetState,
    answer: Answer,
    norm: str,
) -> tuple[ResetState, jax.Array]:
    """What is adversarial by this cold answer; and the next starting point for what is finished.

    Elsewhere the changes since `verified` are taken for a failure, so that it comes to an end.
    """
    same_stage = state.stage == verified.stage
    back = dataclasses.replace(
        state,
        at=verified.at,
        failures=jnp.where(same_stage, verified.failures, 0) + 1,
        phase=jnp.zeros_like(state.phase),
        finished=jnp.zeros_like(state.finished),
    )
    kept = dataclasses.replace(state, at=dataclasses.replace(state.at, answer=answer))
    # What is done, and has been verified, may have had nothing usable.
    holds = batch.is_adversarial(answer.logits) | verified.done
    state = _restart(starts, choose(holds, kept, back))
    return state, _candidates(batch, state, norm)


def _judge(
    batch: Batch,
    state: ResetState,
    candidates: jax.Array,
    adversarial: jax.Array,
    selected: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Whether the values queried are settled for this round and have moved; the new `low`."""
    present, candidate, original = (
        jnp.sum(jnp.where(selected, images, 0.0), (1, 2, 3))
        for images in (state.at.answer.images, candidates, batch.images)
    )
    refining, phase = state.stage == _REFINING, state.phase
    small = jnp.abs(present - original) < _LEAST_CHANGE
    last = phase == 1 + _NUM_BISECTIONS
    settled_value = jnp.where(
        phase == 0, adversarial | small, jnp.where(phase == 1, ~adversarial, last)
    )
    moved_value = settled_value & (adversarial | (phase > 1))
    low = jnp.where(adversarial, state.low, candidate)
    return ~refining | settled_value, jnp.where(refining, moved_value, adversarial), low


def _end_round(batch: Batch, state: ResetState, norm: str) -> ResetState:
    """Goes on to the next stage where a round is over."""
    stage = state.stage
    changed = _changed(batch, state.at.answer.images, norm)
    beyond = changed & (state.at.ranks >= per_image(state.pointer))
    count = changed.sum((1, 2, 3))
    over = jnp.where(stage < _SINGLES, ~beyond.any((1, 2, 3)), state.failures >= count)
    last = _REFINING if norm == "l2" else _SINGLES
    return dataclasses.replace(
        state,
        stage=jnp.where(over, jnp.minimum(stage + 1, last), stage),
        pointer=jnp.where(over, 0, state.pointer),
        # Blocks that failed say nothing about single values.
        failures=jnp.where(over | (stage < _SINGLES), 0, state.failures),
        finished=(over & (stage == last)) | (count == 0),
    )


def _restart(starts: Start, state: ResetState) -> ResetState:
    """Puts the next usable starting point in the place of what is finished, until the last."""
    count = len(starts.usable)
    numbers = jnp.arange(count)[:, None]
    usable = starts.usable & (numbers > state.restart)
    following = jnp.where(usable, numbers, count).min(0)
    renewed = state.finished & (following < count)
    place, rows = jnp.minimum(following, count - 1), jnp.arange(len(following))
    none, never = jnp.zeros_like(state.restart), jnp.zeros_like(renewed)
    fresh = ResetState(
        restart=following, at=jax.tree.map(lambda leaf: leaf[place, rows], starts), stage=none,
        pointer=none, failures=none, phase=none, low=state.low, finished=never, done=never,
    )  # fmt: skip
    state = choose(renewed, fresh, state)
    return dataclasses.replace(state, done=state.finished)


def _select(batch: Batch, state: ResetState, norm: str) -> tuple[jax.Array, jax.Array]:
    """The values to query next, and the rank after the last of them, (n,)."""
    ranks, pointer = state.at.ranks, per_image(state.pointer)
    changed = _changed(batch, state.at.answer.images, norm)
    total = ranks[0].size
    ahead = jnp.where(changed, (ranks - pointer) % total, total)
    first = (pointer + ahead.min((1, 2, 3), keepdims=True)) % total
    size = jnp.array([*_BLOCKS, 1])[state.stage]
    end = first + per_image(size)
    return changed & (ranks >= first) & (ranks < end), end[:, 0, 0, 0]


def _candidates(batch: Batch, state: ResetState, norm: str) -> jax.Array:
    """The images with the selected values set back or, while refining, moved."""
    images, phase = state.at.answer.images, per_image(state.phase)
    nudged = images + _SMALL_SHARE * (batch.images - images)
    halfway = (images + per_image(state.low)) / 2
    values = jnp.where(phase == 0, batch.images, jnp.where(phase == 1, nudged, halfway))
    selected, _ = _select(batch, state, norm)
    return jnp.where(selected & per_image(~state.finished), values, images)


def _changed(batch: Batch, images: jax.Array, norm: str) -> jax.Array:
    """Which values differ from the original, or which pixels for "l0", (n, h, w, 1)."""
    changed = images != batch.images
    return changed.any(axis=3, keepdims=True) if norm == "l0" else changed
