"""Checks of attacks' arguments: which one, what was expected, what came and what to do."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abs_model._runtime.checks import check_number
from abs_model._runtime.hints import label_hint

NORMS = ("l2", "linf", "l0")


def check_norm(norm: str, norms: Sequence[str] = NORMS) -> None:
    """Raises ValueError unless `norm` is one of `norms`."""
    if norm not in norms:
        raise ValueError(f"norm must be one of {', '.join(norms)}, got {norm!r}")


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
        name: The argument's name, for the message.
        exclusive: Whether 0 is too small.

    Raises:
        ValueError: It is no finite number of at least (or above) 0, or it is larger than
            `longest_distance`.
    """
    longest = longest_distance(norm, image_shape)
    hint = (
        "; an image has no more pixels"
        if norm == "l0"
        else f"; no images in [0, 1] are farther apart in {norm}. Divide by 255 what is meant for"
        " pixels from 0 to 255, such as 8 / 255"
    )
    return check_number(name, epsilon, minimum=0.0, maximum=longest, exclusive=exclusive, hint=hint)


def longest_distance(norm: str, image_shape: tuple[int, int, int]) -> float:
    """The distance of black and white: no images in [0, 1] are farther apart.

    Raises:
        ValueError: `norm` is none of NORMS.
    """
    check_norm(norm)
    height, width, channels = image_shape
    if norm == "l0":
        return float(height * width)
    return 1.0 if norm == "linf" else math.sqrt(height * width * channels)


def check_labels(labels: Any, num_images: int, num_classes: int, name: str = "labels") -> jax.Array:
    """Labels as int32 (N,), after checking that they are one class for each image.

    Args:
        labels: Integers (N,), each from 0 to num_classes - 1.
        num_images: N.
        num_classes: Number of classes.
        name: The argument's name, for messages.

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
