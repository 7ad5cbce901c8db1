"""Models whose answer about an image is not settled by that image.

A function that JAX can trace gives the same answer each time. Python code that it calls back may
not, such as a defense that adds noise to the image. An adversarial example of one draw need not be
one of the next.

A function may also look at the other images of a batch, as batch normalization does in training. An
image is then of one class in this batch and of another in that.
"""

from typing import Any

import jax
import numpy as np

from abs_model.models.classifier import Classifier
from abs_model.models.decisions import RELATIVE_ROUNDING, uncertainty

_NUM_ALONE = 2  # images that are queried among copies of themselves


def is_random(model: Classifier, images: jax.Array | np.ndarray) -> bool:
    """Whether two queries of the same images give different logits.

    Differences that rounding makes (`models.decisions`) do not count. Randomness that leaves
    most answers as they are may take many images to be seen.

    Args:
        model: Any classifier.
        images: Float32 (N, height, width, channels) in [0, 1].

    Raises:
        ValueError: The images are not as described.
    """
    first, second = (model.logits(images) for _ in range(2))
    return _differ(model, first, second)


def depends_on_batch(model: Classifier, images: jax.Array | np.ndarray) -> bool:
    """Whether the logits of an image differ with the other images of its batch.

    Each of the first images is queried once among all of them and once among copies of itself, in
    batches of the same size. What counts are the two largest logits, which decide. A random model
    differs, too.

    Args:
        model: Any classifier.
        images: Float32 (N, height, width, channels) in [0, 1].

    Raises:
        ValueError: The images are not as described.
    """
    among_all = model.logits(images)[:_NUM_ALONE]
    alone = [model.logits(images[row : row + 1]) for row in range(len(among_all))]
    leading = np.argsort(-np.asarray(among_all), axis=1)[:, :2]
    first, second = (
        np.take_along_axis(np.asarray(logits), leading, axis=1)
        for logits in (among_all, np.concatenate(alone))
    )
    return _differ(model, first, second)


def _differ(model: Classifier, first: Any, second: Any) -> bool:
    """Whether two answers to the same images differ by more than rounding."""
    leading = uncertainty(first, first.argmax(axis=1), logit_tolerance=model.logit_tolerance)
    sizes = np.where(np.isfinite(first), np.abs(first), 0.0)
    tolerance = np.asarray(leading)[:, None] + RELATIVE_ROUNDING * sizes
    return bool(np.any(_differences(first, second) > tolerance))


def _differences(first: Any, second: Any) -> np.ndarray:
    """Absolute differences, 0 of two infinities or NaN that are the same, else infinite."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    with np.errstate(invalid="ignore"):
        differences = np.where(same, 0.0, np.abs(first - second))
    return np.where(np.isnan(differences), np.inf, differences)
