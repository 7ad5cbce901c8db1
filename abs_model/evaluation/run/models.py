"""The models of an evaluation: how they are named on the command line, and loading them."""

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any

import ml_collections

from abs_model._runtime.atomic_files import as_path
from abs_model._runtime.errors import UserError
from abs_model.data import Dataset, load_dataset
from abs_model.evaluation.run.plugins import import_function
from abs_model.models.classifier import Classifier
from abs_model.models.nearest_neighbor import nearest_neighbor
from abs_model.zoo import cards
from abs_model.zoo.load import BINARY_SUFFIX, find_trained, load

_ADVICE = "evaluate models of one data set at a time"
_DEFAULT_DATASET = {"name": "mnist"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class ModelsError(UserError):
    """The requested models can't be evaluated, or not together."""


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """One model to evaluate.

    Attributes:
        name: What tables and file names call it.
        path: What `abs_model.load` takes, as the user wrote it: the name of a pretrained model, or
            the workdir of a training run; or package.module:function, of a function that makes the
            classifier.
        binary: Whether it gets thresholded images: Binary ABS, Binary CNN.
    """

    name: str
    path: str
    binary: bool = False

    @property
    def trained_here(self) -> bool:
        """Whether it is a run of train.py, or of the zoo: it has a configuration."""
        return self.path != cards.NEAREST_NEIGHBOR and not self.made

    @property
    def made(self) -> bool:
        """Whether a function makes it."""
        return ":" in self.path


def parse_models(entries: Sequence[str]) -> list[ModelSpec]:
    """Reads NAME=PATH, NAME=PATH:binary, PATH or PATH:binary.

    PATH alone is named by its folder, with "binary_" in front of it for thresholded images.

    PATH is a workdir or the name of a pretrained model. NAME=package.module:function is a
    user-defined model: the function takes nothing and returns a `Classifier`; see
    `abs_model.from_function`.

    Raises:
        ModelsError: There is no entry, a name can't be part of a file name, two are the same, or
            the nearest neighbor or a user-defined model is to threshold images.
    """
    if not any(entry.strip() for entry in entries):
        raise ModelsError("--models names no model; give NAME=PATH[,NAME=PATH...]")
    specs: list[ModelSpec] = []
    for entry in entries:
        name, separator, location = entry.strip().partition("=")
        location = location if separator else name
        path, binary = location.removesuffix(BINARY_SUFFIX), location.endswith(BINARY_SUFFIX)
        if not separator:
            name = os.path.basename(os.path.abspath(os.path.expanduser(path)))
            name = f"binary_{name}" if binary else name
        if (plain := _misspelt_binary(path)) is not None:
            raise ModelsError(
                f"--models: {entry!r}: did you mean {plain}{BINARY_SUFFIX}? {plain} is a trained"
                " model, not a module with a function"
            )
        if not path or not _NAME.fullmatch(name):
            raise ModelsError(
                f"--models: {entry!r} must be NAME=PATH or NAME=package.module:function, the name"
                " of letters, digits and . _ + - (it becomes part of file names)"
            )
        if name in {spec.name for spec in specs}:
            raise ModelsError(
                f"--models: two models are called {name!r}; tell them apart with NAME=PATH"
            )
        if binary and path == cards.NEAREST_NEIGHBOR:
            raise ModelsError(
                f"--models: {path} does not come with {BINARY_SUFFIX}; give {path} alone"
            )
        spec = ModelSpec(name, path, binary)
        if binary and spec.made:
            raise ModelsError(
                f"--models: {path} does not come with {BINARY_SUFFIX}, which is for trained models;"
                " let the function make a model that thresholds its images itself"
            )
        specs.append(spec)
    return specs


def load_models(
    specs: Sequence[ModelSpec], *, data_dir: str | None = None
) -> tuple[dict[str, Any], Dataset]:
    """Loads the models, and the data set that all of them were trained on, without shortcuts.

    The nearest neighbor is made of the data set of the other models; by itself, of MNIST. MNIST is
    the data set, too, where all models are user-defined.

    Args:
        specs: The models, with different names.
        data_dir: Folder of the data sets; None takes the first that a model's configuration names.

    Returns:
        The classifiers by name, in the order of `specs`, and the data set.

    Raises:
        ModelsError: The models belong to different data sets.
        UserError: A model isn't there or can't be read, or the data set can't.
    """
    sections = {name: config.dataset.to_dict() for name, config in training_configs(specs).items()}
    if len({(section["name"], section["module"]) for section in sections.values()}) > 1:
        found = ", ".join(f"{name!r} on {section['name']}" for name, section in sections.items())
        raise ModelsError(f"the models were trained on different data sets ({found}); {_ADVICE}")
    # Patterns that give classes away are for training only.
    section = {
        key: value
        for key, value in next(iter(sections.values()), _DEFAULT_DATASET).items()
        if key != "shortcut_amplitude"
    }
    folders = (data_dir, *(section["data_dir"] for section in sections.values()))
    folder = next((folder for folder in folders if folder), None)
    dataset = load_dataset(**section | {"data_dir": folder})
    models = {spec.name: _load(spec, dataset) for spec in specs}
    for name, model in models.items():
        check_shape(name, model, dataset.image_shape, dataset.num_classes)
    return models, dataset


def training_configs(specs: Sequence[ModelSpec]) -> dict[str, ml_collections.ConfigDict]:
    """The configurations of the models that were trained here, by name.

    Raises:
        ModelsError: One isn't there, or its training has not ended.
    """
    configs = {}
    for spec in specs:
        if spec.trained_here:
            try:
                configs[spec.name] = find_trained(spec.path).config
            except UserError as error:
                raise ModelsError(f"--models: model {spec.name!r}: {error}") from error
    return configs


def _misspelt_binary(path: str) -> str | None:
    """The trained model in what was meant to be MODEL:binary, such as cnn:binry."""
    plain, separator, _ = path.rpartition(":")
    if not separator or not plain:
        return None
    return plain if cards.find(plain) is not None or as_path(plain).is_dir() else None


def check_shape(name: str, model: Any, image_shape: tuple[int, ...], num_classes: int) -> None:
    """Raises a ModelsError when a classifier is made for other images or classes."""
    if tuple(model.image_shape) != tuple(image_shape):
        raise ModelsError(
            f"model {name!r} takes images of {_by(model.image_shape)}, but the data set has images"
            f" of {_by(image_shape)}; {_ADVICE}"
        )
    if model.num_classes != num_classes:
        raise ModelsError(
            f"model {name!r} has {model.num_classes} classes, but the data set {num_classes};"
            f" {_ADVICE}"
        )


def _load(spec: ModelSpec, dataset: Dataset) -> Classifier:
    if spec.path == cards.NEAREST_NEIGHBOR:
        return nearest_neighbor(dataset, spec.name)
    if not spec.made:
        return load(spec.path, binary=spec.binary, name=spec.name)
    model = import_function(spec.path, "--models")()
    if not isinstance(model, Classifier):
        raise ModelsError(
            f"--models: {spec.path} must return an abs_model.Classifier, such as"
            f" abs_model.from_function gives; got {type(model).__name__}"
        )
    return dataclasses.replace(model, name=spec.name)


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
