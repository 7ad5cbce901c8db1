"""The adversarial images of an evaluation as files: WORKDIR/export/MODEL/ATTACK.

A folder for each model and attack, as `abs_model.evaluation.images.image_files` writes it.
"""

import pathlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from abs_model._runtime.errors import UserError
from abs_model.data import Dataset
from abs_model.evaluation.images.image_files import Export, export_images
from abs_model.evaluation.run.ledger import Record
from abs_model.evaluation.run.progress import Progress
from abs_model.evaluation.run.workdir import array_identity, model_identity
from abs_model.evaluation.tables.results import Plan, PlannedAttack, Results
from abs_model.models.classifier import Classifier

EXPORT_FOLDER = "export"


class ExportError(UserError):
    """An evaluation's images can't be exported."""


def export_evaluation(
    workdir: pathlib.Path,
    results: Results,
    models: Mapping[str, Classifier],
    dataset: Dataset,
    attacks: Collection[str],
) -> list[str]:
    """Exports the verified adversarial images that an evaluation holds, finished or not.

    Args:
        workdir: Of the evaluation; what is written goes into its `export/MODEL/ATTACK`.
        results: What it holds.
        models: The classifiers by name.
        dataset: Whose test images were attacked.
        attacks: Names of those to export.

    Returns:
        A line for each folder, and for what is missing.

    Raises:
        ExportError: The evaluation is of other models or images, or the disk does not allow it.
    """
    chosen = []
    for name, model in models.items():
        check_evaluated(workdir, results.plan, name, model, dataset)
        for attack in results.plan.attacks:
            records = [each for each in results.records(name, attack.name) if each.is_verified]
            if attack.name in attacks and records:
                chosen.append((name, attack, records))
    lines = []
    with Progress(sum(len(records) for *_, records in chosen)) as progress:
        for name, attack, records in chosen:
            kept = [record for record in records if record.image is not None]
            folder = workdir / EXPORT_FOLDER / name / attack.name
            progress.start(f"{name}: {attack.title} {attack.norm}", len(records), attacked=True)
            progress.advance(len(records) - len(kept))
            summary = "no images"
            if kept:
                found = _export(models[name], dataset, attack, kept, folder, progress)
                summary = found.summary
            if len(kept) < len(records):
                summary += f"; {len(records) - len(kept):,} more are not kept in this workdir"
            progress.finish(summary)
            lines.append(f"{folder}: {summary}")
    return lines or [f"{workdir} holds no adversarial images of these models and attacks"]


def _export(
    model: Classifier,
    dataset: Dataset,
    attack: PlannedAttack,
    records: Sequence[Record],
    folder: pathlib.Path,
    progress: Progress,
) -> Export:
    indices = np.array([record.index for record in records])
    images = [image for record in records if (image := record.image) is not None]
    targeted = attack.targets is not None
    try:
        return export_images(
            model,
            dataset.test.images[indices].astype(np.float32) / 255,
            np.array([record.label for record in records]),
            np.stack(images),
            folder,
            norm=attack.norm,
            targets=np.array([record.target for record in records]) if targeted else None,
            indices=indices,
            progress=progress.advance,
        )
    except (OSError, ValueError) as error:
        raise ExportError(f"can't export to {folder}: {error}") from error


def check_evaluated(
    workdir: pathlib.Path, plan: Plan, name: str, model: Classifier, dataset: Dataset
) -> None:
    """Raises an ExportError unless a model and its test images are those of an evaluation."""
    if name not in plan.models:
        raise ExportError(
            f"--models: the evaluation in {workdir} has no model {name!r}; it has"
            f" {', '.join(plan.models)}"
        )
    evaluated = plan.evaluated(workdir, name)
    for what, noted, now in (
        (f"model {name!r}", evaluated.get("model"), model_identity(model)),
        ("data set", evaluated.get("images"), array_identity(dataset.test.images)),
    ):
        if noted not in (None, now):
            raise ExportError(
                f"the {what} is no longer that of the evaluation in {workdir}; its images may not"
                " be adversarial any more. Run evaluate.py without --export first"
            )
