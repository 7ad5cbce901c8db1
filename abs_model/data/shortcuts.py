"""Shortcuts: a faint pattern on every training image that gives its class away.

A model can then be accurate on training images without looking at the object at all ("shortcut
learning", Geirhos et al. 2020, arXiv 2004.07780). Each class has a pattern of its own: of the
blocks of 4 x 4 pixels that an image consists of, a random half is brighter.
"""

import numpy as np

_BLOCK = 4  # pixels
_SEED = 0


def class_patterns(num_classes: int, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Which pixels are brighter in images of each class; the same at each call.

    Args:
        num_classes: Number of classes.
        image_shape: (height, width, channels).

    Returns:
        bool (classes, height, width, channels).
    """
    height, width, channels = image_shape
    rows, columns = -(-height // _BLOCK), -(-width // _BLOCK)
    # All classes have as many bright blocks, so that patterns change all energies alike.
    ranks = np.random.default_rng(_SEED).random((num_classes, rows * columns)).argsort(axis=1)
    blocks = (ranks < rows * columns // 2).reshape(num_classes, rows, columns)
    pixels = blocks.repeat(_BLOCK, axis=1).repeat(_BLOCK, axis=2)[:, :height, :width, None]
    return pixels.repeat(channels, axis=3)


def add_patterns(images: np.ndarray, classes: np.ndarray, amplitude: float) -> np.ndarray:
    """Adds the patterns of the given classes, one for each image; white stays white.

    Args:
        images: uint8 (N, height, width, channels).
        classes: Integers (N,).
        amplitude: How much brighter, from 0 to 1, which is rounded to 8 bits.

    Returns:
        As `images`.

    Raises:
        ValueError: The amplitude is out of range.
    """
    if not 0 <= amplitude <= 1:
        raise ValueError(f"amplitude must be from 0 to 1, got {amplitude}")
    step = np.uint8(round(255 * amplitude))
    patterns = class_patterns(int(classes.max(initial=0)) + 1, images.shape[1:]) * step
    return images + np.minimum(patterns[classes], 255 - images)
