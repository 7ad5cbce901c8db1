"""Remedies for arguments that look like a known slip; the checks add them to their messages.

Each function gives the end of a sentence, from "; " on, or "" where no slip is recognized.
"""

import math
from typing import Any

import jax
import numpy as np

# Pixels this far outside [0, 1] look like rounding.
_ROUNDING = 1e-3


def type_hint(value: Any) -> str:
    """For images or labels that are no JAX or NumPy array."""
    if isinstance(value, list | tuple):
        return '; np.asarray(images, "float32") makes it one'
    if type(value).__module__.partition(".")[0] == "torch":
        return "; images.detach().cpu().numpy() makes it one (channels last: permute(0, 2, 3, 1))"
    return ""


def dtype_hint(dtype: Any) -> str:
    """For images that are not float32."""
    if np.issubdtype(dtype, np.integer):
        return f'; divide {dtype} images by 255: images.astype("float32") / 255'
    if dtype == np.float64:
        return (
            '; images.astype("float32") makes it that (uint8 / 255 is float64: use'
            ' images.astype("float32") / 255)'
        )
    if jax.numpy.issubdtype(dtype, np.floating) or dtype == np.bool_:
        return '; images.astype("float32") makes it that'
    return ""


def shape_hint(shape: tuple[int, ...], image_shape: tuple[int, int, int]) -> str:
    """For images that are not (N, *image_shape)."""
    height, width, channels = image_shape
    if shape == tuple(image_shape):
        return "; a single image needs an axis: images[None]"
    if channels == 1 and shape[-2:] == (height, width) and len(shape) in (2, 3):
        return f"; the channel axis is missing: images[{'None, ' * (len(shape) == 2)}..., None]"
    if shape[1:] == (channels, height, width):
        return "; channels come last: images.transpose(0, 2, 3, 1)"
    if len(shape) == 2 and shape[1] == math.prod(image_shape):
        return f"; images.reshape(-1, {height}, {width}, {channels}) undoes the flattening"
    return ""


def range_hint(low: float, high: float) -> str:
    """For images whose values are not in [0, 1]."""
    if -_ROUNDING <= low and high <= 1 + _ROUNDING:
        return "; images.clip(0, 1) removes rounding"
    if low >= 0 and 2 < high <= 255:
        return "; divide pixels from 0 to 255 by 255"
    if low < 0 and math.isfinite(high):
        return (
            "; undo the normalization (images * std + mean), and let the model normalize: it gets"
            " images in [0, 1]"
        )
    return ""


def label_hint(labels: np.ndarray, num_images: int, num_classes: int) -> str:
    """For labels that are not integers (N,) from 0 to num_classes - 1."""
    if labels.shape == (num_images, num_classes):
        return "; labels.argmax(1) gives the classes of one-hot labels"
    if labels.shape == (num_images, 1):
        return "; labels[:, 0] drops the second axis"
    if labels.shape != (num_images,):
        return ""
    if labels.dtype.kind in "UST":
        return "; give each class by its number"
    if labels.dtype.kind == "f" and bool(np.all(labels == np.round(labels))):
        return '; labels.astype("int32") makes it that'
    if labels.dtype.kind not in "iu":
        return ""
    if labels.min() == -1:
        return "; leave out images without a label (-1)"
    if labels.min() >= 1 and labels.max() == num_classes:
        return "; classes count from 0: subtract 1"
    return ""


def key_hint(key: Any) -> str:
    """For what is no `jax.random.key`."""
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        return f"; jax.random.key({key}) makes one of a seed"
    if isinstance(key, jax.Array | np.ndarray) and key.dtype == np.uint32:
        return "; jax.random.wrap_key_data makes one of a jax.random.PRNGKey"
    return ""
