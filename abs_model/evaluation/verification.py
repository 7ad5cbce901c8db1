"""Checks what an attack claims, with none of the attack's own code.

An image counts as adversarial when it is an image (finite, in [0, 1]), lies within epsilon of the
clean one by a distance measured anew in float64, and the model, asked from scratch, calls it
something else than its label.
"""

import dataclasses
import math
from typing import Any

import numpy as np

# Attacks project in float32, whose rounding may leave an image this far beyond epsilon.
RELATIVE_ROUNDING = 1e-5
ABSOLUTE_ROUNDING = 1e-6

REASONS = ("out_of_bounds", "beyond_epsilon", "not_adversarial")
NOT_CLASSIFIED = -1


@dataclasses.dataclass(frozen=True)
class Verification:
    """What holds of each of N images, whether or not an attack claimed it.

    Attributes:
        in_bounds: bool (N,): all pixels are finite and in [0, 1].
        distances: float64 (N,): distance to the clean image; NaN or infinite where a pixel is.
        within_epsilon: bool (N,): the distance is at most epsilon, up to float32 rounding.
        predictions: int32 (N,): the model's classes; `NOT_CLASSIFIED` for what is out of bounds,
            and so no image that a model owes an answer for.
        adversarial: bool (N,): there is a prediction and it differs from the label.
    """

    in_bounds: np.ndarray
    distances: np.ndarray
    within_epsilon: np.ndarray
    predictions: np.ndarray
    adversarial: np.ndarray

    @property
    def verified(self) -> np.ndarray:
        """bool (N,): an adversarial image within bounds and within epsilon."""
        return self.in_bounds & self.within_epsilon & self.adversarial

    @property
    def adversarial_distances(self) -> np.ndarray:
        """float64 (N,): distance where verified, infinity elsewhere."""
        return np.where(self.verified, self.distances, np.inf)

    def reasons(self, row: int) -> tuple[str, ...]:
        """Why the image in a row can't count as adversarial, of `REASONS`; empty if it can."""
        classified = self.predictions[row] != NOT_CLASSIFIED
        fails = (
            not self.in_bounds[row],
            not self.within_epsilon[row],
            classified and not self.adversarial[row],
        )
        return tuple(reason for reason, failed in zip(REASONS, fails, strict=True) if failed)


def verify(
    model: Any,
    clean: np.ndarray,
    labels: np.ndarray,
    adversarial: np.ndarray,
    *,
    norm: str,
    epsilon: float = math.inf,
) -> Verification:
    """Checks the images of an attack against their clean images and the model.

    Args:
        model: A classifier with `predict(images) -> int32 (N,)`.
        clean: float32 (N, height, width, channels) in [0, 1].
        labels: Integers (N,).
        adversarial: As `clean`, but nothing is taken for granted about its values. What is judged
            is its float32 form, which is what a model sees.
        norm: "l2", "linf" or "l0".
        epsilon: The largest distance allowed: for L2 and L-infinity in units of the pixel range,
            for L0 in pixels. An image without a finite distance is never within it.

    Raises:
        ValueError: The shapes don't fit together, or the norm is unknown.
    """
    clean, labels = np.asarray(clean), np.asarray(labels)
    adversarial = np.asarray(adversarial, np.float32)
    if adversarial.shape != clean.shape or labels.shape != clean.shape[:1]:
        raise ValueError(
            "adversarial must have the shape of clean, and labels its length: got"
            f" {adversarial.shape}, {clean.shape} and {labels.shape}"
        )
    # False for NaN too.
    in_bounds = np.all((adversarial >= 0) & (adversarial <= 1), axis=(1, 2, 3))
    distances = _distances(clean, adversarial, norm)
    limit = epsilon * (1 + RELATIVE_ROUNDING) + ABSOLUTE_ROUNDING
    predictions = np.full(len(labels), NOT_CLASSIFIED, np.int32)
    if in_bounds.any():
        predictions[in_bounds] = model.predict(adversarial[in_bounds])
    return Verification(
        in_bounds=in_bounds,
        distances=distances,
        within_epsilon=np.isfinite(distances) & (distances <= limit),
        predictions=predictions,
        adversarial=in_bounds & (predictions != labels),
    )


def _distances(clean: np.ndarray, adversarial: np.ndarray, norm: str) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(adversarial.astype(np.float64) - clean.astype(np.float64))
        if norm == "l0":
            pixels = np.sum(np.any(difference != 0, axis=3), axis=(1, 2)).astype(np.float64)
            return np.where(np.isfinite(difference).all((1, 2, 3)), pixels, np.nan)
        difference = difference.reshape(len(clean), -1)
        if norm == "l2":
            return np.sqrt(np.sum(difference**2, axis=1))
        if norm == "linf":
            return np.max(difference, axis=1)
    raise ValueError(f"norm must be 'l2', 'linf' or 'l0', got {norm!r}")
