"""What a training run leaves beside its checkpoints for whoever loads the model: `run.json`."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import ml_collections

from abs_model.building import kept_surrogate
from abs_model.data import Dataset, load_dataset
from abs_model.decoders import Decoder
from abs_model.errors import UserError
from abs_model.files import write_json
from abs_model.provenance import environment, git_commit
from abs_model.solvers.surrogates import Surrogate
from abs_model.training.checkpoints import CheckpointStore
from abs_model.training.configuration import ConfigError
from abs_model.training.workdir import load_config, open_workdir

if TYPE_CHECKING:  # whoever loads a model needs no training loop
    from abs_model.training.loop import Task

_FILE = "run.json"
_SESSIONS_FILE = "sessions.json"
_CHECKPOINTS = "checkpoints"
PyTree = Any
_T = TypeVar("_T")


def build_task(
    config: ml_collections.ConfigDict,
    make_task: Callable[[ml_collections.ConfigDict, Dataset], _T],
) -> tuple[_T, Dataset]:
    """Loads the data set of a configuration and makes the task that trains on it.

    Raises:
        ConfigError: What the configuration says of them can't be used.
        UserError: The data set can't be had.
    """
    try:
        dataset = load_dataset(**config.dataset)
        return make_task(config, dataset), dataset
    except (ImportError, ValueError) as error:
        raise ConfigError(f"the configuration can't be used: {error}") from error


def is_finished(workdir: str | os.PathLike[str], config: ml_collections.ConfigDict) -> bool:
    """Whether the workdir holds a finished run.

    Raises:
        UserError: It holds a finished run of another configuration.
    """
    if read_run(workdir) is None:
        return False
    open_workdir(workdir, config)
    return True


def open_store(workdir: pathlib.Path, task: "Task", keep: int) -> CheckpointStore:
    """The checkpoints of a run of `task`, in `workdir`/checkpoints."""
    return CheckpointStore(
        workdir / _CHECKPOINTS,
        keep=keep,
        best_metric=task.best_metric,
        best_mode=task.best_mode,
    )


def note_session(workdir: pathlib.Path) -> None:
    """Notes with what code and on what hardware a run begins or goes on, for `write_run`."""
    session = {"git_commit": git_commit(), **environment()}
    sessions = _sessions(workdir)
    if session not in sessions:
        write_json(workdir / _SESSIONS_FILE, {"sessions": [*sessions, session]})


def _sessions(workdir: pathlib.Path) -> list[dict[str, Any]]:
    path = workdir / _SESSIONS_FILE
    return json.loads(path.read_text())["sessions"] if path.exists() else []


def write_run(
    workdir: pathlib.Path,
    task: "Task",
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    seconds: float | None = None,
    **fitted: dict[str, Any],
) -> None:
    """Marks a run as finished.

    Args:
        workdir: Of the run.
        task: What was trained.
        image_shape: (height, width, channels) of what it was trained on.
        num_classes: Likewise.
        seconds: Wall-clock time of the whole training, and of what the session that ended the run
            fitted after it; None where there was no training here.
        **fitted: What was fitted after training, such as the calibration.
    """
    description: dict[str, Any] = {
        "image_shape": image_shape,
        "num_classes": num_classes,
        "best_metric": task.best_metric,
        "best_mode": task.best_mode,
    }
    if seconds is not None:
        description["training"] = {"seconds": round(seconds), "sessions": _sessions(workdir)}
    write_json(workdir / _FILE, description | fitted)


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
        self._workdir = pathlib.Path(workdir)
        self.name = self._workdir.absolute().name
        self.config = load_config(workdir)
        run = read_run(workdir)
        if run is None:
            raise UserError(
                f"{str(workdir)!r} holds a training run that has not ended; start train.py again"
                " with the same --config and --workdir, and it goes on from the last checkpoint"
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
        """Of the decoders: the first time that a run from before there were any is opened, they
        are fitted, which takes minutes, and kept.
        """
        return kept_surrogate(self._workdir, self.config, decoder)


def read_run(workdir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What `write_run` wrote, or None when the run is not finished."""
    path = pathlib.Path(workdir) / _FILE
    return json.loads(path.read_text()) if path.exists() else None
