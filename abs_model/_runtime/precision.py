"""Single precision, whatever JAX's switch for 64-bit types (`JAX_ENABLE_X64`) says.

Models, training and attacks are made for float32 and int32. With 64-bit types on, JAX makes float64
of what names no type, such as `jnp.zeros(n)` or a random draw, and of all that meets it. So what
is public runs with 64-bit types off, and gives the same results either way. A user's function
(`abs_model.from_function`) is traced with the switch as it was at that call, and may compute in
float64.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
T = TypeVar("T")


def single_precision(function: Callable[P, T]) -> Callable[P, T]:
    """The function with JAX's 64-bit types off while it runs; a decorator."""

    @functools.wraps(function)
    def in_single_precision(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.enable_x64(False):
            return function(*args, **kwargs)

    return in_single_precision
