"""The picture of an attack: images before and after it, and what the model made of them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from abs_model.evaluation.images.style import (
    FAINT,
    LARGE,
    SMALL,
    Page,
    set_frame,
    show_image,
    strongest_channel,
)
from abs_model.evaluation.run.ledger import Record
from abs_model.evaluation.tables.results import PlannedAttack

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


@dataclasses.dataclass(frozen=True)
class Example:
    """An attacked image.

    Attributes:
        clean: float32 (height, width, channels).
        adversarial: As `clean`, verified.
        attack: That found it.
        record: What is known of it.
    """

    clean: np.ndarray
    adversarial: np.ndarray
    attack: PlannedAttack
    record: Record


def choose_examples(
    found: Sequence[tuple[PlannedAttack, Record]], clean: np.ndarray, *, count: int = MAX_EXAMPLES
) -> list[Example]:
    """The first images with a verified adversarial one.

    Args:
        found: From `Results.closest_records`.
        clean: The test images, uint8 (N, height, width, channels).
        count: How many at most.
    """
    return [
        Example(clean[record.index].astype(np.float32) / 255, image, attack, record)
        for attack, record in found
        if (image := record.adversarial) is not None
    ][:count]


def draw_examples(model: Any, examples: Sequence[Example], *, title: str, note: str) -> Figure:
    """Draws attacked images: clean, adversarial, perturbation, and what the model made of them.

    For a classifier with `infer`, the reconstructions by every class stand to the right: those of
    the clean image above those of the adversarial one, with the weighted energies, and a frame
    around the predicted class, which has the lowest. Of more than `MAX_CLASSES` classes, the
    lowest.

    Args:
        model: The classifier that was attacked; with `infer` it also has `weighted_energies` and
            `logits_from_inference`.
        examples: At least one.
        title: Of the picture.
        note: Below the title.
    """
    images = np.stack([each.clean for each in examples] + [each.adversarial for each in examples])
    inference = model.infer(images) if hasattr(model, "infer") else None
    logits = model.logits(images) if inference is None else model.logits_from_inference(inference)
    confidences = np.asarray(model.logits_to_confidences(logits)).reshape(2, len(examples), -1)
    width = 2 * _MARGIN + 3 * _PANEL_PITCH
    if inference is not None:
        width += _SIDE_LABEL + min(confidences.shape[-1], MAX_CLASSES) * _SMALL_PITCH
        energies = np.asarray(model.weighted_energies(inference))
    height = _HEADER + _FOOTER + _ROW_PITCH * len(examples)
    page = Page(width, height)
    _draw_header(page, title, note, inference is not None)
    for position, example in enumerate(examples):
        top = _HEADER + position * _ROW_PITCH
        _draw_triple(page, top, example, confidences[:, position])
        if inference is not None:
            for which, predicted in enumerate(_predictions(example)):
                place = which * len(examples) + position
                _draw_reconstructions(
                    page,
                    top + which * _SMALL_ROW,
                    ("clean", "adversarial")[which],
                    np.asarray(inference.reconstructions[place]),
                    energies[place],
                    (example.record.label, predicted),
                )
    return page.figure


def _predictions(example: Example) -> tuple[int, int]:
    return example.record.clean_prediction, example.record.prediction


def _draw_header(page: Page, title: str, note: str, generative: bool) -> None:
    page.text(_MARGIN, 0.18, title, fontsize=LARGE, fontweight="bold")
    page.text(_MARGIN, 0.44, note, color=FAINT)
    page.text(_MARGIN, page.height - 0.38, _LEGEND, fontsize=SMALL, color=FAINT)
    for column, heading in enumerate(("Clean", "After the attack", "Perturbation")):
        page.text(_MARGIN + column * _PANEL_PITCH, _HEADER - 0.24, heading, fontweight="bold")
    if generative:
        left = _MARGIN + 3 * _PANEL_PITCH + _SIDE_LABEL
        page.text(
            left,
            _HEADER - 0.24,
            "Reconstruction by each class, weighted energy in nats (frame: predicted class)",
            fontweight="bold",
        )


def _draw_triple(page: Page, top: float, example: Example, confidences: np.ndarray) -> None:
    record = example.record
    perturbation = strongest_channel(example.adversarial.astype(np.float64) - example.clean)
    scale = float(np.max(np.abs(perturbation)))
    notes = (f"label {record.label}", f"{example.attack.title}, distance {record.distance:.3g}")
    lefts = [_MARGIN + column * _PANEL_PITCH for column in range(3)]
    shown = (example.clean, example.adversarial)
    for which, predicted in enumerate(_predictions(example)):
        show_image(page.panel(lefts[which], top + _TEXT, _PANEL), shown[which])
        text = f"predicts {predicted} ({confidences[which, predicted]:.1%})"
        page.text(lefts[which], top + 0.02, text, color=_color(predicted, record.label))
    limit = scale or 1.0
    page.panel(lefts[2], top + _TEXT, _PANEL).imshow(
        perturbation, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"
    )
    # The drawn perturbation sets its own scale: most are faint. It stands a line higher, because
    # the attack beside it may be too long for its column.
    text = f"scale \N{PLUS-MINUS SIGN}{scale:.2g}"
    page.text(lefts[2], top + 0.02, text, color=FAINT, fontsize=SMALL)
    for left, text in zip(lefts[:2], notes, strict=True):
        page.text(left, top + 0.18, text, color=FAINT, fontsize=SMALL)


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
        show_image(axes, np.clip(images[shown], 0.0, 1.0))
        color = _color(predicted, label) if shown == predicted else FAINT
        if shown == predicted:
            set_frame(axes, color, 2.5)
        weight = "bold" if shown == predicted else "normal"
        decimals = 1 if abs(energies[shown]) < 1000 else 0
        text = f"{shown}: {energies[shown]:.{decimals}f}"
        page.text(place, top + 0.02, text, fontsize=SMALL - 1, color=color, fontweight=weight)


def _color(predicted: int, label: int) -> str:
    return _RIGHT if predicted == label else _WRONG
