"""The hardest test images: those that most models misclassify, and which errors models share.

An image is harder than another if more models misclassify it (`models.decisions`); among equals, if
its margins (the largest other logit minus the label's) rank higher, on average over the models.
Ranks, because the models' logits differ in scale.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import matplotlib.figure
import numpy as np

from abs_model.evaluation.images.style import (
    FAINT,
    INK,
    LARGE,
    MEDIUM,
    MODEL_COLORS,
    SMALL,
    Page,
    show_image,
)
from abs_model.evaluation.tables.statistics import share_interval
from abs_model.figures.registry import Arrays, Data, Figure, Work, register
from abs_model.models.classifier import Classifier
from abs_model.models.decisions import decide, margins, uncertainty

_SHOWN = 20  # images
_COLUMNS = 5

# Inches.
_MARGIN, _HEADER = 0.3, 0.75
_IMAGE, _COLUMN, _ROW, _LINE = 0.95, 2.3, 1.3, 0.155
_CELL, _NAMES = 0.7, 1.15


def compute(work: Work) -> Data:
    """Decisions of all models on the test images, and the hardest images."""
    labels = work.labels
    found = {
        name: work.in_batches(
            f"margins of {name}",
            [model],
            [work.images, labels],
            lambda images, labels, model=model: _judge(model, images, labels),
            size=128,
        )
        for name, model in work.models.items()
    }
    predictions = np.stack([each["predictions"] for each in found.values()])
    wrong = predictions != labels
    order = hardest_first(wrong, np.stack([each["margins"] for each in found.values()]))
    shown = order[:_SHOWN]
    most = order[wrong[:, order].sum(axis=0) > len(found) / 2]
    names = list(found)
    shared = (wrong[:, None] & wrong).sum(axis=2)
    errors = {
        name: {
            "count": int(rows.sum()),
            "share": dataclasses.asdict(share_interval(int(rows.sum()), len(rows))),
        }
        for name, rows in zip(names, wrong, strict=True)
    }
    numbers = {
        "errors": errors,
        "shared errors": {
            name: dict(zip(names, row.tolist(), strict=True))
            for name, row in zip(names, shared, strict=True)
        },
        "misclassified by all": order[wrong[:, order].all(axis=0)].tolist(),
        "misclassified by most": [
            {
                "index": int(index),
                "label": int(labels[index]),
                "predictions": dict(zip(names, predictions[:, index].tolist(), strict=True)),
            }
            for index in most
        ],
        "num_images": len(labels),
    }
    arrays = {
        "images": work.images[shown],
        "indices": shown,
        "labels": labels[shown],
        "predictions": predictions[:, shown],
    }
    return Data(numbers, arrays)


def hardest_first(wrong: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """Indices of the images from the hardest to the easiest, (N,).

    Args:
        wrong: Whether a model misclassifies an image, bool (models, N).
        margins: Positive where it does, (models, N).
    """
    # NaN, where there is no margin, comes last and so is the highest.
    ranks = np.argsort(np.argsort(margins, axis=1, kind="stable"), axis=1, kind="stable")
    return np.lexsort([-ranks.mean(axis=0), -wrong.sum(axis=0)])


def _judge(model: Classifier, images: np.ndarray, labels: np.ndarray) -> Arrays:
    logits = model.logits(images)
    uncertain = uncertainty(logits, jnp.asarray(labels), model.logit_tolerance)
    scores = np.asarray(logits)
    return {
        "margins": margins(scores, labels),
        "predictions": decide(scores, labels, np.asarray(uncertain)),
    }


def draw(data: Data) -> Mapping[str, matplotlib.figure.Figure]:
    """The hardest images with all predictions, and a table of shared errors."""
    return {"hardest": _draw_images(data), "hardest_shared": _draw_shared(data)}


def _draw_images(data: Data) -> matplotlib.figure.Figure:
    names = list(data.numbers["errors"])
    rows = -(-len(data.arrays["indices"]) // _COLUMNS)
    page = Page(2 * _MARGIN + _COLUMNS * _COLUMN - 0.15, _HEADER + rows * _ROW + 0.1)
    page.text(_MARGIN, 0.15, "The hardest test images", fontsize=LARGE, fontweight="bold")
    note = (
        f"The first {data.numbers['num_images']:,}, sorted by how many models misclassify them,"
        " then by how far another class is ahead of the label. Wrong predictions are bold."
    )
    page.text(_MARGIN, 0.42, note, color=FAINT)
    for place, (image, index, label) in enumerate(
        zip(*(data.arrays[key] for key in ("images", "indices", "labels")), strict=True)
    ):
        row, column = divmod(place, _COLUMNS)
        left, top = _MARGIN + column * _COLUMN, _HEADER + row * _ROW
        show_image(page.panel(left, top, _IMAGE), image)
        text = left + _IMAGE + 0.08
        page.text(text, top, f"label {label}", fontsize=MEDIUM, fontweight="bold")
        page.text(left, top + _IMAGE + 0.04, f"test image {index}", fontsize=SMALL, color=FAINT)
        for line, (name, predicted) in enumerate(
            zip(names, data.arrays["predictions"][:, place], strict=True)
        ):
            wrong = predicted != label
            style = {
                "fontsize": SMALL,
                "color": MODEL_COLORS[3] if wrong else FAINT,
                "fontweight": "bold" if wrong else "normal",
            }
            height = top + 0.19 + line * _LINE
            # A tie or NaN is no decision.
            page.text(text, height, "?" if predicted < 0 else f"{predicted}", **style)
            page.text(text + 0.13, height, name, **style)
    return page.figure


def _draw_shared(data: Data) -> matplotlib.figure.Figure:
    shared = data.numbers["shared errors"]
    counts = np.array([list(row.values()) for row in shared.values()])
    size = len(shared) * _CELL
    page = Page(max(4.2, 2 * _MARGIN + _NAMES + size), _HEADER + 0.45 + size + 0.25)
    page.text(_MARGIN, 0.15, "Errors that models share", fontsize=LARGE, fontweight="bold")
    note = (
        f"Images of the first {data.numbers['num_images']:,} that both models misclassify.\n"
        "Bold: all that a model misclassifies."
    )
    page.text(_MARGIN, 0.42, note, color=FAINT)
    top = _HEADER + 0.45
    axes = page.panel(_MARGIN + _NAMES, top, size)
    axes.imshow(counts, cmap="Blues", vmin=0, vmax=max(1.3 * counts.max(), 1))
    for (row, column), count in np.ndenumerate(counts):
        weight = "bold" if row == column else "normal"
        dark = count > 0.7 * counts.max()
        color = "white" if dark else INK
        axes.text(
            column, row, f"{count}", ha="center", va="center",
            fontsize=MEDIUM, color=color, fontweight=weight,
        )  # fmt: skip
    for place, name in enumerate(shared):
        middle = (place + 0.5) * _CELL
        page.text(_MARGIN + _NAMES - 0.08, top + middle, name, ha="right", va="center")
        page.text(
            _MARGIN + _NAMES + middle, top - 0.06, name.replace("_", "\n", 1),
            ha="center", va="bottom",
        )  # fmt: skip
    return page.figure


register(
    Figure(
        "hardest",
        "The hardest test images, and the errors that models share",
        compute,
        draw,
        models=("cnn", "madry", "nearest_neighbor", "abs", "binary_abs"),
        num_images=1000,
    )
)
