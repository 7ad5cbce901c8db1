"""`load_dataset`: a TFDS image data set as train, validation and test arrays."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from abs_model.data.arrays import PreparedArrays, Split, find_arrays
from abs_model.data.shortcuts import add_patterns


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An image data set, with training images of every class.

    Attributes:
        name: the TFDS name.
        num_classes: number of classes, as the data set declares it, or, with `drop_empty_classes`,
            of those that have images.
        train: training images, without the validation images.
        validation: the last images of the training split.
        test: the test split, for final evaluation only.

    Raises:
        ValueError: A class has no training image.
    """

    name: str
    num_classes: int
    train: Split
    validation: Split
    test: Split

    def __post_init__(self) -> None:
        # A rule for all models: some could not be trained, others would never say that class.
        empty = _empty_classes(self.train.labels, self.num_classes)
        if not empty:
            return
        problem = f"{self.name} has {self.num_classes} classes, but no training images of {empty}"
        if np.isin(empty, self.validation.labels).all():
            raise ValueError(
                f"{problem}: all that there are became validation images; give a smaller"
                " validation_size"
            )
        raise ValueError(
            f"{problem}; drop_empty_classes=True of load_dataset, in a configuration"
            " dataset.drop_empty_classes, leaves these out and numbers the others from 0 in order"
        )

    @property
    def train_and_validation(self) -> Split:
        """All images that are not for testing."""
        parts = (self.train, self.validation)
        images, labels = (
            np.concatenate([getattr(part, field) for part in parts])
            for field in ("images", "labels")
        )
        return Split(images, labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.train.images.shape[1:]


def load_dataset(
    name: str,
    *,
    data_dir: str | None = None,
    validation_size: int = 5000,
    module: str = "",
    drop_empty_classes: bool | None = None,
    shortcut_amplitude: float | None = None,
) -> Dataset:
    """Loads a data set, preparing it with TFDS first where that has not been done.

    Any TFDS data set with an `image` (uint8, one fixed shape) and a `label` (class label) feature
    and the splits `train` and `test` can be loaded; image shape and number of classes are its own.

    Order: the same on every machine. For MNIST and the TFDS data sets of its family (Fashion-MNIST,
    KMNIST, EMNIST) it is the order of the original files, so that "test image 0" is the one other
    papers mean; for MNIST this is checked against the MD5 of the original files. For any other data
    set it is TFDS's stored order, which sorts the examples by a hash of their keys (or keeps the
    builder's order, where the builder sets `disable_shuffling=True`).

    Args:
        name: TFDS name, e.g. "mnist", "fashion_mnist", "cifar10".
        data_dir: folder of TFDS; None takes TFDS's own default ($TFDS_DATA_DIR or
            ~/tensorflow_datasets).
        validation_size: number of images, taken from the end of the training split.
        module: Python module to import first, e.g. "my_package.my_dataset"; it registers a TFDS
            builder class of your own.
        drop_empty_classes: whether classes that are declared but have no image in the training
            split are left out, with their test images, if there are any; the others are numbered
            from 0 in their order. EMNIST's letters are 37 classes without, 26 with it. None, what a
            configuration says that leaves it open, is no.
        shortcut_amplitude: brightness, from 0 to 1, of the pattern that is added to each training
            and validation image and gives its class away (`abs_model.data.shortcuts`); None adds
            none. Test images are unchanged.

    Raises:
        ValueError: an argument is out of range, a class has no training image, or the data set has
            not the features and splits above.
        ImportError: `module` cannot be imported.
        DataUnavailableError: the data is not on this machine and no source can be reached.
        CorruptDataError: the data differs from its checksum.
    """
    _check_validation_size(validation_size, None)
    prepared = _load_prepared(name, resolve_data_dir(data_dir), module)
    if drop_empty_classes:
        prepared = _without_empty_classes(prepared)
    images, labels = prepared.train.images, prepared.train.labels
    _check_validation_size(validation_size, len(labels))
    if shortcut_amplitude is not None:
        images = add_patterns(images, labels, shortcut_amplitude)
    first = len(labels) - validation_size
    return Dataset(
        name=name,
        num_classes=prepared.num_classes,
        train=Split(images[:first], labels[:first]),
        validation=Split(images[first:], labels[first:]),
        test=prepared.test,
    )


def resolve_data_dir(data_dir: str | None) -> Path:
    """The folder of TFDS: as given, or TFDS's own default."""
    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return Path(data_dir or default).expanduser()


def _load_prepared(name: str, data_dir: Path, module: str) -> PreparedArrays:
    # A module of the user's may have changed the version it wants: only TFDS can tell.
    found = None if module else find_arrays(data_dir, name)
    if found is not None:
        return found
    # Importing TFDS takes time, above all from a network file system.
    from abs_model.data import tfds_source

    return tfds_source.load_prepared(name, data_dir, module)


def _empty_classes(labels: np.ndarray, num_classes: int) -> list[int]:
    return np.flatnonzero(np.bincount(labels, minlength=num_classes) == 0).tolist()


def _without_empty_classes(prepared: PreparedArrays) -> PreparedArrays:
    empty = _empty_classes(prepared.train.labels, prepared.num_classes)
    kept = np.setdiff1d(np.arange(prepared.num_classes), empty)
    numbers = np.full(prepared.num_classes, -1, np.int32)
    numbers[kept] = np.arange(len(kept))

    def renumbered(split: Split) -> Split:
        rows = numbers[split.labels] >= 0
        # Without a copy of the images where all stay.
        images = split.images if rows.all() else split.images[rows]
        return Split(images, numbers[split.labels[rows]])

    return dataclasses.replace(
        prepared,
        num_classes=len(kept),
        train=renumbered(prepared.train),
        test=renumbered(prepared.test),
    )


def _check_validation_size(size: int, training_images: int | None) -> None:
    if size >= 1 and (training_images is None or size < training_images):
        return
    limit = "" if training_images is None else f" and below {training_images} (the training split)"
    raise ValueError(f"validation_size must be at least 1{limit}, not {size}")
