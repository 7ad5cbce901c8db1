"""Training of ABS from start to end: VAEs, surrogates for search, calibration."""

import dataclasses
import functools
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from flax import nnx

from abs_model._runtime.configuration import (
    ConfigError,
    Expectation,
    between,
    boolean,
    check_all,
    non_negative,
    one_of,
    optional,
    positive,
    positive_int,
    seed,
    sequence_of,
)
from abs_model._runtime.processes import is_primary
from abs_model.data import Dataset
from abs_model.inference.calibration import UnreachableError, search_class_weights, solve_eta
from abs_model.inference.racing import RacingSolver
from abs_model.inference.solvers import SOLVERS
from abs_model.inference.solvers.surrogates import SurrogateSettings
from abs_model.models.abs import ABSClassifier
from abs_model.models.build import (
    build_abs,
    kept_surrogate,
    measure_energies,
    measure_race_margin,
    search_settings,
)
from abs_model.training.abs_task import ABSTask
from abs_model.training.checkpoints import CheckpointStore
from abs_model.training.finished_run import (
    DATASET_EXPECTED,
    MarksBest,
    build_task,
    is_finished,
    open_store,
    session,
    write_run,
)
from abs_model.training.loop import State, fit
from abs_model.training.metrics import training_seconds

# What any training of ABS has.
COMMON_EXPECTED = {
    "seed": seed,
    "model.name": one_of("abs"),
    "model.latent_size": positive_int,
    "model.encoder_features": sequence_of(positive_int),
    "model.decoder_features": sequence_of(positive_int),
    "train.epochs": positive_int,
    "train.batch_size_per_class": positive_int,
    "train.learning_rate": positive,
    "train.steps_per_dispatch": positive_int,
    "validation.abs_images": positive_int,
    "validation.image_columns": positive_int,
    "calibration.num_images": positive_int,
    "calibration.fit_abs_class_weights": boolean,
    "calibration.alpha": positive,
    "calibration.median_confidence": between(0, 1),
    "checkpoint.every_epochs": positive_int,
    "checkpoint.keep": positive_int,
    **DATASET_EXPECTED,
}
_EXPECTED = COMMON_EXPECTED | {
    "train.decay_fraction": between(0, 1),
    "train.beta_start": positive,
    "train.beta_fraction": between(0, 1),
    # Older configurations lack these.
    "train.likelihood_variance": dataclasses.replace(optional(positive), required=False),
    "train.max_shift": dataclasses.replace(optional(non_negative), required=False),
    "train.max_rotation": dataclasses.replace(optional(between(0, 180)), required=False),
    "train.include_validation": dataclasses.replace(optional(boolean), required=False),
    "validation.elbo_images": positive_int,
    "validation.abs_every_epochs": positive_int,
    # Configurations from before there were sweeps lack both.
    "validation.num_attacked": dataclasses.replace(optional(positive_int), required=False),
    "validation.objective": dataclasses.replace(
        optional(one_of("elbo", "abs_accuracy", "robust_accuracy")), required=False
    ),
}
_EXPECTED_TYPES: dict[Any, Expectation] = {
    int: positive_int,
    float: positive,
    tuple[int, ...]: sequence_of(positive_int),
}


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: str | os.PathLike[str], wandb_mode: str
) -> bool:
    """Trains the ABS model of a configuration, resuming where it stopped, then calibrates it.

    Args:
        config: As in `configs/abs.py`.
        workdir: Holds everything the run writes; `abs_model.load` opens it afterwards.
        wandb_mode: "auto", "online", "offline" or "off".

    Returns:
        Whether training has been completed; False when it had to stop early.

    Raises:
        UserError: The configuration can't be used, the workdir holds another one or can't be
            written to, another process trains in it, or training diverged.
    """
    check_all(config, _EXPECTED | expected_of_search())
    validation = config.validation
    if validation.get("objective") == "robust_accuracy" and not validation.get("num_attacked"):
        raise ConfigError(
            "validation.objective robust_accuracy needs validation.num_attacked, the number of"
            " validation images to attack, such as 100"
        )
    check_objective_is_held_out(config)
    if is_finished(workdir, config):
        return True
    task, dataset = build_task(config, ABSTask)
    check_median_confidence(config, dataset.num_classes)
    with session(workdir, config) as path:
        store = open_store(path, task, config.checkpoint.keep)
        if not fit(task, config, path, store, wandb_mode):
            return False
        if is_primary():  # the rest is for one process
            finish(task, config, dataset, path, store)
    return True


class TrainsVAEs(MarksBest, Protocol):
    """A task whose state has all classes' VAEs as "model".

    Attributes:
        graphdef: Structure of one VAE.
    """

    graphdef: nnx.GraphDef

    def init_state(self) -> State:
        """See `abs_model.training.loop.Task`."""


def finish(
    task: TrainsVAEs,
    config: ml_collections.ConfigDict,
    dataset: Dataset,
    workdir: pathlib.Path,
    store: CheckpointStore,
    *,
    seconds_before: float = 0.0,
    pretrained: Mapping[str, Any] | None = None,
) -> None:
    """Fits surrogates and calibration to the best checkpoint, and marks the run as finished.

    Args:
        task: What was trained.
        config: Its configuration.
        dataset: What it was trained on.
        workdir: Directory of the run.
        store: The run's checkpoints.
        seconds_before: What the run took before training.
        pretrained: What the run keeps of the model that it continues, if any.
    """
    start = time.perf_counter()
    # Whole, where devices or processes share the state.
    template = jax.tree.map(
        lambda leaf: np.empty(leaf.shape, leaf.dtype), task.init_state()["model"]
    )
    best = store.restore_best({"model": template})["model"]
    classifier = build_abs(
        config,
        task.graphdef,
        best,
        dataset.image_shape,
        search=search_settings(config),
        open_surrogate=functools.partial(kept_surrogate, workdir, config),
    )
    write_run(
        workdir,
        task,
        dataset.image_shape,
        dataset.num_classes,
        calibration=calibrate(classifier, config, dataset),
        seconds=seconds_before + training_seconds(workdir) + time.perf_counter() - start,
        **({} if pretrained is None else {"pretrained": pretrained}),
    )


def expected_of_search() -> dict[str, Expectation]:
    """What the sections `inference` and `surrogate` must hold, by their settings' classes."""
    sections: list[tuple[str, Any]] = [("inference", info.settings) for info in SOLVERS.values()]
    sections.append(("surrogate", SurrogateSettings))
    expected = {
        f"{section}.{field.name}": seed if field.name == "seed" else _EXPECTED_TYPES[field.type]
        for section, settings in sections
        for field in dataclasses.fields(settings)
    }
    # Surrogates are for the ball that is searched.
    del expected["surrogate.max_norm"]
    return expected | {"inference.solver": one_of(*SOLVERS)}


def check_objective_is_held_out(config: ml_collections.ConfigDict) -> None:
    """Raises a ConfigError if the objective is measured on images that are trained on."""
    if config.validation.get("objective") and config.train.get("include_validation"):
        raise ConfigError(
            "validation.objective is measured on the validation images, on which"
            " train.include_validation trains; unset one of the two"
        )


def check_median_confidence(config: ml_collections.ConfigDict, num_classes: int) -> None:
    """Raises a ConfigError unless the median confidence is above chance and below 1."""
    target = config.calibration.median_confidence
    if not 1 / num_classes < target < 1:
        raise ConfigError(
            f"calibration.median_confidence must be above chance (1 / {num_classes}) and below 1, "
            f"got {target}"
        )


def calibrate(
    classifier: ABSClassifier, config: ml_collections.ConfigDict, dataset: Dataset
) -> dict[str, dict[str, Any]]:
    """eta, class weights and race margin of ABS and Binary ABS, from the first training images.

    Args:
        classifier: ABS without a calibration: all class weights 1.
        config: Uses `calibration`.
        dataset: Whose training images are used.

    Returns:
        What `abs_model.models.build.build_abs` takes as calibration.
    """
    settings = config.calibration
    count = min(settings.num_images, len(dataset.train.labels))
    images = dataset.train.images[:count].astype(np.float32) / 255
    labels = dataset.train.labels[:count]
    # Binary ABS is ABS on thresholded images, but for what is fitted here.
    binary = dataclasses.replace(classifier, binary=True)
    fit_weights = settings.fit_abs_class_weights
    return {
        "abs": _fit("ABS", classifier, images, labels, config, fit_weights=fit_weights),
        "binary_abs": _fit("Binary ABS", binary, images, labels, config, fit_weights=True),
    }


def _fit(
    name: str,
    classifier: ABSClassifier,
    images: np.ndarray,
    labels: np.ndarray,
    config: ml_collections.ConfigDict,
    *,
    fit_weights: bool,
) -> dict[str, Any]:
    energies = measure_energies(classifier, images, f"calibrating {name}")
    weights = np.ones(energies.shape[1], np.float32)
    if fit_weights:
        weights = search_class_weights(energies, labels)
    logits = -weights * energies / np.prod(classifier.image_shape)
    fitted = {"eta": _eta(name, logits, config), "class_weights": weights.tolist()}
    if not isinstance(classifier.solver, RacingSolver):
        return fitted
    weighted = dataclasses.replace(classifier, class_weights=jnp.asarray(weights, jnp.float32))
    margin = measure_race_margin(weighted, images, energies, f"measuring estimates of {name}")
    return fitted | {"race_margin": margin}


def _eta(name: str, logits: np.ndarray, config: ml_collections.ConfigDict) -> float:
    """eta, or 0 with a warning where the model is less sure than asked for even so."""
    try:
        return solve_eta(logits, config.calibration.alpha, config.calibration.median_confidence)
    except UnreachableError as error:
        logging.warning("%s: %s; eta is 0.", name, error)
        return 0.0
