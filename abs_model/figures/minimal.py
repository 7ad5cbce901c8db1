"""The closest adversarial examples side by side, as in figure 3 of the paper.

The same test images for every model, with the distance of the closest verified adversarial example
that any attack of an evaluation found, and the class that the model predicts there.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib.figure
import numpy as np

from abs_model._runtime.errors import UserError
from abs_model.evaluation.images.style import (
    FAINT,
    INK,
    LARGE,
    MODEL_COLORS,
    NORM_SYMBOLS,
    SMALL,
    Page,
    set_frame,
    show_image,
)
from abs_model.evaluation.tables.results import Results
from abs_model.figures.registry import Arrays, Data, Figure, Work, register

_COLUMNS = 10
_PANEL, _PITCH, _ROW, _LEFT, _TOP = 0.9, 1.0, 1.18, 1.55, 0.85  # inches


def compute(work: Work) -> Data:
    """Examples of the first test image of each class for which every model has one."""
    results = work.evaluation
    if results is None:
        raise UserError(f"figure {work.figure!r} requires an evaluation; give --evaluation=WORKDIR")
    for name in work.models:
        if not work.is_evaluated(name):
            raise UserError(
                f"figure {work.figure!r}: --evaluation has no attacks on {name!r}, or on other"
                " weights of that name; leave it out of --models, or give its evaluation"
            )
    test = work.dataset.test
    work.commits.update(results.commits)
    numbers: dict[str, Any] = {}
    arrays: Arrays = {}
    for norm in results.norms:
        found = {name: _examples(results, name, norm, work.num_images) for name in work.models}
        shared = sorted(set.intersection(*(set(each) for each in found.values())))
        chosen: dict[int, int] = {}
        for index in shared:
            chosen.setdefault(int(test.labels[index]), index)
        indices = [chosen[label] for label in sorted(chosen)][:_COLUMNS]
        numbers[norm] = {
            "test images": indices,
            "labels": [int(test.labels[index]) for index in indices],
            "models": {name: [found[name][index][0] for index in indices] for name in found},
        }
        arrays[f"{norm}/clean"] = test.images[indices].astype(np.float32) / 255
        for name, examples in found.items():
            arrays[f"{norm}/{name}"] = np.array([examples[index][1] for index in indices])
    return Data(numbers, arrays)


def _examples(
    results: Results, model: str, norm: str, num_images: int
) -> dict[int, tuple[dict[str, Any], np.ndarray]]:
    """What the closest attack found for each image that it has changed, by the image's index."""
    return {
        record.index: (
            {
                "distance": float(record.distance),
                "prediction": int(record.prediction),
                "attack": attack.name,
            },
            record.adversarial,
        )
        for attack, record in results.closest_records(model, norm)
        if record.adversarial is not None and record.distance > 0 and record.index < num_images
    }


def draw(data: Data) -> Mapping[str, matplotlib.figure.Figure]:
    """A picture for each norm: a row of clean images, and a row for each model."""
    pictures = {}
    for norm, numbers in data.numbers.items():
        models = numbers["models"]
        page = Page(
            _LEFT + _PITCH * max(len(numbers["labels"]), 6) + 0.15,
            _TOP + _ROW * (1 + len(models)),
        )
        page.text(
            0.2, 0.15, f"Closest adversarial examples in {NORM_SYMBOLS[norm]}",
            fontsize=LARGE, fontweight="bold",
        )  # fmt: skip
        page.text(
            0.2, 0.45,
            f"Below each image: its distance{' in pixels' if norm == 'l0' else ''} and the model's"
            " prediction. Below each clean image: its label.",
            color=FAINT,
        )  # fmt: skip
        for row, name in enumerate(["clean", *models]):
            top = _TOP + _ROW * row
            page.text(0.2, top + _PANEL / 2, name, va="center", fontweight="bold")
            for column, image in enumerate(data.arrays[f"{norm}/{name}"]):
                left = _LEFT + _PITCH * column
                axes = page.panel(left, top, _PANEL)
                show_image(axes, image)
                if row == 0:
                    text, color = str(numbers["labels"][column]), MODEL_COLORS[0]
                else:
                    example = models[name][column]
                    distance = example["distance"]
                    shown = f"{distance:.0f}" if norm == "l0" else f"{distance:.2f}"
                    text, color = f"{shown}, {example['prediction']}", INK
                    set_frame(axes, MODEL_COLORS[3], 1.0)
                page.text(
                    left + _PANEL / 2, top + _PANEL + 0.03, text, ha="center", fontsize=SMALL,
                    color=color,
                )  # fmt: skip
        pictures[f"minimal_{norm}"] = page.figure
    return pictures


register(
    Figure(
        "minimal",
        "Closest adversarial examples of all models side by side",
        compute,
        draw,
        models=("cnn", "binary_cnn", "nearest_neighbor", "madry", "binary_abs", "abs"),
        num_images=100,
    )
)
