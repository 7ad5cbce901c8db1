"""Training images that ABS classifies wrongly or by little, shifted and rotated copies included."""

import dataclasses
import io
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from rich.console import Console
from rich.progress import track

from abs_model._runtime.atomic_files import atomic_write_bytes
from abs_model.data import Split
from abs_model.data.augmentation import shift_and_rotate
from abs_model.data.batches import to_float
from abs_model.models.abs import ABSClassifier
from abs_model.training.workdir import WorkdirError

_FILE = "hard_images.npz"
_CHUNK = 2048
# Of the race that finds the hard images, in nats. Smaller than a calibrated one, which would leave
# every tenth image: here an estimate that is too high only loses an image that is hard.
_RACE_MARGIN = 1.0


@dataclasses.dataclass(frozen=True)
class HardImages:
    """Hard images, and how each class explains them.

    Attributes:
        images: uint8 (N, height, width, channels).
        labels: int32 (N,).
        energies: In nats, float32 (N, classes).
        latents: float32 (N, classes, latent).
    """

    images: np.ndarray
    labels: np.ndarray
    energies: np.ndarray
    latents: np.ndarray


def kept_hard_images(
    workdir: pathlib.Path,
    classifier: ABSClassifier,
    split: Split,
    config: ml_collections.ConfigDict,
) -> HardImages:
    """What `find_hard_images` finds: read, or found, which takes minutes, and kept.

    Args:
        workdir: Where they are kept.
        classifier: As for `find_hard_images`, like the others.
        split: Training images.
        config: Likewise.

    Raises:
        WorkdirError: The file is damaged.
        ValueError: There are none.
    """
    path = workdir / _FILE
    try:
        with np.load(path) as file:
            return HardImages(**file)
    except FileNotFoundError:
        pass
    except Exception as error:  # damage shows as nearly any exception
        raise WorkdirError(
            f"{path} can't be read: {error}; delete it, and start train.py again with the same"
            " command, which writes it again"
        ) from error
    found = find_hard_images(classifier, split, config)
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **dataclasses.asdict(found))
    atomic_write_bytes(path, content.getvalue())
    return found


def find_hard_images(
    classifier: ABSClassifier, split: Split, config: ml_collections.ConfigDict
) -> HardImages:
    """The hard images of a split, each followed by shifted and rotated copies; with progress bars.

    Args:
        classifier: ABS, unweighted. Where it can race, a race finds the hard images.
        split: Training images.
        config: Uses `seed`, `train.max_gap`, the energy of the best other class above that of an
            image's own class at which it is no longer hard, in nats; `train.copies` of each, the
            image itself included; `train.max_shift` and `train.max_rotation`.

    Raises:
        ValueError: There are none.
    """
    train = config.train
    rows = np.flatnonzero(_gaps(classifier, split) < train.max_gap)
    if not len(rows):
        raise ValueError(
            f"train.max_gap must leave hard images: with {train.max_gap} nats there are none of the"
            f" {len(split.labels)} training images; give a larger one"
        )
    originals = split.images[rows]
    copies = [originals]
    for number in range(1, train.copies):
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        changed = shift_and_rotate(
            to_float(jnp.asarray(originals)),
            key,
            max_shift=train.max_shift,
            max_rotation=train.max_rotation,
        )
        copies.append(np.asarray(jnp.round(255 * changed).astype(jnp.uint8)))
    images = np.concatenate(copies)
    energies, latents = [], []
    for chunk in _chunks(images, classifier.batch_size, "explaining hard images"):
        found = classifier.infer(chunk)
        energies.append(np.asarray(found.energies))
        latents.append(np.asarray(found.latents))
    return HardImages(
        images,
        np.tile(split.labels[rows], train.copies).astype(np.int32),
        np.concatenate(energies),
        np.concatenate(latents),
    )


def _gaps(classifier: ABSClassifier, split: Split) -> np.ndarray:
    """The energy of the best other class above that of each image's own class, in nats, (N,)."""
    if classifier.races:
        classifier = dataclasses.replace(classifier, race_margin=jnp.float32(_RACE_MARGIN))
    pixels = np.prod(classifier.image_shape)
    energies = np.concatenate(
        [
            -pixels * classifier.decision_logits(chunk)
            for chunk in _chunks(split.images, _CHUNK, "finding hard images")
        ]
    )
    everyone = np.arange(len(energies))
    own = energies[everyone, split.labels]
    energies[everyone, split.labels] = np.inf
    return energies.min(axis=1) - own


def _chunks(images: np.ndarray, size: int, description: str) -> Iterator[np.ndarray]:
    """The images as float32 in [0, 1], `size` at a time, with a progress bar."""
    starts = range(0, len(images), size)
    for start in track(starts, description, console=Console(stderr=True)):
        yield images[start : start + size].astype(np.float32) / 255
