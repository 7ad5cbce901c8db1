"""Training images that ABS misclassifies, or classifies correctly by a small gap, and copies."""

import dataclasses
import io
import pathlib
import time
import zipfile

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from rich.console import Console
from rich.progress import track

from abs_model._runtime.atomic_files import atomic_write_bytes
from abs_model._runtime.configuration import ConfigError
from abs_model.data import Split
from abs_model.data.augmentation import shift_and_rotate
from abs_model.data.batches import to_float
from abs_model.inference.racing import RacingSolver
from abs_model.models.abs import ABSClassifier
from abs_model.models.build import infer_in_batches
from abs_model.training.workdir import WorkdirError

_FILE = "hard_images.npz"
_CHUNK = 2048
# Margin of the race that finds candidates, in nats. A calibrated one is larger (8.6 for a model
# trained by configs/abs.py:long) and leaves more candidates. An image is missed only if an estimate
# is too high by more.
_RACE_MARGIN = 1.0
# Distinguishes the keys of the copies' shifts and rotations from those of training.
_CHANGES = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class HardImages:
    """Hard images and their copies, and how each class explains them.

    Attributes:
        images: uint8 (N, height, width, channels): the originals, then the first copy of each, and
            so on.
        labels: int32 (N,).
        energies: In nats, float32 (N, classes).
        latents: float32 (N, classes, latent).
        seconds: How long it took to find them.
    """

    images: np.ndarray
    labels: np.ndarray
    energies: np.ndarray
    latents: np.ndarray
    seconds: float


def kept_hard_images(
    workdir: pathlib.Path,
    classifier: ABSClassifier,
    split: Split,
    config: ml_collections.ConfigDict,
) -> HardImages:
    """What `find_hard_images` finds: read, or found, which takes minutes, and kept.

    Args:
        workdir: Directory of the run, which keeps them.
        classifier: As for `find_hard_images`.
        split: As for `find_hard_images`.
        config: As for `find_hard_images`.

    Raises:
        WorkdirError: The file is damaged, or the classifier is not the one that it was made with.
        ConfigError: No image is hard.
    """
    path, origin = workdir / _FILE, classifier.solver.decoder.origin
    try:
        with np.load(path) as file:
            arrays = dict(file)
            found_with = str(arrays.pop("origin"))
            kept = HardImages(**arrays | {"seconds": float(arrays["seconds"])})
    except FileNotFoundError:
        found = find_hard_images(classifier, split, config)
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, origin=origin, **dataclasses.asdict(found))
        atomic_write_bytes(path, content.getvalue())
        return found
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise WorkdirError(
            f"{path} is damaged ({error}), and checkpoints belong to what it held; start train.py"
            " again with a new --workdir"
        ) from error
    if found_with != origin:
        raise WorkdirError(
            f"the pretrained model {config.pretrained!r} has changed since {path} was made from it;"
            " give a new --workdir"
        )
    return kept


def find_hard_images(
    classifier: ABSClassifier, split: Split, config: ml_collections.ConfigDict
) -> HardImages:
    """The hard images of a split, and shifted and rotated copies of them; with progress bars.

    An image is hard when another class's energy is less than `train.max_gap` above that of its own.
    Where the solver can race, a race finds candidates, which a search then confirms.

    Args:
        classifier: ABS, unweighted.
        split: Training images.
        config: Uses `seed`, `train.max_gap` in nats, `train.copies` of each hard image,
            `train.max_shift` and `train.max_rotation`.

    Raises:
        ConfigError: No image is hard.
    """
    start = time.perf_counter()
    train = config.train
    candidates = np.flatnonzero(_estimated_gaps(classifier, split) < train.max_gap)
    energies, latents = _explain(classifier, split.images[candidates], "explaining candidates")
    hard = _gaps(energies, split.labels[candidates]) < train.max_gap
    rows = candidates[hard]
    if not len(rows):
        raise ConfigError(
            f"train.max_gap must be so large that some of the {len(split.labels)} training images"
            f" are hard, got {train.max_gap} nats; give a larger one"
        )
    originals = split.images[rows]
    keys = jax.random.fold_in(jax.random.key(config.seed), _CHANGES)
    copies = [
        np.asarray(_changed(originals, jax.random.fold_in(keys, number), config))
        for number in range(train.copies)
    ]
    images = np.concatenate([originals, *copies])
    of_copies = _explain(classifier, images[len(originals) :], "explaining copies")
    return HardImages(
        images,
        np.tile(split.labels[rows], 1 + train.copies).astype(np.int32),
        np.concatenate([energies[hard], of_copies[0]]),
        np.concatenate([latents[hard], of_copies[1]]),
        time.perf_counter() - start,
    )


def _changed(images: np.ndarray, key: jax.Array, config: ml_collections.ConfigDict) -> jax.Array:
    """Shifted and rotated images, uint8 as the given ones."""
    changed = shift_and_rotate(
        to_float(jnp.asarray(images)),
        key,
        max_shift=config.train.max_shift,
        max_rotation=config.train.max_rotation,
    )
    return jnp.round(255 * changed).astype(jnp.uint8)


def _estimated_gaps(classifier: ABSClassifier, split: Split) -> np.ndarray:
    """`_gaps`, or lower bounds from a race where the solver can race.

    An estimate that is too high by more than `_RACE_MARGIN` makes a bound too high.
    """
    if isinstance(classifier.solver, RacingSolver):
        classifier = dataclasses.replace(classifier, race_margin=jnp.float32(_RACE_MARGIN))
    starts = range(0, len(split.images), _CHUNK)
    bar = track(starts, "finding hard images", console=Console(stderr=True))
    chunks = (split.images[start : start + _CHUNK].astype(np.float32) / 255 for start in bar)
    logits = [classifier.decision_logits(chunk) for chunk in chunks]
    energies = classifier.energies_from_logits(np.concatenate(logits))
    return _gaps(np.asarray(energies), split.labels)


def _gaps(energies: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The lowest energy of another class less that of each image's own class, in nats, (N,)."""
    others = np.array(energies)
    rows = np.arange(len(labels))
    others[rows, labels] = np.inf
    return others.min(axis=1) - energies[rows, labels]


def _explain(
    classifier: ABSClassifier, images: np.ndarray, description: str
) -> tuple[np.ndarray, np.ndarray]:
    """Energies (N, classes) and latents (N, classes, latent)."""
    count, latent_size = classifier.num_classes, classifier.solver.decoder.latent_size
    energies = [np.zeros((0, count), np.float32)]
    latents = [np.zeros((0, count, latent_size), np.float32)]
    for found in infer_in_batches(classifier, images.astype(np.float32) / 255, description):
        energies.append(np.asarray(found.energies))
        latents.append(np.asarray(found.latents))
    return np.concatenate(energies), np.concatenate(latents)
