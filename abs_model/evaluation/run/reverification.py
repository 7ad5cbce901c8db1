"""The adversarial examples of an evaluation, verified again in batches of other sizes.

Kernels add up in another order for another number of images, as they do on another machine. What
was verified should stand all the same (`abs_model.models.decisions`).
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from abs_model._runtime.errors import UserError
from abs_model.evaluation.images.export import check_evaluated
from abs_model.evaluation.run.ledger import Record
from abs_model.evaluation.run.models import ModelSpec, load_models
from abs_model.evaluation.run.verification import is_adversarial
from abs_model.evaluation.tables.results import Results, collect
from abs_model.models.classifier import Classifier


@dataclasses.dataclass(frozen=True)
class Reverification:
    """What is left of a model's adversarial examples in batches of a size.

    Attributes:
        model: The model's name.
        batch_size: In which it was queried.
        num_examples: Verified adversarial examples of all attacks whose images were kept.
        lost: Those that are no longer adversarial, e.g. "fab_l2: image 12".
    """

    model: str
    batch_size: int
    num_examples: int
    lost: list[str]


def reverify(
    results: Results, models: Mapping[str, Classifier], batch_sizes: Iterable[int]
) -> Iterator[Reverification]:
    """Queries each model about all its adversarial examples again, in batches of each size.

    Args:
        results: Of an evaluation.
        models: The classifiers by their names in it.
        batch_sizes: At least 1 each.
    """
    batch_sizes = list(batch_sizes)
    for name, model in models.items():
        kept = list(_kept(results, name))
        for batch_size in batch_sizes:
            sized = model.with_batch_size(batch_size)
            lost = [
                f"{attack}: image {record.index}"
                for targeted in (False, True)
                for attack, record in _lost(
                    sized, [each for each in kept if (each[1].target is not None) == targeted]
                )
            ]
            yield Reverification(name, batch_size, len(kept), lost)


def _kept(results: Results, model: str) -> Iterator[tuple[str, Record]]:
    for attack in results.plan.attacks:
        for record in results.records(model, attack.name):
            if record.adversarial is not None:
                yield attack.name, record


def _lost(model: Classifier, kept: list[tuple[str, Record]]) -> list[tuple[str, Record]]:
    if not kept:
        return []
    images = np.stack([image for _, each in kept if (image := each.adversarial) is not None])
    goals = np.array([record.goal for _, record in kept])
    fooled, _ = is_adversarial(model, images, goals, kept[0][1].target is not None)
    return [each for each, still in zip(kept, fooled, strict=True) if not still]


def reverify_workdir(workdir: pathlib.Path, batch_sizes: Sequence[int]) -> int:
    """Verifies the adversarial examples of an evaluation again, and prints what is lost.

    Args:
        workdir: Of evaluate.py.
        batch_sizes: Each at least 1.

    Returns:
        How many examples are no longer adversarial, over all models and batch sizes.

    Raises:
        UserError: The workdir does not say where its models are from, or they have changed.
    """
    results = collect(workdir)
    specs = [ModelSpec(**each) for each in results.plan.about.get("models_from", [])]
    if not specs:
        raise UserError(f"the evaluation in {workdir} does not say where its models are from")
    models, dataset = load_models(specs)
    for name, model in models.items():
        check_evaluated(workdir, results.plan, name, model, dataset)
    num_lost = 0
    for found in reverify(results, models, batch_sizes):
        num_lost += len(found.lost)
        lost = f" ({'; '.join(found.lost)})" if found.lost else ""
        print(
            f"{found.model}, batch size {found.batch_size}: {len(found.lost)} of"
            f" {found.num_examples:,} lost{lost}",
            flush=True,
        )
    return num_lost
