"""Runs the trials of a sweep: each is the sweep's command with its own settings and workdir.

    FOLDER/logs/RUN_ID.txt     what a trial printed
    FOLDER/logs/RUN_ID.lock    held by its process, whose number is in it

A trial's objectives are read from `metrics.jsonl` in its workdir, which holds them as soon as they
are logged. Trials resume as their program does: rerunning a stopped sweep starts the trials that
were running again, with the same settings, run ids and workdirs.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence

import optuna
from optuna.trial import Trial, TrialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from abs_model._runtime.atomic_files import locked
from abs_model._runtime.wandb_log import GIVEN_ID, PLACEHOLDER
from abs_model.sweeps.definition import MACROS, Sweep, SweepError
from abs_model.sweeps.study import interrupted_trials, limit, num_trials, propose, settings_of
from abs_model.training.finished_run import read_run
from abs_model.training.metrics import read_metrics
from abs_model.training.preemption import StopRequest, graceful_exit

# Attributes of trials: id for W&B, workdir, why it failed, and whether it is to be stopped early.
RUN_ID, WORKDIR, REASON, _PRUNED = "run_id", "workdir", "reason", "pruned"
_STUDY_ID = "id"
_POLL_SECONDS = 0.5
# A trial that is told to stop saves a checkpoint first.
_STOP_SECONDS = 120.0
# A signal to a whole job may reach a trial before it reaches the sweep.
_SIGNAL_SECONDS = 1.0
_WORKDIR_FLAG = "--workdir="
# After so many failed trials, and no other one, there is no point in going on.
_MOST_FAILURES = 3


@dataclasses.dataclass
class _Running:
    """A trial that runs.

    Attributes:
        trial: The trial, in the study.
        command: The words of its command.
        workdir: The folder that it logs to.
        log: The file for what it prints.
        num_reported: Number of objectives that the study knows.
        bar: The line of the progress display.
        process: Its process; None while one that an earlier session has started still runs.
        deadline: When a process that was told to stop is killed; None before.
    """

    trial: Trial
    command: Sequence[str]
    workdir: pathlib.Path
    log: pathlib.Path
    num_reported: int
    bar: TaskID
    process: subprocess.Popen[bytes] | None = None
    deadline: float | None = None

    @property
    def lock(self) -> pathlib.Path:
        """The file whose lock the process holds."""
        return self.log.with_suffix(".lock")


def run_trials(
    sweep: Sweep, study: optuna.Study, folder: pathlib.Path, *, count: int, parallel: int
) -> bool:
    """Runs trials until there are as many as wanted, first those that were interrupted.

    Args:
        sweep: The sweep.
        study: Its study.
        folder: The folder for logs.
        count: How many trials there are to be in the end, failed ones included.
        parallel: How many run at a time.

    Returns:
        Whether all are done; False when SIGTERM or SIGINT ended it early.

    Raises:
        SweepError: The command gives trials no workdir of their own, can't be started, or the first
            three trials have failed.
    """
    count = limit(sweep, count)
    _workdir(sweep, "id")
    (folder / "logs").mkdir(exist_ok=True)
    waiting = interrupted_trials(study, sweep)
    running: list[_Running] = []
    outcomes: list[TrialState] = []
    with graceful_exit() as stop, _progress() as progress:
        total = progress.add_task("trials", total=count, status="")
        try:
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
                    if not stop.requested and (outcome := _poll(each, study, sweep, stop)):
                        running.remove(each)
                        outcomes.append(outcome)
                        progress.remove_task(each.bar)
                    elif each.num_reported:
                        progress.update(each.bar, completed=each.num_reported)
                if len(outcomes) >= _MOST_FAILURES and set(outcomes) == {TrialState.FAIL}:
                    raise SweepError(
                        f"the first {len(outcomes)} trials have failed; see {folder / 'logs'}"
                    )
        finally:
            _stop(running)
    return False


def command_of(sweep: Sweep, settings: Mapping[str, str]) -> list[str]:
    """The words of a trial's command, as an agent of W&B would make them.

    Args:
        sweep: The sweep.
        settings: Values by flag without its dashes.
    """
    meanings = {
        "${env}": ["/usr/bin/env"],
        "${interpreter}": [sys.executable],
        "${program}": [sweep.program],
        "${args}": [f"--{name}={value}" for name, value in settings.items()],
    }
    words = (meanings[word] if word in MACROS else [word] for word in sweep.command)
    return list(itertools.chain.from_iterable(words))


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
    """Makes a trial ready; the next poll launches it."""
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


def _launch(running: _Running) -> bool:
    """Starts the process of a trial, unless one that an earlier session has started still runs.

    The process inherits the lock, so that it holds it from its first moment to its last, whatever
    becomes of this one.
    """
    run_id = running.trial.user_attrs[RUN_ID]
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(locked(running.lock))
        except BlockingIOError:
            return False
        log = stack.enter_context(running.log.open("ab"))
        try:
            running.process = subprocess.Popen(
                running.command,
                env=os.environ | {GIVEN_ID: run_id, "WANDB_RUN_GROUP": run_id.rpartition("-")[0]},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # In a session of its own, so that Ctrl-C reaches it from here alone.
                start_new_session=True,
                pass_fds=(lock.fileno(),),
            )
        except OSError as error:
            raise SweepError(f"can't start {' '.join(running.command)}: {error}") from error
        lock.truncate(0)
        lock.write(f"{running.process.pid}\n")
    return True


def _poll(
    running: _Running, study: optuna.Study, sweep: Sweep, stop: StopRequest
) -> TrialState | None:
    """Reports new objectives, and ends the trial where due.

    Returns:
        How the trial has ended; None while it runs, or is to be resumed.
    """
    trial = running.trial
    pruned = trial.user_attrs.get(_PRUNED, False)
    if running.process is None and not pruned and _launch(running):
        return None
    status = None if running.process is None else running.process.poll()
    values = _report(running, sweep.metric)
    if status is None and (running.process is not None or _is_locked(running.lock)):
        # The pruner says it once only (findings/optuna_should_prune_answers_once.sh), so it is
        # noted at once.
        if not pruned and trial.should_prune():
            trial.set_user_attr(_PRUNED, True)
            pruned = True
        if pruned:
            _tell_to_stop(running)
        return None
    if pruned:
        return _end(study, trial, TrialState.PRUNED)
    if status is None:
        return None  # the earlier session's process has ended; the next poll resumes the trial
    finished = status == 0 and read_run(running.workdir) is not None
    if not finished and status in (0, -signal.SIGTERM):
        time.sleep(_SIGNAL_SECONDS)
        if stop.requested:
            return None
    if finished and values and math.isfinite(values[-1]):
        return _end(study, trial, TrialState.COMPLETE, values[-1])
    reason = _reason(status, values, sweep.metric)
    trial.set_user_attr(REASON, reason)
    Console(stderr=True).print(f"trial {trial.number}: {reason}; see {running.log}")
    return _end(study, trial, TrialState.FAIL)


def _end(
    study: optuna.Study, trial: Trial, state: TrialState, value: float | None = None
) -> TrialState:
    study.tell(trial, value, state=state)
    return state


def _report(running: _Running, metric: str) -> list[float]:
    """Tells the study of objectives that it does not know; all of them."""
    values = [float(each[metric]) for each in read_metrics(running.workdir) if metric in each]
    # A resumed trial logs some again.
    for number in range(running.num_reported, len(values)):
        if math.isfinite(values[number]):
            running.trial.report(values[number], number + 1)
    running.num_reported = max(running.num_reported, len(values))
    return values


def _reason(status: int, values: Sequence[float], metric: str) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    if status > 0:
        return f"exit status {status}"
    if not values:
        return f"logged no metric {metric!r}"
    return "stopped before its end" if math.isfinite(values[-1]) else f"{metric} is {values[-1]}"


def _is_locked(path: pathlib.Path) -> bool:
    """Whether a process holds the lock of a trial."""
    try:
        with locked(path):
            return False
    except BlockingIOError:
        return True


def _tell_to_stop(running: _Running) -> None:
    """Tells a process, and those that it has started, to save and end; kills it in the end."""
    if running.deadline is None:
        running.deadline = time.monotonic() + _STOP_SECONDS
        _signal(running, signal.SIGTERM)
    elif time.monotonic() > running.deadline:
        _signal(running, signal.SIGKILL)


def _signal(running: _Running, number: signal.Signals) -> None:
    text = running.lock.read_text() if running.lock.exists() else ""
    # Without a lock, the number may be another process's by now.
    if text.strip().isdecimal() and _is_locked(running.lock):
        try:
            os.killpg(int(text), number)
        except ProcessLookupError:
            pass


def _stop(trials: Sequence[_Running]) -> None:
    """Stops what still runs at the end of the sweep; the trials are to be resumed."""
    while True:
        alive = [each for each in trials if _is_alive(each)]
        if not alive:
            return
        for each in alive:
            _tell_to_stop(each)
        time.sleep(_POLL_SECONDS)


def _is_alive(running: _Running) -> bool:
    if running.process is not None:
        return running.process.poll() is None
    return running.lock.exists() and _is_locked(running.lock)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        console=Console(stderr=True),
    )
