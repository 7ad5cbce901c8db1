"""Single precision, whatever JAX's switches say.

Models, training and attacks are made for float32 and int32. With 64-bit types on
(`JAX_ENABLE_X64`), JAX makes float64 of what names no type, such as `jnp.zeros(n)` or a random
draw, and of all that meets it. And matrix products of float32 are rounded by default: to bfloat16
on TPUs, to TF32 on GPUs (`jax_default_matmul_precision`). TF32 keeps 11 bits, an error of one in
two thousand, while a search's tolerance of 0.01 nats is one in three thousand of an energy of 30.
So what is public runs with 64-bit types off and products in full float32 precision, and gives the
same results either way. A user's function (`abs_model.from_function`) is traced with both switches
as they were at that call.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple, ParamSpec, Self, TypeVar

import jax

P = ParamSpec("P")
T = TypeVar("T")


class Precision(NamedTuple):
    """JAX's switches for precision.

    Attributes:
        x64: Whether there are 64-bit types.
        products: Precision of matrix products of float32; None leaves it to the device.
    """

    x64: bool
    products: str | None

    @classmethod
    def current(cls) -> Self:
        """The switches that are in force."""
        values = jax.config.values
        return cls(values["jax_enable_x64"], values["jax_default_matmul_precision"])

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """A context manager that sets the switches."""
        with jax.enable_x64(self.x64), jax.default_matmul_precision(self.products):
            yield


_SINGLE = Precision(x64=False, products="float32")


def single_precision(function: Callable[P, T]) -> Callable[P, T]:
    """The function with JAX's switches for single precision while it runs; a decorator."""

    @functools.wraps(function)
    def in_single_precision(*args: P.args, **kwargs: P.kwargs) -> T:
        with _SINGLE.in_force():
            return function(*args, **kwargs)

    return in_single_precision


def use_single_precision() -> None:
    """Sets the switches for single precision for the rest of the process."""
    jax.config.update("jax_enable_x64", _SINGLE.x64)
    jax.config.update("jax_default_matmul_precision", _SINGLE.products)
