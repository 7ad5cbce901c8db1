"""The smallest change of an image that lies in several half-spaces.

For half-spaces <a_k, d> >= b_k of changes d, solves

    minimize cost(d) over the d that keep the image in [0, 1], such that <a_k, d> >= b_k for all k

by its dual: with multipliers m_k >= 0 and the dual direction u = sum_k m_k a_k,

    minimize over m  ( max over d of <u, d> - cost(d) )  -  <m, b>

which has as few unknowns as there are half-spaces. Costs are strictly convex, so that the best d is
unique, the dual smooth, and its second derivative piecewise constant: Newton's method with a line
search takes a few steps. All functions are pure and can be traced; images are flat, (n, values).
"""

import abc
import dataclasses
from typing import Self

import jax
import jax.numpy as jnp
from jax import lax

from abs_model._runtime.pytrees import register_dataclass

_NUM_STEPS = 16
_NUM_SWEEPS = 30
# Parts of Newton's steps to try.
_LENGTHS = (0.0, *(4.0**-power for power in range(10)))
# Added to the dual's second derivatives: as a part of their sum, and in any case. Where the dual
# direction is too weak to change anything, they are zero.
_RIDGE = 1e-4
_LEAST_RIDGE = 1e-3
_NUM_HALVINGS = 16
# Flips: how far beyond its price a value's gain must be for it to flip as a whole, as a part of the
# largest price.
_SOFTNESS = 0.05


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Halfspaces:
    """The half-spaces <normals, d> >= offsets, for each of n images K of them.

    Attributes:
        normals: float32 (n, K, values); zero for half-spaces that are everywhere.
        offsets: float32 (n, K); not above 0 for these.
        multipliers: float32 (n, K), at least 0: the solution's, or where to start.
    """

    normals: jax.Array
    offsets: jax.Array
    multipliers: jax.Array

    def scaled(self) -> tuple[Self, jax.Array]:
        """The same half-spaces with normals of length 1, and the lengths that they had, (n, K)."""
        lengths = jnp.sqrt(jnp.sum(self.normals**2, axis=2))
        lengths = jnp.where(lengths > 0, lengths, 1.0)
        normals = self.normals / lengths[:, :, None]
        scaled = dataclasses.replace(
            self,
            normals=normals,
            offsets=self.offsets / lengths,
            multipliers=self.multipliers * lengths,
        )
        return scaled, lengths

    def dual_direction(self, multipliers: jax.Array) -> jax.Array:
        """sum_k m_k a_k, (n, values)."""
        return jnp.einsum("nkv,nk->nv", self.normals, multipliers)

    def missing(self, changes: jax.Array) -> jax.Array:
        """By how much the changes (n, values) miss each half-space, (n, K); negative inside."""
        return self.offsets - self.gains(changes)

    def gains(self, changes: jax.Array) -> jax.Array:
        """<a_k, d>, (n, K)."""
        return jnp.einsum("nkv,nv->nk", self.normals, changes)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Conjugate:
    """The best changes d for a dual direction u.

    Attributes:
        changes: d, (n, values).
        values: <u, d> - cost(d), (n,).
        slopes: How fast each entry of d grows with that of u, (n, values).
        coupling: A vector r along which entries of d grow together, by r <r, du>, (n, values).
    """

    changes: jax.Array
    values: jax.Array
    slopes: jax.Array
    coupling: jax.Array


class Cost(abc.ABC):
    """What changes cost; a pytree."""

    @abc.abstractmethod
    def conjugate(self, direction: jax.Array) -> Conjugate:
        """The best changes for a dual direction (n, values)."""

    def primal(self, direction: jax.Array, halfspaces: Halfspaces) -> jax.Array:
        """The changes that the multipliers found stand for, (n, values)."""
        del halfspaces
        return self.conjugate(direction).changes


@register_dataclass
@dataclasses.dataclass(frozen=True)
class SquaredLength(Cost):
    """||d||^2 / 2, for L2.

    Attributes:
        originals: Flat images, (n, values).
    """

    originals: jax.Array

    def conjugate(self, direction: jax.Array) -> Conjugate:
        moved = self.originals + direction
        changes = jnp.clip(moved, 0.0, 1.0) - self.originals
        values = jnp.sum(direction * changes - 0.5 * changes**2, axis=1)
        inside = (moved >= 0) & (moved <= 1)
        return Conjugate(changes, values, inside.astype(direction.dtype), jnp.zeros_like(direction))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class LargestChange(Cost):
    """t^2 / 2 with t the largest entry of |d|, and a little of ||d||^2 / 2: for L-infinity.

    With weight w of the latter, entries are as large as |u| / w unless t or the end of the range
    holds them back, and t is the sum of |u| - w t over those that t holds back.

    Attributes:
        originals: Flat images, (n, values).
        l2_part: w, above 0: float32 ().
    """

    originals: jax.Array
    l2_part: jax.Array

    def conjugate(self, direction: jax.Array) -> Conjugate:
        size = jnp.abs(direction)
        room = jnp.where(direction > 0, 1.0 - self.originals, self.originals)

        def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            middle = (ends[0] + ends[1]) / 2
            excess = jnp.maximum(size - self.l2_part * middle, 0.0)
            low = jnp.sum(jnp.where(room > middle, excess, 0.0), 1, keepdims=True) > middle
            return jnp.where(low, middle, ends[0]), jnp.where(low, ends[1], middle)

        zero = jnp.zeros((len(direction), 1))
        low, high = lax.fori_loop(0, _NUM_HALVINGS, halve, (zero, zero + 1.0))
        held = (size > self.l2_part * (low + high) / 2) & (room > (low + high) / 2)
        stiffness = 1.0 + self.l2_part * held.sum(1, keepdims=True)
        largest = jnp.sum(jnp.where(held, size, 0.0), 1, keepdims=True) / stiffness
        largest = jnp.clip(largest, low, high)
        sizes = jnp.minimum(jnp.minimum(size / self.l2_part, largest), room)
        return Conjugate(
            jnp.sign(direction) * sizes,
            jnp.sum(size * sizes - 0.5 * self.l2_part * sizes**2, axis=1)
            - 0.5 * largest[:, 0] ** 2,
            ((size <= self.l2_part * largest) & (size <= self.l2_part * room)) / self.l2_part,
            jnp.where(held, jnp.sign(direction), 0.0) / jnp.sqrt(stiffness),
        )


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Flips(Cost):
    """A price for each value that goes to an end of the range, whichever: for L0.

    Shares of a flip are allowed while the multipliers are sought; in the end whole values flip.

    Attributes:
        originals: Flat images, (n, values).
        prices: (n, values), above 0 and at most 1.
    """

    originals: jax.Array
    prices: jax.Array

    def conjugate(self, direction: jax.Array) -> Conjugate:
        flip = self._flip(direction)
        profit = direction * flip - self.prices
        shares = jnp.clip(profit / _SOFTNESS, 0.0, 1.0)
        partial = (profit > 0) & (profit < _SOFTNESS)
        return Conjugate(
            shares * flip,
            jnp.sum(shares * profit - 0.5 * _SOFTNESS * shares**2, axis=1),
            jnp.where(partial, flip**2 / _SOFTNESS, 0.0),
            jnp.zeros_like(direction),
        )

    def primal(self, direction: jax.Array, halfspaces: Halfspaces) -> jax.Array:
        """The fewest flips, in the order of gain over price, that lead into all half-spaces.

        Where none do, as many as come closest.
        """
        flip = self._flip(direction)
        order = jnp.argsort(-direction * flip / self.prices, axis=1)
        ordered = jnp.take_along_axis(halfspaces.normals * flip[:, None], order[:, None], axis=2)
        reached = jnp.min(jnp.cumsum(ordered, axis=2) - halfspaces.offsets[:, :, None], axis=1)
        inside = reached >= 0
        last = jnp.where(inside.any(1), jnp.argmax(inside, axis=1), jnp.argmax(reached, axis=1))
        ranks = jnp.argsort(order, axis=1)
        return jnp.where(ranks <= last[:, None], flip, 0.0)

    def _flip(self, direction: jax.Array) -> jax.Array:
        """The whole change of each value in the dual direction."""
        return jnp.where(direction > 0, 1.0 - self.originals, -self.originals)


def smallest_changes(cost: Cost, halfspaces: Halfspaces) -> tuple[jax.Array, jax.Array]:
    """The cheapest changes, (n, values), and their multipliers, (n, K).

    Where the half-spaces have no common point in the range, changes that come close to them.
    """
    scaled, lengths = halfspaces.scaled()

    def step(_: int, multipliers: jax.Array) -> jax.Array:
        conjugate = cost.conjugate(scaled.dual_direction(multipliers))
        along = scaled.gains(conjugate.coupling)
        weighted = scaled.normals * conjugate.slopes[:, None]
        curvature = jnp.einsum("nkv,nlv->nkl", weighted, scaled.normals)
        curvature = curvature + along[:, :, None] * along[:, None]
        target = _newton(multipliers, -scaled.missing(conjugate.changes), curvature)
        return _search_line(cost, scaled, multipliers, target)

    multipliers = lax.fori_loop(0, _NUM_STEPS, step, scaled.multipliers)
    changes = cost.primal(scaled.dual_direction(multipliers), scaled)
    return changes, multipliers / lengths


def _newton(multipliers: jax.Array, slope: jax.Array, curvature: jax.Array) -> jax.Array:
    """The non-negative multipliers that minimize the dual's quadratic model, by coordinates."""
    size = slope.shape[1]
    ridge = _RIDGE * jnp.trace(curvature, axis1=1, axis2=2) + _LEAST_RIDGE
    curvature = curvature + ridge[:, None, None] * jnp.eye(size)

    def sweep(_: int, found: jax.Array) -> jax.Array:
        for k in range(size):
            here = slope[:, k] + jnp.sum(curvature[:, k] * (found - multipliers), axis=1)
            moved = found[:, k] - here / curvature[:, k, k]
            found = found.at[:, k].set(jnp.maximum(moved, 0.0))
        return found

    return lax.fori_loop(0, _NUM_SWEEPS, sweep, multipliers)


def _search_line(cost: Cost, halfspaces: Halfspaces, start: jax.Array, end: jax.Array) -> jax.Array:
    """The multipliers of the smallest dual value among some on the way."""
    direction, change = halfspaces.dual_direction(start), halfspaces.dual_direction(end - start)
    need, growth = (jnp.sum(m * halfspaces.offsets, axis=1) for m in (start, end - start))

    def value(length: jax.Array) -> jax.Array:
        return cost.conjugate(direction + length * change).values - need - length * growth

    lengths = jnp.array(_LENGTHS)
    best = lengths[jnp.argmin(lax.map(value, lengths), axis=0)]
    return jnp.maximum(start + best[:, None] * (end - start), 0.0)
