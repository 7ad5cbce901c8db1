"""Checks of attacks' arguments: which one, what was expected, what came and what to do."""

import math
import operator
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abs_model.hints import label_hint

NORMS = ("l2", "linf", "l0")


def check_norm(norm: str, norms: Sequence[str] = NORMS) -> None:
    """Raises ValueError unless `norm` is one of `norms`."""
    if norm not in norms:
        raise ValueError(f"norm must be one of {', '.join(norms)}, got {norm!r}")


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
        name: Of the argument, for the message.
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
        name: Of the argument, for the message.
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


def check_epsilon(
    epsilon: Any,
    norm: str,
    image_shape: tuple[int, int, int],
    *,
    name: str = "epsilon",
    exclusive: bool = False,
) -> float:
    """The distance as a Python float, after checking that images in [0, 1] can be that far apart.

    Args:
        epsilon: A distance in `norm`.
        norm: One of NORMS.
        image_shape: (height, width, channels).
        name: Of the argument, for the message.
        exclusive: Whether 0 is too small.

    Raises:
        ValueError: It is no finite number of at least (or above) 0, or it is larger than any
            distance: 1 in L-infinity, the root of the number of values in L2, the number of pixels
            in L0.
    """
    check_norm(norm)
    height, width, channels = image_shape
    if norm == "l0":
        farthest, hint = float(height * width), "; an image has no more pixels"
    else:
        farthest = 1.0 if norm == "linf" else math.sqrt(height * width * channels)
        hint = (
            f"; no images in [0, 1] are farther apart in {norm}. Divide by 255 what is meant for"
            " pixels from 0 to 255, such as 8 / 255"
        )
    return check_number(
        name, epsilon, minimum=0.0, maximum=farthest, exclusive=exclusive, hint=hint
    )


def check_bool(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def check_labels(labels: Any, num_images: int, num_classes: int, name: str = "labels") -> jax.Array:
    """Labels as int32 (N,), after checking that they are one class for each image.

    Args:
        labels: Integers (N,), each from 0 to num_classes - 1.
        num_images: N.
        num_classes: Number of classes.
        name: Of the argument, for messages.

    Raises:
        ValueError: They are not; the message says what was expected, what came and, where a slip is
            recognized, the remedy.
    """
    if not num_images:
        raise ValueError(f"{name} must be of at least one image, got none")
    try:
        array = np.asarray(labels)
    except ValueError as error:
        raise ValueError(f"{name} must be integers of shape ({num_images},): {error}") from error
    hint = label_hint(array, num_images, num_classes)
    if array.shape != (num_images,) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"{name} must be integers of shape ({num_images},), one for each image, got"
            f" {array.dtype} of shape {array.shape}{hint}"
        )
    if array.min() < 0 or array.max() >= num_classes:
        raise ValueError(
            f"{name} must lie in 0 to {num_classes - 1}, got {array.min()} to {array.max()}{hint}"
        )
    return jnp.asarray(array, jnp.int32)


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
