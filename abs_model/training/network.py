"""Training of feed-forward networks from start to end; see `network_task` for the steps."""

import dataclasses
import os

import ml_collections

from abs_model._runtime.configuration import (
    ConfigError,
    Expectation,
    boolean,
    check_all,
    non_negative,
    non_negative_int,
    one_of,
    optional,
    positive,
    positive_int,
    seed,
    sequence_of,
)
from abs_model._runtime.processes import is_primary
from abs_model.models.architectures import NETWORKS
from abs_model.training.finished_run import (
    DATASET_EXPECTED,
    build_task,
    is_finished,
    open_store,
    session,
    write_run,
)
from abs_model.training.loop import fit
from abs_model.training.metrics import training_seconds
from abs_model.training.network_task import NetworkTask

_EXPECTATIONS = {
    "seed": seed,
    "model.name": one_of(*NETWORKS),
    "train.epochs": positive_int,
    "train.steps_per_epoch": optional(positive_int),
    "train.batch_size": positive_int,
    "train.learning_rate": positive,
    "train.schedule": one_of("constant", "one_cycle"),
    "train.attack_warmup_steps": non_negative_int,
    "train.final_attack.epochs": non_negative_int,
    "train.final_attack.step_size": positive,
    "train.final_attack.num_steps": positive_int,
    "train.steps_per_dispatch": positive_int,
    "validation.num_attacked": positive_int,
    "validation.batch_size": positive_int,
    # Configurations from before there were sweeps lack it.
    "validation.objective": dataclasses.replace(
        optional(one_of("accuracy", "robust_accuracy")), required=False
    ),
    "checkpoint.every_epochs": positive_int,
    "checkpoint.keep": positive_int,
    **DATASET_EXPECTED,
}
_THREE_COUNTS = Expectation(
    "a sequence of three integers of at least 1",
    lambda v: sequence_of(positive_int).accepts(v) and len(v) == 3,
)
_ATTACK_EXPECTATIONS = {
    "norm": one_of("l2", "linf"),
    "epsilon": non_negative,
    "step_size": positive,
    "num_steps": non_negative_int,
    "random_start": boolean,
}


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: str | os.PathLike[str], wandb_mode: str
) -> bool:
    """Trains a network, resuming where the workdir left off.

    Args:
        config: As in configs/cnn.py and configs/madry.py.
        workdir: Directory of the run, made if needed.
        wandb_mode: "auto", "online", "offline" or "off".

    Returns:
        Whether training has been completed; False when it had to stop early.

    Raises:
        UserError: The configuration, the workdir or the data can't be used, another process trains
            in the workdir, or training diverged.
    """
    check_config(config)
    if is_finished(workdir, config):
        return True
    task, dataset = build_task(config, NetworkTask)
    with session(workdir, config) as directory:
        store = open_store(directory, task, config.checkpoint.keep)
        if not fit(task, config, directory, store, wandb_mode):
            return False
        if not is_primary():
            return True
        write_run(
            directory,
            task,
            dataset.image_shape,
            dataset.num_classes,
            seconds=training_seconds(directory),
        )
    return True


def check_config(config: ml_collections.ConfigDict) -> None:
    """Raises a ConfigError when a value of the configuration can't be used."""
    attacks = {
        f"{section}.attack.{key}": expectation
        for section in ("train", "validation")
        for key, expectation in _ATTACK_EXPECTATIONS.items()
    }
    features = {}
    if config.model.name == "cnn":
        features["model.features"] = _THREE_COUNTS
    attacks["validation.attack.num_steps"] = positive_int
    check_all(config, _EXPECTATIONS | features | attacks)
    train = config.train
    if train.final_attack.epochs > train.epochs:
        raise ConfigError(
            f"train.final_attack.epochs must be at most train.epochs, {train.epochs},"
            f" got {train.final_attack.epochs}"
        )
    if train.final_attack.epochs and not train.attack.num_steps:
        raise ConfigError(
            "train.final_attack.epochs must be 0 in plain training (train.attack.num_steps is 0),"
            f" got {train.final_attack.epochs}"
        )
