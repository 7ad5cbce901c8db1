"""What an image must be before a model sees it."""

from typing import Any

import jax
import numpy as np

from abs_model._runtime.hints import dtype_hint, range_hint, shape_hint, type_hint


def check_images(images: Any, image_shape: tuple[int, int, int], name: str = "images") -> jax.Array:
    """As `validate_images`; what is returned is a JAX array."""
    checked = validate_images(images, image_shape, name)
    # A copy, because the caller may go on with the array.
    return checked if isinstance(checked, jax.Array) else jax.device_put(checked, may_alias=False)


def validate_images(
    images: Any, image_shape: tuple[int, int, int], name: str = "images"
) -> jax.Array | np.ndarray:
    """Checks that `images` are float32 in [0, 1] of shape (N, *image_shape), with N of at least 1.

    While JAX traces (under `jax.jit`, `jax.grad`), values are not known: only shape and dtype are
    checked then.

    Args:
        images: What is checked.
        image_shape: (height, width, channels).
        name: The argument's name, for messages.

    Raises:
        ValueError: They are not; the message says what was expected, what came and, where a slip
            is recognized, the remedy.
    """
    expected = f"float32 in [0, 1] of shape (N, {', '.join(map(str, image_shape))})"
    if not isinstance(images, jax.Array | np.ndarray):
        raise ValueError(
            f"{name} must be an array of {expected}, got {type(images).__name__}{type_hint(images)}"
        )
    if images.dtype != np.float32:
        raise ValueError(
            f"{name} must be {expected}, got dtype {images.dtype}{dtype_hint(images.dtype)}"
        )
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1:] != tuple(image_shape):
        raise ValueError(
            f"{name} must be {expected}, got shape {shape}{shape_hint(shape, image_shape)}"
        )
    if not shape[0]:
        raise ValueError(f"{name} must hold at least one image, got none (shape {shape})")
    if isinstance(images, jax.core.Tracer):
        return images
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"{name} must be {expected}, got values from {low} to {high}{range_hint(low, high)}"
        )
    return images
