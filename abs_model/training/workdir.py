"""The directory of a run, and the configuration it belongs to."""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from abs_model._runtime.atomic_files import as_path, write_json
from abs_model._runtime.configuration import as_config, flatten
from abs_model._runtime.errors import UserError

CONFIG_FILE = "config.json"
_ABSENT = object()


class WorkdirError(UserError):
    """A workdir is missing, unreadable, or not one of ours."""


class ConfigMismatchError(UserError):
    """A workdir holds a run of another configuration than the requested one."""


# Section, former name, present name: workdirs with the former ones stay readable.
_RENAMED_KEYS = (
    ("calibration", "weigh_abs", "fit_abs_class_weights"),
    ("inference", "num_on_the_way", "num_path_starts"),
)


def open_workdir(path: str | os.PathLike[str], config: ml_collections.ConfigDict) -> pathlib.Path:
    """Creates a workdir for `config`, or opens the one that `config` made before.

    Args:
        path: The directory; created with its parents when it isn't there.
        config: The whole configuration of the run; written to config.json on first use.

    Returns:
        The directory, as an absolute path.

    Raises:
        ConfigMismatchError: The workdir was made with another configuration; the message lists
            the differences by key.
        WorkdirError: The directory or its config.json can't be created or read, or a value of
            `config` can't be kept as JSON.
    """
    workdir = as_path(path).absolute()
    asked = _plain(config)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not (workdir / CONFIG_FILE).exists():
            write_json(workdir / CONFIG_FILE, asked)
    except OSError as error:
        raise WorkdirError(
            f"can't use {workdir} as a workdir: {error}; give another --workdir"
        ) from error
    differences = _differences(_read(workdir), asked, "workdir")
    if differences:
        raise ConfigMismatchError(
            f"{workdir} holds a run of another configuration:\n"
            + "\n".join(f"  {line}" for line in differences)
            + "\nGive another --workdir, or the configuration it was made with."
        )
    return workdir


def load_config(path: str | os.PathLike[str]) -> ml_collections.ConfigDict:
    """The configuration a workdir was made with.

    Args:
        path: A directory that `open_workdir` made.

    Returns:
        The configuration, locked; sequences come back as tuples, whatever they were.

    Raises:
        WorkdirError: There is no such directory, no config.json in it, or not a readable one.
    """
    return as_config(_read(as_path(path).absolute()))


def _plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """`config` as what reading its JSON would give: dicts, lists, numbers, strings, None."""
    for key, value in flatten(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise WorkdirError(f"{key} must be a finite number, got {value}")
        try:
            json.dumps(_content(value), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise WorkdirError(
                f"{key} must be made of numbers, strings, booleans, None, sequences and sections"
                f" of these, got {value!r} ({type(value).__name__})"
            ) from error
    return json.loads(json.dumps(_content(config), allow_nan=False))


def _content(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value


def _read(workdir: pathlib.Path) -> dict[str, Any]:
    """The content of a workdir's configuration, with keys by their present names."""
    if not workdir.is_dir():
        raise WorkdirError(f"there is no directory {workdir}; give the workdir of a training run")
    file = workdir / CONFIG_FILE
    try:
        content = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise WorkdirError(
            f"{workdir} holds no {CONFIG_FILE}, so it isn't the workdir of a training run"
        ) from error
    except (OSError, ValueError) as error:
        raise WorkdirError(f"{file} can't be read: {error}") from error
    if not isinstance(content, dict):
        raise WorkdirError(f"{file} must hold a JSON object, found {type(content).__name__}")
    for section, old, new in _RENAMED_KEYS:
        if isinstance(held := content.get(section), dict) and old in held:
            held[new] = held.pop(old)
    return content


def differences_between(
    held: ml_collections.ConfigDict, asked: ml_collections.ConfigDict, holder: str
) -> list[str]:
    """A message for each key whose values differ; None and an absent key count as equal.

    Args:
        held: A configuration that something was made with.
        asked: The one that is asked for.
        holder: What was made with `held`.
    """
    return _differences(_plain(held), _plain(asked), holder)


def _differences(held: Mapping[str, Any], asked: Mapping[str, Any], holder: str) -> list[str]:
    held, asked = flatten(held), flatten(asked)
    lines = []
    for key in sorted(held.keys() | asked.keys()):
        old, new = held.get(key, _ABSENT), asked.get(key, _ABSENT)
        # What is None is left open, as it was before there was the key.
        if all(value is None or value is _ABSENT for value in (old, new)):
            continue
        # Python holds True == 1, but for a configuration these are two different things.
        if old != new or isinstance(old, bool) != isinstance(new, bool):
            lines.append(f"{key}: {holder} has {_shown(old)}, you asked for {_shown(new)}")
    return lines


def _shown(value: Any) -> str:
    return "no such key" if value is _ABSENT else json.dumps(value)
