"""Training of ABS from start to end: fit the VAEs, then calibrate on training images."""

from typing import Any

import ml_collections
import numpy as np
from rich.console import Console
from rich.progress import track

from abs_model.calibration import search_class_weights, solve_eta
from abs_model.classifiers import ABSClassifier, threshold
from abs_model.data import Dataset, load_dataset
from abs_model.loading import build_abs
from abs_model.training.abs_task import ABSTask
from abs_model.training.configuration import (
    between,
    check,
    non_negative,
    non_negative_int,
    one_of,
    positive,
    positive_int,
    sequence_of,
)
from abs_model.training.loop import fit
from abs_model.training.runs import open_store, read_run, write_run
from abs_model.training.workdir import open_workdir

_EXPECTED = {
    "seed": non_negative_int,
    "model.name": one_of("abs"),
    "model.latent_size": positive_int,
    "model.encoder_features": sequence_of(positive_int),
    "model.decoder_features": sequence_of(positive_int),
    "train.epochs": positive_int,
    "train.batch_size_per_class": positive_int,
    "train.learning_rate": positive,
    "train.decay_epochs": non_negative_int,
    "train.beta_start": positive,
    "train.beta_epochs": non_negative_int,
    "train.steps_per_dispatch": positive_int,
    "validation.elbo_images": positive_int,
    "validation.abs_images": positive_int,
    "validation.abs_every_epochs": positive_int,
    "validation.image_columns": positive_int,
    "inference.num_prior_samples": positive_int,
    "inference.num_steps": positive_int,
    "inference.learning_rate": positive,
    "inference.max_norm": positive,
    "inference.seed": non_negative_int,
    "calibration.num_images": positive_int,
    "calibration.alpha": positive,
    "calibration.median_confidence": between(0, 1),
    "checkpoint.every_epochs": positive_int,
    "checkpoint.keep": positive_int,
    "dataset.validation_size": non_negative,
}


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str, wandb_mode: str) -> bool:
    """Trains, or goes on training, the ABS model of a configuration, then calibrates it.

    Args:
        config: As in `configs/abs.py`.
        workdir: Holds everything the run writes; `abs_model.load` opens it afterwards.
        wandb_mode: "auto", "online", "offline" or "off".

    Returns:
        Whether training has been completed; False when it was asked to stop.

    Raises:
        UserError: The configuration can't be used, the workdir holds another one, or training
            diverged.
    """
    check(config, _EXPECTED)
    path = open_workdir(workdir, config)
    if read_run(path) is not None:
        return True
    dataset = load_dataset(**config.dataset)
    task = ABSTask(config, dataset)
    store = open_store(path, task, config.checkpoint.keep)
    if not fit(task, config, path, store, wandb_mode):
        return False
    best = store.restore_best({"model": task.init_state()["model"]})["model"]
    write_run(path, task, dataset, calibration=_calibrate(task, best, config, dataset))
    return True


def _calibrate(
    task: ABSTask, model: dict[str, Any], config: ml_collections.ConfigDict, dataset: Dataset
) -> dict[str, dict[str, Any]]:
    """eta and class weights of ABS and Binary ABS, from the first training images."""
    settings = config.calibration
    count = min(settings.num_images, len(dataset.train.labels))
    images = dataset.train.images[:count].astype(np.float32) / 255
    labels = dataset.train.labels[:count]
    pixels = np.prod(dataset.image_shape)
    classifier = build_abs(config, task.graphdef, model, dataset.image_shape)
    logits = _logits(classifier, images, "calibrating ABS")
    # Binary ABS is ABS on thresholded images, but for the class weights.
    energies = -pixels * _logits(classifier, threshold(images), "calibrating Binary ABS")
    weights = search_class_weights(energies, labels)
    binary_logits = -weights * energies / pixels
    target = (settings.alpha, settings.median_confidence)
    return {
        "abs": {"eta": solve_eta(logits, *target), "class_weights": [1.0] * dataset.num_classes},
        "binary_abs": {
            "eta": solve_eta(binary_logits, *target),
            "class_weights": weights.tolist(),
        },
    }


def _logits(classifier: ABSClassifier, images: np.ndarray, description: str) -> np.ndarray:
    """Logits (N, classes), with a progress bar."""
    starts = range(0, len(images), classifier.batch_size)
    batches = (images[start : start + classifier.batch_size] for start in starts)
    bar = track(batches, description, total=len(starts), console=Console(stderr=True))
    return np.concatenate([np.asarray(classifier.logits(batch)) for batch in bar])
