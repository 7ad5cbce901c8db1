"""The tables' cells as flat rows, as CSV, JSON and Weights & Biases have them."""

import csv
import io
from typing import Any

from abs_model.evaluation.tables.cells import Cell, PublishedCell
from abs_model.evaluation.tables.table import Block, Tables

# `median` is missing where an attack does not minimize the distance. `accuracy` is at `threshold`,
# and missing where no search went as far; `accuracy_at_limit` is that at `limit` in such cells. Of
# the adversarial images, `num_eight_bit` were tried in 8 bits; the shares of these are adversarial
# with rounded values, and with rounded or nudged ones.
_FIGURES = (
    "num_images",
    "median",
    "median_low",
    "median_high",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "limit",
    "accuracy_at_limit",
    "num_claimed",
    "num_rejected",
    "num_queries",
    "num_gradients",
    "num_by_search",
    "warnings",
    "num_eight_bit",
    "share_rounded",
    "share_nudged",
)
_OF_CELLS = (
    "limit", "num_claimed", "num_rejected", "num_queries", "num_gradients", "num_by_search",
    "num_eight_bit",
)  # fmt: skip
COLUMNS = (
    "norm",
    "threshold",
    "row",
    "attack",
    "group",
    "targets",
    "budget",
    "model",
    *_FIGURES,
)


def to_csv(tables: Tables) -> str:
    """A line for each cell; infinite distances are written as inf."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows_of(tables))
    return file.getvalue()


def rows_of(tables: Tables) -> list[dict[str, Any]]:
    """A flat row of `COLUMNS` for each cell of all blocks, as CSV and JSON have them."""
    return [entry for block in tables.blocks for entry in _entries(block)]


def _entries(block: Block) -> list[dict[str, Any]]:
    return [
        {
            "norm": block.norm,
            "threshold": block.threshold,
            "row": row.title,
            "attack": row.attack.name if row.attack else "",
            "group": row.attack.group if row.attack else "",
            "targets": row.attack.targets if row.attack else None,
            "budget": row.budget,
            "model": model,
            **_figures(cell),
        }
        for row in block.rows
        for model, cell in row.cells.items()
    ]


def _figures(cell: Cell | PublishedCell) -> dict[str, Any]:
    figures: dict[str, Any] = dict.fromkeys(_FIGURES)
    if isinstance(cell, PublishedCell):
        return figures | {"median": cell.median, "accuracy": cell.accuracy}
    known = {"median": cell.minimizes, "accuracy": cell.reached}
    for name in filter(known.get, known):
        estimate = getattr(cell.summary, name)
        figures[name] = estimate.value
        figures |= {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    if not cell.reached:
        figures["accuracy_at_limit"] = cell.summary.accuracy.value
    figures["num_images"] = cell.summary.num_images
    for name in _OF_CELLS:
        figures[name] = getattr(cell, name)
    if (shares := cell.shares_in_eight_bits) is not None:
        figures["share_rounded"], figures["share_nudged"] = shares
    figures["warnings"] = "; ".join(cell.warnings)
    return figures
