"""Does an ABS model get an image wrong only because its search for latents fails?

The model as it stands is fooled all the same. But the decision of analysis by synthesis is that of
the global minima of the energies, and what only the search's failure makes adversarial says nothing
about those. So the label's class is searched again, with many more starting points and to a
hundredth of the tolerance. The other classes need no second search: a better explanation by one of
them would only confirm that the label's is not the best.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abs_model.inference.solvers import Solver
from abs_model.models.abs import ABSClassifier
from abs_model.models.classifier import Classifier, threshold

# More take gigabytes: each image has 48 searches at the same time.
_BATCH_SIZE = 10


def more_thorough(model: ABSClassifier) -> ABSClassifier:
    """The model with a search until hardly anything is to be gained (`SearchSettings.thorough`)."""
    settings = model.solver.settings.thorough()
    solver: Any = model.solver  # any dataclass with settings
    return dataclasses.replace(model, solver=dataclasses.replace(solver, settings=settings))


def has_thorough_search(model: ABSClassifier) -> bool:
    """Whether the model's solver has settings to be more thorough with."""
    return model.solver.settings.thorough() is not None


def adversarial_by_search(
    model: Classifier, images: np.ndarray, labels: np.ndarray, adversarial: np.ndarray
) -> np.ndarray | None:
    """What is adversarial only because the model's own search misses the best explanation, (N,).

    Args:
        model: Any classifier.
        images: Float32 (N, height, width, channels); in [0, 1] where adversarial.
        labels: Integers (N,).
        adversarial: bool (N,): the images to look at; the others are False.

    Returns:
        bool (N,); None for other models than ABS with the solver "quasi_newton".
    """
    if not isinstance(model, ABSClassifier) or not has_thorough_search(model):
        return None
    by_search = np.zeros(len(adversarial), bool)
    if adversarial.any():
        by_search[adversarial] = found_right(model, images[adversarial], labels[adversarial])
    return by_search


def found_right(model: ABSClassifier, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether a thorough search finds the label to explain each image best, bool (N,).

    Args:
        model: With the solver "quasi_newton".
        images: Float32 (N, height, width, channels) in [0, 1].
        labels: Integers (N,).
    """
    seen = threshold(images) if model.binary else images
    energies = np.array(model.weighted_energies(model.infer(images)), np.float64)
    rows = np.arange(len(labels))
    energies[rows, labels] = np.inf
    weights = np.asarray(model.class_weights)[labels]
    return weights * _label_energies(model, seen, labels) <= energies.min(axis=1)


def breaks_certificates(
    model: ABSClassifier, images: np.ndarray, labels: np.ndarray, adversarial: np.ndarray
) -> np.ndarray:
    """Which adversarial images stay so with the clean images' explanations among the starts, (N,).

    Certificates keep the explanation of the decided class. An adversarial image within a radius
    breaks the certificate only if that explanation, as a start of the search, does not win.

    Args:
        model: ABS or Binary ABS.
        images: The clean ones, float32 (N, height, width, channels) in [0, 1].
        labels: Integers (N,).
        adversarial: As `images`.
    """
    cold = model.infer(adversarial)
    warm = model.infer(adversarial, start=model.infer(images))
    energies = np.minimum(model.weighted_energies(cold), model.weighted_energies(warm))
    return energies.argmin(axis=1) != labels


def _label_energies(model: ABSClassifier, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The energies in nats of the labels' classes by a thorough search, float64 (N,)."""
    solver = more_thorough(model).solver
    energies = np.empty(len(labels))
    for label in np.unique(labels):
        (rows,) = np.nonzero(labels == label)
        for first in range(0, len(rows), _BATCH_SIZE):
            part = rows[first : first + _BATCH_SIZE]
            padded = np.resize(part, _BATCH_SIZE)  # one shape, one program
            found = _energies_of_class(solver, int(label), jnp.asarray(images[padded]))
            energies[part] = np.asarray(found)[: len(part)]
    return energies


@jax.jit
def _energies_of_class(solver: Solver, label: int, images: jax.Array) -> jax.Array:
    solve = jax.tree.map(lambda leaf: leaf[label], solver)
    pixels = solver.decoder.to_pixels(images)
    found = solve(pixels)
    error = jnp.sum((pixels - found.decoded) ** 2, axis=0)
    return error + 0.5 * jnp.sum(found.latents**2, axis=0)
