"""Analysis by synthesis: how well can each class's decoder explain an image?

The energy of class c is E_c(x) = min over z of ||x - G_c(z)||^2 + ||z||^2 / 2, in nats (Schott et
al. 2019, eq. 4 with the posterior's variance fixed to 1). The search starts at the best of many
samples from the prior, which all classes share and which are decoded once, and goes on with Adam.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax

from abs_model.class_axis import map_classes
from abs_model.vae import VAE

PyTree = Any
_DECODE_BATCH = 250


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """How latents are searched; the defaults are the paper's.

    Attributes:
        num_prior_samples: Candidates for the start, the same for all classes.
        num_steps: Iterations of Adam; the last one only evaluates, as in the authors' code.
        learning_rate: Adam's step size.
        max_norm: Latents are projected onto the ball of this radius after each step.
        seed: Of the prior samples.
    """

    num_prior_samples: int = 8000
    num_steps: int = 50
    learning_rate: float = 0.05
    max_norm: float = 5.0
    seed: int = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Generators:
    """The stacked VAEs and their decoded prior samples: all that inference needs.

    Attributes:
        state: (parameters, batch statistics) of all classes' VAEs, leading axis classes.
        latents: Prior samples, (samples, latent).
        decoded: The samples decoded by each class, (classes, pixels, samples), pixels in the order
            (channels, height, width).
        offsets: ||G_c(z)||^2 + ||z||^2 / 2 of each sample, (classes, samples).
        graphdef: Structure of one VAE.
    """

    state: PyTree
    latents: jax.Array
    decoded: jax.Array
    offsets: jax.Array
    graphdef: nnx.GraphDef = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inference:
    """What inference finds for N images and C classes.

    Attributes:
        energies: In nats, (N, C).
        latents: Where each class explains the image best, (N, C, latent).
        reconstructions: The explanations G_c(z), (N, C, height, width, channels).
    """

    energies: jax.Array
    latents: jax.Array
    reconstructions: jax.Array


def sample_prior(settings: SearchSettings, latent_size: int) -> jax.Array:
    """Of `num_prior_samples` / 0.9 latents, those of smallest norm: (samples, latent)."""
    drawn = -(-settings.num_prior_samples * 10 // 9)
    latents = jax.random.normal(jax.random.key(settings.seed), (drawn, latent_size))
    smallest = jnp.argsort(jnp.sum(latents**2, axis=1))[: settings.num_prior_samples]
    return latents[jnp.sort(smallest)]


def make_generators(graphdef: nnx.GraphDef, state: PyTree, latents: jax.Array) -> Generators:
    """Decodes the prior samples with every class's decoder (once per model).

    Args:
        graphdef: Structure of one VAE.
        state: (parameters, batch statistics), leading axis classes.
        latents: (samples, latent).
    """
    decoded, offsets = _decode_samples(graphdef, state, latents)
    return Generators(state, latents, decoded, offsets, graphdef)


@functools.partial(jax.jit, static_argnums=0)
def _decode_samples(
    graphdef: nnx.GraphDef, state: PyTree, latents: jax.Array
) -> tuple[jax.Array, jax.Array]:
    samples = latents.shape[0]
    padded = jnp.pad(latents, ((0, -samples % _DECODE_BATCH), (0, 0)))
    batches = padded.reshape(-1, _DECODE_BATCH, latents.shape[1])

    def decode_class(class_state: PyTree) -> jax.Array:
        vae = nnx.merge(graphdef, *class_state)
        decoded = lax.map(lambda z: vae.decode_batch_last(z.T).reshape(-1, len(z)), batches)
        return decoded.transpose(1, 0, 2).reshape(decoded.shape[1], -1)[:, :samples]

    decoded = map_classes(decode_class, state)
    offsets = jnp.sum(decoded**2, axis=1) + 0.5 * jnp.sum(latents**2, axis=1)
    return decoded, offsets


def infer(generators: Generators, images: jax.Array, settings: SearchSettings) -> Inference:
    """Searches, for every image and class, the latents that explain the image best.

    Energies are differentiable with respect to the images: at the optimum dE_c/dx =
    2 (x - G_c(z*)), because z* is a minimum (envelope theorem); the search is not differentiated.

    Args:
        generators: From `make_generators`.
        images: float32 (N, height, width, channels) in [0, 1].
        settings: How to search.
    """
    latents, reconstructions = _search(generators, lax.stop_gradient(images), settings)
    squared_errors = jnp.sum((images[:, None] - reconstructions) ** 2, axis=(2, 3, 4))
    energies = squared_errors + 0.5 * jnp.sum(latents**2, axis=2)
    return Inference(energies, latents, reconstructions)


def _search(
    generators: Generators, images: jax.Array, settings: SearchSettings
) -> tuple[jax.Array, jax.Array]:
    """Latents (N, C, latent) and reconstructions (N, C, height, width, channels)."""
    batch_last = images.transpose(3, 1, 2, 0)
    pixels = batch_last.reshape(-1, images.shape[0])

    def search_class(
        state: PyTree, decoded: jax.Array, offsets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        vae = nnx.merge(generators.graphdef, *state)
        energies = offsets - 2 * (pixels.T @ decoded)
        start = generators.latents[jnp.argmin(energies, axis=1)]
        latents = _descend(vae, start.T, batch_last, settings)
        return latents, vae.decode_batch_last(latents)

    found = map_classes(search_class, generators.state, generators.decoded, generators.offsets)
    latents, reconstructions = lax.stop_gradient(found)
    return latents.transpose(2, 0, 1), reconstructions.transpose(4, 0, 2, 3, 1)


def _descend(
    vae: VAE, latents: jax.Array, images: jax.Array, settings: SearchSettings
) -> jax.Array:
    """Adam on the energy from the given start; latents (latent, N), images (channels, h, w, N)."""
    adam = optax.adam(settings.learning_rate)

    def total_energy(z: jax.Array) -> jax.Array:
        return jnp.sum((images - vae.decode_batch_last(z)) ** 2) + 0.5 * jnp.sum(z**2)

    def step(_: int, carry: tuple[jax.Array, PyTree]) -> tuple[jax.Array, PyTree]:
        z, state = carry
        updates, state = adam.update(jax.grad(total_energy)(z), state)
        return _project(z + updates, settings.max_norm), state

    carry = (latents, adam.init(latents))
    return lax.fori_loop(0, settings.num_steps - 1, step, carry)[0]


def _project(latents: jax.Array, max_norm: float) -> jax.Array:
    """The nearest latents (latent, N) of norm at most `max_norm`."""
    norms = jnp.sqrt(jnp.sum(latents**2, axis=0))
    return latents * jnp.minimum(1, max_norm / jnp.maximum(norms, 1e-12))
