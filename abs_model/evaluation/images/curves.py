"""The curves of accuracy against distance."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from abs_model.evaluation.images.style import (
    FAINT,
    INK,
    LARGE,
    MEDIUM,
    MODEL_COLORS,
    NORM_SYMBOLS,
    SMALL,
    UNITS,
    new_figure,
    set_percent_axis,
    style_curves,
)
from abs_model.evaluation.tables.paper_results import published_beside
from abs_model.evaluation.tables.results import GROUPS, Results
from abs_model.evaluation.tables.statistics import THRESHOLDS, accuracy_curve


def draw_curves(results: Results) -> Figure:
    """Draws the accuracy that is left at each distance, as in figure 2 of the paper.

    A panel for each norm, a line for each model: the minimum over all attacks per image. What the
    paper published for a model is dashed, in the same color.

    Args:
        results: Of an evaluation, of the images that every attack is done with.
    """
    norms, models = results.norms, results.plan.models
    figure = new_figure(0.9 + 3.6 * len(norms), 3.9)
    width, height = figure.get_size_inches()
    for position, norm in enumerate(norms):
        left, panel = 0.65 + 3.6 * position, 3.1
        axes = figure.add_axes((left / width, 0.55 / height, panel / width, 1 - 1.55 / height))
        shown = [
            _draw_curve(axes, results, norm, model, MODEL_COLORS[number % len(MODEL_COLORS)])
            for number, model in enumerate(models)
        ]
        finish_curves(axes, norm, max([each for each in shown if each], default=1.0))
    figure.text(
        0.65 / width, 1 - 0.15 / height, "Accuracy left within a distance", va="top",
        fontsize=LARGE, fontweight="bold", color=INK,
    )  # fmt: skip
    figure.text(
        0.65 / width, 1 - 0.4 / height,
        f"All attacks together, {results.plan.num_images:,} test images; dashed: as published;"
        " dotted: threshold", va="top", fontsize=MEDIUM, color=FAINT,
    )  # fmt: skip
    handles = [
        Line2D([], [], color=MODEL_COLORS[number % len(MODEL_COLORS)], label=model)
        for number, model in enumerate(models)
    ]
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.65 / width, 1 - 0.55 / height),
        fontsize=SMALL, frameon=False, borderaxespad=0, labelcolor=INK, ncols=len(models),
        columnspacing=1.2, handlelength=1.5,
    )  # fmt: skip
    return figure


def _draw_curve(axes: Axes, results: Results, norm: str, model: str, color: str) -> float | None:
    """Draws a model's curves; returns where the farthest of them ends, None without any.

    A curve ends with the images that have an adversarial one, or where the farthest search ended.
    """
    ends = []
    limit = results.limit(model, norm, GROUPS)
    distances = results.closest(model, norm, GROUPS)
    distances = np.sort(distances[~np.isnan(distances)])
    if len(distances):
        finite = distances[np.isfinite(distances)]
        corners = np.concatenate([[0.0], finite])
        if np.isfinite(limit):
            corners = np.append(corners, max(corners[-1], limit))
        left = accuracy_curve(distances, corners)
        axes.step(corners, left, where="post", color=color, lw=1.4)
        ends.append(corners[-1])
    if paper := published_beside(norm, results.plan.about, model):
        axes.plot(paper.distances, paper.accuracies, color=color, lw=1, ls=(0, (3, 2)), alpha=0.7)
        ends.append(paper.distances[-1])
    return float(max(ends)) if ends else None


def finish_curves(axes: Axes, norm: str, end: float) -> None:
    """Labels a panel of accuracy curves up to a distance, and marks the threshold."""
    axes.axvline(THRESHOLDS[norm], color=FAINT, lw=0.8, ls=":")
    axes.set_xlim(0, max(end, 1.1 * THRESHOLDS[norm]))
    axes.set_ylim(0, 1.02)
    set_percent_axis(axes, 6)
    axes.set_xlabel(f"{NORM_SYMBOLS[norm]} distance{UNITS[norm]}", fontsize=MEDIUM, color=INK)
    style_curves(axes)
