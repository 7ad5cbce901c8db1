"""Images as the page holds them: bytes, compressed, in base64."""

import base64
import zlib
from collections.abc import Sequence

import numpy as np

STEPS = 127


def pack(array: np.ndarray) -> str:
    """Any array of bytes, as zlib and base64 write it; browsers can read both."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes())).decode()


def to_bytes(images: np.ndarray) -> np.ndarray:
    """uint8 of images in [0, 1]."""
    return np.rint(np.clip(images, 0, 1) * 255).astype(np.uint8)


def pack_perturbations(
    clean: np.ndarray, adversarial: Sequence[np.ndarray]
) -> tuple[str, list[float]]:
    """What was added to clean images, each rounded to 1/127 of its largest change.

    So a faint perturbation loses no more than a strong one, what was not changed stays so, and
    the adversarial image, shown as the sum, is off by less than a gray level.

    Args:
        clean: uint8 (N, height, width, channels).
        adversarial: N images in [0, 1], float32 (height, width, channels).

    Returns:
        The perturbations as int8, packed, and the largest change of each.
    """
    if not len(adversarial):
        return "", []
    difference = np.stack(adversarial).astype(np.float64) - clean.astype(np.float32) / 255
    scales = np.abs(difference).max(axis=(1, 2, 3))
    shape = (-1, 1, 1, 1)
    steps = np.rint(difference / np.where(scales > 0, scales, 1).reshape(shape) * STEPS)
    return pack(steps.astype(np.int8)), scales.tolist()
