"""Decoded data sets, and the file that keeps them beside the prepared TFDS data.

Decoding 70,000 PNG images takes many seconds, reading 55 MB of arrays a fraction of one. The file
lies inside TFDS's own folder of the prepared version, so that deleting that folder deletes it too.
"""

import dataclasses
import hashlib
import importlib.metadata
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from abs_model._runtime.atomic_files import atomic_write_bytes

ARRAYS_FILE = "abs_model_arrays.npz"
_LAYOUT = 1  # of the file; an older layout is rebuilt


@dataclasses.dataclass(frozen=True)
class Split:
    """Images and labels of one split, in a fixed order.

    Attributes:
        images: uint8, (N, height, width, channels), 0 to 255.
        labels: int32, (N,), 0 to num_classes - 1.
    """

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class PreparedArrays:
    """The two splits that TFDS prepared, decoded.

    Attributes:
        full_name: name, configuration and version as TFDS writes them ("mnist/3.0.1").
        tfds_version: version of TFDS that read the splits.
        num_classes: number of classes.
        train: the whole training split, validation images included.
        test: the test split.
    """

    full_name: str
    tfds_version: str
    num_classes: int
    train: Split
    test: Split


def write_arrays(path: Path, prepared: PreparedArrays) -> None:
    """Writes the file atomically; a folder that cannot be written to is reported, not an error."""
    arrays = _to_arrays(prepared)
    description = _description(prepared.full_name, prepared.tfds_version)
    description["num_classes"] = prepared.num_classes
    description["sha256"] = {name: _sha256(array) for name, array in arrays.items()}
    content = io.BytesIO()
    named: dict[str, Any] = {"description": json.dumps(description), **arrays}
    np.savez(content, **named)
    try:
        atomic_write_bytes(path, content.getvalue())
    except OSError as error:
        logging.warning(
            "Cannot write %s (%s): the images will be decoded again at every start.", path, error
        )


def read_arrays(path: Path, full_name: str | None, tfds_version: str) -> PreparedArrays | None:
    """Reads the file, or returns None where it has to be built again.

    A file that is corrupt (unreadable, or an array that differs from its SHA-256) is announced and
    not used.

    Args:
        path: the file.
        full_name: the data set and version wanted; None takes what the file holds.
        tfds_version: the version of TFDS that must have read the arrays.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            description = json.loads(str(file["description"]))
            wanted = _description(full_name or description["full_name"], tfds_version)
            if any(description.get(key) != value for key, value in wanted.items()):
                return None
            arrays = {name: file[name] for name in description["sha256"]}
        differing = [n for n, array in arrays.items() if _sha256(array) != description["sha256"][n]]
        if differing:
            raise ValueError(f"SHA-256 of {', '.join(differing)} differs")
        return _from_arrays(description, arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        logging.warning("%s is corrupt (%s): decoding the prepared data again.", path, error)
        return None


def find_arrays(data_dir: Path, name: str) -> PreparedArrays | None:
    """Finds the arrays of a prepared data set without importing TFDS.

    Only where it is certain that TFDS would choose the same: one version of the data set is
    prepared and the arrays were read by the TFDS version that is installed.
    """
    try:
        installed = importlib.metadata.version("tensorflow-datasets")
    except importlib.metadata.PackageNotFoundError:
        return None
    found = list((data_dir / name).glob(f"*/{ARRAYS_FILE}"))
    return read_arrays(found[0], None, installed) if len(found) == 1 else None


def _description(full_name: str, tfds_version: str) -> dict:
    return {"layout": _LAYOUT, "full_name": full_name, "tfds_version": tfds_version}


def _to_arrays(prepared: PreparedArrays) -> dict[str, np.ndarray]:
    return {
        "train_images": prepared.train.images,
        "train_labels": prepared.train.labels,
        "test_images": prepared.test.images,
        "test_labels": prepared.test.labels,
    }


def _from_arrays(description: dict, arrays: dict[str, np.ndarray]) -> PreparedArrays:
    return PreparedArrays(
        full_name=description["full_name"],
        tfds_version=description["tfds_version"],
        num_classes=description["num_classes"],
        train=Split(arrays["train_images"], arrays["train_labels"]),
        test=Split(arrays["test_images"], arrays["test_labels"]),
    )


def _sha256(array: np.ndarray) -> str:
    """Digest of type, shape and content."""
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
