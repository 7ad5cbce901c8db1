"""Checks of single arguments: which one, what was expected, what came and what to do."""

import math
import operator
import sys
from typing import Any

import jax
import numpy as np


def check_number(
    name: str,
    value: Any,
    *,
    minimum: float,
    maximum: float = math.inf,
    exclusive: bool = False,
    hint: str = "",
) -> float:
    """The number as a Python float, whatever scalar it came as: of Python, NumPy or JAX.

    Args:
        name: The argument's name, for the message.
        value: What is checked.
        minimum: The smallest value allowed.
        maximum: The largest value allowed.
        exclusive: Whether `minimum` itself is too small.
        hint: The end of the message where the number is too large.

    Raises:
        ValueError: It is not a finite number in that range.
    """
    scalar = _scalar(value)
    number = math.nan if scalar is None else scalar
    enough = operator.gt if exclusive else operator.ge
    finite = abs(number) <= sys.float_info.max  # False for NaN; isfinite raises for huge integers
    if finite and enough(number, minimum) and number <= maximum:
        return float(number)
    bound = f"{'above' if exclusive else 'of at least'} {minimum}"
    bound += f" and at most {maximum:g}" if math.isfinite(maximum) else ""
    remedy = hint if finite and number > maximum else ""
    raise ValueError(f"{name} must be a finite number {bound}, got {shown(value)}{remedy}")


def check_count(
    name: str, value: Any, *, minimum: int = 1, maximum: int | None = None, hint: str = ""
) -> int:
    """The integer as a Python int, whatever scalar it came as: of Python, NumPy or JAX.

    Args:
        name: The argument's name, for the message.
        value: What is checked.
        minimum: The smallest value allowed.
        maximum: The largest value allowed; None allows any.
        hint: The end of the message where the integer is too large.

    Raises:
        ValueError: It is not an integer in that range.
    """
    count = _scalar(value)
    largest = math.inf if maximum is None else maximum
    if isinstance(count, int) and minimum <= count <= largest:
        return count
    bound = f"of at least {minimum}" + ("" if maximum is None else f" and at most {maximum}")
    remedy = hint if isinstance(count, int) and count > largest else ""
    raise ValueError(f"{name} must be an integer {bound}, got {shown(value)}{remedy}")


def check_bool(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def shown(value: Any) -> str:
    """The value for a message: an array by its dtype and shape, since it may be long."""
    if isinstance(value, jax.Array | np.ndarray) and value.shape:
        return f"an array of {value.dtype} of shape {value.shape}"
    return repr(value)


def _scalar(value: Any) -> int | float | None:
    """A number of Python, NumPy or JAX as one of Python; None for all else, such as a bool."""
    if isinstance(value, jax.Array | np.ndarray) and not isinstance(value, jax.core.Tracer):
        value = np.asarray(value)[()]  # a scalar where there are no axes
    if isinstance(value, np.generic):
        value = value.item()
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
