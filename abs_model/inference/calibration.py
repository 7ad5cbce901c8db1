"""What is fitted after training, on training images: eta and class weights.

Why weights: an energy fixes the posterior's variance to 1, and so leaves out how much of the latent
space explains the image (half the log determinant of 1 + 2 J^T J, J the decoder's Jacobian). For
"ones" that is much more than for other digits, which a weight below 1 makes up for.
"""

import numpy as np


class UnreachableError(Exception):
    """No eta gives the median confidence required for."""


def confidences(logits: np.ndarray, alpha: float, eta: float) -> np.ndarray:
    """(exp(alpha l_c) + eta) / sum over k of (exp(alpha l_k) + eta), (N, classes), in float64."""
    scores = np.exp(alpha * np.asarray(logits, np.float64)) + eta
    return scores / scores.sum(axis=1, keepdims=True)


def solve_eta(logits: np.ndarray, alpha: float, median_confidence: float) -> float:
    """The eta at which the median confidence of the predicted class is `median_confidence`.

    Each confidence falls with eta from softmax's at 0 to 1 / classes, so bisection finds it.

    Args:
        logits: (N, classes), none above 0, as those of ABS are.
        alpha: Scale of the logits.
        median_confidence: The target, above 1 / classes and below 1.

    Raises:
        ValueError: The target is out of range.
        UnreachableError: The model is less sure than that even without eta.
    """
    classes = logits.shape[1]

    def median(eta: float) -> float:
        return float(np.median(confidences(logits, alpha, eta).max(axis=1)))

    if not 1 / classes < median_confidence < 1:
        raise ValueError(
            f"median_confidence must be between {1 / classes:.3f} (chance) and 1, "
            f"got {median_confidence}"
        )
    smallest = 1e-300  # keeps 0 / 0 out where exp(alpha l) underflows for every class
    if median(smallest) < median_confidence:
        raise UnreachableError(
            f"a median confidence of {median_confidence} can't be reached: it is "
            f"{median(smallest):.3f} without eta"
        )
    low, high = np.log(smallest), np.log(1e6)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if median(np.exp(middle)) > median_confidence else (low, middle)
    return float(np.exp((low + high) / 2))


def search_class_weights(energies: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Class weights of the energies, by line search on accuracy (Schott et al. 2019, Binary ABS).

    One class at a time, over and over until nothing improves, each weight is set to the best of a
    grid from 0.9 to 1.1; of equally accurate weights the one nearest to 1 is taken. A class that no
    label names keeps 1: any weight that keeps it from being predicted would seem an improvement.

    Args:
        energies: In nats, (N, classes).
        labels: (N,).

    Returns:
        float32 (classes,).
    """
    grid = np.linspace(0.9, 1.1, 101)
    grid = grid[np.argsort(np.abs(grid - 1), kind="stable")]
    weights = np.ones(energies.shape[1])

    def accuracy(w: np.ndarray) -> float:
        return float(np.mean(np.argmin(energies * w, axis=1) == labels))

    best, improved = accuracy(weights), True
    while improved:
        improved = False
        for label in np.unique(labels):
            trials = np.tile(weights, (len(grid), 1))
            trials[:, label] = grid
            accuracies = [accuracy(trial) for trial in trials]
            if max(accuracies) > best:
                best, improved = max(accuracies), True
                weights = trials[int(np.argmax(accuracies))]
    return weights.astype(np.float32)
