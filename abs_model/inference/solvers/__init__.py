"""Solvers of min over z of ||x - G_c(z)||^2 + ||z||^2 / 2, one file per method.

- `Adam`: the paper's, for reproduction.
- `QuasiNewton`: many starts on a cheap surrogate of the decoder, then BFGS on the decoder.

A solver (`settings.Solver`) is one file: its class, the dataclass of its settings, and the function
that makes it, which `register_solver` declares. The configuration's section `inference` has the
fields of all solvers' settings, with their defaults.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from abs_model.inference.solvers.adam import Adam, AdamSettings, make_adam
from abs_model.inference.solvers.quasi_newton import (
    QuasiNewton,
    QuasiNewtonSettings,
    make_quasi_newton,
)
from abs_model.inference.solvers.settings import (
    SOLVERS,
    SearchSettings,
    Solver,
    SolverInfo,
    register_solver,
)
from abs_model.inference.solvers.solution import Solution
from abs_model.inference.solvers.surrogates import Surrogate, SurrogateSettings
from abs_model.models.decoders import Decoder

__all__ = [
    "SOLVERS",
    "Adam",
    "AdamSettings",
    "QuasiNewton",
    "QuasiNewtonSettings",
    "SearchSettings",
    "Solution",
    "Solver",
    "SolverInfo",
    "default_settings",
    "default_surrogate_settings",
    "find_solver",
    "make_adam",
    "make_quasi_newton",
    "make_solver",
    "read_settings",
    "register_solver",
    "sample_prior",
]


def default_settings() -> dict[str, Any]:
    """The settings of all solvers by name, with their defaults."""
    return {
        field.name: field.default
        for info in SOLVERS.values()
        for field in dataclasses.fields(info.settings)
    }


def default_surrogate_settings() -> dict[str, Any]:
    """The settings of surrogates by name, but `max_norm`, which is that of the search."""
    fields = dataclasses.fields(SurrogateSettings)
    return {field.name: field.default for field in fields if field.name != "max_norm"}


def read_settings(solver: str, fields: Mapping[str, Any]) -> SearchSettings:
    """The settings of a solver.

    Args:
        solver: Its name.
        fields: Settings of any solvers by name; its own ones count.

    Raises:
        ValueError: There is no such solver, or a setting is invalid.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}; got {solver!r}")
    settings = SOLVERS[solver].settings
    names = {field.name for field in dataclasses.fields(settings)}
    return settings(**{name: value for name, value in fields.items() if name in names})


def find_solver(settings: SearchSettings) -> SolverInfo:
    """The solver that the settings are of.

    Raises:
        ValueError: They are not of the class of any solver's settings.
    """
    for info in SOLVERS.values():
        if type(settings) is info.settings:
            return info
    known = ", ".join(info.settings.__name__ for info in SOLVERS.values())
    raise ValueError(f"settings must be {known}; got {type(settings).__name__}")


def make_solver(
    settings: SearchSettings, decoder: Decoder, latent_size: int, surrogate: Surrogate | None
) -> Solver:
    """The solver of the settings.

    Args:
        settings: How to search.
        decoder: All classes' decoders.
        latent_size: Number of latent dimensions.
        surrogate: All classes' surrogates, if the solver needs them.

    Raises:
        ValueError: The solver needs a surrogate and there is none.
    """
    latents = sample_prior(settings, latent_size)
    return find_solver(settings).make(settings, decoder, latents, surrogate)


# One program instead of many small ones, half a second of compiling less.
@functools.partial(jax.jit, static_argnums=(0, 1))
def sample_prior(settings: SearchSettings, latent_size: int) -> jax.Array:
    """The latents of smallest norm of `num_prior_samples` / 0.9 draws, (samples, latent)."""
    drawn = -(-settings.num_prior_samples * 10 // 9)
    latents = jax.random.normal(jax.random.key(settings.seed), (drawn, latent_size))
    smallest = jnp.argsort(jnp.sum(latents**2, axis=1))[: settings.num_prior_samples]
    return latents[jnp.sort(smallest)]
