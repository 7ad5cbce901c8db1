"""Signs that an attack failed for another reason than the model's robustness.

After Pintor et al., "Indicators of Attack Failure: Debugging and Improving Optimization of
Adversarial Examples" (NeurIPS 2022, https://arxiv.org/abs/2106.09947), and Carlini et al., "On
Evaluating Adversarial Robustness" (2019, https://arxiv.org/abs/1902.06705). A warning does not say
that a figure is wrong, but that it needs an explanation before it is called robustness.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from abs_model.attacks.registry import BLACK_BOX, Access
from abs_model.evaluation.run.ledger import Record
from abs_model.evaluation.tables.results import GROUPS, PlannedAttack, Results
from abs_model.evaluation.tables.statistics import THRESHOLDS, reaches, robust

# Shares above which there is a warning.
MOST_ZERO_GRADIENTS = 0.1  # of all gradients of an attack
MOST_STILL_LOSSES = 0.1  # of the images on which an attack found nothing
MOST_BLACK_BOX_ONLY = 0.05  # of the attacked images
# A loss that rises by less than this part of the way to the boundary does not move.
_STILL = 1e-3
_BLACK_BOX = tuple(access.value for access in BLACK_BOX)
_NAMES = {"l2": "L2", "linf": "L-inf", "l0": "L0"}


@dataclasses.dataclass(frozen=True)
class AttackWarning:
    """A sign of failure.

    Attributes:
        indicator: Which, for programs, such as "zero_gradients".
        model: The model's name.
        attack: The name of the row; empty where the sign is of the model as a whole.
        norm: That of the attack or comparison; empty where there is none.
        reason: What was seen, for readers.
    """

    indicator: str
    model: str
    attack: str
    norm: str
    reason: str


def find_warnings(results: Results) -> list[AttackWarning]:
    """All signs of failure in an evaluation: of models first, then of single attacks."""
    found: list[AttackWarning] = []
    for model in results.plan.models:
        found += _of_model(results, model)
        for norm in results.norms:
            found += _of_comparison(results, model, norm)
    for attack in results.plan.attacks:
        for model in attack.ledgers:
            found += _of_attack(results, model, attack)
    return found


def _of_model(results: Results, model: str) -> Iterator[AttackWarning]:
    probe = results.probes.get(model)
    if probe is None:
        return
    if probe.num_undecided:
        yield AttackWarning(
            "no_decision", model, "", "",
            f"logits are NaN or tie for {probe.num_undecided} of {probe.num_images} clean images",
        )  # fmt: skip
    if probe.random:
        yield AttackWarning(
            "random", model, "", "",
            "two answers to the same images differ; evaluate attacks.average_logits of the model",
        )  # fmt: skip
    elif probe.depends_on_batch:
        yield AttackWarning(
            "batch_dependent", model, "", "",
            "the logits of an image change with the other images of its batch, so results do not"
            " hold for single images; make the logits of an image depend on that image only",
        )  # fmt: skip
    if probe.accuracies and probe.accuracies[-1] > 0:
        yield AttackWarning(
            "growing_epsilon", model, "", "",
            f"{probe.summary} of L-infinity: it does not fall to 0, so gradients are masked",
        )  # fmt: skip


def _of_comparison(results: Results, model: str, norm: str) -> Iterator[AttackWarning]:
    """Whether attacks without gradients find what none of those with gradients does."""
    attacks = results.attacks_on(model, norm, GROUPS)
    threshold = THRESHOLDS[norm]
    black = [each for each in attacks if each.access in _BLACK_BOX]
    # An attack that stays closer than the threshold cannot find what lies there.
    white = [
        each
        for each in attacks
        if each.access and each not in black and reaches(each.limit(model), threshold)
    ]
    if not white or not black:
        return
    with_gradients, without = (
        np.min([results.distances(model, each.name) for each in some], axis=0)
        for some in (white, black)
    )
    only = robust(with_gradients, threshold) & ~robust(without, threshold)
    only &= ~np.isnan(with_gradients) & ~np.isnan(without)
    if only.mean() > MOST_BLACK_BOX_ONLY:
        yield AttackWarning(
            "black_box_beats_white_box", model, "", norm,
            f"within {threshold:g}, attacks without gradients fool {only.sum()} of {len(only)}"
            " images on which no attack with gradients succeeds: gradients are masked",
        )  # fmt: skip


def _of_attack(results: Results, model: str, attack: PlannedAttack) -> Iterator[AttackWarning]:
    records = [r for r in results.records(model, attack.name) if not r.clean_error]
    gradients = sum(record.num_gradients or 0 for record in records)
    for indicator, name, most, what in (
        ("zero_gradients", "num_zero_gradients", MOST_ZERO_GRADIENTS, "zero"),
        ("nonfinite_gradients", "num_nonfinite_gradients", 0.0, "NaN or infinite in places"),
    ):
        count = sum(getattr(record, name) or 0 for record in records)
        if count > most * gradients:
            yield AttackWarning(
                indicator, model, attack.name, attack.norm,
                f"{count / gradients:.1%} of the gradients are {what}",
            )  # fmt: skip
    reported = [record for record in records if record.claimed]
    if reported and all(record.reasons for record in reported):
        yield AttackWarning(
            "all_rejected", model, attack.name, attack.norm,
            f"verification rejected every example that it reported ({len(reported)})",
        )  # fmt: skip
    if attack.access != Access.GRADIENTS.value:
        return
    probe = results.probes.get(model)
    if probe is not None and probe.thresholds:
        yield AttackWarning(
            "straight_through_gradients", model, attack.name, attack.norm,
            "gradients are passed straight through the threshold and only hint at what a change of"
            " pixels does; rely on attacks that flip pixels or that need no gradients",
        )  # fmt: skip
    known = [r for r in records if None not in (r.margin, r.clean_margin)]
    failed = [record for record in known if math.isinf(record.distance)]
    still = _num_still(failed)
    if still > MOST_STILL_LOSSES * len(failed):
        yield AttackWarning(
            "still_loss", model, attack.name, attack.norm,
            f"the loss did not move on {still} of the {len(failed)} images on which it found"
            " nothing",
        )  # fmt: skip


def _num_still(failed: Sequence[Record]) -> int:
    margins = np.array([(r.margin, r.clean_margin) for r in failed], float).reshape(-1, 2)
    return int(np.sum(margins[:, 0] - margins[:, 1] <= _STILL * np.abs(margins[:, 1])))
