"""How latents are searched: what all solvers have in common, and the solvers by name."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, Self

import jax

from abs_model._runtime.registries import is_redefinition
from abs_model.inference.solvers.solution import Solution
from abs_model.inference.solvers.surrogates import Surrogate
from abs_model.models.decoders import Decoder

PyTree = Any


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """Settings of every solver; each solver's own ones are in its file.

    Attributes:
        num_prior_samples: Candidates for the start, the same for all classes.
        max_norm: Latents stay in the ball of this radius.
        seed: Of the prior samples.
        tolerance: In nats: how far above its minimum the search may leave an energy, which
            decisions allow for (`abs_model.models.decisions`).

    Raises:
        ValueError: A count is below 1, or a number is not above 0.
    """

    num_prior_samples: int = 8000
    max_norm: float = 5.0
    seed: int = 0
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "seed" and not value > 0:
                least = "at least 1" if field.type is int else "above 0"
                raise ValueError(f"{field.name} must be {least}, got {value}")

    def thorough(self) -> Self | None:
        """Settings with which hardly anything is left to be found; None if there are none."""
        return None


class Solver(Protocol):
    """What `inference.energy` needs: a pytree whose leaves have a leading class axis.

    It is called as one class's slice of itself.
    """

    decoder: Decoder
    settings: Any  # of the solver's own class, which a protocol's attribute can't narrow

    def __call__(self, pixels: jax.Array) -> Solution:
        """The best explanations of pixels (pixels, N), in the order of the decoder."""

    def refine(
        self, pixels: jax.Array, start: jax.Array, solver_state: Any, searched: jax.Array
    ) -> Solution:
        """The same, from latents (latent, N) found before and the solver's state there.

        Only columns where `searched`, bool (N,), must be searched.
        """

    @property
    def fingerprint_arrays(self) -> PyTree:
        """The arrays that the solver did not compute itself."""


# From settings, decoder, prior samples (samples, latent), and surrogates if it needs them.
MakeSolver = Callable[[Any, Decoder, jax.Array, Surrogate | None], Any]


@dataclasses.dataclass(frozen=True)
class SolverInfo:
    """A solver, as it declares itself.

    Attributes:
        make: Makes it.
        settings: The class of its settings, whose fields are those of the configuration.
        needs_surrogate: Whether it needs surrogates of the decoders.
    """

    make: MakeSolver
    settings: type[SearchSettings]
    needs_surrogate: bool


SOLVERS: dict[str, SolverInfo] = {}


def register_solver(
    name: str, settings: type[SearchSettings], *, needs_surrogate: bool = False
) -> Callable[[MakeSolver], MakeSolver]:
    """Declares the function that it decorates as what makes the solver of that name.

    Raises:
        ValueError: There is another solver of that name; a setting is neither an integer nor a
            float, or another solver has one of that name with another default or type.
    """
    others = {other: info for other, info in SOLVERS.items() if other != name}
    for field in dataclasses.fields(settings):
        if field.type not in (int, float):
            raise ValueError(f"setting {field.name!r} must be an int or a float, got {field.type}")
        for other, info in others.items():
            for known in dataclasses.fields(info.settings):
                if known.name == field.name and (known.type, known.default) != (
                    field.type,
                    field.default,
                ):
                    raise ValueError(
                        f"setting {field.name!r} has the default {known.default} in solver"
                        f" {other!r}; give yours another name"
                    )

    def add(make: MakeSolver) -> MakeSolver:
        if name in SOLVERS and not is_redefinition(SOLVERS[name].make, make):
            raise ValueError(f"there is a solver {name!r} already; give yours another name")
        SOLVERS[name] = SolverInfo(make, settings, needs_surrogate)
        return make

    return add
