"""Fine-tuning of a trained ABS model from start to end; see `fine_tuning_task` for the steps."""

import os
from collections.abc import Mapping
from typing import Any

import ml_collections
from flax import nnx

from abs_model._runtime.configuration import (
    ConfigError,
    between,
    boolean,
    check_all,
    non_negative,
    non_negative_int,
    one_of,
    optional,
    positive,
    positive_int,
    text,
)
from abs_model._runtime.mesh import replicate
from abs_model._runtime.processes import is_primary, primary_first
from abs_model.models.abs import ABSClassifier
from abs_model.models.build import build_abs, search_settings
from abs_model.training.abs import (
    COMMON_EXPECTED,
    check_median_confidence,
    check_objective_is_held_out,
    expected_of_search,
    finish,
)
from abs_model.training.fine_tuning_task import FineTuningTask
from abs_model.training.finished_run import is_finished, open_dataset, open_store, session
from abs_model.training.hard_images import kept_hard_images
from abs_model.training.loop import fit
from abs_model.training.workdir import differences_between
from abs_model.zoo.load import Trained, find_trained, load_arrays

PyTree = Any
_EXPECTED = COMMON_EXPECTED | {
    "pretrained": text,
    "train.steps_per_epoch": positive_int,
    "train.pairs_per_class": positive_int,
    "train.cross_entropy_weight": positive,
    "train.max_gap": positive,
    "train.copies": non_negative_int,
    "train.max_shift": non_negative,
    "train.max_rotation": between(0, 180),
    "train.include_validation": optional(boolean),
    "validation.objective": optional(one_of("cross_entropy", "abs_accuracy")),
}
# The sections, and the keys of others, in which the two configurations must agree.
_SHARED_SECTIONS = ("model", "dataset")
_SHARED_KEYS = (("inference", "max_norm"),)


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
        UserError: The configuration can't be used, the pretrained model is not an ABS model or has
            a different configuration, the workdir holds another run or can't be written to, another
            process trains in it, or training diverged.
    """
    _check_config(config)
    if is_finished(workdir, config):
        return True
    pretrained = find_trained(config.pretrained)
    _check_pretrained(pretrained, config)
    dataset = open_dataset(config)
    check_median_confidence(config, dataset.num_classes)
    include = config.train.include_validation
    split = dataset.train_and_validation if include else dataset.train
    graphdef, model = load_arrays(pretrained)
    classifier = primary_first(
        lambda: replicate(_unweighted(pretrained, graphdef, model, config)), "opened the model"
    )
    with session(workdir, config) as path:
        hard = primary_first(
            lambda: kept_hard_images(path, classifier, split, config), "found hard images"
        )
        # None where the solver needs none.
        surrogate = getattr(classifier.solver, "surrogate", None)
        task = FineTuningTask(config, dataset, split, graphdef, model, hard, surrogate)
        store = open_store(path, task, config.checkpoint.keep)
        if not fit(task, config, path, store, wandb_mode):
            return False
        if is_primary():  # the rest is for one process
            finish(
                task,
                config,
                dataset,
                path,
                store,
                seconds_before=hard.seconds,
                pretrained=_provenance(pretrained, classifier),
            )
    return True


def _check_config(config: ml_collections.ConfigDict) -> None:
    """Raises a ConfigError when a value of the configuration can't be used."""
    if not config.pretrained:
        raise ConfigError(
            "pretrained must be the workdir of a finished training of ABS, or the name of a shipped"
            " ABS model: --config.pretrained=runs/my_abs"
        )
    check_all(config, _EXPECTED | expected_of_search())
    train = config.train
    if train.copies and not (train.max_shift or train.max_rotation):
        raise ConfigError(
            "train.copies must be 0 without train.max_shift and train.max_rotation, got"
            f" {train.copies} copies, which would all be equal; set one of the two"
        )
    check_objective_is_held_out(config)


def _check_pretrained(pretrained: Trained, config: ml_collections.ConfigDict) -> None:
    """Raises a ConfigError unless the configuration can continue the pretrained model."""
    name = config.pretrained
    if pretrained.config.model.name != "abs":
        raise ConfigError(
            f"pretrained must be an ABS model; {name!r} is a {pretrained.config.model.name!r} model"
        )
    if pretrained.binary:
        raise ConfigError(
            f"pretrained must be an ABS model of gray images, but {name!r} thresholds them; give"
            " the model that it shares its weights with"
        )
    held, asked = (_shared(each) for each in (pretrained.config, config))
    if lines := differences_between(held, asked, name):
        raise ConfigError(
            f"the pretrained model {name!r} has a different configuration:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nUse its values, or choose another model."
        )
    if pretrained.config.train.get("include_validation") and not config.train.include_validation:
        raise ConfigError(
            f"the pretrained model {name!r} was trained on the validation images, too; set"
            " train.include_validation to True"
        )


def _shared(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The part in which two configurations must agree; where the data lie may differ."""
    sections: dict[str, Any] = {key: config[key].to_dict() for key in _SHARED_SECTIONS}
    sections["dataset"].pop("data_dir", None)
    sections |= {section: {key: config[section][key]} for section, key in _SHARED_KEYS}
    return ml_collections.ConfigDict(sections)


def _unweighted(
    pretrained: Trained,
    graphdef: nnx.GraphDef,
    model: Mapping[str, PyTree],
    config: ml_collections.ConfigDict,
) -> ABSClassifier:
    """The pretrained model as a classifier whose class weights are 1."""
    return build_abs(
        config,
        graphdef,
        model,
        tuple(pretrained.run["image_shape"]),
        search=search_settings(config),
        open_surrogate=pretrained.surrogate,
    )


def _provenance(pretrained: Trained, classifier: ABSClassifier) -> dict[str, Any]:
    """What a run keeps of the model that it continues."""
    kept = {key: pretrained.run[key] for key in ("training", "pretrained") if key in pretrained.run}
    # The digest of the arrays.
    about = {"name": pretrained.name, "origin": classifier.solver.decoder.origin}
    return about | kept | {"config": pretrained.config.to_dict()}
