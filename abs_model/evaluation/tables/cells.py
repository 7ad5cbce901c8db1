"""The figures of the tables: of an attack, or of the minimum over several, on a model."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from abs_model.evaluation.images.eight_bit import NUDGED, ROUNDED
from abs_model.evaluation.run.ledger import Record
from abs_model.evaluation.tables.results import PlannedAttack, Results
from abs_model.evaluation.tables.statistics import THRESHOLDS, Summary, reaches, summarize


@dataclasses.dataclass(frozen=True)
class Cell:
    """A figure of the table: an attack, or the minimum over several, on a model.

    Attributes:
        summary: Median and accuracy, of the images done so far; the accuracy is at the norm's
            threshold, or at the limit where that is smaller.
        num_expected: Images that the summary will be of once all are done.
        limit: How far from the clean images was searched, of several attacks by the farthest;
            infinite without a limit. What an attack did not find lies beyond it.
        reached: Whether the norm's threshold is within the limit. If not, nothing is known of the
            accuracy there.
        minimizes: Whether the closest adversarial images were searched. If not, the median of the
            summary says nothing.
        num_claimed: Images that the attack reported as adversarial.
        rejections: Reported examples that verification rejected, by reason; one may have several.
        num_rejected: Reported examples rejected.
        num_queries: Mean number of queries until the batch of an image was done; None where
            unknown.
        num_gradients: Those with gradient.
        num_by_search: Adversarial examples that a thorough search for latents does not confirm
            (`thorough_search.adversarial_by_search`); None where that was not looked at.
        warnings: Reasons for doubt about the figure; see `abs_model.evaluation.tables.indicators`.
        eight_bit: How many adversarial images there are of each outcome in 8 bits (`eight_bit`), as
            far as it is known; of a minimum, of the closest ones.
    """

    summary: Summary
    num_expected: int
    limit: float
    reached: bool
    minimizes: bool = True
    num_claimed: int = 0
    num_rejected: int = 0
    rejections: Mapping[str, int] = dataclasses.field(default_factory=dict)
    num_queries: float | None = None
    num_gradients: float | None = None
    num_by_search: int | None = None
    warnings: Sequence[str] = ()
    eight_bit: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def num_eight_bit(self) -> int:
        """Adversarial images whose outcome in 8 bits is known."""
        return sum(self.eight_bit.values())

    @property
    def shares_in_eight_bits(self) -> tuple[float, float] | None:
        """Shares that are adversarial with rounded values, and with rounded or nudged ones."""
        if not self.num_eight_bit:
            return None
        rounded, nudged = (self.eight_bit.get(outcome, 0) for outcome in (ROUNDED, NUDGED))
        return rounded / self.num_eight_bit, (rounded + nudged) / self.num_eight_bit


@dataclasses.dataclass(frozen=True)
class PublishedCell:
    """What the paper published for a model."""

    median: float
    accuracy: float


def attack_cell(results: Results, model: str, attack: PlannedAttack) -> Cell | None:
    """The figures of an attack on a model; None where it has no record."""
    records = results.records(model, attack.name)
    if not records:
        return None
    distances = np.array([record.distance for record in records])
    reasons = [reason for record in records for reason in record.reasons]
    num_queries, num_gradients = (
        _mean([getattr(record, name) for record in records])
        for name in ("num_queries", "num_gradients")
    )
    limit, threshold = attack.limit(model), THRESHOLDS[attack.norm]
    return Cell(
        summarize(distances, min(limit, threshold)),
        results.num_expected(model, attack.name),
        limit,
        reaches(limit, threshold),
        minimizes=attack.minimizes(model),
        num_claimed=sum(record.claimed for record in records),
        num_rejected=sum(bool(record.reasons) for record in records),
        rejections={reason: reasons.count(reason) for reason in sorted(set(reasons))},
        num_by_search=_num_by_search(records),
        num_queries=num_queries,
        num_gradients=num_gradients,
        eight_bit=_outcomes(records),
    )


def _mean(counts: Sequence[int | None]) -> float | None:
    known = [count for count in counts if count is not None]
    return float(np.mean(known)) if len(known) == len(counts) else None


def _num_by_search(records: Sequence[Record]) -> int | None:
    known = [each.by_search for each in records if each.is_verified and each.by_search is not None]
    return sum(known) if known else None


def minimum_cell(results: Results, model: str, norm: str, groups: Sequence[str]) -> Cell | None:
    """Those of the minimum over the attacks of a norm and some groups; None without an image."""
    distances = results.closest(model, norm, groups)
    done = distances[~np.isnan(distances)]
    if not len(done):
        return None
    closest = [record for _, record in results.closest_records(model, norm, groups)]
    limit, threshold = results.limit(model, norm, groups), THRESHOLDS[norm]
    return Cell(
        summarize(done, min(limit, threshold)),
        results.plan.num_images,
        limit,
        reaches(limit, threshold),
        minimizes=any(each.minimizes(model) for each in results.attacks_on(model, norm, groups)),
        num_by_search=_num_by_search(closest),
        eight_bit=_outcomes(closest),
    )


def certified_cell(results: Results, model: str, norm: str) -> Cell | None:
    """Those of the certified radii in a norm; None without an image."""
    radii = results.certified_radii(model, norm)
    if not len(radii):
        return None
    summary = summarize(radii, THRESHOLDS[norm])
    return Cell(summary, results.plan.num_images, limit=math.inf, reached=True)


def _outcomes(records: Sequence[Record]) -> dict[str, int]:
    known = [record.eight_bit for record in records if record.eight_bit is not None]
    return {outcome: known.count(outcome) for outcome in sorted(set(known))}
