"""Solvers of min over z of ||x - G_c(z)||^2 + ||z||^2 / 2, one file per method.

- `Adam`: the paper's, for reproduction.
- `QuasiNewton`: many starts on a cheap surrogate of the decoder, then BFGS on the decoder.

A solver is a pytree whose leaves have a leading class axis. One class's slice of it is called with
pixels (pixels, N), in the order of its `decoder`, and returns `Found`; `refine` starts from latents
found before and what the solver remembers of them, and need only search where it is `wanted`, bool
(N,). `given` are the arrays that it did not compute itself.

A new method is a class here, a branch in `make_solver` and in `Solver`, its name and its fields in
`settings.py`, and these fields in `configs/abs.py` and their checks in `training/abs.py`; with
surrogates of the decoders, also a word in `building.py`.
"""

import functools

import jax
import jax.numpy as jnp

from abs_model.decoders import Decoder
from abs_model.solvers.adam import Adam, make_adam
from abs_model.solvers.found import Found
from abs_model.solvers.quasi_newton import QuasiNewton, make_quasi_newton
from abs_model.solvers.settings import SOLVERS, SearchSettings
from abs_model.solvers.surrogates import Surrogate

Solver = Adam | QuasiNewton

__all__ = [
    "SOLVERS",
    "Adam",
    "Found",
    "QuasiNewton",
    "SearchSettings",
    "Solver",
    "make_adam",
    "make_quasi_newton",
    "make_solver",
    "sample_prior",
]


def make_solver(
    settings: SearchSettings, decoder: Decoder, latent_size: int, surrogate: Surrogate | None
) -> Solver:
    """The solver of the settings.

    Args:
        settings: How to search.
        decoder: All classes' decoders.
        latent_size: Number of latent dimensions.
        surrogate: All classes' surrogates; only for "quasi_newton".

    Raises:
        ValueError: The solver needs a surrogate and there is none.
    """
    latents = sample_prior(settings, latent_size)
    if settings.solver == "adam":
        return make_adam(settings, decoder, latents)
    if surrogate is None:
        raise ValueError("solver 'quasi_newton' needs surrogate, got None")
    return make_quasi_newton(settings, decoder, surrogate, latents)


# One program instead of many small ones, half a second of compiling less.
@functools.partial(jax.jit, static_argnums=(0, 1))
def sample_prior(settings: SearchSettings, latent_size: int) -> jax.Array:
    """Of `num_prior_samples` / 0.9 latents, those of smallest norm: (samples, latent)."""
    drawn = -(-settings.num_prior_samples * 10 // 9)
    latents = jax.random.normal(jax.random.key(settings.seed), (drawn, latent_size))
    smallest = jnp.argsort(jnp.sum(latents**2, axis=1))[: settings.num_prior_samples]
    return latents[jnp.sort(smallest)]
