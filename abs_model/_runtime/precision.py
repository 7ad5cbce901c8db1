"""Single precision, whatever JAX's switches say.

Models, training and attacks are made for float32 and int32. With 64-bit types on
(`JAX_ENABLE_X64`), JAX makes float64 of what names no type, such as `jnp.zeros(n)` or a random
draw, and of all that meets it. And matrix products of float32 are rounded by default: to bfloat16
on TPUs, to TF32 on GPUs (`jax_default_matmul_precision`). Simulated on MNIST, that moves energies
by up to 0.2 and 0.03 nats, more than a search's tolerance of 0.01. So what is public runs with
64-bit types off and exact products, and gives the same results either way. A user's function
(`abs_model.from_function`) is traced with both switches as they were at that call.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
T = TypeVar("T")

_PRODUCTS = "float32"


def single_precision(function: Callable[P, T]) -> Callable[P, T]:
    """The function with JAX's switches for single precision while it runs; a decorator."""

    @functools.wraps(function)
    def in_single_precision(*args: P.args, **kwargs: P.kwargs) -> T:
        with switches(False, _PRODUCTS):
            return function(*args, **kwargs)

    return in_single_precision


def use_single_precision() -> None:
    """Sets the switches for single precision for the rest of the process."""
    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_default_matmul_precision", _PRODUCTS)


def current_switches() -> tuple[bool, str | None]:
    """Whether 64-bit types are on, and the precision of products, for `switches`."""
    values = jax.config.values
    return values["jax_enable_x64"], values["jax_default_matmul_precision"]


@contextlib.contextmanager
def switches(x64: bool, products: str | None) -> Iterator[None]:
    """A context in which JAX's switches are as given."""
    with jax.enable_x64(x64), jax.default_matmul_precision(products):
        yield
