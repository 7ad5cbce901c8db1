"""Adversarial images with 8 bits for each value, as files and cameras have them.

Rounding to the nearest of 256 levels takes back some of a perturbation, and minimal adversarial
examples, which are just beyond the decision boundary, are often classified correctly afterwards.
Then the image is nudged: values are rounded away from the clean image, all of them or only those
that lie far enough from the level towards it, and if need be the perturbation is lengthened first.
"""

import dataclasses
from typing import Any

import numpy as np

from abs_model.evaluation.run.ledger import Record
from abs_model.evaluation.run.verification import is_adversarial, verification_batch_size
from abs_model.models.classifier import Classifier

ROUNDED, NUDGED, LOST = "rounded", "nudged", "lost"

# From the level towards the clean image, in levels: what is farther is rounded away from it.
_ALL, _HALF = 1e-3, 0.5
_SCALES = (1.0, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0)  # of the perturbation
_NUM_BISECTIONS = 6


@dataclasses.dataclass(frozen=True)
class EightBit:
    """The 8-bit forms of N images.

    Attributes:
        images: uint8 (N, height, width, channels): where the outcome is `LOST`, the nearest levels.
        outcomes: Text (N,): `ROUNDED` where the nearest levels are adversarial, `NUDGED` where
            other levels near them are, `LOST` where none were found.
        predictions: int32 (N,): the model's classes of these images.
    """

    images: np.ndarray
    outcomes: np.ndarray
    predictions: np.ndarray

    @property
    def floats(self) -> np.ndarray:
        """The images as a model takes them, float32 in [0, 1]."""
        return _floats(self.images)


def to_eight_bit(
    model: Classifier,
    clean: np.ndarray,
    classes: np.ndarray,
    adversarial: np.ndarray,
    *,
    targeted: bool = False,
    refine: bool = True,
) -> EightBit:
    """Finds 8-bit images near adversarial ones that the model still gets wrong.

    Queries the model once for all images, up to 8 times more for those that rounding loses, and to
    refine up to 6 times more for those that are nudged.

    Args:
        model: The classifier; it decides as in verification, in batches of its own size.
        clean: Images, float32 (N, height, width, channels) in [0, 1].
        classes: Integers (N,): the labels to lead away from or, `targeted`, the classes to lead to.
        adversarial: Images as `clean`.
        targeted: What the classes are.
        refine: Whether to look for the nearest nudged image, not for any.
    """
    search = _Search(model, clean, classes, adversarial, targeted)
    levels = np.rint(adversarial.astype(np.float64) * 255).astype(np.uint8)
    found, predictions = search.check(np.arange(len(clean)), levels)
    outcomes = np.where(found, ROUNDED, LOST).astype("<U7")
    scales, leasts = np.ones(len(clean)), np.full(len(clean), _HALF)
    # Half a level exactly may be rounded either way; else half is the nearest level again.
    for scale, least in ((1.0, _HALF), *((scale, _ALL) for scale in _SCALES)):
        rows = np.flatnonzero(outcomes == LOST)
        rows = search.update(rows, scale, least, levels, predictions)
        outcomes[rows], scales[rows], leasts[rows] = NUDGED, scale, least
    if refine:
        _refine(search, np.flatnonzero(leasts < _HALF), scales, levels, predictions)
    return EightBit(levels, outcomes, predictions)


def with_eight_bit(model: Classifier, images: np.ndarray, records: list[Record]) -> list[Record]:
    """The records of a batch of one attack, with what becomes of adversarial images in 8 bits.

    Args:
        model: The classifier.
        images: The batch's clean images, float32 (n, height, width, channels) in [0, 1], first
            those of the records.
        records: Without these outcomes.
    """
    held = {row: image for row, r in enumerate(records) if (image := r.adversarial) is not None}
    if not held:
        return records
    found = to_eight_bit(
        model.with_batch_size(verification_batch_size(model, len(images))),
        images[list(held)],
        np.array([records[row].goal for row in held]),
        np.stack(list(held.values())),
        targeted=records[0].target is not None,
        refine=False,
    )
    outcomes = dict(zip(held, found.outcomes.tolist(), strict=True))
    return [
        dataclasses.replace(record, eight_bit=outcomes.get(row))
        for row, record in enumerate(records)
    ]


@dataclasses.dataclass(frozen=True)
class _Search:
    """Candidates for the 8-bit forms of images, and whether the model gets them wrong."""

    model: Classifier
    clean: np.ndarray
    classes: np.ndarray
    adversarial: np.ndarray
    targeted: bool

    def update(
        self, rows: np.ndarray, scale: Any, least: Any, levels: np.ndarray, predictions: np.ndarray
    ) -> np.ndarray:
        """Notes the candidates that are adversarial, and returns their rows.

        Args:
            rows: Of the images.
            scale: Of the perturbation, a number or (n,).
            least: From which part of a level on to round away from the clean image, likewise.
            levels: Where to note the candidates.
            predictions: Where to note the classes.
        """
        if not len(rows):
            return rows
        candidates = self._candidates(rows, scale, least)
        found, classes = self.check(rows, candidates)
        levels[rows[found]], predictions[rows[found]] = candidates[found], classes[found]
        return rows[found]

    def check(self, rows: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whether the candidates of the images in some rows are adversarial, and their classes."""
        return is_adversarial(self.model, _floats(levels), self.classes[rows], self.targeted)

    def _candidates(self, rows: np.ndarray, scale: Any, least: Any) -> np.ndarray:
        scale, least = (np.broadcast_to(x, len(rows)).reshape(-1, 1, 1, 1) for x in (scale, least))
        clean = self.clean[rows].astype(np.float64) * 255
        change = self.adversarial[rows].astype(np.float64) * 255 - clean
        moved, sign = np.clip(clean + scale * change, 0, 255), np.sign(change)
        inner = np.floor(sign * moved)  # towards the clean image, seen along the change
        outer = sign * (inner + (sign * moved - inner >= least))
        return np.where(sign == 0, np.rint(clean), np.clip(outer, 0, 255)).astype(np.uint8)


def _refine(
    search: _Search,
    rows: np.ndarray,
    scales: np.ndarray,
    levels: np.ndarray,
    predictions: np.ndarray,
) -> None:
    """Rounds as few values away from the clean images as still makes them adversarial."""
    low, high = np.full(len(rows), _ALL), np.full(len(rows), _HALF)
    for _ in range(_NUM_BISECTIONS):
        middle = (low + high) / 2
        found = np.isin(rows, search.update(rows, scales[rows], middle, levels, predictions))
        low, high = np.where(found, middle, low), np.where(found, high, middle)


def _floats(levels: np.ndarray) -> np.ndarray:
    return levels.astype(np.float32) / 255
