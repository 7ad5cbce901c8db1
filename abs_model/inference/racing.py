"""Which class explains an image best, without a full search of every class.

A class's surrogate estimates its energy at little cost: it gives the leading principal components
of what the decoder can draw, and how much of the image lies outside these is known. Of classes that
come close to winning, an estimate is hardly ever above the energy by more than a margin, which is
measured on training images. So a class is out of the race when its estimate, less the margin, is
above an energy of another class:

1. `first_look`: each class is estimated from a few starts. The decoder draws the best explanation,
   whose energy leaves a single class in the race for most images.
2. `decide`: where several are left, these are searched, as far as they may still win.

All energies are weighted by the class weights. The two are programs of their own, so that the
second is compiled only once an image needs it.
"""

import dataclasses
import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from abs_model._runtime.pytrees import register_dataclass
from abs_model._runtime.vectorize import map_chosen, map_classes
from abs_model.inference.solvers.settings import Solver

# Images of one class at a time: drawn, and searched. (Measured on 2 CPU cores.)
_NUM_DRAWN = 32
_NUM_SEARCHED = 16
# How often the estimate of a class in contention may be above its energy by more than the margin.
_MISS_RATE = 1e-5
# A class is in contention when its energy is at most this far above the lowest, in nats.
_IN_CONTENTION = 10.0
# Number of the largest errors that the margin is extrapolated from.
_NUM_LARGEST = 10
# A class is out of the race only when its energy is higher by more than this: as a multiple of the
# solver's tolerance, and relative to the lowest energy. Both are more than what leaves a decision
# open (`models.decisions`), so that close decisions are those of the full search.
_SLACK = 10.0
_RELATIVE_SLACK = 1e-4


@runtime_checkable
class RacingSolver(Solver, Protocol):
    """A solver that estimates energies; called as one class's slice of itself."""

    def estimate(self, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Estimated energies (N,) of pixels (pixels, N), and their latents (latent, N)."""

    def draw(self, pixels: jax.Array, latents: jax.Array) -> jax.Array:
        """Energies (N,) of latents (latent, N) for pixels (pixels, N)."""

    def search_below(self, pixels: jax.Array, highest: jax.Array, margin: jax.Array) -> jax.Array:
        """Energies (N,) of pixels (pixels, N).

        Where they are above `highest`, (N,), lower bounds of at least that: estimates less the
        margin, if these are higher.
        """


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Standings:
    """How a race stands after the first look at N images; weighted energies are what counts.

    Attributes:
        energies: Bounds, float32 (N, classes): from above of the leader's energy, from below of the
            others'.
        leads: Of each image the class that is ahead, bool (N, classes).
        left: The classes that may still win, bool (N, classes); none where the image is decided.
    """

    energies: jax.Array
    leads: jax.Array
    left: jax.Array


def first_look(
    solver: RacingSolver, images: jax.Array, class_weights: jax.Array, margin: jax.Array
) -> Standings:
    """Estimates every class, and draws the best explanation; that decides most images.

    Args:
        solver: All classes' solver.
        images: float32 (N, height, width, channels) in [0, 1].
        class_weights: Factors of the energies, (classes,).
        margin: By how much the solver's estimates may be above the energies, in nats.
    """
    pixels = solver.decoder.to_pixels(lax.stop_gradient(images))
    weights = class_weights[:, None]
    estimates, latents = map_classes(lambda one: one.estimate(pixels), solver)
    leads = jnp.argmin(weights * estimates, axis=0) == jnp.arange(len(weights))[:, None]

    def draw(one: RacingSolver, latents: jax.Array, chosen: jax.Array) -> jax.Array:
        return map_chosen(one.draw, chosen, pixels, latents, size=_NUM_DRAWN, default=jnp.inf)

    drawn = map_classes(draw, solver, latents, leads)
    drawn = jnp.where(jnp.isnan(drawn), jnp.inf, drawn)  # then every class is searched
    energies = jnp.where(leads, drawn, estimates - margin)
    left = leads | (weights * energies <= _highest(solver, energies, leads, weights))
    left &= jnp.sum(left, axis=0) > 1
    return Standings(energies.T, leads.T, left.T)


def decide(
    solver: RacingSolver,
    images: jax.Array,
    class_weights: jax.Array,
    margin: jax.Array,
    standings: Standings,
) -> jax.Array:
    """Searches the classes that are left, as far as they may still win.

    Args:
        solver: As for `first_look`, like all but the last.
        images: The same images.
        class_weights: Factors of the energies.
        margin: In nats.
        standings: What the first look found.

    Returns:
        Energies as far as they decide, float32 (N, classes): the lowest weighted one is an energy,
        or bounds it from above; others are energies, or bound them from below.
    """
    pixels = solver.decoder.to_pixels(lax.stop_gradient(images))
    energies, leads, left = standings.energies.T, standings.leads.T, standings.left.T
    highest = _highest(solver, energies, leads, class_weights[:, None])

    def search(one: RacingSolver, weight: jax.Array, chosen: jax.Array) -> jax.Array:
        def found(pixels: jax.Array, highest: jax.Array) -> jax.Array:
            return one.search_below(pixels, highest, margin)

        return map_chosen(
            found, chosen, pixels, highest / weight, size=_NUM_SEARCHED, default=jnp.inf
        )

    searched = map_classes(search, solver, class_weights, left)
    searched = jnp.where(leads, jnp.minimum(searched, energies), searched)
    return jnp.where(left, searched, energies).T


def _highest(
    solver: RacingSolver, energies: jax.Array, leads: jax.Array, weights: jax.Array
) -> jax.Array:
    """Weighted energies above this lose, (N,); arguments (classes, N), weights (classes, 1)."""
    lowest = jnp.min(jnp.where(leads, weights * energies, jnp.inf), axis=0)
    return lowest * (1 + _RELATIVE_SLACK) + _SLACK * solver.settings.tolerance * jnp.max(weights)


def estimation_errors(solver: RacingSolver, images: jax.Array, energies: jax.Array) -> jax.Array:
    """By how much the solver's estimates are above the energies, (N, classes)."""
    pixels = solver.decoder.to_pixels(images)
    estimates, _ = map_classes(lambda one: one.estimate(pixels), solver)
    return estimates.T - energies


def fit_margin(errors: Any, weighted_energies: Any) -> float:
    """The margin that 1 in 100,000 estimates exceed, of classes in contention; in nats, at least 0.

    There are too few of these to see it. So the tail is taken to be exponential beyond the ten
    largest errors, or a tenth of all if that is fewer, at the rate at which it falls over the
    factor of ten before these.

    Args:
        errors: See `estimation_errors`, (N, classes).
        weighted_energies: In nats, (N, classes).
    """
    energies = np.asarray(weighted_energies, np.float64)
    contending = energies <= energies.min(axis=1, keepdims=True) + _IN_CONTENTION
    errors = np.asarray(errors, np.float64)[contending]
    share = min(_NUM_LARGEST / len(errors), 0.1)
    here, before = np.quantile(errors, [1 - share, 1 - 10 * share])
    decades = max(0.0, math.log10(share / _MISS_RATE))
    return max(0.0, float(here + decades * (here - before)))
