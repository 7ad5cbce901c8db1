"""Makes an entry of the model zoo of a finished training run, after measuring the model."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from abs_model._runtime.errors import UserError
from abs_model.data import Split
from abs_model.evaluation import (
    THRESHOLDS,
    ModelSpec,
    Results,
    Settings,
    evaluate,
    load_models,
    read_suite,
    show,
    summarize,
)
from abs_model.evaluation.tables.table import NORM_NAMES
from abs_model.models.classifier import Classifier
from abs_model.zoo import cards
from abs_model.zoo.load import build_classifier, find_trained, load_arrays

_MEASURED = "measured"
_BATCH_SIZE = 100
_NUM_COMPARED = 64


def export_run(
    workdir: pathlib.Path,
    names: Sequence[str],
    config: ml_collections.ConfigDict,
    num_attacked: int,
) -> pathlib.Path:
    """Exports a run under a name and, where there are two, its binary twin under the other.

    Args:
        workdir: Of the run.
        names: One or two, which the zoo does not have (`cards.check_names`).
        config: The attacks and the seed to measure the model with.
        num_attacked: Test images that are attacked, the first ones.

    Returns:
        The file of weights; its card lies beside it.

    Raises:
        UserError: The run does not say how it was trained, or can't be loaded.
    """
    name = names[0]
    # Absolute, because a workdir may be called like a model of the zoo.
    directory = workdir.absolute()
    trained = find_trained(directory)
    if "training" not in trained.run:
        raise UserError(
            f"{workdir} does not say when and how it was trained, which a card must; it is from"
            " before train.py noted that, or imported. Train it again"
        )
    specs = [ModelSpec(each, str(directory), binary=each != name) for each in names]
    models, dataset = load_models(specs)
    settings = Settings(
        len(dataset.test.labels),
        num_attacked,
        batch_size=_BATCH_SIZE,
        seed=config.seed,
        certify=True,
    )
    measured = directory / _MEASURED
    results = evaluate(models, dataset, read_suite(config), settings, measured)
    show(measured, results, models, dataset, tracker=None)
    card = {
        "models": {
            spec.name: {
                "binary": spec.binary,
                "measured": _measured(results, spec.name),
                "certified": _certified(results, spec.name),
            }
            for spec in specs
        },
        "measured_with": {"settings": dataclasses.asdict(settings), **results.plan.about},
        "config": config_without_folders(trained.config.to_dict()),
        "run": run_without_folders(trained.run),
    }
    _, arrays = load_arrays(trained)
    # None where there is no solver, or one that needs none.
    surrogate = getattr(getattr(models[name], "solver", None), "surrogate", None)
    with tempfile.TemporaryDirectory(dir=cards.FOLDER.parent) as folder:
        path = pathlib.Path(folder) / f"{name}{cards.SUFFIX}"
        cards.write_entry(path, arrays, surrogate, card)
        _compare(cards.read_entries(path.parent), models, dataset.test)
        for file in (path, path.with_suffix(".json")):
            file.replace(cards.FOLDER / file.name)
    return cards.FOLDER / path.name


def _compare(
    entries: Mapping[str, cards.Entry], models: Mapping[str, Classifier], test: Split
) -> None:
    """Makes sure that what was written is what was measured."""
    images = test.images[:_NUM_COMPARED].astype(np.float32) / 255
    for name, model in models.items():
        found = build_classifier(entries[name]).logits(images)
        np.testing.assert_array_equal(found, model.logits(images))


def _measured(results: Results, model: str) -> list[dict[str, Any]]:
    """Accuracies, clean and under each attack at the thresholds of the paper."""
    clean = {
        "condition": "clean",
        "num_images": results.plan.num_clean,
        "accuracy": results.clean_accuracy(model),
    }
    rows = [clean]
    for attack in results.plan.attacks:
        threshold = THRESHOLDS[attack.norm]
        summary = summarize(results.distances(model, attack.name), threshold)
        rows.append(
            {
                "condition": f"{NORM_NAMES[attack.norm]} <= {threshold:g}",
                "num_images": summary.num_images,
                "accuracy": summary.accuracy.value,
                "attack": {
                    "name": attack.reference,
                    "norm": attack.norm,
                    **attack.settings[model],
                },
            }
        )
    return rows


def _certified(results: Results, model: str) -> list[dict[str, Any]]:
    """Certified accuracies at the same thresholds, and mean radii; empty without certificates.

    They hold if the search over latents finds the global minimum.
    """
    rows = []
    for norm, ledgers in results.plan.certificates.items():
        if model in ledgers:
            radii = results.certified_radii(model, norm)
            summary = summarize(radii, THRESHOLDS[norm])
            rows.append(
                {
                    "condition": f"{NORM_NAMES[norm]} <= {THRESHOLDS[norm]:g}",
                    "num_images": summary.num_images,
                    "accuracy": summary.accuracy.value,
                    "mean_radius": float(radii.mean()),
                }
            )
    return rows


def config_without_folders(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without this machine's folders of data sets and runs."""
    changes: dict[str, Any] = {"dataset": config["dataset"] | {"data_dir": None}}
    if "pretrained" in config:
        changes["pretrained"] = pathlib.PurePath(config["pretrained"]).name
    return config | changes


def run_without_folders(run: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run, and of the pretrained model where there is one, without folders."""
    if "pretrained" not in run:
        return dict(run)
    noted = run_without_folders(run["pretrained"])
    config = config_without_folders(noted["config"])
    return {**run, "pretrained": noted | {"config": config}}
