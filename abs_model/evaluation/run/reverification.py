"""The adversarial examples of an evaluation, verified again in batches of other sizes.

Kernels add up in another order for another number of images, as they do on another machine. What
was verified should stand all the same (`abs_model.models.decisions`).
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from abs_model.evaluation.run.ledger import Record
from abs_model.evaluation.run.verification import is_adversarial
from abs_model.evaluation.tables.results import Results
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
