"""Proposes the settings of trials with Optuna, and keeps what is known of them.

    FOLDER/sweep.yaml    the file that the sweep was begun with
    FOLDER/study.db      Optuna's study: each trial's settings, state, and objectives

The study survives a kill at any moment. Optuna's `bayes` is the tree-structured Parzen estimator
(Bergstra et al. 2011), W&B's a Gaussian process. Early stopping is successive halving as in ASHA
(Li et al. 2020), which is what W&B calls hyperband: an objective of a trial counts when it is
logged, and no trial waits for another.
"""

import itertools
import logging
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import optuna
import sqlalchemy.exc
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial, TrialState

from abs_model._runtime.atomic_files import atomic_write_text
from abs_model.sweeps.definition import Parameter, Sweep, SweepError

_STUDY_FILE = "study.db"
_SWEEP_FILE = "sweep.yaml"
_SCALARS = (type(None), bool, int, float, str)


def open_study(sweep: Sweep, folder: pathlib.Path, seed: int) -> optuna.Study:
    """Opens the study of a sweep, or begins it.

    Args:
        sweep: The sweep.
        folder: The folder that keeps its study; it must exist.
        seed: The seed of the proposals.

    Raises:
        SweepError: The folder holds another sweep, or a study that can't be read.
        OSError: The folder can't be written to.
    """
    begun, text = folder / _SWEEP_FILE, sweep.path.read_text("utf-8")
    if begun.exists() and begun.read_text("utf-8") != text:
        raise SweepError(
            f"{folder} holds a sweep of another file than {sweep.path}; compare with {begun}, and"
            " give another --folder"
        )
    atomic_write_text(begun, text)
    # Its messages about each trial would run into the table of progress.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    file = folder.absolute() / _STUDY_FILE
    try:
        study = optuna.create_study(
            study_name="sweep",
            storage=f"sqlite:///{file}",
            direction="maximize" if sweep.maximize else "minimize",
            load_if_exists=True,
            pruner=_pruner(sweep),
        )
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise SweepError(f"{file} can't be read: {error}; give another --folder") from error
    # A sampler that starts again with the same seed would repeat its first proposals.
    study.sampler = _sampler(sweep, seed + num_trials(study))
    return study


def propose(study: optuna.Study, sweep: Sweep) -> Trial:
    """The next trial; all of its settings are chosen."""
    if sweep.method == "grid" and not study.get_trials(states=(TrialState.WAITING,)):
        # Not Optuna's GridSampler: at the last point `Study.tell` raises (Optuna 5.0.0).
        point = next(itertools.islice(_grid(sweep), num_trials(study), None))
        study.enqueue_trial(point)
    return study.ask({name: _distribution(each) for name, each in sweep.parameters.items()})


def num_trials(study: optuna.Study) -> int:
    """How many trials have been proposed."""
    states = [state for state in TrialState if state != TrialState.WAITING]
    return len(study.get_trials(deepcopy=False, states=states))


def limit(sweep: Sweep, count: int) -> int:
    """How many trials there are to be: at most `count`, the sweep's own cap, and a grid's size."""
    limits = [count] if sweep.run_cap is None else [count, sweep.run_cap]
    if sweep.method == "grid":
        limits.append(math.prod(len(_points(each)) for each in sweep.parameters.values()))
    return min(limits)


def interrupted_trials(study: optuna.Study, sweep: Sweep) -> list[Trial]:
    """The trials that were running when the sweep was stopped; all of their settings are chosen."""
    trials = [
        Trial(study, found._trial_id)
        for found in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    ]
    for trial in trials:
        # A kill within `Study.ask` leaves some settings open; those that are chosen stay.
        for name, parameter in sweep.parameters.items():
            trial._suggest(name, _distribution(parameter))
    return trials


def settings_of(trial: Trial, sweep: Sweep) -> dict[str, str]:
    """The settings of a trial as an agent of W&B writes them, by flag without its dashes."""
    return {name: str(trial.params[name]) for name in sweep.parameters}


def _distribution(parameter: Parameter) -> BaseDistribution:
    low, high = parameter.low, parameter.high
    if parameter.values:
        # Of other values, such as lists, Optuna keeps what a flag says.
        return CategoricalDistribution(
            [each if isinstance(each, _SCALARS) else str(each) for each in parameter.values]
        )
    if parameter.integer:
        return IntDistribution(int(low), int(high))
    return FloatDistribution(low, high, log=parameter.log, step=parameter.step)


def _sampler(sweep: Sweep, seed: int) -> optuna.samplers.BaseSampler:
    if sweep.method == "bayes":
        # Given, because both defaults changed with Optuna 5.
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
    return optuna.samplers.RandomSampler(seed=seed)


def _grid(sweep: Sweep) -> Iterator[dict[str, Any]]:
    points = (_points(parameter) for parameter in sweep.parameters.values())
    return (dict(zip(sweep.parameters, each, strict=True)) for each in itertools.product(*points))


def _points(parameter: Parameter) -> Sequence[Any]:
    distribution = _distribution(parameter)
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    return range(int(parameter.low), int(parameter.high) + 1)


def _pruner(sweep: Sweep) -> optuna.pruners.BasePruner:
    if sweep.stopping is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=sweep.stopping.first, reduction_factor=sweep.stopping.eta
    )
