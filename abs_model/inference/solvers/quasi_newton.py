"""A second-order solver: many starts on a surrogate of the decoder, then BFGS on the decoder.

For each class: the best prior samples by the surrogate's energy start BFGS on the surrogate, which
is cheap. The distinct minima found there, with their inverse Hessians, start BFGS on the decoder;
so do some points on the path to them, because the decoder has minima that the surrogate lacks.
"""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import lax

from abs_model._runtime.pytrees import register_dataclass
from abs_model._runtime.vectorize import map_classes
from abs_model.inference.solvers import bfgs
from abs_model.inference.solvers.multistart import MultistartResult, MultistartSettings, polish
from abs_model.inference.solvers.norm_ball import project
from abs_model.inference.solvers.settings import register_solver
from abs_model.inference.solvers.solution import Solution
from abs_model.inference.solvers.surrogates import Surrogate
from abs_model.models.decoders import Decoder

PyTree = Any
# On the surrogate: steps of all starts, and further ones of those that lie apart then. The first
# step only evaluates; the points on the path are those before the last step of all starts.
SURROGATE_STEPS = (6, 6)
# Prior samples are spread by factors from 1 to this: the latents that explain another class's
# images lie farther out than most samples.
_SPREAD = 1.6
# Points nearer to each other than this on the surrogate, in latent units, lead to the same minimum,
# though they have not converged.
_SAME_ON_SURROGATE = 1.0
# A candidate whose energy on the surrogate is above the best one's by more, in nats, is dropped.
_SURROGATE_MARGIN = 6.0
# Points on the path are dropped when nearer to the best minimum than this, in latent units, or
# when their energy on the surrogate is higher by more than this, in nats.
_ON_PATH_DISTANCE = 0.5
_ON_PATH_MARGIN = 4.0
# Starts and steps of an estimate of the energy, which takes fewer than a search.
_ESTIMATE_STARTS = 2
_ESTIMATE_STEPS = 5
# Share of the Gauss-Newton approximation in the inverse Hessian that BFGS on the decoder starts
# from; the rest is what BFGS on the surrogate has learned. Either alone takes more evaluations.
_GAUSS_NEWTON_SHARE = 0.75


@dataclasses.dataclass(frozen=True)
class QuasiNewtonSettings(MultistartSettings):
    """Where BFGS on the decoder starts.

    Attributes:
        num_starts: Starts of the search on the surrogate, each the best sample of an equal share of
            the prior samples.
        num_minima: How many of these are followed to their minima on the surrogate and then start
            BFGS on the decoder, at most.
        num_path_starts: Maximum number of intermediate points that also start BFGS.
    """

    num_starts: int = 8
    num_minima: int = 4
    num_path_starts: int = 4

    def thorough(self) -> Self:
        return dataclasses.replace(
            self, num_starts=32, num_minima=32, num_path_starts=16, max_evaluations=200,
            tolerance=1e-4,
        )  # fmt: skip


@register_dataclass
@dataclasses.dataclass(frozen=True)
class QuasiNewton:
    """BFGS from several starts.

    Attributes:
        decoder: All classes' decoders.
        surrogate: All classes' surrogates.
        latents: Prior samples, spread, (classes, samples, latent); the same for all classes.
        components: The samples through each class's surrogate, (classes, components, samples).
        settings: How to search.
    """

    decoder: Decoder
    surrogate: Surrogate
    latents: jax.Array
    components: jax.Array
    settings: QuasiNewtonSettings = dataclasses.field(metadata={"static": True})

    def __call__(self, pixels: jax.Array) -> Solution:
        """The best explanations of pixels (pixels, N) by one class; remembers curvatures."""
        return _found(self.search(pixels))

    def search(self, pixels: jax.Array) -> MultistartResult:
        """The same, with the numbers of evaluations."""
        candidates = _promising(self._candidates(pixels), pixels.shape[1])
        return polish(self.decoder, pixels, candidates, self.settings)

    def refine(
        self, pixels: jax.Array, start: jax.Array, solver_state: jax.Array, searched: jax.Array
    ) -> Solution:
        """From latents (latent, N) and inverse Hessians (latent, latent, N) on, where `searched`,
        (N,); elsewhere what returns is not meant to be used."""
        candidates = dataclasses.replace(
            bfgs.initial_iterate(start, solver_state), energies=jnp.where(searched, 0.0, jnp.inf)
        )
        return _found(polish(self.decoder, pixels, candidates, self.settings))

    def estimate(self, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Estimated energies (N,) of pixels (pixels, N) by one class, and their latents.

        From fewer starts, and in fewer steps, than the search on the surrogate takes.
        """
        targets = self.surrogate.project(pixels)
        starts = self._best_samples(targets, _ESTIMATE_STARTS)
        begun = bfgs.initial_iterate(starts.reshape(len(starts), -1))
        reached, _ = self._descend(begun, targets, _ESTIMATE_STEPS)
        found = _distinct(reached, pixels.shape[1], 1)
        return found.energies + self.surrogate.outside(pixels, targets), found.latents

    def draw(self, pixels: jax.Array, latents: jax.Array) -> jax.Array:
        """Energies (N,) of latents (latent, N) for pixels (pixels, N) by one class."""
        return bfgs.energies(self.decoder(latents), pixels, latents)

    def search_below(self, pixels: jax.Array, highest: jax.Array, margin: jax.Array) -> jax.Array:
        """Energies (N,) of pixels (pixels, N), or lower bounds of those above `highest`, (N,)."""
        count = pixels.shape[1]
        candidates = self._candidates(pixels)
        estimates = _lowest(candidates, count)
        estimates += self.surrogate.outside(pixels, self.surrogate.project(pixels))
        bounds = estimates - margin
        candidates = _promising(candidates, count)
        wanted = jnp.tile(bounds <= highest, len(candidates.energies) // count)
        candidates = dataclasses.replace(
            candidates, energies=jnp.where(wanted, candidates.energies, jnp.inf)
        )
        found = polish(self.decoder, pixels, candidates, self.settings, limits=highest)
        lowest = _lowest(found.iterate, count)
        return jnp.where(lowest <= highest, lowest, jnp.maximum(bounds, highest))

    @property
    def fingerprint_arrays(self) -> PyTree:
        """See `Classifier.fingerprint_arrays`; the samples come from the settings' seed."""
        return self.surrogate, self.decoder.fingerprint_arrays

    def _candidates(self, pixels: jax.Array) -> bfgs.Iterate:
        """Where BFGS on the decoder may start: (num_minima + num_path_starts) * N columns, images
        fastest, with energies on the surrogate; infinite where an image has fewer."""
        settings = self.settings
        targets = self.surrogate.project(pixels)
        count = targets.shape[1]
        starts = self._best_samples(targets, settings.num_starts)
        begun = bfgs.initial_iterate(starts.reshape(len(starts), -1))
        reached, on_path = self._descend(begun, targets, SURROGATE_STEPS[0])
        apart = _distinct(reached, count, settings.num_minima)
        minima, _ = self._descend(apart, targets, SURROGATE_STEPS[1])
        exists = jnp.isfinite(apart.energies)
        minima = dataclasses.replace(minima, energies=jnp.where(exists, minima.energies, jnp.inf))
        minima = _distinct(minima, count, settings.num_minima)
        minima = self._with_curvature(minima, count)
        on_path = _distinct(on_path, count, settings.num_path_starts)
        best = jax.tree.map(
            lambda leaf: jnp.tile(
                leaf[..., :count], (1,) * (leaf.ndim - 1) + (settings.num_path_starts,)
            ),
            minima,
        )
        distances = jnp.sqrt(jnp.sum((on_path.latents - best.latents) ** 2, axis=0))
        near_in_energy = on_path.energies < best.energies + _ON_PATH_MARGIN
        useful = (distances > _ON_PATH_DISTANCE) & near_in_energy
        # The minimum's inverse Hessian is better than their own, after few steps.
        on_path = dataclasses.replace(
            on_path,
            energies=jnp.where(useful, on_path.energies, jnp.inf),
            inverse_hessians=best.inverse_hessians,
        )
        return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=-1), minima, on_path)

    def _with_curvature(self, minima: bfgs.Iterate, count: int) -> bfgs.Iterate:
        """The minima; to inverse Hessians of the first `count`, each image's best, Gauss-Newton's
        are mixed in.

        Gauss-Newton takes the surrogate G for linear: the energy's Hessian is 2 J^T J + 1, with the
        Jacobian J of G (Nocedal & Wright 2006, section 10.3).
        """
        latents = minima.latents[:, :count]
        size = len(latents)
        directions = jnp.repeat(jnp.eye(size), count, axis=1)
        _, slopes = jax.jvp(self.surrogate, (jnp.tile(latents, (1, size)),), (directions,))
        jacobians = slopes.reshape(-1, size, count)
        hessians = 2 * jnp.einsum("cin,cjn->ijn", jacobians, jacobians)
        inverse = bfgs.inverse_of_definite(hessians + jnp.eye(size)[:, :, None])
        learned = minima.inverse_hessians
        mixed = learned[..., :count] + _GAUSS_NEWTON_SHARE * (inverse - learned[..., :count])
        return dataclasses.replace(minima, inverse_hessians=learned.at[..., :count].set(mixed))

    def _descend(
        self, now: bfgs.Iterate, targets: jax.Array, num_steps: int
    ) -> tuple[bfgs.Iterate, bfgs.Iterate]:
        """BFGS on the surrogate: after the last step, and with latents and energies before it.

        Targets are (components, N); points are any multiple of N columns.
        """
        repeated = jnp.tile(targets, (1, len(now.energies) // targets.shape[1]))

        def step(_: int, carry: tuple[bfgs.Iterate, Any]) -> tuple[bfgs.Iterate, Any]:
            now = carry[0]
            after = bfgs.step(self.surrogate, repeated, now, self.settings.max_norm)[0]
            return after, (now.latents, now.energies)

        start = now, (now.latents, now.energies)
        after, (latents, energies) = lax.fori_loop(0, num_steps, step, start)
        return after, dataclasses.replace(after, latents=latents, energies=energies)

    def _best_samples(self, targets: jax.Array, most: int) -> jax.Array:
        """The best of each share of the prior samples, by the surrogate: (latent, starts, N)."""
        num_starts = min(most, len(self.latents))
        share = len(self.latents) // num_starts
        latents = self.latents[: num_starts * share]
        components = self.components[:, : num_starts * share]
        offsets = jnp.sum(components**2, axis=0) + 0.5 * jnp.sum(latents**2, axis=1)
        scores = offsets[:, None] - 2 * (components.T @ targets)
        scores = scores.reshape(num_starts, share, -1)
        # The first of the lowest; XLA vectorizes two passes of min, but not argmin (CPU).
        lowest = scores.min(axis=1, keepdims=True)
        best = jnp.where(scores == lowest, jnp.arange(share)[:, None], share - 1).min(axis=1)
        return latents[best + share * jnp.arange(num_starts)[:, None]].transpose(2, 0, 1)


@register_solver("quasi_newton", QuasiNewtonSettings, needs_surrogate=True)
def make_quasi_newton(
    settings: QuasiNewtonSettings, decoder: Decoder, latents: jax.Array, surrogate: Surrogate | None
) -> QuasiNewton:
    """Spreads the prior samples and puts them through the surrogates (once per model).

    Args:
        settings: How to search.
        decoder: All classes' decoders.
        latents: Prior samples, (samples, latent).
        surrogate: All classes' surrogates.

    Raises:
        ValueError: There are none.
    """
    if surrogate is None:
        raise ValueError("solver 'quasi_newton' needs surrogate, got None")
    shared, components = _spread(surrogate, latents, settings.max_norm)
    return QuasiNewton(decoder, surrogate, shared, components, settings)


@jax.jit
def _spread(
    surrogate: Surrogate, latents: jax.Array, max_norm: float
) -> tuple[jax.Array, jax.Array]:
    spread = jnp.linspace(1, _SPREAD, len(latents))[:, None]
    latents = project((spread * latents).T, max_norm).T
    components = map_classes(lambda one: one(latents.T), surrogate)
    return jnp.broadcast_to(latents, (len(components), *latents.shape)), components


def _found(polished: MultistartResult) -> Solution:
    return Solution(polished.latents, polished.decoded, polished.inverse_hessians)


def _lowest(points: bfgs.Iterate, count: int) -> jax.Array:
    """The lowest energy of each image's points, (count,)."""
    return points.energies.reshape(-1, count).min(axis=0)


def _promising(candidates: bfgs.Iterate, count: int) -> bfgs.Iterate:
    """Candidates with infinite energies for those far above the image's best on the surrogate."""
    highest = jnp.tile(
        _lowest(candidates, count) + _SURROGATE_MARGIN, len(candidates.energies) // count
    )
    energies = jnp.where(candidates.energies <= highest, candidates.energies, jnp.inf)
    return dataclasses.replace(candidates, energies=energies)


def _distinct(now: bfgs.Iterate, count: int, most: int) -> bfgs.Iterate:
    """The best of each image's points that lie apart: `most` * count columns, images fastest.

    Where an image has fewer, the rest have infinite energy.
    """
    latents = now.latents.reshape(len(now.latents), -1, count)
    images = jnp.arange(count)

    def take(energies: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        best = jnp.argmin(energies, axis=0)
        distances = jnp.sum((latents - latents[:, best, images][:, None]) ** 2, axis=0)
        left = jnp.where(distances > _SAME_ON_SURROGATE**2, energies, jnp.inf)
        return left, (best * count + images, energies.min(axis=0))

    _, (columns, energies) = lax.scan(take, now.energies.reshape(-1, count), length=most)
    found = jax.tree.map(lambda leaf: leaf[..., columns.reshape(-1)], now)
    return dataclasses.replace(found, energies=energies.reshape(-1))
