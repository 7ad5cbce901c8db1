"""Pictures: what they share, and the summary of all accuracies.

Drawn with matplotlib's objects, without pyplot and its global state.
"""

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from abs_model.evaluation.tables import Row
from abs_model.files import atomic_write_bytes

DPI = 150
SMALL, MEDIUM, LARGE = 7, 8, 12  # points
INK, FAINT = "#222222", "#767676"
NORM_SYMBOLS = {"l2": "$L_2$", "linf": r"$L_\infty$"}
_CONDITION_COLOURS = ("#b5b5b5", "#1f5fa8", "#d98200", "#6a3d9a")


def draw_summary(rows: Sequence[Row]) -> Figure:
    """Draws the accuracies as bars with their 95 % intervals, grouped by model.

    Args:
        rows: The rows of the table.
    """
    models = list(dict.fromkeys(row.model for row in rows))
    conditions = list(dict.fromkeys(row.condition for row in rows))
    figure = new_figure(max(4.5, 1.5 + 1.6 * len(models)), 3.8)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    bar = 0.8 / len(conditions)
    for number, condition in enumerate(conditions):
        members = [row for row in rows if row.condition == condition]
        accuracies = np.array([row.accuracy for row in members])
        intervals = np.array([row.interval for row in members])
        offset = (number - (len(conditions) - 1) / 2) * bar
        positions = np.array([models.index(row.model) for row in members]) + offset
        axes.bar(
            positions,
            accuracies,
            0.9 * bar,
            color=_CONDITION_COLOURS[number % len(_CONDITION_COLOURS)],
            label=_legend(members[0]),
        )
        errors = np.abs(np.stack([accuracies - intervals[:, 0], intervals[:, 1] - accuracies]))
        axes.errorbar(positions, accuracies, errors, fmt="none", ecolor=INK, lw=1, capsize=3)
        for position, accuracy, high in zip(positions, accuracies, intervals[:, 1], strict=True):
            axes.text(
                position, high + 0.02, f"{accuracy:.0%}", ha="center", fontsize=SMALL, color=INK
            )
    _finish_summary(figure, axes, models)
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure as PNG, atomically; its directory must exist."""
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    atomic_write_bytes(path, content.getvalue())


class Page:
    """A figure whose parts are placed in inches from its top left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = new_figure(width, height)
        self.width, self.height = width, height

    def text(self, left: float, top: float, content: str, **options: Any) -> None:
        """Text whose top left corner is at the place; `options` may change that."""
        placed: dict[str, Any] = {"fontsize": MEDIUM, "color": INK, "va": "top", **options}
        self.figure.text(left / self.width, 1 - top / self.height, content, **placed)

    def panel(self, left: float, top: float, size: float) -> Axes:
        """A square for an image, without ticks and with a faint frame."""
        axes = self.figure.add_axes(
            (
                left / self.width,
                1 - (top + size) / self.height,
                size / self.width,
                size / self.height,
            )
        )
        axes.set_xticks([])
        axes.set_yticks([])
        set_frame(axes, "#cccccc", 0.5)
        return axes


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, `width` by `height` inches."""
    return Figure(figsize=(width, height), dpi=DPI, facecolor="white")


def set_frame(axes: Axes, colour: str, width: float) -> None:
    """Sets colour and line width, in points, of the frame around `axes`."""
    for spine in axes.spines.values():
        spine.set(edgecolor=colour, linewidth=width)


def _legend(row: Row) -> str:
    if row.attack is None:
        return f"clean ({row.num_images} images)"
    attack = row.attack
    threat = rf"PGD {NORM_SYMBOLS[attack.norm]} $\leq$ {attack.epsilon:g}"
    return f"{threat} ({attack.budget}, {row.num_images} images)"


def _finish_summary(figure: Figure, axes: Axes, models: Sequence[str]) -> None:
    width, height = figure.get_size_inches()
    axes.set_position((0.65 / width, 0.4 / height, 1 - 0.85 / width, 1 - 1.5 / height))
    axes.set_xticks(range(len(models)), models, fontsize=MEDIUM, color=INK)
    axes.set_xlim(-0.6, len(models) - 0.4)
    axes.set_ylim(0, 1.09)
    axes.set_yticks(np.linspace(0, 1, 6), [f"{tick:.0%}" for tick in np.linspace(0, 1, 6)])
    axes.tick_params(axis="both", length=0, labelsize=MEDIUM, labelcolor=INK)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    left = 0.65 / width
    figure.text(
        left, 1 - 0.15 / height, "Accuracy with 95 % intervals", va="top", fontsize=LARGE,
        fontweight="bold", color=INK,
    )  # fmt: skip
    figure.legend(
        loc="upper left", bbox_to_anchor=(left, 1 - 0.38 / height), fontsize=SMALL,
        frameon=False, borderaxespad=0, labelcolor=INK,
    )  # fmt: skip
