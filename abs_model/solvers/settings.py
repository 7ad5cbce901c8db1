"""How latents are searched."""

import dataclasses

SOLVERS = ("adam", "quasi_newton")
_COUNTS = (
    "num_prior_samples",
    "num_steps",
    "num_starts",
    "num_minima",
    "num_on_the_way",
    "max_evaluations",
)


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """How latents are searched; the defaults of `adam` are the paper's.

    Attributes:
        solver: "adam" or "quasi_newton".
        num_prior_samples: Candidates for the start, the same for all classes.
        max_norm: Latents stay in the ball of this radius.
        seed: Of the prior samples.
        num_steps: adam: iterations; the last one only evaluates, as in the authors' code.
        learning_rate: adam: step size.
        num_starts: quasi_newton: starts of the search on the surrogate, each the best sample of an
            equal share of the prior samples.
        num_minima: quasi_newton: how many of these are followed to their minima on the surrogate
            and then start BFGS on the decoder, at most.
        num_on_the_way: quasi_newton: how many points on the way to them do, too, at most.
        max_evaluations: quasi_newton: of the decoder and its gradient, from each of these.
        tolerance: In nats: how far above its minimum the search may leave an energy, which
            decisions allow for (`abs_model.decisions`); BFGS goes on while it expects the energy
            to fall by more.

    Raises:
        ValueError: There is no such solver, or a number is below 1.
    """

    solver: str = "quasi_newton"
    num_prior_samples: int = 8000
    max_norm: float = 5.0
    seed: int = 0
    num_steps: int = 50
    learning_rate: float = 0.05
    num_starts: int = 8
    num_minima: int = 4
    num_on_the_way: int = 4
    max_evaluations: int = 25
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(SOLVERS)}; got {self.solver!r}")
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
