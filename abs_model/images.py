"""What an image must be before a model sees it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_images(images: Any, image_shape: tuple[int, int, int]) -> jax.Array:
    """Checks that `images` are float32 in [0, 1] of shape (N, *image_shape), with N of at least 1.

    While JAX traces (under `jax.jit`, `jax.grad`), values are not known: only shape and dtype are
    checked then.

    Raises:
        ValueError: They are not; the message says what was expected and what came.
    """
    expected = f"float32 in [0, 1] of shape (N, {', '.join(map(str, image_shape))})"
    if not isinstance(images, jax.Array | np.ndarray):
        raise ValueError(f"images must be an array of {expected}, got {type(images).__name__}")
    if images.dtype != np.float32:
        hint = "; divide uint8 images by 255" if images.dtype == np.uint8 else ""
        raise ValueError(f"images must be {expected}, got dtype {images.dtype}{hint}")
    if images.ndim != 4 or tuple(images.shape[1:]) != tuple(image_shape) or not images.shape[0]:
        raise ValueError(f"images must be {expected}, with N >= 1, got shape {tuple(images.shape)}")
    if isinstance(images, jax.core.Tracer):
        return images
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images must be {expected}, got values from {low} to {high}")
    return jnp.asarray(images)
