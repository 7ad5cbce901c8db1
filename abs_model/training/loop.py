"""The training loop every model shares: resume, dispatch, watch, log, checkpoint, stop cleanly.

What a model adds is a `Task`. Steps are counted from 0 over the whole run; an epoch is
`steps_per_epoch` of them. A dispatch never crosses an epoch's end, and what a step does depends on
the seed and its number only, so a run that was killed and started again ends with the same
parameters. Of several processes the primary one logs and saves.
"""

import contextlib
import math
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import ml_collections
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from abs_model._runtime.errors import UserError
from abs_model._runtime.processes import (
    any_process,
    check_same,
    is_primary,
    local_copy,
    primary_first,
    wait_for_all,
)
from abs_model.training.checkpoints import CheckpointStore
from abs_model.training.metrics import OBJECTIVE, SECONDS, MetricsLogger, training_seconds
from abs_model.training.preemption import graceful_exit

PyTree = Any
State = dict[str, PyTree]


class DivergenceError(UserError):
    """The loss became NaN or infinite."""


class Task(Protocol):
    """What is trained.

    Attributes:
        steps_per_epoch: Optimizer steps in an epoch.
        num_epochs: Epochs in the whole run.
        images_per_step: Training images a step uses, for the throughput.
        best_metric: Name of the validation metric by which the best checkpoint is marked.
        best_mode: "max" or "min".
    """

    steps_per_epoch: int
    num_epochs: int
    images_per_step: int
    best_metric: str
    best_mode: str

    def init_state(self) -> State:
        """The state before step 0: "model", "optimizer", and what else steps change; arrays."""

    def run_steps(
        self, state: State, first_step: int, num_steps: int
    ) -> tuple[State, Mapping[str, jax.Array]]:
        """Makes steps of one epoch, donating `state`. Metrics are means over the steps."""

    def evaluate(self, state: State, epoch: int) -> dict[str, float]:
        """Validation metrics after `epoch` epochs; includes `best_metric`."""

    def images(self, state: State) -> dict[str, np.ndarray]:
        """Pictures to log after an epoch, by name; may be empty."""


def fit(
    task: Task,
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    store: CheckpointStore,
    wandb_mode: str,
) -> bool:
    """Trains until the last epoch or until it must stop; resumes where the workdir left off.

    Args:
        task: What to train.
        config: Uses `train.steps_per_dispatch`, `checkpoint.every_epochs`, and
            `validation.objective`, the validation metric that is also logged as "objective": that
            of the best checkpoint by default; none with `train.include_validation`.
        workdir: From `open_workdir`.
        store: Where its checkpoints go.
        wandb_mode: "auto", "online", "offline" or "off".

    Returns:
        Whether training is complete; False when SIGTERM or SIGINT ended it early.

    Raises:
        DivergenceError: A loss is not finite.
    """
    state, step = task.init_state(), 0
    restored = primary_first(lambda: store.restore_latest(state), "restored")
    if restored is not None:
        step, state = restored
    check_same(step, "the checkpoint that they resume from")
    saved_step = None if restored is None else step
    total = task.num_epochs * task.steps_per_epoch
    if step >= total:
        return True
    with (
        graceful_exit() as stop,
        _open_metrics(workdir, config, wandb_mode, step if restored else -1) as logger,
        _progress() as progress,
    ):
        # The logger has dropped what came after the checkpoint.
        start_time = time.perf_counter() - training_seconds(workdir)
        bar = progress.add_task("training", total=total, completed=step, status="compiling")
        while step < total and not any_process(stop.requested):
            to_epoch_end = task.steps_per_epoch - step % task.steps_per_epoch
            num_steps = min(config.train.steps_per_dispatch, to_epoch_end)
            start = time.perf_counter()
            state, metrics = task.run_steps(state, step, num_steps)
            values = {f"train/{name}": float(value) for name, value in metrics.items()}
            rate = num_steps * task.images_per_step / (time.perf_counter() - start)
            step += num_steps
            _check_finite(values, step, store)
            seconds = time.perf_counter() - start_time
            logger.scalars(step, values | {"train/images_per_second": rate, SECONDS: seconds})
            status = f"loss {values['train/loss']:.3f}, {rate:,.0f} images/s"
            progress.update(bar, completed=step, status=status)
            epoch, into_epoch = divmod(step, task.steps_per_epoch)
            last = epoch == task.num_epochs
            if not into_epoch and (epoch % config.checkpoint.every_epochs == 0 or last):
                progress.update(bar, status="validating")
                _validate_and_save(task, config, state, step, start_time, logger, store)
                saved_step = step
        if saved_step != step:
            # Mid-epoch: no validation metrics yet. NaN ranks as the worst.
            _save(store, step, local_copy(state), {task.best_metric: math.nan})
    return step >= total


def _validate_and_save(
    task: Task,
    config: ml_collections.ConfigDict,
    state: State,
    step: int,
    start_time: float,
    logger: "MetricsLogger | _NoMetrics",
    store: CheckpointStore,
) -> None:
    # Each process computes the metrics, so that all go on or stop alike.
    state = local_copy(state)
    epoch = step // task.steps_per_epoch
    metrics = task.evaluate(state, epoch)
    _check_finite(metrics, step, store)
    seconds = time.perf_counter() - start_time
    chosen = config.validation.get("objective")
    objective = task.best_metric if chosen is None else f"validation/{chosen}"
    # Metrics on images that were trained on can't choose settings.
    held_out = not config.train.get("include_validation")
    # Some metrics are measured every few epochs only.
    objectives = {OBJECTIVE: metrics[objective]} if held_out and objective in metrics else {}
    logger.scalars(step, {"epoch": epoch} | metrics | objectives | {SECONDS: seconds})
    for name, image in task.images(state).items():
        logger.image(step, name, image)
    _save(store, step, state, metrics)


def _save(store: CheckpointStore, step: int, state: State, metrics: Mapping[str, float]) -> None:
    if is_primary():
        store.save(step, state, metrics)
    wait_for_all(f"saved {step}")


class _NoMetrics:
    """In the place of a `MetricsLogger` in all processes but the primary one."""

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Logs nothing."""

    def image(self, step: int, name: str, array: np.ndarray) -> None:
        """Logs nothing."""


@contextlib.contextmanager
def _open_metrics(
    workdir: pathlib.Path, config: ml_collections.ConfigDict, wandb_mode: str, resume_step: int
) -> Iterator[MetricsLogger | _NoMetrics]:
    if not is_primary():
        yield _NoMetrics()
        return
    with MetricsLogger(
        workdir, config=config, wandb_mode=wandb_mode, resume_step=resume_step
    ) as logger:
        yield logger


def _check_finite(values: Mapping[str, float], step: int, store: CheckpointStore) -> None:
    if all(math.isfinite(value) for value in values.values()):
        return
    good = store.latest_step()
    where = f"the checkpoint of step {good} is good" if good is not None else "nothing was saved"
    shown = ", ".join(f"{name} = {value}" for name, value in values.items())
    raise DivergenceError(
        f"training diverged before step {step}: {shown}; {where}. Train with a smaller "
        "learning rate in a new --workdir"
    )


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps,"),
        TimeRemainingColumn(),
        TextColumn("left, {task.fields[status]}"),
        console=Console(stderr=True),
        disable=not is_primary(),
    )
