"""Certified accuracy, below what the best attacks leave.

For each ABS model and norm: the share of images that are classified correctly and whose certified
radius (`inference.certificates`) is above a distance, and the share that the attacks of an
evaluation leave. The true accuracy lies between the two.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from abs_model.attacks import NORMS
from abs_model.evaluation.images.curves import finish_curves
from abs_model.evaluation.images.style import (
    FAINT,
    INK,
    LARGE,
    MEDIUM,
    MODEL_COLORS,
    NORM_SYMBOLS,
    SMALL,
    new_figure,
)
from abs_model.evaluation.tables.results import GROUPS, Results
from abs_model.evaluation.tables.statistics import THRESHOLDS, accuracy_curve, summarize
from abs_model.figures.registry import Arrays, Data, Figure, Work, register
from abs_model.inference.certificates import DEFAULT_SETTINGS, lipschitz_radii, paper_radii
from abs_model.models.abs import ABSClassifier

_LONGEST = {"l2": 3.5, "linf": 0.6, "l0": 40.0}  # distances shown
_CONDITION = "Certificates hold if the search over latents has found the global minimum"
_PANEL, _PITCH, _LEFT, _TOP = 2.9, 3.5, 0.7, 1.2  # inches


def compute(work: Work) -> Data:
    """Radii of the test images in each norm, 0 where misclassified, and distances of attacks."""
    numbers: dict[str, Any] = {"condition": _CONDITION}
    arrays: Arrays = {}
    for name, model in work.models_with("certify").items():
        predictions = work.in_batches(
            f"predictions of {name}", [model], [work.images], lambda x, m=model: {"y": m.predict(x)}
        )["y"]
        correct = predictions == work.labels
        numbers[name] = {}
        for norm in NORMS:
            certified = work.in_batches(
                f"{norm} certificates of {name}",
                [model, norm, dataclasses.asdict(DEFAULT_SETTINGS)],
                [work.images],
                functools.partial(_certify, model, norm),
                size=128,
            )
            forms = {"certified": certified["radii"]}
            if norm == "l2" and not model.binary:
                forms |= work.in_batches(
                    f"older certificates of {name}",
                    [model],
                    [work.images],
                    functools.partial(_certify_older, model),
                )
            forms = {form: np.where(correct, radii, 0.0) for form, radii in forms.items()}
            numbers[name][norm] = {form: _summary(each, norm) for form, each in forms.items()}
            attacked = _attacked(work.evaluation, name, norm)
            if attacked is not None:
                forms["attacked"] = attacked
                numbers[name][norm] |= _bracket(forms["certified"], attacked, norm)
            arrays |= {f"{name}/{norm}/{form}": each for form, each in forms.items()}
    return Data(numbers, arrays)


def _certify(model: ABSClassifier, norm: str, images: np.ndarray) -> dict[str, np.ndarray]:
    certificate = model.certify(images, norm=norm)
    return {"radii": np.asarray(certificate.radii), "rivals": np.asarray(certificate.rivals)}


def _certify_older(model: ABSClassifier, images: np.ndarray) -> dict[str, np.ndarray]:
    inference = model.infer(images)
    paper = jax.jit(paper_radii)(inference, model.class_weights, model.solver)
    lipschitz = lipschitz_radii(inference, model.class_weights)
    return {"lipschitz": np.asarray(lipschitz), "paper": np.asarray(paper)}


def _attacked(evaluation: Results | None, name: str, norm: str) -> np.ndarray | None:
    """Distances of the closest adversarial examples of the first images; None without any."""
    if evaluation is None or name not in evaluation.plan.models or norm not in evaluation.norms:
        return None
    distances = evaluation.closest(name, norm, GROUPS)
    return None if np.isnan(distances).any() else distances


def _summary(radii: np.ndarray, norm: str) -> dict[str, Any]:
    """Mean, median and accuracy at the threshold, with intervals."""
    found = summarize(np.asarray(radii, np.float64), THRESHOLDS[norm])
    return {
        "mean": float(np.mean(radii)),
        "median": dataclasses.asdict(found.median),
        "accuracy": dataclasses.asdict(found.accuracy),
        "threshold": THRESHOLDS[norm],
    }


def _bracket(certified: np.ndarray, attacked: np.ndarray, norm: str) -> dict[str, Any]:
    """How far attacks and certificates are apart on the images that have both."""
    count = min(len(certified), len(attacked))
    radii, distances = certified[:count], attacked[:count]
    correct = radii > 0
    found = correct & np.isfinite(distances)
    ratios = radii[found] / distances[found]
    return {
        "attacked": _summary(distances, norm) | {"num_images": count},
        "certified over attacked": {
            "num_images": int(found.sum()),
            "median": float(np.median(ratios)),
            "largest": float(ratios.max()),
            "broken": int(np.sum(ratios > 1)),
            "settled": int(np.sum(np.isclose(ratios, 1, rtol=1e-6))),
        },
    }


def draw(data: Data) -> Mapping[str, matplotlib.figure.Figure]:
    """A row of panels for each model, a panel for each norm, of the images that have all curves."""
    models = [name for name in data.numbers if name != "condition"]
    width = _LEFT + _PITCH * len(NORMS)
    height = _TOP + _PITCH * len(models)
    figure = new_figure(width, height)
    for row, model in enumerate(models):
        top = _TOP + _PITCH * row
        for column, norm in enumerate(NORMS):
            axes = figure.add_axes(
                (
                    (_LEFT + _PITCH * column) / width,
                    1 - (top + _PANEL) / height,
                    _PANEL / width,
                    _PANEL / height,
                )
            )
            prefix = f"{model}/{norm}/"
            curves = {
                key.removeprefix(prefix): values
                for key, values in data.arrays.items()
                if key.startswith(prefix)
            }
            count = min(map(len, curves.values()))
            _draw_panel(axes, norm, {form: each[:count] for form, each in curves.items()})
            title = f"{model}, {NORM_SYMBOLS[norm]}, {count:,} images"
            axes.set_title(title, fontsize=MEDIUM, color=INK, loc="left")
    figure.text(
        _LEFT / width, 1 - 0.15 / height, "Certified accuracy", va="top",
        fontsize=LARGE, fontweight="bold", color=INK,
    )  # fmt: skip
    figure.text(
        _LEFT / width, 1 - 0.42 / height, f"{_CONDITION}. Dotted: threshold.", va="top",
        fontsize=MEDIUM, color=FAINT,
    )  # fmt: skip
    shown = {key.rpartition("/")[2] for key in data.arrays}
    handles = [
        Line2D([], [], color=color, ls=dashes, lw=1.4, label=label)
        for form, (label, color, dashes) in _LINES.items()
        if form in shown
    ]
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(_LEFT / width, 1 - 0.6 / height),
        fontsize=SMALL, frameon=False, borderaxespad=0, labelcolor=INK, ncols=len(handles),
    )  # fmt: skip
    return {"certificates": figure}


_LINES = {
    "attacked": ("attacks leave", MODEL_COLORS[3], "-"),
    "certified": ("certified", MODEL_COLORS[0], "-"),
    "lipschitz": ("certified, Lipschitz form", MODEL_COLORS[5], (0, (5, 2))),
    "paper": ("certified, paper's form", MODEL_COLORS[7], (0, (1.5, 1.5))),
}


def _draw_panel(axes: Axes, norm: str, curves: Mapping[str, np.ndarray]) -> None:
    at = np.linspace(0, _LONGEST[norm], 701)
    left = {form: accuracy_curve(curves[form], at) for form in _LINES if form in curves}
    if "attacked" in left:
        axes.fill_between(at, left["certified"], left["attacked"], color="#eeeeee", lw=0)
    for form, accuracies in left.items():
        _, color, dashes = _LINES[form]
        axes.step(at, accuracies, where="post", color=color, ls=dashes, lw=1.4)
    finish_curves(axes, norm, _LONGEST[norm])


register(
    Figure(
        "certificates",
        "Certified accuracy of ABS models, below what attacks leave",
        compute,
        draw,
        models=("abs", "binary_abs"),
        num_images=300,
    )
)
