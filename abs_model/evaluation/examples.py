"""The picture of an attack: images before and after it, and what the model made of them."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from abs_model.evaluation.attacked import Attacked
from abs_model.evaluation.figures import FAINT, LARGE, NORM_SYMBOLS, SMALL, Page, set_frame
from abs_model.evaluation.verification import NOT_CLASSIFIED

MAX_EXAMPLES = 6
MAX_CLASSES = 10
_LEGEND = (
    "Predictions: blue is the label, orange another class.\n"
    "Perturbation: red is brighter, blue darker, each on its own scale."
)
_RIGHT, _WRONG = "#1f5fa8", "#c8401a"  # the label's class, another class

# Layout of the examples, in inches.
_MARGIN, _HEADER, _FOOTER = 0.25, 0.95, 0.45
_PANEL, _PANEL_PITCH = 1.3, 1.5
_TEXT, _ROW_PITCH = 0.36, 1.88
_SMALL_PANEL, _SMALL_PITCH, _SMALL_ROW = 0.62, 0.72, 0.87
_SIDE_LABEL = 0.5


def draw_examples(
    model: Any, attacked: Attacked, *, name: str, max_examples: int = MAX_EXAMPLES
) -> Figure:
    """Draws attacked images: clean, adversarial, perturbation, and what the model made of them.

    Images with a verified adversarial image come first, then those where the attack failed (drawn
    as the attack left them), in the order of the data set; clean errors only where nothing else is
    left. For a classifier with `infer`, the reconstructions by every class stand to the right:
    those of the clean image above those of the adversarial one, with their energies times the class
    weights, and a frame around the predicted class, which has the lowest. Of more than
    `MAX_CLASSES` classes, the lowest.

    Args:
        model: The classifier that was attacked; with `infer` it also has `class_weights`.
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
    page = Page(width, height)
    _draw_header(page, attacked, name, inference is not None)
    for position, index in enumerate(chosen):
        top = _HEADER + position * _ROW_PITCH
        _draw_triple(page, top, attacked, index, confidences[:, position])
        if inference is not None:
            for which, predictions in enumerate(_predictions(attacked)):
                place = which * len(chosen) + position
                _draw_reconstructions(
                    page,
                    top + which * _SMALL_ROW,
                    ("clean", "adversarial")[which],
                    np.asarray(inference.reconstructions[place]),
                    np.asarray(model.class_weights * inference.energies[place]),
                    (int(attacked.labels[index]), int(predictions[index])),
                )
    return page.figure


def _choose(attacked: Attacked, count: int) -> np.ndarray:
    clean_errors = attacked.clean_predictions != attacked.labels
    rank = np.where(clean_errors, 2, np.where(attacked.verification.verified, 0, 1))
    return np.argsort(rank, kind="stable")[:count]


def _drawable(images: np.ndarray) -> np.ndarray:
    """What an attack returned, made an image where it isn't one."""
    return np.clip(np.nan_to_num(images, nan=0.0), 0.0, 1.0)


def _predictions(attacked: Attacked) -> tuple[np.ndarray, np.ndarray]:
    return attacked.clean_predictions, attacked.verification.predictions


def _draw_header(page: Page, attacked: Attacked, name: str, generative: bool) -> None:
    settings = attacked.settings
    correct = int(np.sum(np.isinf(attacked.distances)))
    page.text(
        _MARGIN,
        0.18,
        rf"{name}: PGD, {NORM_SYMBOLS[settings.norm]} $\leq$ {settings.epsilon:g}",
        fontsize=LARGE,
        fontweight="bold",
    )
    page.text(
        _MARGIN,
        0.44,
        f"{settings.budget}; {correct} of {len(attacked.labels)} images stay correctly classified",
        color=FAINT,
    )
    page.text(_MARGIN, page.height - 0.38, _LEGEND, fontsize=SMALL, color=FAINT)
    for column, title in enumerate(("Clean", "After the attack", "Perturbation")):
        page.text(_MARGIN + column * _PANEL_PITCH, _HEADER - 0.24, title, fontweight="bold")
    if generative:
        left = _MARGIN + 3 * _PANEL_PITCH + _SIDE_LABEL
        page.text(
            left,
            _HEADER - 0.24,
            "Reconstruction by each class, weighted energy in nats (frame: predicted class)",
            fontweight="bold",
        )


def _draw_triple(
    page: Page, top: float, attacked: Attacked, index: int, confidences: np.ndarray
) -> None:
    label = attacked.labels[index]
    perturbation = attacked.adversarial[index].astype(np.float64) - attacked.clean[index]
    perturbation = _strongest_channel(np.nan_to_num(perturbation, posinf=1.0, neginf=-1.0))
    scale = float(np.max(np.abs(perturbation)))
    # The drawn perturbation sets its own scale: most are faint beside epsilon.
    notes = (f"label {label}", _verdict(attacked, index), f"scale \N{PLUS-MINUS SIGN}{scale:.2g}")
    lefts = [_MARGIN + column * _PANEL_PITCH for column in range(3)]
    shown = (attacked.clean[index], _drawable(attacked.adversarial[index]))
    for which, predictions in enumerate(_predictions(attacked)):
        predicted = int(predictions[index])
        _show_image(page.panel(lefts[which], top + _TEXT, _PANEL), shown[which])
        if predicted == NOT_CLASSIFIED:
            text = "not classified"
        else:
            text = f"predicts {predicted} ({confidences[which, predicted]:.1%})"
        page.text(lefts[which], top + 0.02, text, color=_colour(predicted, label))
    limit = scale or 1.0
    page.panel(lefts[2], top + _TEXT, _PANEL).imshow(
        perturbation, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"
    )
    for left, note in zip(lefts, notes, strict=True):
        page.text(left, top + 0.18, note, color=FAINT, fontsize=SMALL)


def _verdict(attacked: Attacked, index: int) -> str:
    distance = attacked.verification.distances[index]
    if attacked.clean_predictions[index] != attacked.labels[index]:
        return "wrong without any attack"
    if attacked.verification.verified[index]:
        return f"verified, distance {distance:.3g}"
    if attacked.claimed[index]:
        return f"rejected, distance {distance:.3g}"
    return f"attack failed, distance {distance:.3g}"


def _draw_reconstructions(
    page: Page,
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
        fontsize=SMALL,
        color=FAINT,
    )
    for column, shown in enumerate(np.sort(np.argsort(energies)[:MAX_CLASSES])):
        place = left + _SIDE_LABEL + column * _SMALL_PITCH
        axes = page.panel(place, top + 0.17, _SMALL_PANEL)
        _show_image(axes, np.clip(images[shown], 0.0, 1.0))
        colour = _colour(predicted, label) if shown == predicted else FAINT
        if shown == predicted:
            set_frame(axes, colour, 2.5)
        weight = "bold" if shown == predicted else "normal"
        decimals = 1 if abs(energies[shown]) < 1000 else 0
        text = f"{shown}: {energies[shown]:.{decimals}f}"
        page.text(place, top + 0.02, text, fontsize=SMALL - 1, color=colour, fontweight=weight)


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
