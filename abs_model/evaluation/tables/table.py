"""The tables: from results to rows, as table 1 of the paper (Schott et al. 2019) has them.

One block for each norm, one column for each model; a cell has the median adversarial distance and
the accuracy at the norm's threshold, or, of an attack within a smaller epsilon, at that. Each block
ends its paper's attacks with the minimum over them, beside what the paper published, and then goes
on with stronger attacks, the minimum over all, and what is certified below it. Targeted attacks
come last, and are no part of any minimum. `abs_model.evaluation.tables.table_formats` writes them.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from abs_model.attacks.registry import Access
from abs_model.evaluation.tables.cells import (
    Cell,
    PublishedCell,
    attack_cell,
    certified_cell,
    minimum_cell,
)
from abs_model.evaluation.tables.indicators import AttackWarning, find_warnings
from abs_model.evaluation.tables.paper_results import published_beside
from abs_model.evaluation.tables.results import GROUPS, Plan, PlannedAttack, Results
from abs_model.evaluation.tables.statistics import THRESHOLDS

NORM_NAMES = {"l2": "L2", "linf": "L-inf", "l0": "L0"}
UNITS = {"l2": "", "linf": "", "l0": " pixels"}
ALL, ALL_PAPER, ALL_STRONGER = "All", "All, the paper's attacks", "All, with stronger attacks"
PUBLISHED = "All, as published"
CERTIFICATES = "Certified"


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a block.

    Attributes:
        title: What the row is of.
        attack: Its plan; None without one.
        cells: By model, for those that have one.
        budget: Epsilon, steps, restarts and queries per image; of a minimum, over how many attacks.
        certified: Whether the distances are certified radii.
    """

    title: str
    attack: PlannedAttack | None
    cells: Mapping[str, Cell | PublishedCell]
    budget: str = ""
    certified: bool = False


@dataclasses.dataclass(frozen=True)
class Block:
    """The rows of a norm, with its threshold."""

    norm: str
    threshold: float
    rows: Sequence[Row]

    @property
    def last_minimum(self) -> Row | None:
        """That over all untargeted attacks; None without any."""
        rows = [
            row
            for row in self.rows
            if row.attack is None and row.title != PUBLISHED and not row.certified
        ]
        return rows[-1] if rows else None

    @property
    def title(self) -> str:
        """E.g. "L2: median distance / accuracy at 1.5"."""
        unit = UNITS[self.norm]
        name = NORM_NAMES[self.norm]
        return f"{name}: median distance / accuracy at {self.threshold:g}{unit}"


@dataclasses.dataclass(frozen=True)
class Tables:
    """All blocks.

    Attributes:
        models: The columns.
        clean: Clean accuracy by model, from 0 to 1.
        seconds: How long the evaluation took, by model; only those for which it is known.
        num_clean: Of so many test images.
        num_images: Attacked test images.
        blocks: By norm.
        complete: Whether everything planned is done.
        not_tried: Which attacks on which models, and why, a line for each reason.
        commits: Of the code that found the results; a last line says of how many results that is
            not known, if there are any.
        warnings: Signs of attack failure.
    """

    models: Sequence[str]
    clean: Mapping[str, float]
    seconds: Mapping[str, float]
    num_clean: int
    num_images: int
    blocks: Sequence[Block]
    complete: bool
    not_tried: Sequence[str]
    commits: Sequence[str]
    warnings: Sequence[AttackWarning]


def make_tables(results: Results) -> Tables:
    """The tables of an evaluation."""
    plan, warnings = results.plan, find_warnings(results)
    return Tables(
        models=plan.models,
        clean={model: results.clean_accuracy(model) for model in plan.models},
        seconds={model: seconds for model, seconds in results.seconds.items() if seconds},
        num_clean=plan.num_clean,
        num_images=plan.num_images,
        blocks=[_warned(_block(results, norm), warnings) for norm in results.norms],
        complete=results.complete,
        not_tried=_not_tried(plan),
        commits=_commits(results),
        warnings=warnings,
    )


def _warned(block: Block, warnings: Sequence[AttackWarning]) -> Block:
    """The block with the warnings in its cells.

    Minima, and attacks that use gradients, bear those of the model as a whole, too.
    """

    def reasons(row: Row, model: str) -> list[str]:
        if row.certified:
            return []
        names = {row.attack.name} if row.attack else {""}
        if row.attack and row.attack.access == Access.GRADIENTS.value:
            names.add("")
        return [
            each.reason
            for each in warnings
            if each.model == model and each.attack in names and each.norm in ("", block.norm)
        ]

    rows = [
        dataclasses.replace(
            row,
            cells={
                model: dataclasses.replace(cell, warnings=reasons(row, model))
                if isinstance(cell, Cell)
                else cell
                for model, cell in row.cells.items()
            },
        )
        for row in block.rows
    ]
    return dataclasses.replace(block, rows=rows)


def _not_tried(plan: Plan) -> list[str]:
    """E.g. "Latent Descent, Cutting planes on cnn: requires an ABS model".

    Last what the command line left out.
    """
    titles: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for attack in plan.attacks:
        for reason in dict.fromkeys(attack.refusals.values()):
            models = tuple(model for model, why in attack.refusals.items() if why == reason)
            titles.setdefault((reason, models), []).append(attack.title)
    lines = [
        f"{', '.join(dict.fromkeys(found))} on {', '.join(models)}: {reason}"
        for (reason, models), found in titles.items()
    ]
    left = plan.about.get("attacks_left_out", ())
    return [*lines, *([f"{', '.join(left)}: --attacks left them out"] if left else [])]


def _commits(results: Results) -> list[str]:
    unknown = results.num_without_provenance
    return [*results.commits, *([f"not known of {unknown:,} results"] if unknown else [])]


def _block(results: Results, norm: str) -> Block:
    attacks = [each for each in results.plan.attacks if each.norm == norm and each.ledgers]
    targeted = [each for each in attacks if each.targets is not None]
    paper, stronger = (
        [each for each in attacks if each.group == group and each.targets is None]
        for group in GROUPS
    )
    rows = [_attack_row(results, attack) for attack in paper]
    if paper:
        rows.append(_minimum_row(results, norm, ALL_PAPER, GROUPS[:1]))
    if published_cells := _published_cells(results, norm):
        rows.append(Row(PUBLISHED, None, published_cells))
    rows += [_attack_row(results, attack) for attack in stronger]
    if stronger:
        title = ALL_STRONGER if paper else ALL
        rows.append(_minimum_row(results, norm, title, GROUPS))
    if certified_cells := _certified_cells(results, norm):
        rows.append(Row(CERTIFICATES, None, certified_cells, certified=True))
    rows += [_attack_row(results, attack) for attack in targeted]
    return Block(norm, THRESHOLDS[norm], rows)


def _attack_row(results: Results, attack: PlannedAttack) -> Row:
    cells = {
        model: cell
        for model in results.plan.models
        if (cell := attack_cell(results, model, attack)) is not None
    }
    return Row(attack.title, attack, cells, _budget(attack, cells))


def _minimum_row(results: Results, norm: str, title: str, groups: Sequence[str]) -> Row:
    cells = {
        model: cell
        for model in results.plan.models
        if (cell := minimum_cell(results, model, norm, groups)) is not None
    }
    numbers = {model: len(results.attacks_on(model, norm, groups)) for model in cells}
    return Row(title, None, cells, _counted(numbers, "attack") if numbers else "")


def _published_cells(results: Results, norm: str) -> dict[str, PublishedCell]:
    plan = results.plan
    found = {model: published_beside(norm, plan.about, model) for model in plan.models}
    return {
        model: PublishedCell(each.median, each.accuracy)
        for model, each in found.items()
        if each is not None
    }


def _certified_cells(results: Results, norm: str) -> dict[str, Cell]:
    found = {model: certified_cell(results, model, norm) for model in results.plan.models}
    return {model: cell for model, cell in found.items() if cell is not None}


def _budget(attack: PlannedAttack, cells: Mapping[str, Cell]) -> str:
    """E.g. "epsilon 0.3, 100 steps, 506 queries"; what differs between models as a range.

    Where a limit of queries ends the steps, their number says nothing.
    """
    parts = []
    limits = {model: attack.limit(model) for model in attack.ledgers}
    if any(map(math.isfinite, limits.values())):
        shown = _range(limits, lambda limit: f"{limit:g}" if math.isfinite(limit) else "any")
        parts.append(f"at most {shown} pixels" if attack.norm == "l0" else f"epsilon {shown}")
    limited = any(each.get("max_queries") for each in attack.settings.values())
    for setting, unit in (("num_steps", "step"), ("num_restarts", "restart")):
        # A user-defined attack may have any value there, or none.
        values = {
            model: settings[setting]
            for model, settings in attack.settings.items()
            if isinstance(settings.get(setting), int)
        }
        if values and not (limited and setting == "num_steps"):
            parts.append(_counted(values, unit))
    known = {
        model: round(cell.num_queries)
        for model, cell in cells.items()
        if cell.num_queries is not None
    }
    if known:
        parts.append(_counted(known, "query"))
    elif cells:
        parts.append("queries not counted")
    return ", ".join(parts)


def _counted(values: Mapping[str, int], unit: str) -> str:
    """E.g. "8 (abs) to 1,010 (cnn) queries"."""
    plural = unit.removesuffix("y") + "ies" if unit.endswith("y") else f"{unit}s"
    return f"{_range(values, '{:,}'.format)} {unit if max(values.values()) == 1 else plural}"


def _range(values: Mapping[str, Any], write: Callable[[Any], str]) -> str:
    """E.g. "8 (abs) to 1,010 (cnn)": who has the least and the most."""
    (least, low), (most, high) = (
        choose(values.items(), key=lambda item: item[1]) for choose in (min, max)
    )
    return write(low) if low == high else f"{write(low)} ({least}) to {write(high)} ({most})"
