"""The paper's solver: the best of many prior samples, decoded once, then Adam."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from abs_model._runtime.pytrees import register_dataclass
from abs_model._runtime.vectorize import map_chunks, map_classes
from abs_model.inference.solvers.norm_ball import project
from abs_model.inference.solvers.settings import SearchSettings, register_solver
from abs_model.inference.solvers.solution import Solution
from abs_model.inference.solvers.surrogates import Surrogate
from abs_model.models.decoders import Decoder

PyTree = Any
_DECODE_BATCH = 250


@dataclasses.dataclass(frozen=True)
class AdamSettings(SearchSettings):
    """The paper's settings.

    Attributes:
        num_steps: Iterations; the last one only evaluates, as in the authors' code.
        learning_rate: Step size.
    """

    num_steps: int = 50
    learning_rate: float = 0.05


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Adam:
    """Schott et al. 2019, appendix.

    Attributes:
        decoder: All classes' decoders.
        latents: Prior samples, (classes, samples, latent); the same for all classes.
        decoded: The samples decoded by each class, (classes, pixels, samples).
        offsets: ||G_c(z)||^2 + ||z||^2 / 2 of each sample, (classes, samples).
        settings: How to search.
    """

    decoder: Decoder
    latents: jax.Array
    decoded: jax.Array
    offsets: jax.Array
    settings: AdamSettings = dataclasses.field(metadata={"static": True})

    def __call__(self, pixels: jax.Array) -> Solution:
        """The best explanations of pixels (pixels, N) by one class; remembers nothing."""
        scores = self.offsets[:, None] - 2 * (self.decoded.T @ pixels)
        start = self.latents[jnp.argmin(scores, axis=0)].T
        return map_chunks(self._descend, start, pixels)

    def refine(
        self, pixels: jax.Array, start: jax.Array, solver_state: tuple[()], searched: jax.Array
    ) -> Solution:
        """From latents (latent, N) on; takes `num_steps` for all of them, `searched` or not."""
        del solver_state, searched
        return map_chunks(self._descend, start, pixels)

    @property
    def fingerprint_arrays(self) -> PyTree:
        """See `Classifier.fingerprint_arrays`; the samples come from the settings' seed."""
        return self.decoder.fingerprint_arrays

    def _descend(self, latents: jax.Array, pixels: jax.Array) -> Solution:
        adam = optax.adam(self.settings.learning_rate)

        def total_energy(z: jax.Array) -> jax.Array:
            return jnp.sum((pixels - self.decoder(z)) ** 2) + 0.5 * jnp.sum(z**2)

        def step(
            _: int, carry: tuple[jax.Array, optax.OptState]
        ) -> tuple[jax.Array, optax.OptState]:
            z, state = carry
            updates, state = adam.update(jax.grad(total_energy)(z), state)
            return project(z + updates, self.settings.max_norm), state

        carry = (latents, adam.init(latents))
        latents, _ = lax.fori_loop(0, self.settings.num_steps - 1, step, carry)
        return Solution(latents, self.decoder(latents))


@register_solver("adam", AdamSettings)
def make_adam(
    settings: AdamSettings, decoder: Decoder, latents: jax.Array, surrogate: Surrogate | None = None
) -> Adam:
    """Decodes the prior samples with every class's decoder (once per model).

    Args:
        settings: How to search.
        decoder: All classes' decoders.
        latents: Prior samples, (samples, latent).
        surrogate: Not needed.
    """
    del surrogate
    decoded, offsets = _decode_samples(decoder, latents)
    shared = jnp.broadcast_to(latents, (len(decoded), *latents.shape))
    return Adam(decoder, shared, decoded, offsets, settings)


@jax.jit
def _decode_samples(decoder: Decoder, latents: jax.Array) -> tuple[jax.Array, jax.Array]:
    def decode_class(decode: Decoder) -> jax.Array:
        return map_chunks(decode, latents.T, size=_DECODE_BATCH)

    decoded = map_classes(decode_class, decoder)
    offsets = jnp.sum(decoded**2, axis=1) + 0.5 * jnp.sum(latents**2, axis=1)
    return decoded, offsets
