"""The ball that latents are searched in. All functions work on (latent, N), one column each."""

import jax
import jax.numpy as jnp


def project(latents: jax.Array, max_norm: float) -> jax.Array:
    """The nearest latents of norm at most `max_norm`."""
    norms = jnp.sqrt(jnp.sum(latents**2, axis=0))
    return latents * jnp.minimum(1, max_norm / jnp.maximum(norms, 1e-12))


def constraint_active(latents: jax.Array, gradients: jax.Array, max_norm: float) -> jax.Array:
    """Whether descent would leave the ball: on the sphere, with a gradient that points inwards."""
    on_sphere = jnp.sum(latents**2, axis=0) > max_norm**2 * (1 - 1e-5)
    return on_sphere & (jnp.sum(latents * gradients, axis=0) < 0)


def tangential(latents: jax.Array, vectors: jax.Array) -> jax.Array:
    """What is left of the vectors without their parts along the latents."""
    along = jnp.sum(latents * vectors, axis=0) / jnp.maximum(jnp.sum(latents**2, axis=0), 1e-12)
    return vectors - along * latents
