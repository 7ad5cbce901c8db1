"""The classes that targeted attacks lead to.

They are a matter of the evaluation, not of the attack: all attacks with one rule lead an image to
the same class.
"""

import zlib
from typing import Any

import jax
import numpy as np

from abs_model.evaluation.run.verification import cold_logits
from abs_model.models.classifier import Classifier

NEXT, LEAST_LIKELY, RANDOM = "next_class", "least_likely", "random"
RULES = (NEXT, LEAST_LIKELY, RANDOM)

Targets = str | int  # a rule, or the number of a class


def is_targets(value: Any) -> bool:
    """Whether a value is of `RULES` or can be the number of a class."""
    return value in RULES or (type(value) is int and value >= 0)


def title_of(targets: Targets) -> str:
    """E.g. "next class" or "class 3", for tables."""
    return f"class {targets}" if isinstance(targets, int) else targets.replace("_", " ")


def choose_targets(
    targets: Targets,
    model: Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    indices: np.ndarray,
    seed: int,
) -> np.ndarray:
    """The class to lead each image to, int32 (N,).

    "next_class" is the label plus one, and class 0 for the last; "least_likely" the class of the
    model's lowest logit for the clean image; "random" one of equal chances, by seed and index, the
    same for every model and attack. None of these is the label; the number of a class may be.

    Args:
        targets: A rule, or the number of a class.
        model: Queried for "least_likely".
        images: Clean images, float32 (N, height, width, channels) in [0, 1].
        labels: Their classes, integers (N,).
        indices: Of the images in the test split, (N,).
        seed: Of the evaluation.
    """
    if isinstance(targets, int):
        return np.full(len(labels), targets, np.int32)
    rows, num_classes = np.arange(len(labels)), model.num_classes
    if targets == LEAST_LIKELY:
        logits = np.nan_to_num(cold_logits(model, images), nan=np.inf, posinf=np.inf)
        logits[rows, labels] = np.inf
        return logits.argmin(axis=1).astype(np.int32)
    steps = np.ones(len(labels), int) if targets == NEXT else _steps(seed, indices, num_classes)
    return ((labels + steps) % num_classes).astype(np.int32)


def _steps(seed: int, indices: np.ndarray, num_classes: int) -> np.ndarray:
    """From 1 to num_classes - 1, of equal chances, (N,)."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"targets"))
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
    draw = jax.vmap(lambda each: jax.random.randint(each, (), 1, num_classes))
    return np.asarray(draw(keys))
