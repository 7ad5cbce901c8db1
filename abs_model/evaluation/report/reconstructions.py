"""What an ABS model sees in images: each class's reconstruction and weighted energy."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from abs_model.evaluation.report.images import to_bytes
from abs_model.evaluation.tables.results import Results

CLEAN = "clean"


@dataclasses.dataclass(frozen=True)
class Reconstructions:
    """Those of N images by C classes.

    Attributes:
        indices: Of the test images, or those that the images were made of.
        images: uint8 (N, C, height, width, channels).
        energies: Weighted energies in nats, (N, C); the lowest decides.
    """

    indices: Sequence[int]
    images: np.ndarray
    energies: np.ndarray


def num_inferences(results: Results, model: str, num_images: int) -> int:
    """How many images `reconstruct` queries the model with."""
    found = [_closest(results, model, norm, num_images) for norm in results.norms]
    return num_images + sum(map(len, found))


def reconstruct(
    model: Any,
    name: str,
    results: Results,
    clean: np.ndarray,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Reconstructions]:
    """Reconstructions of clean images and of the closest adversarial ones.

    Args:
        model: The classifier, with `infer` and `weighted_energies`.
        name: The model's name in the evaluation.
        results: Of the evaluation.
        clean: The first N test images, uint8 (N, height, width, channels).
        progress: Called with the number of images that were done.

    Returns:
        By "clean" and by norm.
    """
    images = {CLEAN: dict(enumerate(clean.astype(np.float32) / 255))}
    for norm in results.norms:
        images[norm] = _closest(results, name, norm, len(clean))
    return {what: _infer(model, chosen, progress) for what, chosen in images.items() if len(chosen)}


def _closest(results: Results, model: str, norm: str, num_images: int) -> dict[int, np.ndarray]:
    return {
        record.index: image
        for _, record in results.closest_records(model, norm)
        if record.index < num_images and (image := record.adversarial) is not None
    }


def _infer(
    model: Any, chosen: Mapping[int, np.ndarray], progress: Callable[[int], None]
) -> Reconstructions:
    images, parts = np.stack(list(chosen.values())), []
    for first in range(0, len(images), model.batch_size):
        batch = images[first : first + model.batch_size]
        inference = model.infer(batch)
        energies = np.asarray(model.weighted_energies(inference), np.float64)
        parts.append((to_bytes(np.asarray(inference.reconstructions)), energies))
        progress(len(batch))
    found = [np.concatenate(part) for part in zip(*parts, strict=True)]
    return Reconstructions(list(chosen), *found)
