"""Decoded data sets, and the files that keep them beside the prepared TFDS data.

Decoding 70,000 PNG images takes many seconds, opening the arrays a fraction of one. They lie inside
TFDS's own folder of the prepared version, so that deleting that folder deletes them too::

    abs_model_arrays/description.json    what they are, and the SHA-256 of each file
    abs_model_arrays/train_images.npy    mapped into memory, of which only what is used takes room

Mapped files must be replaced, as `write_arrays` does it, and not overwritten in place, which would
end the processes that use them.
"""

import dataclasses
import hashlib
import importlib.metadata
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from abs_model._runtime.atomic_files import atomic_write_bytes, write_json

ARRAYS_FOLDER = "abs_model_arrays"
_DESCRIPTION = "description.json"
_LAYOUT = 2  # of the folder; an older layout is rebuilt


@dataclasses.dataclass(frozen=True)
class Split:
    """Images and labels of one split, in a fixed order; arrays read from files are read-only.

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


def write_arrays(folder: Path, prepared: PreparedArrays) -> None:
    """Writes the arrays; a folder that cannot be written to is reported, not an error."""
    files = {f"{name}.npy": _npy(array) for name, array in _to_arrays(prepared).items()}
    description = _description(prepared.full_name, prepared.tfds_version)
    description["num_classes"] = prepared.num_classes
    description["sha256"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    try:
        folder.mkdir(exist_ok=True)
        for name, data in files.items():
            atomic_write_bytes(folder / name, data)
        # Last, because it vouches for the others.
        write_json(folder / _DESCRIPTION, description)
    except OSError as error:
        logging.warning(
            "Cannot write %s (%s): the images will be decoded again at every start.", folder, error
        )


def read_arrays(folder: Path, full_name: str | None, tfds_version: str) -> PreparedArrays | None:
    """Opens the arrays, or returns None where they have to be built again.

    Files that are corrupt (unreadable, or with another SHA-256 than described) are announced and
    not used.

    Args:
        folder: Where they are.
        full_name: the data set and version wanted; None takes what the folder holds.
        tfds_version: the version of TFDS that must have read the arrays.
    """
    if not (folder / _DESCRIPTION).exists():
        return None
    try:
        description = json.loads((folder / _DESCRIPTION).read_text("utf-8"))
        wanted = _description(full_name or description["full_name"], tfds_version)
        if any(description.get(key) != value for key, value in wanted.items()):
            return None
        digests = description["sha256"]
        differing = [name for name in digests if _sha256(folder / name) != digests[name]]
        if differing:
            raise ValueError(f"SHA-256 of {', '.join(differing)} differs")
        arrays = {
            name.removesuffix(".npy"): np.asarray(np.load(folder / name, mmap_mode="r"))
            for name in digests
        }
        return _from_arrays(description, arrays)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logging.warning("%s is corrupt (%s): decoding the prepared data again.", folder, error)
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
    found = list((data_dir / name).glob(f"*/{ARRAYS_FOLDER}"))
    return read_arrays(found[0], None, installed) if len(found) == 1 else None


def _description(full_name: str, tfds_version: str) -> dict[str, Any]:
    return {"layout": _LAYOUT, "full_name": full_name, "tfds_version": tfds_version}


def _to_arrays(prepared: PreparedArrays) -> dict[str, np.ndarray]:
    return {
        "train_images": prepared.train.images,
        "train_labels": prepared.train.labels,
        "test_images": prepared.test.images,
        "test_labels": prepared.test.labels,
    }


def _from_arrays(
    description: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> PreparedArrays:
    return PreparedArrays(
        full_name=description["full_name"],
        tfds_version=description["tfds_version"],
        num_classes=description["num_classes"],
        train=Split(arrays["train_images"], arrays["train_labels"]),
        test=Split(arrays["test_images"], arrays["test_labels"]),
    )


def _npy(array: np.ndarray) -> bytes:
    """The content of a .npy file."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


def _sha256(path: Path) -> str:
    """Digest of a file, read in pieces: mapped pages would count as memory of the process."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
