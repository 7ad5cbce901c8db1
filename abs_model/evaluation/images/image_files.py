"""Adversarial images as files: 8-bit PNG, and arrays.

FOLDER/00012.png     the 8-bit adversarial image of test image 12
FOLDER/images.npz    what is known of all images; see `Export`
"""

import dataclasses
import io
import pathlib
import zipfile
from collections.abc import Callable

import numpy as np
from PIL import Image

from abs_model._runtime.atomic_files import PathLike, as_path, atomic_write_bytes
from abs_model.attacks._core.checks import check_norm
from abs_model.evaluation.images.eight_bit import LOST, NUDGED, ROUNDED, to_eight_bit
from abs_model.evaluation.run.verification import (
    NOT_CLASSIFIED,
    check_arguments,
    is_adversarial,
    measure_distances,
    verification_batch_size,
)
from abs_model.models.classifier import Classifier

ARRAYS = "images.npz"
REJECTED = "rejected"
NO_TARGET = -1
_CHANNELS = (1, 3, 4)


@dataclasses.dataclass(frozen=True)
class Export:
    """What is known of N adversarial images and their 8-bit forms; `images.npz` holds the same.

    Attributes:
        indices: Integers (N,): numbers of the images, for the names of files.
        labels: Integers (N,): their classes.
        targets: Integers (N,): the classes to lead to, -1 where any but the label will do.
        images: float32 (N, height, width, channels): the adversarial images.
        predictions: int32 (N,): the model's classes of these; -1 where they are not in [0, 1].
        distances: float64 (N,): to the clean images; infinite for images that verification rejects.
        outcomes: Text (N,): "rounded" where the image is adversarial with the nearest 8-bit values,
            "nudged" where other values near them are, "lost" where none were found, and "rejected"
            where the image itself is not adversarial. Only the first two have a PNG.
        images_8bit: uint8, as `images`: where lost or rejected, the nearest values.
        predictions_8bit: int32 (N,): the model's classes of these; -1 where rejected.
        distances_8bit: float64 (N,): to the clean images; infinite where there is no PNG.
    """

    indices: np.ndarray
    labels: np.ndarray
    targets: np.ndarray
    images: np.ndarray
    predictions: np.ndarray
    distances: np.ndarray
    outcomes: np.ndarray
    images_8bit: np.ndarray
    predictions_8bit: np.ndarray
    distances_8bit: np.ndarray

    @property
    def summary(self) -> str:
        """E.g. "92 images: 63 rounded, 27 nudged, 2 lost"."""
        counts = {kind: np.sum(self.outcomes == kind) for kind in (ROUNDED, NUDGED, LOST, REJECTED)}
        parts = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
        return f"{len(self.indices):,} images: {parts}"


def export_images(
    model: Classifier,
    clean: np.ndarray,
    labels: np.ndarray,
    adversarial: np.ndarray,
    folder: PathLike,
    *,
    norm: str,
    targets: np.ndarray | None = None,
    indices: np.ndarray | None = None,
    progress: Callable[[int], None] | None = None,
) -> Export:
    """Writes adversarial images as 8-bit PNG, and all that is known of them as arrays.

    Every image is verified, and so is its 8-bit form, whose distance is measured again. Where
    rounding loses it, it is nudged to 8-bit values near the rounded ones (`to_eight_bit`). Files of
    an earlier export to the same folder are replaced, or removed where there is no longer an image.

    Args:
        model: The classifier that they are adversarial for.
        clean: Images, float32 (N, height, width, channels) in [0, 1].
        labels: Their classes, integers (N,).
        adversarial: Images as `clean`, but with any values.
        folder: Made if needed.
        norm: Of the distances: "l2", "linf" or "l0".
        targets: Integers (N,): the classes that count as success; by default any but the label.
        indices: Integers (N,), no two alike: numbers of the images, by default from 0.
        progress: Called with the number of images done, batch by batch.

    Raises:
        ValueError: An argument is not as described, or images are of a number of channels that PNG
            does not hold.
        OSError: The folder can't be written to.
    """
    if (channels := model.image_shape[-1]) not in _CHANNELS:
        raise ValueError(f"PNG holds images of 1, 3 or 4 channels, those here have {channels}")
    clean, classes, adversarial = check_arguments(model, clean, labels, adversarial, targets)
    check_norm(norm)
    numbers = _check_indices(indices, len(clean))
    folder = as_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sized = model.with_batch_size(verification_batch_size(model, len(clean)))
    parts = []
    for first in range(0, len(clean), model.batch_size):
        rows = slice(first, first + model.batch_size)
        parts.append(
            _convert(
                sized, clean[rows], classes[rows], adversarial[rows], norm, targets is not None
            )
        )
        if progress is not None:
            progress(len(clean[rows]))
    found = Export(
        indices=numbers,
        labels=np.asarray(labels),
        targets=np.full(len(clean), NO_TARGET) if targets is None else np.asarray(targets),
        images=adversarial,
        **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
    )
    _write(folder, found)
    return found


def _check_indices(indices: np.ndarray | None, count: int) -> np.ndarray:
    numbers = np.arange(count) if indices is None else np.asarray(indices)
    if numbers.shape != (count,) or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(
            f"indices must be integers of shape ({count},), one for each image, got"
            f" {numbers.dtype} of shape {numbers.shape}"
        )
    if len(np.unique(numbers)) < count or numbers.min() < 0:
        raise ValueError("indices must be numbers from 0, no two alike: they name the files")
    return numbers


def _convert(
    model: Classifier,
    clean: np.ndarray,
    classes: np.ndarray,
    adversarial: np.ndarray,
    norm: str,
    targeted: bool,
) -> dict[str, np.ndarray]:
    """What `Export` has of the predictions, distances and 8-bit forms of a batch."""
    predictions, predictions_8bit = np.full((2, len(clean)), NOT_CLASSIFIED, np.int32)
    distances, distances_8bit = np.full((2, len(clean)), np.inf)
    outcomes = np.full(len(clean), REJECTED)
    images_8bit = np.rint(255 * np.clip(np.nan_to_num(adversarial), 0, 1)).astype(np.uint8)
    rows = np.flatnonzero(np.all((adversarial >= 0) & (adversarial <= 1), axis=(1, 2, 3)))
    if len(rows):
        fools, predictions[rows] = is_adversarial(model, adversarial[rows], classes[rows], targeted)
        rows = rows[fools]
    if len(rows):
        distances[rows] = measure_distances(clean[rows], adversarial[rows], norm)
        found = to_eight_bit(
            model, clean[rows], classes[rows], adversarial[rows], targeted=targeted
        )
        images_8bit[rows], outcomes[rows] = found.images, found.outcomes
        predictions_8bit[rows] = found.predictions
        measured = measure_distances(clean[rows], found.floats, norm)
        distances_8bit[rows] = np.where(found.outcomes == LOST, np.inf, measured)
    return {
        "predictions": predictions,
        "distances": distances,
        "outcomes": outcomes,
        "images_8bit": images_8bit,
        "predictions_8bit": predictions_8bit,
        "distances_8bit": distances_8bit,
    }


def _write(folder: pathlib.Path, found: Export) -> None:
    earlier, written = _earlier(folder), set()
    for index, image, distance in zip(
        found.indices.tolist(), found.images_8bit, found.distances_8bit, strict=True
    ):
        if np.isfinite(distance):
            name = _png_name(index)
            shown = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
            content = io.BytesIO()
            shown.save(content, "PNG")
            atomic_write_bytes(folder / name, content.getvalue())
            written.add(name)
    content = io.BytesIO()
    np.savez_compressed(content, **dataclasses.asdict(found))
    atomic_write_bytes(folder / ARRAYS, content.getvalue())
    for name in earlier - written:
        (folder / name).unlink(missing_ok=True)


def _earlier(folder: pathlib.Path) -> set[str]:
    """The PNG of an earlier export to the folder, as its arrays name them."""
    try:
        with np.load(folder / ARRAYS) as arrays:
            return {_png_name(index) for index in arrays["indices"].tolist()}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return set()


def _png_name(index: int) -> str:
    return f"{index:05d}.png"
