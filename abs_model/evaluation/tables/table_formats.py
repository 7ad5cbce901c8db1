"""The tables as people and programs read them: terminal, Markdown, LaTeX, CSV, JSON."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import rich.box
import rich.console
import rich.table
import rich.text

from abs_model._runtime.atomic_files import atomic_write_text, write_json
from abs_model.evaluation.tables.cells import Cell, PublishedCell
from abs_model.evaluation.tables.results import Results
from abs_model.evaluation.tables.rows import rows_of, to_csv
from abs_model.evaluation.tables.table import NORM_NAMES, Block, Row, Tables, make_tables

EXPLANATION = (
    "A cell is the median adversarial distance and the accuracy at the threshold; in brackets 95%"
    " bootstrap intervals over images. An attack within a fixed epsilon has no median, because it"
    " does not look for the closest image. Images that are misclassified when clean count as"
    " distance 0, images for which an attack found nothing as infinitely far, or, where it looks no"
    " farther than a limit, as beyond that (>). Where epsilon is below the threshold, the accuracy"
    " is that at epsilon, and nothing is known at the threshold. Every adversarial image was"
    " classified and measured again; reported examples that are not verified are counted as"
    " rejected. A minimum is taken for each image. A targeted attack succeeds where it reaches its"
    " target: images of that class are left out, and accuracy is the share that did not reach it."
    ' In the row "Certified" the distance is the median radius within which no change can alter a'
    " correct decision, and the accuracy is the share of images whose radius exceeds the threshold;"
    " both hold if the search over latents finds the global minimum. The true accuracy then lies"
    " between this row and the minimum over all attacks."
    " Attacks bound robustness from above only, and those with a small budget less well; where"
    " budgets differ, the models with the least and the most are named. Queries are evaluations of"
    " the model for each image, until the last image of its batch was done. In 8 bits: the shares"
    " of the closest adversarial images that are misclassified with values rounded to 256 levels,"
    " and with values rounded or nudged to other levels near them."
)
_NOTHING = "\N{EN DASH}"
_WARNING = " (!)"
_WARNINGS = "Warnings (!): what looks like robustness may be an attack that failed"
_INCOMPLETE = "This evaluation isn't complete."


def write_tables(workdir: pathlib.Path, results: Results) -> Tables:
    """Writes results.md, .tex, .csv and .json into the workdir, each atomically."""
    tables = make_tables(results)
    write_json(workdir / "results.json", to_json(tables, results))
    for suffix, text in (
        ("md", to_markdown(tables)),
        ("tex", to_latex(tables)),
        ("csv", to_csv(tables)),
    ):
        atomic_write_text(workdir / f"results.{suffix}", text)
    return tables


def to_rich(tables: Tables) -> rich.console.Group:
    """For the terminal."""
    notice = [] if tables.complete else [rich.text.Text(_INCOMPLETE)]
    shown = [_rich_table(rows) for rows in _summaries(tables)]
    for block in tables.blocks:
        table = rich.table.Table(title=block.title, box=rich.box.SIMPLE_HEAD)
        table.add_column("Attack", overflow="fold")
        for model in tables.models:
            table.add_column(model, justify="right", overflow="fold")
        table.add_column("Budget", overflow="fold")
        for row in block.rows:
            style = None if row.attack else "bold"
            table.add_row(*_cells(tables, block, row), style=style, end_section=not row.attack)
        shown.append(table)
    remarks = [
        rich.text.Text("\n".join([f"{heading}:", *[f"- {line}" for line in lines], ""]))
        for heading, lines in _remarks(tables)
    ]
    return rich.console.Group(*notice, *shown, *remarks, rich.text.Text(EXPLANATION))


def to_markdown(tables: Tables) -> str:
    """A Markdown document."""
    lines = ["# Accuracy and robustness", ""]
    if not tables.complete:
        lines += [_INCOMPLETE, ""]
    for rows in _summaries(tables):
        lines += [*_markdown_table(rows), ""]
    for block in tables.blocks:
        header = ["Attack", *tables.models, "Budget"]
        rows = [_cells(tables, block, row) for row in block.rows]
        shown = [
            cells if row.attack else [f"**{cell}**" if cell else "" for cell in cells]
            for row, cells in zip(block.rows, rows, strict=True)
        ]
        lines += [f"## {block.title}", "", *_markdown_table([header, *shown]), ""]
    for heading, remarks in _remarks(tables):
        lines += [f"{heading}:", "", *[f"- {line}" for line in remarks], ""]
    return "\n".join([*lines, EXPLANATION, ""])


def to_latex(tables: Tables) -> str:
    """A LaTeX tabular with booktabs rules."""
    columns = "l" + "r" * len(tables.models) + "l"
    lines = [r"% \usepackage{booktabs}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines.append(_latex_row(["", *tables.models, "budget"]))
    lines += [r"\midrule", _latex_row([*_clean_rows(tables)[0], ""])]
    for block in tables.blocks:
        width = len(tables.models) + 2
        lines += [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{{_latex(block.title)}}} \\"]
        for row in block.rows:
            if not row.attack:
                lines.append(r"\addlinespace")
            lines.append(_latex_row(_cells(tables, block, row)))
    for header, *rows in _eight_bit(tables):
        title = rf"\multicolumn{{{len(tables.models) + 2}}}{{l}}{{{_latex(header[0])}}} \\"
        lines += [r"\midrule", title, *[_latex_row([*row, ""]) for row in rows]]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def to_json(tables: Tables, results: Results) -> dict[str, Any]:
    """All of it; a distance that is infinite is null."""
    plan = results.plan
    return {
        "complete": tables.complete,
        **plan.about,
        "commits": list(results.commits),
        "devices": list(results.devices),
        "packages": list(results.packages),
        "num_without_provenance": results.num_without_provenance,
        "num_clean": plan.num_clean,
        "num_images": plan.num_images,
        "clean_accuracy": {
            model: None if math.isnan(value) else value for model, value in tables.clean.items()
        },
        "seconds": tables.seconds,
        "warnings": [dataclasses.asdict(each) for each in tables.warnings],
        "attacks": {
            attack.name: {
                "attack": attack.reference,
                "norm": attack.norm,
                "group": attack.group,
                "targets": attack.targets,
                "settings": attack.settings,
                "refusals": attack.refusals,
                "commits": {
                    model: origin.commits
                    for model in attack.ledgers
                    if (origin := results.origins.get((model, attack.name))) is not None
                },
            }
            for attack in plan.attacks
        },
        "rows": [
            {
                key: None if isinstance(value, float) and math.isinf(value) else value
                for key, value in row.items()
            }
            for row in rows_of(tables)
        ],
    }


def _cells(tables: Tables, block: Block, row: Row) -> list[str]:
    cells = []
    for model in tables.models:
        cell = row.cells.get(model)
        if cell is None:
            cells.append(_NOTHING)
        elif isinstance(cell, PublishedCell):
            cells.append(f"{_distance(cell.median, block)} / {cell.accuracy:.0%}")
        else:
            cells.append(_cell(cell, block, is_minimum=row.attack is None))
    return [row.title, *cells, row.budget]


def _cell(cell: Cell, block: Block, *, is_minimum: bool) -> str:
    """A cell; a minimum has its intervals, and says if it has not reached the threshold."""
    median, accuracy = cell.summary.median, cell.summary.accuracy
    first, *ends = (
        _distance(each, block, cell.limit) for each in (median.value, median.low, median.high)
    )
    second = f"{accuracy.value:.0%}"
    if is_minimum:
        first += f" [{', '.join(ends)}]"
        second += f" [{accuracy.low:.0%}, {accuracy.high:.0%}]"
    if not cell.minimizes:
        first = _NOTHING
    if not cell.reached:
        limit = _distance(cell.limit, block)
        second = f"tried to {limit} only" if is_minimum else f"{second} at {limit}"
    done, expected = cell.summary.num_images, cell.num_expected
    partial = f" ({done} of {expected})" if done < expected else ""
    return f"{first} / {second}{partial}{_WARNING if cell.warnings else ''}"


def _distance(value: float, block: Block, limit: float = math.inf) -> str:
    """A distance; one that is infinite lies beyond the limit of what was searched."""
    if math.isinf(value):
        return "\N{INFINITY}" if math.isinf(limit) else f">{_distance(limit, block)}"
    return f"{value:g}" if block.norm == "l0" else f"{value:.3g}"


def _clean_header(tables: Tables) -> list[str]:
    return [f"Clean, {tables.num_clean:,} test images", *tables.models]


def _clean_rows(tables: Tables) -> list[list[str]]:
    values = [tables.clean[model] for model in tables.models]
    rows = [["accuracy", *[_NOTHING if math.isnan(each) else f"{each:.2%}" for each in values]]]
    if tables.seconds:
        times = [tables.seconds.get(model) for model in tables.models]
        minutes = [_NOTHING if each is None else f"{each / 60:.1f} min" for each in times]
        rows.append(["time of all attacks", *minutes])
    return rows


def _eight_bit(tables: Tables) -> list[list[list[str]]]:
    """What becomes of adversarial images in 8 bits, as a table with its header; none without."""
    rows = []
    for block in tables.blocks:
        cells = block.last_minimum.cells if block.last_minimum else {}
        shown = [_shares(cells.get(model)) for model in tables.models]
        if any(each != _NOTHING for each in shown):
            rows.append([NORM_NAMES[block.norm], *shown])
    return [[["In 8 bits: rounded / nudged", *tables.models], *rows]] if rows else []


def _shares(cell: Cell | PublishedCell | None) -> str:
    shares = cell.shares_in_eight_bits if isinstance(cell, Cell) else None
    return _NOTHING if shares is None else " / ".join(f"{share:.0%}" for share in shares)


def _summaries(tables: Tables) -> list[list[list[str]]]:
    """The tables before those of the norms, with their headers."""
    return [[_clean_header(tables), *_clean_rows(tables)], *_eight_bit(tables)]


def _rich_table(rows: Sequence[Sequence[str]]) -> rich.table.Table:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    for position, header in enumerate(rows[0]):
        table.add_column(header, justify="right" if position else "left", overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    header, *others = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    rule = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(row)} |" for row in (header, rule, *others)]


def _remarks(tables: Tables) -> list[tuple[str, Sequence[str]]]:
    """What the cells don't say, by heading; only headings with something under them."""
    remarks = [
        (_WARNINGS, warning_lines(tables)),
        ("Reported examples rejected by verification", _refusals(tables)),
        ("Adversarial only because the model's latent search fails", _by_search(tables)),
        ("Not tried", tables.not_tried),
        ("Commits of the code", tables.commits),
    ]
    return [(heading, lines) for heading, lines in remarks if lines]


def warning_lines(tables: Tables) -> list[str]:
    """E.g. "cnn, PGD L-inf, BIM L-inf: 30.0% of the gradients are zero"."""
    titles = {
        row.attack.name: f"{row.title} {NORM_NAMES[block.norm]}"
        for block in tables.blocks
        for row in block.rows
        if row.attack
    }
    lines: dict[tuple[str, str], list[str]] = {}
    for each in tables.warnings:
        name = titles.get(each.attack, NORM_NAMES.get(each.norm, ""))
        lines.setdefault((each.model, each.reason), []).append(name)
    return [
        f"{', '.join([model, *filter(None, names)])}: {reason}"
        for (model, reason), names in lines.items()
    ]


def _by_search(tables: Tables) -> list[str]:
    return [
        f"{model}, {row.title}, {NORM_NAMES[block.norm]}: {cell.num_by_search} images"
        for block in tables.blocks
        for row in block.rows
        for model, cell in row.cells.items()
        if isinstance(cell, Cell) and cell.num_by_search
    ]


def _refusals(tables: Tables) -> list[str]:
    lines = []
    for block in tables.blocks:
        for row in block.rows:
            for model, cell in row.cells.items():
                if isinstance(cell, Cell) and cell.num_rejected:
                    reasons = ", ".join(
                        f"{count} {reason.replace('_', ' ')}"
                        for reason, count in cell.rejections.items()
                    )
                    attack = f"{row.title}, {NORM_NAMES[block.norm]}"
                    claims = f"{cell.num_rejected} of {cell.num_claimed}"
                    lines.append(f"{model}, {attack}: {claims} ({reasons})")
    return lines


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(_latex(cell) for cell in cells) + r" \\"


def _latex(text: str) -> str:
    for character in "&%_#$":
        text = text.replace(character, f"\\{character}")
    text = text.replace(">", "$>$")
    return text.replace("\N{INFINITY}", r"$\infty$").replace(_NOTHING, "--")
