"""What a training run leaves beside its checkpoints for whoever loads the model: `run.json`."""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import ml_collections
import numpy as np
from absl import logging

from abs_model._runtime.atomic_files import as_path, locked, write_json
from abs_model._runtime.configuration import (
    ConfigError,
    between,
    boolean,
    optional,
    positive_int,
    text,
)
from abs_model._runtime.errors import UserError
from abs_model._runtime.processes import is_primary, wait_for_all
from abs_model._runtime.provenance import environment, git_commit
from abs_model.data import Dataset, load_dataset
from abs_model.inference.solvers.surrogates import Surrogate
from abs_model.models.abs import ABSClassifier
from abs_model.models.build import kept_surrogate, measure_energies, measure_race_margin
from abs_model.models.decoders import Decoder
from abs_model.training.checkpoints import CheckpointStore
from abs_model.training.workdir import WorkdirError, load_config, open_workdir

_FILE = "run.json"
_SESSIONS_FILE = "sessions.json"
_LOCK_FILE = ".training.lock"
_CHECKPOINTS = "checkpoints"
_MARGINS_FILE = "race_margins.json"
PyTree = Any
_T = TypeVar("_T")
# The configuration's section `dataset`, which every trainer has; see `load_dataset`.
DATASET_EXPECTED = {
    "dataset.name": text,
    "dataset.data_dir": optional(text),
    "dataset.validation_size": positive_int,
    "dataset.module": text,
    # Configurations from before there was the key lack it.
    "dataset.drop_empty_classes": dataclasses.replace(optional(boolean), required=False),
    # Only configurations of training with shortcuts have it.
    "dataset.shortcut_amplitude": dataclasses.replace(between(0, 1), required=False),
}
_RUN_KEYS = {"image_shape", "num_classes", "best_metric", "best_mode"}


class MarksBest(Protocol):
    """How the best checkpoint is marked; what is trained says so.

    Attributes:
        best_metric: The validation metric.
        best_mode: "max" or "min".
    """

    best_metric: str
    best_mode: str


def open_dataset(config: ml_collections.ConfigDict) -> Dataset:
    """The data set of a configuration.

    Raises:
        ConfigError: What the configuration says of it can't be used.
        UserError: It can't be had.
    """
    try:
        return load_dataset(**config.dataset)
    except (ImportError, ValueError) as error:
        raise _unusable(error) from error


def _unusable(error: Exception) -> ConfigError:
    return ConfigError(f"the configuration can't be used: {error}")


def build_task(
    config: ml_collections.ConfigDict,
    make_task: Callable[[ml_collections.ConfigDict, Dataset], _T],
) -> tuple[_T, Dataset]:
    """Loads the data set of a configuration and makes the task that trains on it.

    Raises:
        ConfigError: What the configuration says of them can't be used.
        UserError: The data set can't be had.
    """
    dataset = open_dataset(config)
    try:
        return make_task(config, dataset), dataset
    except (ImportError, ValueError) as error:
        raise _unusable(error) from error


def is_finished(workdir: str | os.PathLike[str], config: ml_collections.ConfigDict) -> bool:
    """Whether the workdir holds a finished run.

    Raises:
        UserError: It holds a finished run of another configuration.
    """
    if read_run(workdir) is None:
        return False
    open_workdir(workdir, config)
    return True


def open_store(workdir: pathlib.Path, task: MarksBest, keep: int) -> CheckpointStore:
    """The checkpoints of a run of `task`, in `workdir`/checkpoints."""
    return CheckpointStore(
        workdir / _CHECKPOINTS,
        keep=keep,
        best_metric=task.best_metric,
        best_mode=task.best_mode,
    )


@contextlib.contextmanager
def session(
    workdir: str | os.PathLike[str], config: ml_collections.ConfigDict
) -> Iterator[pathlib.Path]:
    """A session of training: opens the workdir, notes code and hardware, and keeps others out.

    Args:
        workdir: As in `open_workdir`.
        config: Likewise.

    Yields:
        The directory, as an absolute path.

    Raises:
        UserError: The workdir holds another configuration, another process trains in it, or it
            can't be written to, such as when the disk is full.
    """
    directory = as_path(workdir).absolute()
    try:
        if not is_primary():
            wait_for_all("opened the workdir")
            yield open_workdir(directory, config)
            return
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory / _LOCK_FILE):
            open_workdir(directory, config)
            _note_session(directory)
            wait_for_all("opened the workdir")
            yield directory
    except (ConnectionError, TimeoutError):  # of the network, not of the workdir
        raise
    except BlockingIOError as error:
        raise WorkdirError(
            f"another process trains in --workdir={workdir}; wait until it has ended, or give"
            " another --workdir"
        ) from error
    except OSError as error:
        raise WorkdirError(
            f"can't write to --workdir={workdir}: {error}; once that is solved, the same command"
            " resumes from the last checkpoint"
        ) from error


def _note_session(workdir: pathlib.Path) -> None:
    """Notes with what code and on what hardware a run starts or resumes, for `write_run`."""
    session = {"git_commit": git_commit(), **environment()}
    sessions = _sessions(workdir)
    if session not in sessions:
        write_json(workdir / _SESSIONS_FILE, {"sessions": [*sessions, session]})


def _sessions(workdir: pathlib.Path) -> list[dict[str, Any]]:
    path = workdir / _SESSIONS_FILE
    remedy = "delete it: it only tells with what code and on what hardware the run was trained"
    content = _read(path, {"sessions"}, remedy)
    return [] if content is None else content["sessions"]


def write_run(
    workdir: pathlib.Path,
    task: MarksBest,
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    seconds: float | None = None,
    **more: Mapping[str, Any],
) -> None:
    """Marks a run as finished.

    Args:
        workdir: Of the run.
        task: What was trained.
        image_shape: (height, width, channels) of what it was trained on.
        num_classes: Likewise.
        seconds: Wall-clock time of the whole training, and of what the session that ended the run
            fitted after it; None where there was no training here.
        **more: What else a run keeps, such as the calibration that was fitted after training.
    """
    description: dict[str, Any] = {
        "image_shape": image_shape,
        "num_classes": num_classes,
        "best_metric": task.best_metric,
        "best_mode": task.best_mode,
    }
    if seconds is not None:
        description["training"] = {"seconds": round(seconds), "sessions": _sessions(workdir)}
    write_json(workdir / _FILE, description | more)


class FinishedRun:
    """A training run that has ended, as `abs_model.load` wants it.

    Attributes:
        name: That of the folder.
        binary: Whether the model thresholds images: it can, but doesn't by itself.
        config: The run's configuration.
        run: What `write_run` wrote.
    """

    binary = False

    def __init__(self, workdir: str | os.PathLike[str]) -> None:
        """Reads the workdir's description.

        Raises:
            UserError: It holds no run, or one that has not ended.
        """
        self._workdir = as_path(workdir)
        self.name = self._workdir.absolute().name
        self.config = load_config(self._workdir)
        run = read_run(self._workdir)
        if run is None:
            raise UserError(
                f"{str(workdir)!r} holds a training run that has not ended; start train.py again"
                " with the same --config and --workdir, and it resumes from the last checkpoint"
            )
        self.run = run

    def restore(self, template: PyTree) -> PyTree:
        """The model of the best checkpoint; `template` holds shapes and dtypes only.

        Raises:
            UserError: It can't be read, or holds something else.
        """
        store = CheckpointStore(
            self._workdir / _CHECKPOINTS,
            best_metric=self.run["best_metric"],
            best_mode=self.run["best_mode"],
        )
        return store.restore_best({"model": template})["model"]

    def surrogate(self, decoder: Decoder) -> Surrogate:
        """The decoders' surrogates.

        They are fitted, which takes minutes, and kept, when a run from before there were any is
        first opened.
        """
        return kept_surrogate(self._workdir, self.config, decoder)

    def race_margin(self, classifier: ABSClassifier) -> float | None:
        """The margin of the race that decides, for a run from before there was one.

        It is measured on training images, which takes minutes, and kept, when the run is first
        opened. None, with a warning, where there are no training images.

        Args:
            classifier: That of the run, whose solver can race.
        """
        path = self._workdir / _MARGINS_FILE
        kind = "binary_abs" if classifier.binary else "abs"
        kept = _read(path, set(), "delete it: the margins are measured again") or {}
        if kind in kept:
            return kept[kind]
        try:
            split = load_dataset(**self.config.dataset).train
        except UserError as error:
            logging.warning("predict searches every class, without a margin: %s", error)
            return None
        count = self.config.calibration.num_images
        images = split.images[:count].astype(np.float32) / 255
        description = f"measuring estimates of {classifier.name}"
        energies = measure_energies(classifier, images, description)
        margin = measure_race_margin(classifier, images, energies, description)
        try:
            write_json(path, kept | {kind: margin})
        except OSError as error:
            logging.warning("The margin can't be kept and will be measured again: %s", error)
        return margin


def read_run(workdir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What `write_run` wrote, or None when the run is not finished.

    Raises:
        WorkdirError: The file is damaged.
    """
    remedy = "delete it, and start train.py again with the same command, which writes it again"
    return _read(as_path(workdir) / _FILE, _RUN_KEYS, remedy)


def _read(path: pathlib.Path, keys: set[str], remedy: str) -> dict[str, Any] | None:
    """A JSON object with these keys; None where there is no file."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
        if not isinstance(content, dict) or not keys <= content.keys():
            raise ValueError(f"it must be an object with {', '.join(sorted(keys))}")
    except ValueError as error:
        raise WorkdirError(f"{path} is damaged ({error}); {remedy}") from error
    except OSError as error:
        raise WorkdirError(f"{path} can't be read: {error}") from error
    return content
