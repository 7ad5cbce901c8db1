"""Metrics of a run: metrics.jsonl and images/ in the workdir, and Weights & Biases beside them.

metrics.jsonl has one JSON object a line: "step", "time" (seconds since the epoch), and the
scalars. JSON has no NaN or infinity: these are written as the strings "NaN", "Infinity" and
"-Infinity", which `float()` reads back.
"""

import io
import json
import logging
import math
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np
from PIL import Image

from abs_model._runtime.atomic_files import atomic_write_bytes
from abs_model._runtime.wandb_log import Tracker, open_tracker

METRICS_FILE = "metrics.jsonl"
IMAGES_DIRECTORY = "images"
# Of training and validation so far, over all sessions of a run.
SECONDS = "seconds"
# The validation metric that a sweep goes by, under one name for all models.
OBJECTIVE = "objective"
_LOGGER = logging.getLogger(__name__)


class MetricsLogger:
    """Writes the metrics of a run; usable as a context manager.

    Losing Weights & Biases never stops a run: there is one warning, and the files continue.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        config: ml_collections.ConfigDict,
        wandb_mode: str = "auto",
        resume_step: int = -1,
    ) -> None:
        """Opens the metrics of a workdir, new or resumed.

        Lines of steps after `resume_step` are dropped: a run that resumes from a checkpoint
        writes them again. So is a last line that a kill cut short.

        Args:
            workdir: An existing directory.
            config: What Weights & Biases shows as the configuration of the run.
            wandb_mode: "auto" (online where the user is logged in, else offline), "online",
                "offline", or "off" (wandb is not even imported).
            resume_step: The step that the run resumes from; -1 for a new run, which keeps no line.

        Raises:
            ValueError: `wandb_mode` is none of these.
            OSError: The files can't be written.
        """
        self._workdir = pathlib.Path(workdir)
        self._path = self._workdir / METRICS_FILE
        _drop_lines_after(self._path, resume_step)
        self._file = self._path.open("a", encoding="utf-8")
        self._tracker: Tracker | None = open_tracker(self._workdir, config, wandb_mode)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line, which is on its way to the disk when this returns.

        Args:
            step: Steps of training so far.
            values: Numbers (also numpy and jax scalars) by name, e.g. {"train/loss": 1.0}.

        Raises:
            ValueError: A name is "step" or "time", or a value is no scalar.
            OSError: The file can't be written.
        """
        if reserved := {"step", "time"} & values.keys():
            raise ValueError(f"a metric can't be called {', '.join(sorted(reserved))}")
        plain = {name: _number(name, value) for name, value in values.items()}
        line: dict[str, int | float | str] = {"step": int(step), "time": round(time.time(), 3)}
        line.update((name, _json_number(value)) for name, value in plain.items())
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._tracker:
            self._tracker.log(step, plain)

    def image(self, step: int, name: str, array: np.ndarray) -> pathlib.Path:
        """Writes an image as PNG under images/.

        Args:
            step: Steps of training so far.
            name: E.g. "reconstructions"; a "/" makes a directory.
            array: uint8, or floating point in [0, 1] (clipped to it), of shape (height, width),
                (height, width, 1) or (height, width, 3).

        Returns:
            The file, images/NAME-STEP.png.

        Raises:
            ValueError: The array has another shape or dtype, or holds a NaN.
            OSError: The file can't be written.
        """
        image = Image.fromarray(_pixels(array))
        path = self._workdir / IMAGES_DIRECTORY / f"{name}-{step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(path, _png(image))
        if self._tracker:
            self._tracker.log_image(step, name, path)
        return path

    def close(self) -> None:
        """Closes the file and ends the Weights & Biases run; calling it again does nothing."""
        self._file.close()
        if self._tracker:
            self._tracker.finish()
            self._tracker = None

    def __enter__(self) -> "MetricsLogger":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a workdir's metrics.jsonl, in order; [] where there is none.

    A last line cut short is left out.
    """
    path = pathlib.Path(workdir) / METRICS_FILE
    return [record for record, _ in _records(path)] if path.exists() else []


def training_seconds(workdir: str | os.PathLike[str]) -> float:
    """Wall-clock seconds of training and validation up to the last line, over all sessions.

    Sessions of code that didn't log them count as nothing.
    """
    return max((record.get(SECONDS, 0.0) for record in read_metrics(workdir)), default=0.0)


def _records(path: pathlib.Path) -> list[tuple[dict[str, Any], bytes]]:
    """The whole lines of a metrics file, parsed and as they are, with a warning for others."""
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        try:
            record = json.loads(line)
            if not line.endswith(b"\n") or not isinstance(record["step"], int):
                raise ValueError("incomplete")
        except (ValueError, TypeError, KeyError):
            _LOGGER.warning("%s: line %d is cut short or damaged; dropping it", path, number)
            continue
        records.append((record, line))
    return records


def _drop_lines_after(path: pathlib.Path, step: int) -> None:
    if not path.exists():
        return
    kept = b"".join(line for record, line in _records(path) if record["step"] <= step)
    if kept != path.read_bytes():
        atomic_write_bytes(path, kept)


def _number(name: str, value: Any) -> int | float:
    array = np.asarray(value)
    if array.size != 1 or (array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16"):
        raise ValueError(
            f"metric {name!r} must be one number, got {array.dtype} of shape {array.shape}"
        )
    return int(array.item()) if array.dtype.kind in "biu" else float(array.item())


def _json_number(value: int | float) -> int | float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def _pixels(array: np.ndarray) -> np.ndarray:
    """An image as uint8 of shape (height, width) or (height, width, 3)."""
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(
            f"image must be of shape (height, width[, 1 or 3]) and not empty, got {array.shape}"
        )
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"image must be uint8 or floating point, got {array.dtype}")
    if np.isnan(array).any():
        raise ValueError("image must not hold NaN")
    return np.rint(np.clip(array, 0.0, 1.0) * 255.0).astype(np.uint8)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
