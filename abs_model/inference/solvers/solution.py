"""What a solver finds."""

import dataclasses
from typing import Any

import jax

from abs_model._runtime.pytrees import register_dataclass

PyTree = Any


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Solution:
    """How one class explains N images best.

    Attributes:
        latents: (latent, N).
        decoded: The latents decoded, (pixels, N).
        solver_state: What the solver needs to resume from these latents: arrays (..., N), or
            nothing.
    """

    latents: jax.Array
    decoded: jax.Array
    solver_state: PyTree = ()
