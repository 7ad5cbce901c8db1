"""BFGS on the decoder from many candidates, as many at a time as the decoder is fastest with.

How many evaluations a candidate needs, and whether it is worth any, differs from image to image. So
the decoder works through a list: a fixed number of the most promising candidates at a time, until
none has far to fall.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from abs_model._runtime.pytrees import register_dataclass
from abs_model._runtime.vectorize import list_size
from abs_model.inference.solvers import bfgs
from abs_model.inference.solvers.norm_ball import project
from abs_model.inference.solvers.settings import SearchSettings
from abs_model.models.decoders import Decoder

PyTree = Any
# Candidates that head for points nearer to each other, in latent units, find the same minimum.
_DUPLICATE_RADIUS = 0.5
# A candidate is given up once this many times its expected decrease would not make it the best.
_PROMISING_FACTOR = 3.0


@dataclasses.dataclass(frozen=True)
class MultistartSettings(SearchSettings):
    """Settings of BFGS on the decoder.

    It continues while it expects the energy to fall by more than `tolerance`.

    Attributes:
        max_evaluations: Of the decoder and its gradient, from each candidate.
    """

    max_evaluations: int = 25


@register_dataclass
@dataclasses.dataclass(frozen=True)
class MultistartResult:
    """What BFGS on the decoder finds for N images.

    Attributes:
        latents: The best, (latent, N).
        decoded: The best latents decoded, (pixels, N); NaN where no energy that was
            found is finite.
        inverse_hessians: What BFGS knows of the energies there, (latent, latent, N).
        iterate: All candidates where BFGS left them.
        evaluations: Of the decoder and its gradient, for each candidate, (columns,).
    """

    latents: jax.Array
    decoded: jax.Array
    inverse_hessians: jax.Array
    iterate: bfgs.Iterate
    evaluations: jax.Array


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Work:
    """The candidates on their way, `bfgs.predicted_decrease` of them, and what they are decoded.

    `decoded` is (columns, pixels), so that whole rows are copied.
    """

    now: bfgs.Iterate
    decreases: jax.Array
    ahead: jax.Array
    evaluations: jax.Array
    decoded: jax.Array


def polish(
    decode: Decoder,
    targets: PyTree,
    candidates: bfgs.Iterate,
    settings: MultistartSettings,
    cost: bfgs.Cost = bfgs.energies,
    limits: jax.Array | None = None,
    only_lowest: bool = True,
    skip_duplicates: bool = True,
) -> MultistartResult:
    """The best minimum that BFGS finds from each image's candidates.

    Args:
        decode: One class's decoder.
        targets: For each image what `cost` compares with what is decoded, leaves (..., N): pixels,
            (pixels, N), for energies.
        candidates: Any multiple of N columns, images fastest; those of infinite energy are left
            alone, and other energies don't matter.
        settings: Uses `tolerance`, `max_evaluations` and `max_norm`.
        cost: What is minimized, on the scale of energies.
        limits: Where given, costs above each image's limit, (N,), are of no interest: candidates
            that can't be expected to fall below it are given up.
        only_lowest: Whether only each image's lowest cost is of interest; otherwise all costs.
        skip_duplicates: Whether candidates that head for the same point as the best one are given
            up. In a cost with kinks they can end in other minima.
    """
    count, columns = jax.tree.leaves(targets)[0].shape[-1], len(candidates.energies)
    size = list_size(columns, count)
    promising = jnp.isfinite(candidates.energies)

    def priorities_of(work: _Work) -> jax.Array:
        return _priorities(work, promising, count, settings, limits, only_lowest, skip_duplicates)

    def proceed(carry: tuple[_Work, jax.Array]) -> tuple[_Work, jax.Array]:
        work, priorities = carry
        _, chosen = lax.top_k(priorities, size)
        # Near the end of the list some are chosen only to fill up; these stay as they are.
        busy = priorities[chosen] > 0
        old = jax.tree.map(lambda leaf: leaf[..., chosen], work.now)
        theirs = jax.tree.map(lambda leaf: leaf[..., chosen % count], targets)
        new, outputs = bfgs.step(decode, theirs, old, settings.max_norm, cost)
        new = jax.tree.map(lambda after, before: jnp.where(busy, after, before), new, old)
        rows = jnp.where(new.energies < old.energies, chosen, columns)  # else out of bounds
        decreases, ahead = bfgs.predicted_decrease(new)
        work = _Work(
            jax.tree.map(lambda leaf, part: leaf.at[..., chosen].set(part), work.now, new),
            work.decreases.at[chosen].set(decreases),
            work.ahead.at[:, chosen].set(project(ahead, settings.max_norm)),
            work.evaluations.at[chosen].add(busy),
            work.decoded.at[rows].set(outputs.T, mode="drop"),
        )
        return work, priorities_of(work)

    num_outputs = len(jax.eval_shape(decode, candidates.latents))
    work = _Work(
        bfgs.initial_iterate(candidates.latents, candidates.inverse_hessians),
        jnp.zeros(columns),
        candidates.latents,
        jnp.zeros(columns, int),
        jnp.full((columns, num_outputs), jnp.nan),
    )
    carry = work, priorities_of(work)
    work, _ = lax.while_loop(lambda carry: jnp.any(carry[1] > 0), proceed, carry)
    best = _leaders(work.now.energies, count)
    return MultistartResult(
        work.now.latents[:, best],
        work.decoded[best].T,
        work.now.inverse_hessians[..., best],
        work.now,
        work.evaluations,
    )


def _priorities(
    work: _Work,
    promising: jax.Array,
    count: int,
    settings: MultistartSettings,
    limits: jax.Array | None,
    only_lowest: bool,
    skip_duplicates: bool,
) -> jax.Array:
    """How far energies may fall: infinite before the first evaluation, 0 when done, (columns,)."""
    energies, decreases, evaluations = work.now.energies, work.decreases, work.evaluations
    columns = len(energies)
    leaders = jnp.tile(_leaders(energies, count), columns // count)
    leads = jnp.arange(columns) == leaders
    apart = jnp.sum((work.ahead - work.ahead[:, leaders]) ** 2, axis=0) > _DUPLICATE_RADIUS**2
    unfinished = (decreases > settings.tolerance) & (evaluations < settings.max_evaluations)
    if skip_duplicates:
        unfinished &= leads | apart
    forecasts = jnp.where(unfinished, energies - decreases, energies)
    lowest = jnp.tile(forecasts.reshape(-1, count).min(axis=0), columns // count)
    hoped_for = energies - _PROMISING_FACTOR * decreases
    if only_lowest:
        unfinished &= leads | (hoped_for < lowest)
    if limits is not None:
        unfinished &= hoped_for < jnp.tile(limits, columns // count)
    priorities = jnp.where(unfinished, decreases, 0)
    return jnp.where(promising, jnp.where(evaluations == 0, jnp.inf, priorities), 0)


def _leaders(energies: jax.Array, count: int) -> jax.Array:
    """The column of each image's lowest energy, (N,), of columns with images fastest."""
    return jnp.argmin(energies.reshape(-1, count), axis=0) * count + jnp.arange(count)
