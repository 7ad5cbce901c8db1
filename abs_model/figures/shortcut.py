"""Shortcut learning: what models learn when a faint pattern gives the class away.

Every training image of the given models had the pattern of its class (`abs_model.data.shortcuts`,
`configs/shortcut.py`). Test images come in three versions: with the pattern of their class kept,
without it, and with that of the next class. A model that goes by the digit is right on all three,
one that goes by the pattern only where it is kept.

What ABS has learned shows in its samples. Around digits MNIST is black, so that there the
brightness of a class's samples within its pattern, less that outside, is the amplitude that its
decoder draws.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import matplotlib.figure
import numpy as np
from matplotlib.lines import Line2D

from abs_model._runtime.errors import UserError
from abs_model.data.shortcuts import add_patterns, class_patterns
from abs_model.evaluation.images.style import (
    FAINT,
    INK,
    LARGE,
    MEDIUM,
    MODEL_COLORS,
    SMALL,
    Page,
    set_percent_axis,
    show_image,
    style_curves,
)
from abs_model.evaluation.tables.statistics import share_interval
from abs_model.figures.latent_space import sample_images
from abs_model.figures.registry import Arrays, Data, Figure, Work, register
from abs_model.models.abs import ABSClassifier

_VERSIONS = ("kept", "removed", "swapped")
_BORDER = 4  # pixels around digits, in which MNIST is black
_NUM_SAMPLES = 200  # of each class
_TITLES = {
    "kept": "pattern kept",
    "removed": "pattern removed",
    "swapped": "pattern of the next class",
}

# Inches.
_MARGIN, _SIDE, _TOP = 0.3, 1.05, 1.2
_PANEL, _PANEL_PITCH = 2.3, 3.0
_IMAGE, _PITCH, _GAP = 0.5, 0.54, 0.16


def compute(work: Work) -> Data:
    """Accuracies of each model on each version, and what ABS draws.

    Raises:
        UserError: A model was trained without patterns, or a class has no test image.
    """
    numbers: dict[str, Any] = {"num_images": work.num_images, "models": {}}
    arrays: Arrays = {}
    plain, labels = work.dataset.test.images[: work.num_images], work.labels
    firsts = [np.flatnonzero(labels == c)[:1] for c in range(work.dataset.num_classes)]
    if not all(map(len, firsts)):
        raise UserError(
            f"figure {work.figure!r} needs a test image of every class; raise --num_images"
        )
    others = (labels + 1) % work.dataset.num_classes
    for name, model in work.models.items():
        amplitude = _amplitude(work, name)
        versions = {
            "kept": add_patterns(plain, labels, amplitude),
            "removed": plain,
            "swapped": add_patterns(plain, others, amplitude),
        }
        stacked = np.stack([versions[version] for version in _VERSIONS]).astype(np.float32) / 255
        found = work.in_batches(
            f"predictions of {name}",
            [model],
            [stacked.reshape(-1, *plain.shape[1:])],
            lambda images, model=model: {"predictions": model.predict(images)},
            size=128,
        )["predictions"].reshape(len(_VERSIONS), -1)
        accuracies = {
            version: _share(each == labels) for version, each in zip(_VERSIONS, found, strict=True)
        }
        numbers["models"][name] = {
            "kind": work.configs[name].model.name,
            "amplitude": amplitude,
            "accuracy": accuracies,
            "classified as the pattern, swapped": _share(found[-1] == others),
        }
        if isinstance(model, ABSClassifier):
            samples, _ = sample_images(model, _NUM_SAMPLES)
            drawn = drawn_amplitudes(samples)
            numbers["models"][name]["amplitude in samples"] = {
                "mean": float(drawn.mean()), "of each class": drawn.tolist(),
            }  # fmt: skip
            # In the order of the rows below each other.
            arrays[f"{name}/images"] = stacked[0][np.concatenate(firsts)]
            arrays[f"{name}/samples"] = samples[:, 0]
            arrays[f"{name}/mean sample"] = samples.mean(axis=1)
    return Data(numbers, arrays)


def _amplitude(work: Work, name: str) -> float:
    config = work.configs.get(name)
    amplitude = None if config is None else config.dataset.get("shortcut_amplitude")
    if not amplitude:
        raise UserError(
            f"figure {work.figure!r} requires models trained with configs/shortcut.py; {name!r} was"
            " not"
        )
    return float(amplitude)


def _share(hits: np.ndarray) -> dict[str, float]:
    return dataclasses.asdict(share_interval(int(hits.sum()), len(hits)))


def drawn_amplitudes(samples: np.ndarray) -> np.ndarray:
    """How much brighter each class's samples are within its pattern, at the border, (classes,).

    Args:
        samples: Float (classes, samples, height, width, channels).
    """
    patterns = class_patterns(len(samples), samples.shape[2:])
    border = np.ones(samples.shape[2:], bool)
    border[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    means = samples.mean(axis=1)
    return np.array(
        [
            mean[border & pattern].mean() - mean[border & ~pattern].mean()
            for mean, pattern in zip(means, patterns, strict=True)
        ]
    )


def draw(data: Data) -> Mapping[str, matplotlib.figure.Figure]:
    """Accuracies against the amplitude, and below them what ABS has seen and draws."""
    models = data.numbers["models"]
    generative = [name for name in models if f"{name}/samples" in data.arrays]
    generative.sort(key=lambda name: models[name]["amplitude"])
    images_top = _TOP + _PANEL + 1.25
    num_classes = max((len(data.arrays[f"{name}/samples"]) for name in generative), default=0)
    width = _MARGIN + _SIDE + max(num_classes * _PITCH, 3 * _PANEL_PITCH - 0.3)
    page = Page(width, images_top + len(generative) * (3 * _PITCH + _GAP) + 0.2)
    page.text(_MARGIN, 0.15, "Training with a shortcut", fontsize=LARGE, fontweight="bold")
    note = (
        f"A pattern gives away the class of every training image. {data.numbers['num_images']:,}"
        " test images, with 95% intervals."
    )
    page.text(_MARGIN, 0.42, note, color=FAINT)
    kinds = list(dict.fromkeys(each["kind"] for each in models.values()))
    for column, version in enumerate(_VERSIONS):
        _draw_panel(page, _MARGIN + 0.45 + column * _PANEL_PITCH, version, kinds, models)
    _draw_legend(page, kinds)
    if generative:
        text = (
            "For each class and amplitude, top down: a digit with its pattern, a sample of ABS, and"
            f" the mean of {_NUM_SAMPLES}\nsamples, white at twice the amplitude."
        )
        page.text(_MARGIN, images_top - 0.45, text, color=FAINT)
    for row, name in enumerate(generative):
        top = images_top + row * (3 * _PITCH + _GAP)
        _draw_images(page, top, models[name], data.arrays_of(name))
    return {"shortcut": page.figure}


def _draw_panel(
    page: Page, left: float, version: str, kinds: list[str], models: Mapping[str, Any]
) -> None:
    axes = page.axes(left, _TOP, _PANEL, _PANEL)
    shown = {"accuracy": lambda each: each["accuracy"][version]}
    if version == "swapped":
        shown["pattern"] = lambda each: each["classified as the pattern, swapped"]
    for number, kind in enumerate(kinds):
        runs = sorted(
            (each for each in models.values() if each["kind"] == kind),
            key=lambda each: each["amplitude"],
        )
        amplitudes = [each["amplitude"] for each in runs]
        for what, get in shown.items():
            shares = [get(each) for each in runs]
            values = np.array([share["value"] for share in shares])
            ends = np.array([[share["low"], share["high"]] for share in shares]).T
            axes.errorbar(
                amplitudes, values, np.abs(ends - values), color=MODEL_COLORS[number], lw=1.4,
                ls="-" if what == "accuracy" else (0, (3, 2)), marker="os^Dv"[number % 5],
                markersize=4, elinewidth=0.8,
                markerfacecolor=MODEL_COLORS[number] if what == "accuracy" else "white",
            )  # fmt: skip
    axes.set_title(_TITLES[version], fontsize=MEDIUM, color=INK, loc="left")
    axes.set_xscale("log")
    ticks = sorted({each["amplitude"] for each in models.values()})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(0, 1.03)
    set_percent_axis(axes, 6)
    axes.set_xlabel("amplitude of the pattern", fontsize=MEDIUM, color=INK)
    style_curves(axes)


def _draw_legend(page: Page, kinds: list[str]) -> None:
    handles = [
        Line2D(
            [], [], color=MODEL_COLORS[number], marker="os^Dv"[number % 5], markersize=4, label=k
        )
        for number, k in enumerate(kinds)
    ]
    handles.append(
        Line2D([], [], color=INK, ls=(0, (3, 2)), marker="o", markersize=4,
               markerfacecolor="white", label="classified as the pattern's class")
    )  # fmt: skip
    page.figure.legend(
        handles=handles, loc="upper left",
        bbox_to_anchor=(_MARGIN / page.width, 1 - 0.62 / page.height),
        fontsize=SMALL, frameon=False, borderaxespad=0, labelcolor=INK, ncols=len(handles),
    )  # fmt: skip


def _draw_images(
    page: Page, top: float, numbers: Mapping[str, Any], rows: Mapping[str, np.ndarray]
) -> None:
    amplitude = numbers["amplitude"]
    drawn = numbers["amplitude in samples"]["mean"]
    page.text(_MARGIN, top + 0.05, f"amplitude {amplitude:g}", fontweight="bold")
    page.text(_MARGIN, top + 0.25, f"in samples {drawn:.3f}", color=FAINT)
    for row, (part, images) in enumerate(rows.items()):
        scale = 2 * amplitude if part == "mean sample" else 1.0
        for c, image in enumerate(images):
            panel = page.panel(_MARGIN + _SIDE + c * _PITCH, top + row * _PITCH, _IMAGE)
            show_image(panel, np.clip(image / scale, 0, 1))


register(
    Figure(
        "shortcut",
        "What models learn from a faint pattern that gives the class away",
        compute,
        draw,
        models=(),
        num_images=1000,
        requires="runs of scripts/train_shortcuts.sh, --models=runs/shortcut/abs_0.1,...",
    )
)
