"""Checkpoints of a run, written with Orbax: atomic, the newest few and the best one kept.

Layout, one directory per step::

    DIRECTORY/1200/model/      an Orbax item for each entry of the saved state
    DIRECTORY/1200/optimizer/
    DIRECTORY/1200/record/     the metrics it was saved with, and checksums

Orbax writes a step under a temporary name and renames it when all of it is there, and a step is
renamed before it is deleted; so a directory named by a number is whole, whenever the process was
killed. Leaves are kept as host arrays under their path in the tree ("conv/kernel"), which
makes a checkpoint independent of the devices it came from and of the classes of its containers.
"""

import logging
import math
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from abs_model._runtime import pytrees
from abs_model._runtime.errors import UserError
from abs_model.training import checkpoint_io

PyTree = Any
_LOGGER = logging.getLogger(__name__)


class CheckpointError(UserError):
    """A checkpoint can't be read: absent, damaged, or unreadable."""


class CheckpointMismatchError(UserError):
    """A checkpoint is whole but holds something else than the template requires."""


class CheckpointStore:
    """The checkpoints of one run.

    One process writes at a time; others may read meanwhile.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        best_metric: str,
        best_mode: str,
        keep: int = 2,
    ) -> None:
        """Opens the checkpoints in `directory`, which `save` creates when it isn't there.

        Args:
            directory: Holds the checkpoints and nothing else.
            best_metric: The metric that makes a checkpoint the best one.
            best_mode: "max" or "min", which values of it are good.
            keep: How many of the newest checkpoints to keep, beside the best one.

        Raises:
            ValueError: `best_mode` or `keep` is none of these.
        """
        if best_mode not in ("max", "min"):
            raise ValueError(f"best_mode must be 'max' or 'min', got {best_mode!r}")
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self._directory = pathlib.Path(directory).absolute()
        self._best_metric = best_metric
        self._sign = 1.0 if best_mode == "max" else -1.0
        self._keep = keep

    def save(self, step: int, state: Mapping[str, PyTree], metrics: Mapping[str, float]) -> None:
        """Writes a checkpoint; it is finished when this returns.

        Afterwards the checkpoints that are neither among the newest `keep` nor the best are
        deleted.

        Args:
            step: At least 0, and above `latest_step()`.
            state: Trees of jax or numpy arrays and scalars by item name, e.g. {"model": ...,
                "optimizer": ...}; each item can be restored without the others.
            metrics: Finite or not; must hold the best metric. A NaN counts as worst.

        Raises:
            ValueError: The step is not above the latest, the best metric is missing, an item is
                called "record", or two leaves of an item have the same path.
            TypeError: A leaf is neither an array nor a scalar.
            OSError: Writing failed; earlier checkpoints are untouched.
        """
        latest = self.latest_step()
        if step < 0 or (latest is not None and step <= latest):
            raise ValueError(f"step must be above the latest checkpoint's ({latest}), got {step}")
        if self._best_metric not in metrics:
            raise ValueError(
                f"metrics must hold {self._best_metric!r}, got {', '.join(metrics) or 'none'}"
            )
        if checkpoint_io.RECORD in state:
            raise ValueError(f"an item of the state can't be called {checkpoint_io.RECORD!r}")
        items = {name: pytrees.to_arrays(name, tree) for name, tree in state.items()}
        record = {"metrics": {name: float(value) for name, value in metrics.items()}}
        self._directory.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        checkpoint_io.write_step(self._directory / str(step), items, record)
        for old in self._dispensable():
            self._remove(old)

    def steps(self) -> list[int]:
        """The steps there are checkpoints of, ascending."""
        if not self._directory.is_dir():
            return []
        names = [path.name for path in self._directory.iterdir() if path.is_dir()]
        return sorted(int(name) for name in names if name.isdecimal())

    def latest_step(self) -> int | None:
        """The newest step, or None when there is no checkpoint."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step with the best metric of all that were saved; the later one of equals.

        None when there is no checkpoint. A checkpoint whose metrics are damaged counts as worst.
        """
        return max(self.steps(), key=lambda step: (self._score(step), step), default=None)

    def metrics(self, step: int) -> dict[str, float]:
        """The metrics that `step` was saved with.

        Raises:
            CheckpointError: There is no such checkpoint, or its metrics are damaged.
        """
        _, record = self._read(step, [])
        return {name: float(value) for name, value in record["metrics"].items()}

    def restore(self, step: int, template: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """Reads the items named in `template` from one checkpoint.

        Args:
            step: The step to read.
            template: A tree for each item wanted, e.g. {"model": ...} alone for inference; its
                leaves are arrays, scalars or `jax.ShapeDtypeStruct`s.

        Returns:
            The items in the template's structure, shapes and dtypes. A leaf is of the
            template's kind: numpy array, Python scalar, or jax array with the template leaf's
            sharding (a ShapeDtypeStruct without one: on the default device).

        Raises:
            CheckpointError: There is no such checkpoint, or it is damaged.
            CheckpointMismatchError: It lacks an item or leaf, has a leaf too many, or one of
                another shape or dtype; the message names the leaves.
        """
        items, _ = self._read(step, list(template))
        path = self._directory / str(step)
        missing = [name for name in template if name not in items]
        if missing:
            raise CheckpointMismatchError(f"checkpoint {path} has no item {', '.join(missing)}")
        problems = [
            problem
            for name in template
            for problem in pytrees.mismatches(name, template[name], items[name])
        ]
        if problems:
            raise CheckpointMismatchError(
                f"checkpoint {path} doesn't fit:\n" + "\n".join(f"  {line}" for line in problems)
            )
        return {name: pytrees.from_arrays(name, template[name], items[name]) for name in template}

    def restore_best(self, template: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """Reads the items named in `template` from the best checkpoint; see `restore`.

        Raises:
            CheckpointError: There is no checkpoint, or the best one is damaged.
            CheckpointMismatchError: As in `restore`.
        """
        step = self.best_step()
        if step is None:
            raise CheckpointError(f"there is no checkpoint in {self._directory}")
        return self.restore(step, template)

    def restore_latest(
        self, template: Mapping[str, PyTree]
    ) -> tuple[int, dict[str, PyTree]] | None:
        """Reads the newest checkpoint that can be read, to resume the run.

        A damaged checkpoint is set aside (renamed to STEP.damaged) with a warning that names
        it, so that the run can write that step again.

        Returns:
            The step and the state as from `restore`; None when there is no checkpoint.

        Raises:
            CheckpointError: There are checkpoints, but none can be read.
            CheckpointMismatchError: The newest readable one doesn't fit `template`.
        """
        damaged = []
        for step in reversed(self.steps()):
            try:
                state = self.restore(step, template)
            except CheckpointError as error:
                _LOGGER.warning(
                    "checkpoint of step %d is unusable, trying the one before: %s", step, error
                )
                damaged.append(step)
                continue
            for bad in damaged:
                self._set_aside(bad)
                _LOGGER.warning("went back from unusable step %d to step %d", bad, step)
            return step, state
        if damaged:
            raise CheckpointError(
                f"none of the checkpoints in {self._directory} can be read (steps"
                f" {', '.join(map(str, reversed(damaged)))}); use another --workdir to"
                " start again"
            )
        return None

    def _read(
        self, step: int, names: list[str]
    ) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
        path = self._directory / str(step)
        if not path.is_dir():
            there = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(
                f"there is no checkpoint of step {step} in {self._directory} (steps: {there})"
            )
        try:
            return checkpoint_io.read_step(path, names)
        except checkpoint_io.DamagedError as error:
            raise CheckpointError(f"checkpoint {path} can't be read ({error})") from error

    def _score(self, step: int) -> float:
        """The best metric of a step, greater meaning better; -inf where there is none."""
        try:
            value = self.metrics(step).get(self._best_metric, math.nan)
        except CheckpointError:
            return -math.inf
        return -math.inf if math.isnan(value) else self._sign * value

    def _dispensable(self) -> list[int]:
        kept = {*self.steps()[-self._keep :], self.best_step()}
        return [step for step in self.steps() if step not in kept]

    def _remove(self, step: int) -> None:
        """Deletes a checkpoint; the rename makes it vanish at once, whole."""
        path = self._directory / str(step)
        if path.is_dir():
            doomed = self._directory / f"{step}.deleted"
            shutil.rmtree(doomed, ignore_errors=True)
            path.rename(doomed)
            shutil.rmtree(doomed)

    def _set_aside(self, step: int) -> None:
        target = self._directory / f"{step}.damaged"
        shutil.rmtree(target, ignore_errors=True)
        (self._directory / str(step)).rename(target)

    def _remove_leftovers(self) -> None:
        """Deletes what a killed process left half written or half deleted."""
        for path in self._directory.iterdir():
            if path.name.endswith(".deleted") or ".orbax-checkpoint-tmp" in path.name:
                shutil.rmtree(path)
