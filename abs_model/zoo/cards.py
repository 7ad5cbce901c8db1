"""The model zoo: trained models that come with the code, by name.

An entry is two files in `weights/`: weights (safetensors) and a card (JSON)::

    sha256    of the weights file
    models    by name: whether the model thresholds images, and what was measured of it
    config    of the training run
    run       what the run noted at its end: image shape, calibration, time, commit, hardware,
              and for a fine-tuned model also those of the pretrained one, and its configuration

Models of one entry share its weights: Binary ABS is ABS on thresholded images.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
import safetensors.numpy

from abs_model._runtime import pytrees
from abs_model._runtime.atomic_files import atomic_write_bytes, write_json
from abs_model._runtime.configuration import as_config
from abs_model._runtime.errors import UserError
from abs_model.inference.solvers.surrogates import Surrogate
from abs_model.models.abs import ABSClassifier
from abs_model.models.decoders import Decoder

PyTree = Any
FOLDER = pathlib.Path(__file__).parent / "weights"
# Of the baseline that is made of the data set instead of trained.
NEAREST_NEIGHBOR = "nearest_neighbor"
SUFFIX = ".safetensors"
_MODEL, _SURROGATE = "model", "surrogate"
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_CARD_KEYS = {"sha256", "models", "config", "run"}


class ZooError(UserError):
    """A file of the zoo is missing or damaged, or not the one that its card describes."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model of the zoo: an `abs_model.zoo.load.Trained`. Reads its weights when first asked.

    Attributes:
        name: Of the model.
        path: Of the weights.
        card: Content of the card.
    """

    name: str
    path: pathlib.Path
    card: Mapping[str, Any]

    @property
    def binary(self) -> bool:
        """Whether the model thresholds images."""
        return self.card["models"][self.name]["binary"]

    @property
    def config(self) -> ml_collections.ConfigDict:
        """The configuration that it was trained with."""
        return as_config(self.card["config"])

    @property
    def run(self) -> Mapping[str, Any]:
        """What the run noted at its end."""
        return self.card["run"]

    def restore(self, template: PyTree) -> PyTree:
        """The model's arrays in the structure of `template`.

        Raises:
            ZooError: The file is damaged, or holds other arrays.
        """
        found = self._arrays(_MODEL)
        if lines := pytrees.mismatches(_MODEL, template, found):
            raise ZooError(
                f"{self.path} holds other arrays than this code makes of its card's configuration;"
                " it belongs to another version of the code, or must be exported again:\n"
                + "\n".join(f"  {line}" for line in lines)
            )
        return pytrees.from_arrays(_MODEL, template, found)

    def surrogate(self, decoder: Decoder) -> Surrogate:
        """The decoders' surrogates, as fitted before the model was put into the zoo.

        Raises:
            ZooError: The file is damaged, or was made without them.
        """
        del decoder
        arrays = self._arrays(_SURROGATE)
        if not arrays:
            raise ZooError(
                f"{self.name!r} came into the zoo without surrogates, which solver='quasi_newton'"
                " needs; load it with solver='adam'"
            )
        return Surrogate.from_arrays(arrays)

    def race_margin(self, classifier: ABSClassifier) -> float | None:
        """None: an entry whose card has no margin searches every class."""
        del classifier
        return None

    def _arrays(self, group: str) -> dict[str, np.ndarray]:
        prefix = f"{group}/"
        return {
            key.removeprefix(prefix): array
            for key, array in self._weights.items()
            if key.startswith(prefix)
        }

    @functools.cached_property
    def _weights(self) -> dict[str, np.ndarray]:
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise ZooError(
                f"the weights of {self.name!r} can't be read: {error}; get them again, together"
                f" with {self.path.stem}.json"
            ) from error
        if hashlib.sha256(data).hexdigest() != self.card["sha256"]:
            raise ZooError(
                f"{self.path} is not the file that its card describes: the SHA-256 differs. Check"
                " both out again, or export the model again"
            )
        return safetensors.numpy.load(data)


def available() -> list[str]:
    """The names of the models that `abs_model.load` makes without a training run."""
    return sorted([*read_entries(FOLDER), NEAREST_NEIGHBOR])


def find(name: str) -> Entry | None:
    """The model of a name, or None."""
    # A path needs no card, and no card that is whole.
    return read_entries(FOLDER).get(name) if _NAME.fullmatch(name) else None


def suggest(name: str) -> str:
    """What there is instead of a model called `name`, as part of a message."""
    near = difflib.get_close_matches(name.lower(), available(), n=3)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"there are {', '.join(available())}"


def check_names(entry: str, models: Sequence[str], *, replace: bool) -> None:
    """Raises a ZooError where an entry can't have these names, or models would be lost.

    Args:
        entry: Name of its files.
        models: Names of its models.
        replace: Whether it may take the place of an entry of that name.
    """
    for name in (entry, *models):
        if not _NAME.fullmatch(name):
            raise ZooError(
                f"{name!r} can't be the name of a model: it must be made of lower-case letters,"
                " digits and _"
            )
    entries = read_entries(FOLDER)
    replaced = {name for name, other in entries.items() if other.path.stem == entry}
    if replaced and not replace:
        raise ZooError(
            f"there is an entry {entry!r} already; take another name, or put this one in its place"
            " with --replace"
        )
    if lost := replaced.difference(models):
        raise ZooError(
            f"the entry {entry!r} also holds {' and '.join(sorted(lost))}, which replacing it"
            " would lose: name it too (--binary_name), or take another name"
        )
    taken = {NEAREST_NEIGHBOR, *entries.keys() - replaced}
    if taken.intersection(models) or len(set(models)) < len(models):
        raise ZooError(
            f"each model needs a name of its own, got {' and '.join(models)}; there are"
            f" {', '.join(sorted(taken))} already"
        )


def write_entry(
    path: pathlib.Path, model: PyTree, surrogate: Surrogate | None, card: Mapping[str, Any]
) -> None:
    """Writes an entry; `read_entries` finds its models.

    Args:
        path: Of the weights, with the suffix `SUFFIX`; the card goes beside them.
        model: The model's arrays.
        surrogate: Of an ABS model's decoders.
        card: Content of the card, but for the hash.
    """
    groups = {_MODEL: pytrees.to_arrays(_MODEL, model)}
    if surrogate is not None:
        groups[_SURROGATE] = surrogate.to_arrays()
    data = safetensors.numpy.save(
        {
            f"{group}/{key}": np.asarray(array, order="C")
            for group, arrays in groups.items()
            for key, array in arrays.items()
        }
    )
    atomic_write_bytes(path, data)
    write_json(path.with_suffix(".json"), {"sha256": hashlib.sha256(data).hexdigest(), **card})


def read_entries(folder: pathlib.Path) -> dict[str, Entry]:
    """The models in a folder of entries, by name.

    Raises:
        ZooError: A card can't be read.
    """
    entries = {}
    for path in sorted(folder.glob("*.json")):
        try:
            card = json.loads(path.read_text())
            if missing := _CARD_KEYS - set(card):
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        except (OSError, ValueError, TypeError) as error:
            raise ZooError(
                f"the card {path} can't be read: {error}; check it out again, export the model"
                " again, or remove the card"
            ) from error
        for name in card["models"]:
            entries[name] = Entry(name, path.with_suffix(SUFFIX), card)
    return entries
