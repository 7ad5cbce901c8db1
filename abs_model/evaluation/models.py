"""The models of an evaluation: how they are named on the command line, and loading them."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from abs_model.data import Dataset, load_dataset
from abs_model.errors import UserError
from abs_model.loading import load
from abs_model.training.workdir import load_config

_BINARY_SUFFIX = ":binary"
_ADVICE = "evaluate models of one data set at a time"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class ModelsError(UserError):
    """The models asked for can't be evaluated, or not together."""


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """One model to evaluate.

    Attributes:
        name: What tables and file names call it.
        path: The workdir of its training run, as the user wrote it.
        binary: Whether it gets thresholded images: Binary ABS, Binary CNN.
    """

    name: str
    path: str
    binary: bool = False


def parse_models(entries: Sequence[str]) -> list[ModelSpec]:
    """Reads NAME=PATH, NAME=PATH:binary, PATH or PATH:binary; PATH alone is named by its folder.

    Raises:
        ModelsError: There is no entry, a name can't be part of a file name, or two are the same.
    """
    if not any(entry.strip() for entry in entries):
        raise ModelsError("--models names no model; give NAME=PATH[,NAME=PATH...]")
    specs: list[ModelSpec] = []
    for entry in entries:
        name, separator, location = entry.strip().partition("=")
        location = location if separator else name
        path = location.removesuffix(_BINARY_SUFFIX)
        if not separator:
            name = pathlib.Path(os.path.abspath(path)).name
        if not path or not _NAME.fullmatch(name):
            raise ModelsError(
                f"--models: {entry!r} must be NAME=PATH, the name of letters, digits and . _ + -"
                " (it becomes part of file names)"
            )
        if name in {spec.name for spec in specs}:
            raise ModelsError(
                f"--models: two models are called {name!r}; tell them apart with NAME=PATH"
            )
        specs.append(ModelSpec(name, path, binary=location.endswith(_BINARY_SUFFIX)))
    return specs


def load_models(
    specs: Sequence[ModelSpec], *, data_dir: str | None = None, batch_size: int | None = None
) -> tuple[dict[str, Any], Dataset]:
    """Loads the models, and the data set that all of them were trained on.

    Args:
        specs: The models, with different names.
        data_dir: Folder of the data sets; None takes the one of the first model's configuration.
        batch_size: Images that a model takes at a time; None leaves each model its own.

    Returns:
        The classifiers by name, in the order of `specs`, and the data set.

    Raises:
        ModelsError: A path isn't there, or the models belong to different data sets.
        UserError: A workdir, its checkpoint or the data set can't be read.
    """
    sections = {spec.name: _dataset_section(spec) for spec in specs}
    if len({(section.name, section.module) for section in sections.values()}) > 1:
        found = ", ".join(f"{name!r} on {section.name}" for name, section in sections.items())
        raise ModelsError(f"the models were trained on different data sets ({found}); {_ADVICE}")
    section = sections[specs[0].name]
    dataset = load_dataset(
        section.name,
        data_dir=data_dir or section.data_dir or None,
        validation_size=section.validation_size,
        module=section.module,
    )
    options: dict[str, Any] = {} if batch_size is None else {"batch_size": batch_size}
    models = {
        spec.name: load(spec.path, binary=spec.binary, name=spec.name, **options) for spec in specs
    }
    for name, model in models.items():
        check_shape(name, model, dataset.image_shape, dataset.num_classes)
    return models, dataset


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


def _dataset_section(spec: ModelSpec) -> Any:
    if not os.path.isdir(spec.path):
        raise ModelsError(
            f"--models: there is no directory {spec.path} for model {spec.name!r}; give the"
            f" workdir of a training run ({_BINARY_SUFFIX} after it for thresholded images)"
        )
    return load_config(spec.path).dataset


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
