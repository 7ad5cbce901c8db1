"""Pictures of an evaluation: attacked images of one model, and the accuracies of all.

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

from abs_model.evaluation.attacked import Attacked
from abs_model.evaluation.tables import Row
from abs_model.files import atomic_write_bytes

MAX_EXAMPLES = 6
MAX_CLASSES = 10
_DPI = 150
_SMALL, _MEDIUM, _LARGE = 7, 8, 12  # points
_INK, _FAINT = "#222222", "#767676"
_RIGHT, _WRONG = "#1f5fa8", "#c8401a"  # the label's class, another class
_CONDITION_COLOURS = ("#b5b5b5", "#1f5fa8", "#d98200", "#6a3d9a")
_NORM_SYMBOLS = {"l2": "$L_2$", "linf": r"$L_\infty$"}

# Layout of the examples, in inches.
_MARGIN, _HEADER, _FOOTER = 0.25, 0.95, 0.3
_PANEL, _PANEL_PITCH = 1.3, 1.5
_TEXT, _ROW_PITCH = 0.36, 1.95
_SMALL_PANEL, _SMALL_PITCH, _SMALL_ROW = 0.64, 0.72, 0.87
_SIDE_LABEL = 0.5


def draw_examples(
    model: Any, attacked: Attacked, *, name: str, max_examples: int = MAX_EXAMPLES
) -> Figure:
    """Draws attacked images: clean, adversarial, perturbation, and what the model made of them.

    Images with a verified adversarial image come first, then those where the attack failed (drawn
    as the attack left them), in the order of the data set; clean errors only where nothing else is
    left. For a classifier with `infer`, the reconstructions by every class stand to the right:
    those of the clean image above those of the adversarial one, with their energies, and a frame
    around the predicted class. Of more than `MAX_CLASSES` classes, those of lowest energy.

    Args:
        model: The classifier that was attacked.
        attacked: The images and their verification.
        name: What to call the model.
        max_examples: Number of rows at most.
    """
    chosen = _choose(attacked, max_examples)
    images = np.concatenate([attacked.clean[chosen], _drawable(attacked.adversarial[chosen])])
    confidences = np.asarray(model.confidences(images)).reshape(2, len(chosen), -1)
    inference = model.infer(images) if hasattr(model, "infer") else None
    width = 2 * _MARGIN + 3 * _PANEL_PITCH
    if inference is not None:
        width += _SIDE_LABEL + min(confidences.shape[-1], MAX_CLASSES) * _SMALL_PITCH
    height = _HEADER + _FOOTER + _ROW_PITCH * len(chosen)
    page = _Page(width, height)
    _draw_header(page, attacked, name, inference is not None)
    for position, index in enumerate(chosen):
        top = _HEADER + position * _ROW_PITCH
        _draw_triple(page, top, attacked, index, confidences[:, position])
        if inference is not None:
            reconstructions = np.asarray(inference.reconstructions)
            for which, predictions in enumerate(_predictions(attacked)):
                place = which * len(chosen) + position
                _draw_reconstructions(
                    page,
                    top + which * (_ROW_PITCH - _TEXT + 0.1) / 2,
                    ("clean", "adversarial")[which],
                    reconstructions[place],
                    np.asarray(inference.energies)[place],
                    (int(attacked.labels[index]), int(predictions[index])),
                )
    return page.figure


def draw_summary(rows: Sequence[Row]) -> Figure:
    """Draws the accuracies as bars with their 95 % intervals, grouped by model.

    Args:
        rows: The rows of the table.
    """
    models = list(dict.fromkeys(row.model for row in rows))
    conditions = list(dict.fromkeys(row.condition for row in rows))
    figure = _new_figure(max(4.5, 1.5 + 1.6 * len(models)), 3.8)
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
        axes.errorbar(positions, accuracies, errors, fmt="none", ecolor=_INK, lw=1, capsize=3)
        for position, accuracy, high in zip(positions, accuracies, intervals[:, 1], strict=True):
            axes.text(
                position, high + 0.02, f"{accuracy:.0%}", ha="center", fontsize=_SMALL, color=_INK
            )
    _finish_summary(figure, axes, models)
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure as PNG, atomically; its directory must exist."""
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    atomic_write_bytes(path, content.getvalue())


class _Page:
    """A figure whose parts are placed in inches from its top left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = _new_figure(width, height)
        self._width, self._height = width, height

    def text(self, left: float, top: float, content: str, **options: Any) -> None:
        """Text whose top left corner is at the place; `ha` and `va` change that."""
        options = {"fontsize": _MEDIUM, "color": _INK, "ha": "left", "va": "top"} | options
        self.figure.text(left / self._width, 1 - top / self._height, content, **options)

    def panel(self, left: float, top: float, size: float) -> Axes:
        """A square for an image, without ticks and with a faint frame."""
        axes = self.figure.add_axes(
            (
                left / self._width,
                1 - (top + size) / self._height,
                size / self._width,
                size / self._height,
            )
        )
        axes.set_xticks([])
        axes.set_yticks([])
        _frame(axes, "#cccccc", 0.5)
        return axes


def _choose(attacked: Attacked, count: int) -> np.ndarray:
    clean_errors = attacked.clean_predictions != attacked.labels
    rank = np.where(clean_errors, 2, np.where(attacked.verification.verified, 0, 1))
    return np.argsort(rank, kind="stable")[:count]


def _drawable(images: np.ndarray) -> np.ndarray:
    """What an attack returned, made an image where it isn't one."""
    return np.clip(np.nan_to_num(images, nan=0.0), 0.0, 1.0)


def _predictions(attacked: Attacked) -> tuple[np.ndarray, np.ndarray]:
    return attacked.clean_predictions, attacked.verification.predictions


def _draw_header(page: _Page, attacked: Attacked, name: str, generative: bool) -> None:
    settings = attacked.settings
    verified = int(np.sum(attacked.verification.verified))
    page.text(
        _MARGIN,
        0.18,
        rf"{name}: PGD, {_NORM_SYMBOLS[settings.norm]} $\leq$ {settings.epsilon:g}",
        fontsize=_LARGE,
        fontweight="bold",
    )
    page.text(
        _MARGIN,
        0.44,
        f"{settings.num_steps} steps, {settings.num_restarts} restart(s);"
        f" {verified} of {len(attacked.labels)} images have a verified adversarial image",
        color=_FAINT,
    )
    for column, title in enumerate(("Clean", "After the attack", "Perturbation")):
        page.text(_MARGIN + column * _PANEL_PITCH, _HEADER - 0.24, title, fontweight="bold")
    if generative:
        left = _MARGIN + 3 * _PANEL_PITCH + _SIDE_LABEL
        page.text(
            left,
            _HEADER - 0.24,
            "Reconstruction by each class, with its energy in nats (frame: predicted class)",
            fontweight="bold",
        )


def _draw_triple(
    page: _Page, top: float, attacked: Attacked, index: int, confidences: np.ndarray
) -> None:
    label = attacked.labels[index]
    perturbation = attacked.adversarial[index].astype(np.float64) - attacked.clean[index]
    perturbation = _strongest_channel(np.nan_to_num(perturbation))
    scale = float(np.max(np.abs(perturbation)))
    # The drawn perturbation sets its own scale: most are faint beside epsilon.
    notes = (f"label {label}", _verdict(attacked, index), f"scale \N{PLUS-MINUS SIGN}{scale:.2g}")
    lefts = [_MARGIN + column * _PANEL_PITCH for column in range(3)]
    shown = (attacked.clean[index], _drawable(attacked.adversarial[index]))
    for which, predictions in enumerate(_predictions(attacked)):
        predicted = int(predictions[index])
        _show_image(page.panel(lefts[which], top + _TEXT, _PANEL), shown[which])
        page.text(
            lefts[which],
            top + 0.02,
            f"predicts {predicted} ({confidences[which, predicted]:.0%})",
            color=_colour(predicted, label),
        )
    limit = scale or 1.0
    page.panel(lefts[2], top + _TEXT, _PANEL).imshow(
        perturbation, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"
    )
    for left, note in zip(lefts, notes, strict=True):
        page.text(left, top + 0.18, note, color=_FAINT, fontsize=_SMALL)


def _verdict(attacked: Attacked, index: int) -> str:
    distance = attacked.verification.distances[index]
    if attacked.clean_predictions[index] != attacked.labels[index]:
        return "wrong without any attack"
    if attacked.verification.verified[index]:
        return f"verified, distance {distance:.3g}"
    if attacked.claimed[index]:
        return f"claim rejected, distance {distance:.3g}"
    return f"attack failed, distance {distance:.3g}"


def _draw_reconstructions(
    page: _Page,
    top: float,
    side_label: str,
    images: np.ndarray,
    energies: np.ndarray,
    label_and_prediction: tuple[int, int],
) -> None:
    label, predicted = label_and_prediction
    left = _MARGIN + 3 * _PANEL_PITCH
    page.text(
        left + _SIDE_LABEL - 0.12,
        top + _TEXT / 2 + _SMALL_PANEL / 2,
        side_label,
        rotation=90,
        ha="center",
        va="center",
        fontsize=_SMALL,
        color=_FAINT,
    )
    for column, shown in enumerate(np.sort(np.argsort(energies)[:MAX_CLASSES])):
        place = left + _SIDE_LABEL + column * _SMALL_PITCH
        axes = page.panel(place, top + 0.17, _SMALL_PANEL)
        _show_image(axes, np.clip(images[shown], 0.0, 1.0))
        colour = _colour(predicted, label) if shown == predicted else _FAINT
        if shown == predicted:
            _frame(axes, colour, 2.5)
        weight = "bold" if shown == predicted else "normal"
        text = f"{shown}: {energies[shown]:.4g}"
        page.text(place, top + 0.02, text, fontsize=_SMALL - 1, color=colour, fontweight=weight)


def _show_image(axes: Axes, image: np.ndarray) -> None:
    if image.shape[-1] == 3:
        axes.imshow(image, interpolation="nearest")
    else:
        axes.imshow(image.mean(-1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def _strongest_channel(perturbation: np.ndarray) -> np.ndarray:
    """The signed change of largest size in each pixel: (h, w, c) to (h, w).

    A mean would show a change of hue as none.
    """
    strongest = np.argmax(np.abs(perturbation), axis=-1, keepdims=True)
    return np.take_along_axis(perturbation, strongest, axis=-1)[..., 0]


def _colour(predicted: int, label: int) -> str:
    return _RIGHT if predicted == label else _WRONG


def _frame(axes: Axes, colour: str, width: float) -> None:
    for spine in axes.spines.values():
        spine.set(edgecolor=colour, linewidth=width)


def _legend(row: Row) -> str:
    if row.attack is None:
        return f"clean ({row.num_images} images)"
    attack = row.attack
    budget = f"{attack.num_steps} steps x {attack.num_restarts}, {row.num_images} images"
    return rf"PGD {_NORM_SYMBOLS[attack.norm]} $\leq$ {attack.epsilon:g} ({budget})"


def _finish_summary(figure: Figure, axes: Axes, models: Sequence[str]) -> None:
    width, height = figure.get_size_inches()
    axes.set_position((0.65 / width, 0.4 / height, 1 - 0.85 / width, 1 - 1.5 / height))
    axes.set_xticks(range(len(models)), models, fontsize=_MEDIUM, color=_INK)
    axes.set_xlim(-0.6, len(models) - 0.4)
    axes.set_ylim(0, 1.09)
    axes.set_yticks(np.linspace(0, 1, 6), [f"{tick:.0%}" for tick in np.linspace(0, 1, 6)])
    axes.tick_params(axis="both", length=0, labelsize=_MEDIUM, labelcolor=_INK)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    left = 0.65 / width
    figure.text(
        left, 1 - 0.15 / height, "Accuracy with 95 % intervals", va="top", fontsize=_LARGE,
        fontweight="bold", color=_INK,
    )  # fmt: skip
    figure.legend(
        loc="upper left", bbox_to_anchor=(left, 1 - 0.38 / height), fontsize=_SMALL,
        frameon=False, borderaxespad=0, labelcolor=_INK,
    )  # fmt: skip


def _new_figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
