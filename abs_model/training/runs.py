"""What a training run leaves beside its checkpoints for whoever loads the model: `run.json`."""

import json
import os
import pathlib
from typing import Any

from abs_model.data import Dataset
from abs_model.files import write_json
from abs_model.training.checkpoints import CheckpointStore
from abs_model.training.loop import Task

_FILE = "run.json"


def open_store(workdir: pathlib.Path, task: Task, keep: int) -> CheckpointStore:
    """The checkpoints of a run of `task`, in `workdir`/checkpoints."""
    return CheckpointStore(
        workdir / "checkpoints",
        keep=keep,
        best_metric=task.best_metric,
        best_mode=task.best_mode,
    )


def write_run(
    workdir: pathlib.Path, task: Task, dataset: Dataset, **fitted: dict[str, Any]
) -> None:
    """Marks a run as finished.

    Args:
        workdir: Of the run.
        task: What was trained.
        dataset: What it was trained on.
        **fitted: What was fitted after training, such as the calibration.
    """
    description = {
        "image_shape": dataset.image_shape,
        "num_classes": dataset.num_classes,
        "best_metric": task.best_metric,
        "best_mode": task.best_mode,
    }
    write_json(workdir / _FILE, description | fitted)


def read_run(workdir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What `write_run` wrote, or None when the run is not finished."""
    path = pathlib.Path(workdir) / _FILE
    return json.loads(path.read_text()) if path.exists() else None
