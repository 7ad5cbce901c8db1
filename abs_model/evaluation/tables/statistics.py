"""Medians and accuracies of adversarial distances, with bootstrap intervals; medians of any values.

Distances are float64 (N,), one for each image: 0 where the clean image is misclassified already,
infinity where no attack found anything.
"""

import dataclasses
import math

import numpy as np

from abs_model.evaluation.run.verification import ABSOLUTE_ROUNDING, RELATIVE_ROUNDING

# The thresholds of the paper (Schott et al. 2019, arXiv 1805.09190), table 1; L0 is in pixels.
THRESHOLDS = {"l2": 1.5, "linf": 0.3, "l0": 12.0}
NUM_RESAMPLES = 2000
_SEED = 0
_NORMAL_QUANTILE = 1.959964  # of a 95 % interval


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a table says of N distances.

    Attributes:
        num_images: N.
        median: Median adversarial distance.
        accuracy: Share of images, from 0 to 1, without an adversarial image within the threshold.
    """

    num_images: int
    median: Estimate
    accuracy: Estimate


def summarize(distances: np.ndarray, threshold: float) -> Summary:
    """Median and accuracy at the threshold, with intervals that are the same at each call.

    Raises:
        ValueError: There are no distances.
    """
    rows = _resamples(len(distances))
    held = robust(distances, threshold)
    return Summary(
        len(distances),
        _estimate(median(distances), median(distances[rows])),
        _estimate(held.mean(), held[rows].mean(axis=1)),
    )


def median_interval(values: np.ndarray) -> Estimate:
    """The median of values (N,) with its bootstrap interval.

    Raises:
        ValueError: There are none.
    """
    return _estimate(median(values), median(values[_resamples(len(values))]))


def _resamples(count: int) -> np.ndarray:
    """Rows of the bootstrap's samples, the same at each call, (NUM_RESAMPLES, count)."""
    if not count:
        raise ValueError("a median needs at least one value, got none")
    return np.random.default_rng(_SEED).integers(0, count, (NUM_RESAMPLES, count))


def share_interval(hits: int, count: int) -> Estimate:
    """A share with its 95 % Wilson interval, which has a width for shares of 0 and 1, too.

    Raises:
        ValueError: The count is below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    return _wilson(hits / count, count)


def _wilson(share: float, count: int) -> Estimate:
    square = _NORMAL_QUANTILE**2 / count
    center = (share + square / 2) / (1 + square)
    width = math.sqrt(square * (share * (1 - share) + square / 4)) / (1 + square)
    return Estimate(share, max(0.0, center - width), min(1.0, center + width))


def clustered_share(hits: np.ndarray, clusters: np.ndarray) -> Estimate:
    """A share with a bootstrap interval over clusters, whose members succeed or fail together.

    Where the bootstrap sees no variation, the interval is Wilson's of as many trials as clusters.

    Args:
        hits: bool (N,).
        clusters: Which cluster each belongs to, any numbers (N,).
    """
    _, places = np.unique(clusters, return_inverse=True)
    counts, sums = np.bincount(places), np.bincount(places, weights=hits)
    generator = np.random.default_rng(_SEED)
    rows = generator.integers(0, len(counts), (NUM_RESAMPLES, len(counts)))
    low, high = np.quantile(sums[rows].sum(axis=1) / counts[rows].sum(axis=1), (0.025, 0.975))
    share = float(np.mean(hits))
    return Estimate(share, float(low), float(high)) if low < high else _wilson(share, len(counts))


def robust(distances: np.ndarray, threshold: float) -> np.ndarray:
    """bool, as `distances`: whether the nearest adversarial image lies beyond the threshold."""
    # What an attack projects to the threshold in float32 may lie this far beyond it.
    return distances > threshold * (1 + RELATIVE_ROUNDING) + ABSOLUTE_ROUNDING


def reaches(limit: float, threshold: float) -> bool:
    """Whether a search of all distances up to a limit has searched those up to a threshold."""
    return not robust(np.array(threshold), limit)


def median(distances: np.ndarray) -> np.ndarray:
    """The median over the last axis; infinite where the upper middle is."""
    middle = distances.shape[-1]
    ordered = np.sort(distances, axis=-1)
    with np.errstate(invalid="ignore"):
        return (ordered[..., (middle - 1) // 2] + ordered[..., middle // 2]) / 2


def accuracy_curve(distances: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Accuracy that is left at each of the given distances, (M,): figure 2 of the paper."""
    return np.array([robust(distances, each).mean() for each in at])


def _estimate(value: np.ndarray, resampled: np.ndarray) -> Estimate:
    # Not interpolated: between a finite number and infinity there is nothing to say.
    low, high = np.quantile(resampled, (0.025, 0.975), method="nearest")
    return Estimate(float(value), float(low), float(high))
