"""By how much a change of an image can lower the cost of one explanation relative to another's.

The cost of explaining an image x by G with a class weight w is w ||x - G||^2, up to a constant.
Moving the image by d changes the difference of two such costs, w_c ||x + d - G_c||^2 -
w_y ||x + d - G_y||^2, by 2 v . d + a ||d||^2, where v = w_c (x - G_c) - w_y (x - G_y) and a = w_c -
w_y. The *reach* of a radius is the most that this can fall within it and within [0, 1]. Each
function below bounds the reach from above, up to rounding. It evaluates a dual function, which is a
bound for any multiplier: an inexact multiplier makes a certificate weaker, never wrong.

All arrays are (pixels, N), one column for each image, or (N,).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from abs_model._runtime.pytrees import register_dataclass

_DOUBLINGS = 10  # of the multiplier of L2, from where it would be without the range [0, 1]
_NUM_BISECTIONS = 18
_NUM_BISECTIONS_OF_GAINS = 22
_NUM_BISECTIONS_OF_RADII = 26


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Flips:
    """The only changes that a model sees which thresholds the image at 0.5.

    Attributes:
        signs: +1 where a pixel is not above 0.5, else -1.
        prices: How far the pixel must move; infinite in the padding.
    """

    signs: jax.Array
    prices: jax.Array

    def gains(self, v: jax.Array, a: jax.Array) -> jax.Array:
        """By how much flipping each pixel lowers the difference of costs; 0 where it does not."""
        gains = jnp.maximum(0, -2 * v * self.signs - a)
        return jnp.where(jnp.isfinite(self.prices), gains, 0)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Range:
    """How images may change.

    Attributes:
        low: The least change of each pixel, at most 0.
        high: The largest, at least 0.
        flips: For models that threshold the image; None for others.
        channels: Values of each pixel, which counts once in L0.
    """

    low: jax.Array
    high: jax.Array
    flips: Flips | None = None
    channels: int = dataclasses.field(default=1, metadata={"static": True})


def allowed_range(pixels: jax.Array, inside: jax.Array, *, channels: int, binary: bool) -> Range:
    """The changes that keep images within [0, 1].

    Args:
        pixels: The images.
        inside: 1 where there is a pixel, 0 in the padding, (pixels, 1).
        channels: Values of each pixel.
        binary: Whether the model thresholds images at 0.5.
    """
    low, high = -pixels * inside, (1 - pixels) * inside
    if not binary:
        return Range(low, high, channels=channels)
    signs = jnp.where(pixels > 0.5, -1.0, 1.0)
    prices = jnp.where(inside > 0, jnp.abs(pixels - 0.5), jnp.inf)
    return Range(low, high, Flips(signs, prices), channels)


# From the allowed range, v, a and radii (N,) to the reach, (N,); differentiable in v.
Reach = Callable[[Range, jax.Array, jax.Array, jax.Array], jax.Array]


def l2_reach(allowed: Range, v: jax.Array, a: jax.Array, radii: jax.Array) -> jax.Array:
    """The reach of an L2 radius.

    With a multiplier m of ||d||^2 <= r^2, m + a > 0, it is at most m r^2 plus the largest
    -2 v . d - (a + m) ||d||^2 in the range, at d = clip(-v / (a + m)).
    """
    if allowed.flips is not None:
        return _knapsack(allowed.flips.gains(v, a), allowed.flips.prices**2, radii**2)
    fixed = lax.stop_gradient(v)

    def change(steps: jax.Array) -> jax.Array:
        return jnp.clip(-steps * fixed, allowed.low, allowed.high)

    def too_short(logs: jax.Array) -> jax.Array:
        return jnp.sum(change(jnp.exp2(logs)) ** 2, axis=0) < radii**2

    # 1 / (a + m), at most 1 / a. Clipped changes are shorter, so the step is at least that without.
    first = jnp.log2(jnp.maximum(radii, 1e-9) / jnp.maximum(jnp.linalg.norm(fixed, axis=0), 1e-9))
    logs = _bisect(too_short, first, first + _DOUBLINGS, _NUM_BISECTIONS)[1]
    steps = jnp.where(a > 0, jnp.minimum(jnp.exp2(logs), 1 / jnp.maximum(a, 1e-9)), jnp.exp2(logs))
    d = change(steps)
    return (1 / steps - a) * radii**2 - jnp.sum(2 * v * d + d**2 / steps, axis=0)


def linf_reach(allowed: Range, v: jax.Array, a: jax.Array, radii: jax.Array) -> jax.Array:
    """The reach of an L-infinity radius: every pixel for itself."""
    if allowed.flips is not None:
        cheap = allowed.flips.prices < radii
        return jnp.sum(jnp.where(cheap, allowed.flips.gains(v, a), 0), axis=0)
    low, high = jnp.maximum(allowed.low, -radii), jnp.minimum(allowed.high, radii)
    return jnp.sum(_largest_gains(low, high, v, a), axis=0)


def l0_reach(allowed: Range, v: jax.Array, a: jax.Array, radii: jax.Array) -> jax.Array:
    """The reach of a number of pixels: those that gain the most, a fraction of the last.

    With several channels it is bounded by that of as many values as the pixels have.
    """
    if allowed.flips is not None:
        gains = allowed.flips.gains(v, a)
    else:
        gains = _largest_gains(allowed.low, allowed.high, v, a)
    return _knapsack(gains, jnp.ones_like(gains), radii * allowed.channels)


REACHES: dict[str, Reach] = {"l2": l2_reach, "linf": linf_reach, "l0": l0_reach}


def find_radius(
    norm: str, allowed: Range, v: jax.Array, a: jax.Array, gaps: jax.Array, largest: jax.Array
) -> jax.Array:
    """The smallest radius whose reach is the gap, at most `largest`, (N,).

    Args:
        norm: "l2", "linf" or "l0".
        allowed: The range of changes.
        v: (pixels, N), as in the module's docstring.
        a: (N,), as in the module's docstring.
        gaps: By how much the one cost is above the other, (N,).
        largest: (N,).
    """

    def too_small(radii: jax.Array) -> jax.Array:
        return REACHES[norm](allowed, v, a, radii) < gaps

    low = jnp.zeros_like(largest)
    return _bisect(too_small, low, largest, _NUM_BISECTIONS_OF_RADII)[0]


def _largest_gains(low: jax.Array, high: jax.Array, v: jax.Array, a: jax.Array) -> jax.Array:
    """The largest -2 v d - a d^2 with d between `low` and `high`."""

    def gain(d: jax.Array) -> jax.Array:
        return -2 * v * d - a * d**2

    ends = jnp.maximum(gain(low), gain(high))
    inner = lax.stop_gradient(jnp.clip(-v / jnp.maximum(a, 1e-9), low, high))
    return jnp.where(a > 0, gain(inner), ends)


def _knapsack(gains: jax.Array, costs: jax.Array, budgets: jax.Array) -> jax.Array:
    """The largest sum of gains whose costs are within the budget, fractions allowed, (N,).

    With a price t of the budget it is at most t B + sum of max(0, gain - t cost).
    """
    fixed = lax.stop_gradient(gains)
    finite = jnp.where(jnp.isfinite(costs), costs, 1.0)
    dearest = jnp.max(jnp.where(finite > 1e-6, fixed / jnp.maximum(finite, 1e-6), 0), axis=0)

    def too_low(price: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(fixed > price * finite, finite, 0), axis=0) > budgets

    price = _bisect(too_low, jnp.zeros_like(dearest), dearest, _NUM_BISECTIONS_OF_GAINS)[1]
    return price * budgets + jnp.sum(jnp.maximum(0, gains - price * finite), axis=0)


def _bisect(
    below: Callable[[jax.Array], jax.Array], low: jax.Array, high: jax.Array, count: int
) -> tuple[jax.Array, jax.Array]:
    """Ends of an interval around where `below` turns false."""

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        is_below = below(middle)
        return jnp.where(is_below, middle, low), jnp.where(is_below, high, middle)

    return lax.fori_loop(0, count, halve, (low, high))
