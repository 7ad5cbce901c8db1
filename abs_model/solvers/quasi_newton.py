"""A second-order solver: many starts on a surrogate of the decoder, then BFGS on the decoder.

For each class: the best prior samples by the surrogate's energy start BFGS on the surrogate, which
is cheap; the distinct minima found there, with their inverse Hessians, start BFGS on the decoder.
Few evaluations are needed there, but how many differs from image to image, so the decoder works
through a list: a fixed number of the most promising minima at a time, until none has far to fall.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from abs_model.decoders import Decoder
from abs_model.mapping import chunk_size, map_classes
from abs_model.solvers import bfgs
from abs_model.solvers.ball import project
from abs_model.solvers.settings import SearchSettings
from abs_model.solvers.surrogates import Surrogate

# Points, expected decreases, evaluations so far, priorities.
_Work = tuple[bfgs.Iterate, jax.Array, jax.Array, jax.Array]
_SURROGATE_STEPS = 8
# Prior samples are spread by factors from 1 to this: the latents that explain another class's
# images lie farther out than most samples.
_SPREAD = 1.6
# Points nearer to each other than this, in latent units, lead to the same minimum: those on the
# surrogate, which have not converged, and those on the decoder.
_SAME_ON_SURROGATE = 0.6
_SAME = 0.1
# A minimum whose energy on the surrogate is higher than the best one's by more, in nats, is left.
_SURROGATE_MARGIN = 6.0
# A minimum is given up once this many times its expected decrease would not make it the best.
_OPTIMISM = 4.0


@jax.tree_util.register_dataclass
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
    settings: SearchSettings = dataclasses.field(metadata={"static": True})

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """One class's latents (latent, N) for pixels (pixels, N)."""
        return self.polish(pixels, self.surrogate_minima(pixels))[0]

    def refine(self, pixels: jax.Array, start: jax.Array, wanted: jax.Array) -> jax.Array:
        """From latents (latent, N) on, where `wanted`, (N,)."""
        # The minimum is near the start; only the curvature is taken from the surrogate.
        near = self._descend_surrogate(start, self.surrogate.project(pixels))
        energies = jnp.where(wanted, 0.0, jnp.inf)
        candidates = dataclasses.replace(near, latents=start, energies=energies)
        return jnp.where(wanted, self.polish(pixels, candidates)[0], start)

    def surrogate_minima(self, pixels: jax.Array) -> bfgs.Iterate:
        """The distinct minima on the surrogate, best first: num_minima * N columns, images fastest.

        Energies are infinite where an image has fewer.

        Args:
            pixels: (pixels, N).
        """
        targets = self.surrogate.project(pixels)
        starts = self._best_samples(targets)
        repeated = jnp.tile(targets, (1, starts.shape[1]))
        found = self._descend_surrogate(starts.reshape(len(starts), -1), repeated)
        return _distinct(found, targets.shape[1], self.settings.num_minima)

    def _descend_surrogate(self, latents: jax.Array, targets: jax.Array) -> bfgs.Iterate:
        def step(_: int, now: bfgs.Iterate) -> bfgs.Iterate:
            return bfgs.step(self.surrogate, targets, now, self.settings.max_norm)

        return lax.fori_loop(0, _SURROGATE_STEPS, step, bfgs.unevaluated(latents))

    def _best_samples(self, targets: jax.Array) -> jax.Array:
        """Of each share of the prior samples the best by the surrogate: (latent, starts, N)."""
        num_starts = min(self.settings.num_starts, len(self.latents))
        share = len(self.latents) // num_starts
        latents = self.latents[: num_starts * share]
        components = self.components[:, : num_starts * share]
        offsets = jnp.sum(components**2, axis=0) + 0.5 * jnp.sum(latents**2, axis=1)
        scores = offsets[:, None] - 2 * (components.T @ targets)
        best = jnp.argmin(scores.reshape(num_starts, share, -1), axis=1)
        return latents[best + share * jnp.arange(num_starts)[:, None]].transpose(2, 0, 1)

    def polish(self, pixels: jax.Array, candidates: bfgs.Iterate) -> tuple[jax.Array, jax.Array]:
        """BFGS on the decoder from each image's candidates.

        Args:
            pixels: (pixels, N).
            candidates: Any multiple of N columns, images fastest, with energies on the surrogate;
                those of infinite energy are left alone.

        Returns:
            The best latents, (latent, N), and how often each candidate was evaluated, (columns,).
        """
        settings = self.settings
        count, columns = pixels.shape[1], len(candidates.energies)
        size = chunk_size(columns)

        def across(per_image: jax.Array) -> jax.Array:
            return jnp.tile(per_image, columns // count)

        def lowest(energies: jax.Array) -> jax.Array:
            return across(energies.reshape(-1, count).min(axis=0))

        promising = candidates.energies <= lowest(candidates.energies) + _SURROGATE_MARGIN
        promising &= jnp.isfinite(candidates.energies)

        def prioritise(
            now: bfgs.Iterate, decreases: jax.Array, evaluations: jax.Array
        ) -> jax.Array:
            """How far energies may fall: infinite before the first evaluation, 0 when done."""
            leaders = _leaders(now.energies, count)
            leads = jnp.arange(columns) == across(leaders)
            apart = jnp.sum((now.latents - across(now.latents[:, leaders])) ** 2, axis=0) > _SAME**2
            unfinished = (decreases > settings.tolerance) & (evaluations < settings.max_evaluations)
            unfinished &= leads | apart
            forecasts = jnp.where(unfinished, now.energies - decreases, now.energies)
            hopeful = now.energies - _OPTIMISM * decreases < lowest(forecasts)
            priorities = jnp.where(unfinished & (leads | hopeful), decreases, 0)
            return jnp.where(promising, jnp.where(evaluations == 0, jnp.inf, priorities), 0)

        def work(carry: _Work) -> _Work:
            now, decreases, evaluations, priorities = carry
            _, chosen = lax.top_k(priorities, size)
            # Near the end of the list some are chosen only to fill up; these stay as they are.
            busy = priorities[chosen] > 0
            old = jax.tree.map(lambda leaf: leaf[..., chosen], now)
            new = bfgs.step(self.decoder, pixels[:, chosen % count], old, settings.max_norm)
            new = jax.tree.map(lambda after, before: jnp.where(busy, after, before), new, old)
            now = jax.tree.map(lambda leaf, part: leaf.at[..., chosen].set(part), now, new)
            decreases = decreases.at[chosen].set(bfgs.expected_decrease(new))
            evaluations = evaluations.at[chosen].add(busy)
            return now, decreases, evaluations, prioritise(now, decreases, evaluations)

        now = bfgs.unevaluated(candidates.latents, candidates.inverse_hessians)
        decreases, evaluations = jnp.zeros(columns), jnp.zeros(columns, int)
        carry = (now, decreases, evaluations, prioritise(now, decreases, evaluations))
        now, _, evaluations, _ = lax.while_loop(lambda carry: jnp.any(carry[3] > 0), work, carry)
        return now.latents[:, _leaders(now.energies, count)], evaluations


def make_quasi_newton(
    settings: SearchSettings, decoder: Decoder, surrogate: Surrogate, latents: jax.Array
) -> QuasiNewton:
    """Spreads the prior samples and puts them through the surrogates (once per model).

    Args:
        settings: How to search.
        decoder: All classes' decoders.
        surrogate: All classes' surrogates.
        latents: Prior samples, (samples, latent).
    """
    spread = jnp.linspace(1, _SPREAD, len(latents))[:, None]
    latents = project((spread * latents).T, settings.max_norm).T
    components = map_classes(lambda one: one(latents.T), surrogate)
    shared = jnp.broadcast_to(latents, (len(components), *latents.shape))
    return QuasiNewton(decoder, surrogate, shared, components, settings)


def _leaders(energies: jax.Array, count: int) -> jax.Array:
    """The column of each image's lowest energy, (N,), of columns with images fastest."""
    return jnp.argmin(energies.reshape(-1, count), axis=0) * count + jnp.arange(count)


def _distinct(now: bfgs.Iterate, count: int, num_minima: int) -> bfgs.Iterate:
    """The best `num_minima` points of each image that lie apart, images fastest."""
    split = jax.tree.map(lambda leaf: leaf.reshape(*leaf.shape[:-1], -1, count), now)
    energies = split.energies
    taken = []
    for _ in range(min(num_minima, len(energies))):
        best = jnp.argmin(energies, axis=0)[None]
        one = jax.tree.map(
            lambda leaf, i=best: jnp.take_along_axis(
                leaf, i.reshape((1,) * (leaf.ndim - 2) + i.shape), axis=-2
            )[..., 0, :],
            split,
        )
        taken.append(dataclasses.replace(one, energies=energies.min(axis=0)))
        apart = jnp.sum((split.latents - one.latents[:, None]) ** 2, axis=0) > _SAME_ON_SURROGATE**2
        energies = jnp.where(apart, energies, jnp.inf)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=-2), *taken)
    return jax.tree.map(lambda leaf: leaf.reshape(*leaf.shape[:-2], -1), stacked)
