"""Runs the trials of a sweep: each is the sweep's command with its own settings and workdir.

    FOLDER/logs/RUN_ID.txt    what a trial printed

A trial's objectives are read from `metrics.jsonl` in its workdir, which holds them as soon as they
are logged. Trials resume as their program does: rerunning a stopped sweep starts the trials that
were running again, with the same settings, run ids and workdirs.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence

import optuna
from optuna.trial import Trial, TrialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from abs_model._runtime.atomic_files import locked
from abs_model._runtime.wandb_log import GIVEN_ID, PLACEHOLDER
from abs_model.sweeps.definition import Sweep, SweepError
from abs_model.sweeps.study import interrupted_trials, limit, num_trials, propose, settings_of
from abs_model.training.finished_run import LOCK_FILE, read_run
from abs_model.training.metrics import read_metrics
from abs_model.training.preemption import graceful_exit

# Attributes of trials: id for W&B, workdir, and why it failed.
RUN_ID, WORKDIR, REASON = "run_id", "workdir", "reason"
_STUDY_ID = "id"
_POLL_SECONDS = 0.5
# A trial that is told to stop saves a checkpoint first.
_STOP_SECONDS = 120.0
_WORKDIR_FLAG = "--workdir="


@dataclasses.dataclass
class _Running:
    """A trial that runs.

    Attributes:
        trial: Of the study.
        command: Its words.
        workdir: Where it logs.
        log: What it prints.
        num_reported: Objectives that the study knows.
        bar: Shows them.
        process: None while one that an earlier session has started still runs.
    """

    trial: Trial
    command: Sequence[str]
    workdir: pathlib.Path
    log: pathlib.Path
    num_reported: int
    bar: TaskID
    process: subprocess.Popen[bytes] | None = None


def run_trials(
    sweep: Sweep, study: optuna.Study, folder: pathlib.Path, *, count: int, parallel: int
) -> bool:
    """Runs trials until there are as many as wanted, first those that were interrupted.

    Args:
        sweep: The sweep.
        study: Its study.
        folder: Where logs go.
        count: How many trials there are to be in the end, failed ones included.
        parallel: How many run at a time.

    Returns:
        Whether all are done; False when SIGTERM or SIGINT ended it early.

    Raises:
        SweepError: The command gives trials no workdir of their own.
    """
    count = limit(sweep, count)
    _workdir(sweep, "id")
    (folder / "logs").mkdir(exist_ok=True)
    waiting = interrupted_trials(study)
    with graceful_exit() as stop, _progress() as progress, _stopping_at_the_end() as running:
        total = progress.add_task("trials", total=count, status="")
        while not stop.requested:
            while len(running) < parallel and (waiting or num_trials(study) < count):
                trial = waiting.pop(0) if waiting else propose(study, sweep)
                running.append(_prepare(sweep, study, folder, trial, progress))
            done = num_trials(study) - len(running) - len(waiting)
            progress.update(total, completed=done, status=_best(study))
            if not running:
                return True
            time.sleep(_POLL_SECONDS)
            for each in list(running):
                if not _continues(each, study, sweep.metric, progress):
                    running.remove(each)
    return False


def command_of(sweep: Sweep, settings: Mapping[str, str]) -> list[str]:
    """The words of a trial's command, as an agent of W&B would make them."""
    values = {"env": "/usr/bin/env", "interpreter": sys.executable, "program": sweep.program}
    words: list[str] = []
    for word in sweep.command:
        if word == "${args}":
            words.extend(f"--{name}={value}" for name, value in settings.items())
        else:
            words.append(re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], word))
    return words


def _workdir(sweep: Sweep, run_id: str) -> pathlib.Path:
    flags = [word for word in sweep.command if word.startswith(_WORKDIR_FLAG)]
    if len(flags) != 1 or PLACEHOLDER not in flags[0]:
        raise SweepError(
            f"{sweep.path}: the command must have {_WORKDIR_FLAG}PATH with {PLACEHOLDER} in it, so"
            " that each trial has a workdir of its own"
        )
    return pathlib.Path(flags[0].removeprefix(_WORKDIR_FLAG).replace(PLACEHOLDER, run_id))


def _best(study: optuna.Study) -> str:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return f"best objective {study.best_value:.4g}" if complete else ""


def _prepare(
    sweep: Sweep, study: optuna.Study, folder: pathlib.Path, trial: Trial, progress: Progress
) -> _Running:
    """A trial whose process starts at the next look at it."""
    run_id = trial.user_attrs.get(RUN_ID) or f"{_study_id(study)}-{trial.number:03d}"
    settings, workdir = settings_of(trial, sweep), _workdir(sweep, run_id)
    trial.set_user_attr(RUN_ID, run_id)
    trial.set_user_attr(WORKDIR, str(workdir))
    shown = ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in settings.items())
    return _Running(
        trial,
        command_of(sweep, settings),
        workdir,
        folder / "logs" / f"{run_id}.txt",
        num_reported=len(study.get_trials(deepcopy=False)[trial.number].intermediate_values),
        bar=progress.add_task(f"trial {trial.number}", total=None, status=shown),
    )


def _study_id(study: optuna.Study) -> str:
    """What makes the run ids of a sweep differ from those of others in a project of W&B."""
    if _STUDY_ID not in study.user_attrs:
        study.set_user_attr(_STUDY_ID, uuid.uuid4().hex[:8])
    return study.user_attrs[_STUDY_ID]


def _launch(running: _Running) -> None:
    run_id = running.trial.user_attrs[RUN_ID]
    # In a session of its own, so that Ctrl-C reaches it from here alone.
    with running.log.open("ab") as log:
        running.process = subprocess.Popen(
            running.command,
            env=os.environ | {GIVEN_ID: run_id, "WANDB_RUN_GROUP": run_id.rpartition("-")[0]},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _continues(running: _Running, study: optuna.Study, metric: str, progress: Progress) -> bool:
    """Reports what a trial has logged, and ends it where that is due; whether it still runs."""
    if running.process is None:
        # The trials of a sweep that was killed live on; the lock is theirs.
        if not _is_locked(running.workdir):
            _launch(running)
        return True
    status = running.process.poll()
    values = [float(each[metric]) for each in read_metrics(running.workdir) if metric in each]
    for number, value in enumerate(values[running.num_reported :], start=running.num_reported + 1):
        if math.isfinite(value):
            running.trial.report(value, number)
    running.num_reported = max(running.num_reported, len(values))
    progress.update(running.bar, completed=len(values))
    if status is None:
        # The pruner says it once only (findings/optuna_should_prune_answers_once.sh).
        if not running.trial.should_prune():
            return True
        _stop([running.process])
        study.tell(running.trial, state=TrialState.PRUNED)
    elif status == 0 and values and read_run(running.workdir) and math.isfinite(values[-1]):
        study.tell(running.trial, values[-1])
    else:
        reason = _reason(status, values, metric)
        running.trial.set_user_attr(REASON, reason)
        study.tell(running.trial, state=TrialState.FAIL)
        progress.console.print(f"trial {running.trial.number}: {reason}; see {running.log}")
    progress.remove_task(running.bar)
    return False


def _reason(status: int, values: Sequence[float], metric: str) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    if status > 0:
        return f"exit status {status}"
    if not values:
        return f"logged no metric {metric!r}"
    return "stopped before its end" if math.isfinite(values[-1]) else f"{metric} is {values[-1]}"


def _is_locked(workdir: pathlib.Path) -> bool:
    """Whether a process trains in a workdir."""
    if not (workdir / LOCK_FILE).exists():
        return False
    try:
        with locked(workdir / LOCK_FILE):
            return False
    except BlockingIOError:
        return True


@contextlib.contextmanager
def _stopping_at_the_end() -> Iterator[list[_Running]]:
    """The trials that run; those that still do at the end are stopped, to be resumed."""
    running: list[_Running] = []
    try:
        yield running
    finally:
        _stop([each.process for each in running if each.process is not None])


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Tells processes to save and end, and kills those that do not."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        console=Console(stderr=True),
    )
