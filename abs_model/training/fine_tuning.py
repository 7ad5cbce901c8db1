"""Fine-tuning of a trained ABS model from start to end; see `fine_tuning_task` for the steps."""

import dataclasses
import os
from typing import Any

import jax.numpy as jnp
import ml_collections

from abs_model._runtime.configuration import (
    ConfigError,
    between,
    boolean,
    check_all,
    non_negative,
    one_of,
    optional,
    positive,
    positive_int,
    text,
)
from abs_model._runtime.processes import is_primary, primary_first
from abs_model.data import Dataset
from abs_model.models.abs import ABSClassifier
from abs_model.training.abs import (
    COMMON_EXPECTED,
    check_median_confidence,
    check_objective_is_held_out,
    expected_of_search,
    finish,
)
from abs_model.training.fine_tuning_task import FineTuningTask
from abs_model.training.finished_run import build_task, is_finished, open_store, session
from abs_model.training.hard_images import HardImages, kept_hard_images
from abs_model.training.loop import fit
from abs_model.training.workdir import differences_between
from abs_model.zoo.load import Trained, build_classifier, find_trained, load_arrays

_EXPECTED = COMMON_EXPECTED | {
    "pretrained": text,
    "train.steps_per_epoch": positive_int,
    "train.pairs_per_class": positive_int,
    "train.cross_entropy_weight": positive,
    "train.temperature": positive,
    "train.max_gap": positive,
    "train.copies": positive_int,
    "train.max_shift": non_negative,
    "train.max_rotation": between(0, 180),
    "train.include_validation": optional(boolean),
    "validation.objective": optional(one_of("cross_entropy", "abs_accuracy")),
}
# What the two configurations must agree in; where data lie may differ.
_SHARED = ("model", "dataset")
_FREE = "data_dir"


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: str | os.PathLike[str], wandb_mode: str
) -> bool:
    """Fine-tunes the ABS model that `config.pretrained` names, resuming where the workdir left off.

    Args:
        config: As in `configs/abs_fine_tuned.py`.
        workdir: Holds everything the run writes; `abs_model.load` opens it afterwards.
        wandb_mode: "auto", "online", "offline" or "off".

    Returns:
        Whether training has been completed; False when it had to stop early.

    Raises:
        UserError: The configuration can't be used, the pretrained model is no ABS model or of
            another configuration, the workdir holds another run or can't be written to, another
            process trains in it, or training diverged.
    """
    if not config.pretrained:
        raise ConfigError(
            "pretrained must be the workdir of a finished training of ABS, or the name of a shipped"
            " model: --config.pretrained=runs/my_abs"
        )
    check_all(config, _EXPECTED | expected_of_search())
    train = config.train
    if train.copies > 1 and not (train.max_shift or train.max_rotation):
        raise ConfigError(
            f"train.copies must be 1 without train.max_shift and train.max_rotation, got"
            f" {train.copies} copies that would be alike"
        )
    check_objective_is_held_out(config)
    if is_finished(workdir, config):
        return True
    pretrained = find_trained(config.pretrained)
    _check_pretrained(pretrained, config)

    with session(workdir, config) as path:

        def make_task(config: ml_collections.ConfigDict, dataset: Dataset) -> FineTuningTask:
            check_median_confidence(config, dataset.num_classes)
            split = dataset.train_and_validation if train.include_validation else dataset.train

            classifier = _unweighted(pretrained, config.inference.solver)

            def hard_images() -> HardImages:
                return kept_hard_images(path, classifier, split, config)

            hard = primary_first(hard_images, "found hard images")
            graphdef, model = load_arrays(pretrained)
            # None where there is a solver that needs none.
            surrogate = getattr(classifier.solver, "surrogate", None)
            return FineTuningTask(config, dataset, graphdef, model, hard, surrogate)

        task, dataset = build_task(config, make_task)
        store = open_store(path, task, config.checkpoint.keep)
        if not fit(task, config, path, store, wandb_mode):
            return False
        if is_primary():  # the rest is for one process
            noted = {
                key: pretrained.run[key]
                for key in ("training", "pretrained")
                if key in pretrained.run
            }
            noted["config"] = pretrained.config.to_dict()
            finish(task, config, dataset, path, store, pretrained=noted)
    return True


def _check_pretrained(pretrained: Trained, config: ml_collections.ConfigDict) -> None:
    if pretrained.config.model.name != "abs":
        raise ConfigError(
            f"pretrained must be an ABS model; {config.pretrained!r} is a"
            f" {pretrained.config.model.name!r} model"
        )
    held, asked = (_shared(each) for each in (pretrained.config, config))
    if lines := differences_between(held, asked, "it"):
        raise ConfigError(
            f"pretrained model {config.pretrained!r} is of another configuration:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nSet these as it has them, or give another model."
        )


def _shared(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    sections: dict[str, Any] = {key: config[key].to_dict() for key in _SHARED}
    sections["dataset"].pop(_FREE, None)
    return ml_collections.ConfigDict(sections)


def _unweighted(pretrained: Trained, solver: str) -> ABSClassifier:
    """The model as a classifier whose class weights are 1."""
    classifier = build_classifier(pretrained, solver=solver)
    assert isinstance(classifier, ABSClassifier)  # checked before
    weights = jnp.ones_like(classifier.class_weights)
    return dataclasses.replace(classifier, class_weights=weights, binary=False)
