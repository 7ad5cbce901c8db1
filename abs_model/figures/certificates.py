"""Certified accuracy, below what the best attacks leave.

For each ABS model and norm: the share of images that are classified correctly and whose certified
radius (`inference.certificates`) is above a distance, and the share that the attacks of an
evaluation leave. The true accuracy lies between the two.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, cast

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
    Page,
)
from abs_model.evaluation.run.thorough_search import breaks_certificates
from abs_model.evaluation.tables.results import GROUPS
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
            attacked = _attacked(work, name, norm)
            if attacked is not None:
                forms["attacked"] = attacked
                numbers[name][norm] |= _bracket(forms["certified"], attacked, norm)
                numbers[name][norm]["broken"] = _broken(work, name, norm, forms["certified"])
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


def _attacked(work: Work, name: str, norm: str) -> np.ndarray | None:
    """Distances of the closest adversarial examples of the first images; None without any."""
    evaluation = work.evaluation
    if evaluation is None or norm not in evaluation.norms or not work.is_evaluated(name):
        return None
    distances = evaluation.closest(name, norm, GROUPS)
    return None if np.isnan(distances).any() else distances


def _summary(radii: np.ndarray, norm: str) -> dict[str, Any]:
    """The mean, and the median and accuracy at the threshold with intervals.

    None stands for an infinite distance.
    """
    found = summarize(np.asarray(radii, np.float64), THRESHOLDS[norm])
    median = dataclasses.asdict(found.median)
    return {
        "mean": _finite(float(np.mean(radii))),
        "median": {key: _finite(value) for key, value in median.items()},
        "accuracy": dataclasses.asdict(found.accuracy),
        "threshold": THRESHOLDS[norm],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _bracket(certified: np.ndarray, attacked: np.ndarray, norm: str) -> dict[str, Any]:
    """How far attacks and certificates are apart on the images that have both."""
    count = min(len(certified), len(attacked))
    radii, distances = certified[:count], attacked[:count]
    correct = radii > 0
    found = correct & np.isfinite(distances)
    ratios = radii[found] / distances[found]
    return {
        "certified, attacked images": _summary(radii, norm) | {"num_images": count},
        "attacked": _summary(distances, norm) | {"num_images": count},
        "certified over attacked": {
            "num_images": int(found.sum()),
            "median": float(np.median(ratios)) if len(ratios) else None,
            "largest": float(ratios.max()) if len(ratios) else None,
            "settled": int(np.sum(np.isclose(ratios, 1, rtol=1e-6))),
        },
    }


def _broken(work: Work, name: str, norm: str, radii: np.ndarray) -> dict[str, list[int]]:
    """Test images with an adversarial example within their radius, by what is at fault."""
    records = [] if work.evaluation is None else work.evaluation.closest_records(name, norm)
    found = {
        record.index: record.adversarial
        for _, record in records
        if record.index < len(radii)
        and record.adversarial is not None
        and record.distance < radii[record.index]
    }
    indices = list(found)
    at_fault = np.zeros(len(found), bool)
    if found:
        model = cast(ABSClassifier, work.models[name])
        images, labels = work.images[indices], work.labels[indices]
        at_fault = breaks_certificates(model, images, labels, np.stack(list(found.values())))
    pairs = list(zip(indices, at_fault.tolist(), strict=True))
    return {
        "certificate": [index for index, is_broken in pairs if is_broken],
        "search of the model only": [index for index, is_broken in pairs if not is_broken],
    }


def draw(data: Data) -> Mapping[str, matplotlib.figure.Figure]:
    """A row of panels for each model, a panel for each norm, of the images that have all curves."""
    models = [name for name in data.numbers if name != "condition"]
    page = Page(_LEFT + _PITCH * len(NORMS), _TOP + _PITCH * len(models))
    for row, model in enumerate(models):
        top = _TOP + _PITCH * row
        for column, norm in enumerate(NORMS):
            axes = page.axes(_LEFT + _PITCH * column, top, _PANEL, _PANEL)
            curves = data.arrays_of(f"{model}/{norm}")
            count = min(map(len, curves.values()))
            _draw_panel(axes, norm, {form: each[:count] for form, each in curves.items()})
            title = f"{model}, {NORM_SYMBOLS[norm]}, {count:,} images"
            axes.set_title(title, fontsize=MEDIUM, color=INK, loc="left")
    page.text(_LEFT, 0.15, "Certified accuracy", fontsize=LARGE, fontweight="bold")
    page.text(_LEFT, 0.42, f"{_CONDITION}. Dotted: threshold.", color=FAINT)
    shown = {key.rpartition("/")[2] for key in data.arrays}
    handles = [
        Line2D([], [], color=color, ls=dashes, lw=1.4, label=label)
        for form, (label, color, dashes) in _LINES.items()
        if form in shown
    ]
    page.figure.legend(
        handles=handles, loc="upper left",
        bbox_to_anchor=(_LEFT / page.width, 1 - 0.6 / page.height),
        fontsize=SMALL, frameon=False, borderaxespad=0, labelcolor=INK, ncols=len(handles),
    )  # fmt: skip
    return {"certificates": page.figure}


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
        axes.fill_between(
            at, left["certified"], left["attacked"], step="post", color="#eeeeee", lw=0
        )
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
