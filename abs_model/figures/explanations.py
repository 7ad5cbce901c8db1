"""Why this class: explanations by all classes, and the pixels that decide between the best two.

The weighted energy of a class c is a sum over pixels and a prior term,

    w_c E_c(x) = sum of w_c (x - G_c)^2 + w_c ||z_c||^2 / 2

so that the margin between the prediction y and the runner-up c, w_c E_c - w_y E_y in nats, splits
into the pixels' contributions w_c (x - G_c)^2 - w_y (x - G_y)^2 and the difference of the prior
terms. For each ABS model: this for a test image, for an adversarial example of it, and for noise;
and over test images, how much the prior term and how much few pixels carry.
"""

import dataclasses
import functools
import math
import textwrap
from collections.abc import Mapping
from typing import Any

import jax
import matplotlib.figure
import numpy as np

from abs_model.attacks import pgd
from abs_model.evaluation.images.style import (
    FAINT,
    INK,
    LARGE,
    MEDIUM,
    MODEL_COLORS,
    SMALL,
    Page,
    set_frame,
    show_image,
    strongest_channel,
)
from abs_model.evaluation.run.verification import verify
from abs_model.evaluation.tables.statistics import median_interval
from abs_model.figures.registry import Arrays, Data, Figure, Work, register
from abs_model.inference.energy import Inference
from abs_model.models.abs import ABSClassifier

MAX_CLASSES = 10  # shown
_TRIES = 5  # images to attack until one has a verified adversarial example
_STEPS = 20  # of PGD
_EPSILON = 1 / 8  # of the distance of black and white: 3.5 for MNIST
_SEED = 0  # of the noise
_INPUTS = ("clean", "adversarial", "noise")

_RIGHT, _WRONG, _NO_LABEL, _RUNNER_UP = (MODEL_COLORS[number] for number in (0, 3, 4, 1))
_LEGEND = (
    "Frames: solid, the prediction (blue: the label; red: another class; purple: there is no"
    " label); dashed, the runner-up. Numbers: above, the weighted energy in nats; below, the same"
    " as pixels + prior term. Residual: image minus explanation, red where the image is brighter,"
    " from \N{MINUS SIGN}1 to 1. Decision: the runner-up's weighted squared error minus the"
    " prediction's; purple speaks for the prediction, orange for the runner-up. Outlines: their"
    " explanations (solid: the prediction's). The sum over pixels and the difference of the prior"
    " terms add up to the margin."
)

# Layout, in inches.
_MARGIN, _HEADER = 0.25, 0.9
_LARGE_PANEL, _LARGE_PITCH = 1.3, 1.5
_PANEL, _PITCH = 0.62, 0.74
_SIDE, _TEXT, _BLOCK = 0.35, 0.56, 2.35
_LINE = 0.14  # of text
_CHARACTERS = {MEDIUM: 15, SMALL: 19}  # in an inch of text


@dataclasses.dataclass(frozen=True)
class Split:
    """The margins of N images, split into their parts; float64, in nats.

    Attributes:
        squares: w_c (x - G_c)^2 summed over channels, (N, classes, height, width).
        priors: w_c ||z_c||^2 / 2, (N, classes).
    """

    squares: np.ndarray
    priors: np.ndarray

    @property
    def energies(self) -> np.ndarray:
        """The weighted energies, (N, classes)."""
        return self.squares.sum(axis=(2, 3)) + self.priors

    @property
    def best(self) -> np.ndarray:
        """The prediction and the runner-up, int (N, 2)."""
        return np.argsort(self.energies, axis=1)[:, :2]

    @property
    def pixel_terms(self) -> np.ndarray:
        """What each pixel adds to the margin, (N, height, width)."""
        return self._difference(self.squares)

    @property
    def prior_terms(self) -> np.ndarray:
        """What the prior terms add to it, (N,)."""
        return self._difference(self.priors)

    @property
    def margins(self) -> np.ndarray:
        """Runner-up's weighted energy minus the prediction's, (N,)."""
        return self._difference(self.energies)

    def _difference(self, terms: np.ndarray) -> np.ndarray:
        rows = np.arange(len(terms))
        return terms[rows, self.best[:, 1]] - terms[rows, self.best[:, 0]]


def split(inference: Inference, class_weights: jax.Array) -> Split:
    """The parts of the weighted energies that inference found."""
    images = np.asarray(inference.images, np.float64)
    latents = np.asarray(inference.latents, np.float64)
    weights = np.asarray(class_weights, np.float64)
    residuals = images[:, None] - np.asarray(inference.reconstructions, np.float64)
    squares = weights[:, None, None] * np.sum(residuals**2, axis=-1)
    return Split(squares, weights * 0.5 * np.sum(latents**2, axis=-1))


def pixels_for_half(pixel_terms: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """The fewest pixels whose terms sum to half of the margin, int (N,).

    All pixels where none do, because the prior terms carry too much.

    Args:
        pixel_terms: (N, height, width).
        margins: Positive, (N,).
    """
    terms = np.sort(pixel_terms.reshape(len(margins), -1), axis=1)[:, ::-1]
    enough = np.cumsum(terms, axis=1) >= margins[:, None] / 2
    return np.where(enough.any(axis=1), 1 + enough.argmax(axis=1), terms.shape[1])


def compute(work: Work) -> Data:
    """The three inputs of each model with their explanations, and the test images' margins."""
    numbers: dict[str, Any] = {}
    arrays: Arrays = {}
    for name, model in work.models_with("infer").items():
        margins = work.in_batches(
            f"margins of {name}", [model], [work.images], functools.partial(_split_margins, model)
        )
        inputs = work.cached(
            f"inputs of {name}",
            [model, work.images, work.labels, margins["predictions"], _attack_settings(model)],
            functools.partial(
                _make_inputs, model, work.images, work.labels, margins["predictions"]
            ),
        )
        kinds = [kind for kind in _INPUTS if kind in inputs]
        images = np.stack([inputs[kind] for kind in kinds])
        explained = work.cached(
            f"explanations of {name}", [model, images], functools.partial(_explain, model, images)
        )
        numbers[name] = {
            "inputs": {
                kind: _state(kind, place, inputs, explained) for place, kind in enumerate(kinds)
            },
            "attack": _attack_settings(model),
            "test images": _summarize(margins),
            "binary": model.binary,
        }
        arrays |= {f"{name}/{key}": array for key, array in explained.items()}
        arrays[f"{name}/images"] = images
    return Data(numbers, arrays)


def _split_margins(model: ABSClassifier, images: np.ndarray) -> Arrays:
    parts = split(model.infer(images), model.class_weights)
    return {
        "predictions": parts.best[:, 0],
        "margins": parts.margins,
        "priors": parts.prior_terms,
        "pixels": pixels_for_half(parts.pixel_terms, parts.margins),
    }


def _attack_settings(model: ABSClassifier) -> dict[str, Any]:
    epsilon = _EPSILON * math.sqrt(math.prod(model.image_shape))
    return {"norm": "l2", "epsilon": epsilon, "step_size": epsilon / 5, "num_steps": _STEPS}


def _make_inputs(
    model: ABSClassifier, images: np.ndarray, labels: np.ndarray, predictions: np.ndarray
) -> Arrays:
    """A correctly classified image, an adversarial example of it where PGD finds one, and noise."""
    noise = np.random.default_rng(_SEED).uniform(size=model.image_shape).astype(np.float32)
    correct = np.flatnonzero(predictions == labels)[:_TRIES]
    for index in correct:
        clean, label = images[index : index + 1], labels[index : index + 1]
        found = pgd(model, clean, label, jax.random.key(_SEED), **_attack_settings(model))
        checked = verify(model, clean, label, np.asarray(found.images), norm="l2")
        if checked.verified[0]:
            return {
                "clean": clean[0],
                "adversarial": np.asarray(found.images)[0],
                "noise": noise,
                "index": index,
                "label": label[0],
                "distance": checked.distances[0],
            }
    first = correct[0] if len(correct) else 0
    return {"clean": images[first], "noise": noise, "index": first, "label": labels[first]}


def _explain(model: ABSClassifier, images: np.ndarray) -> Arrays:
    inference = model.infer(images)
    parts = split(inference, model.class_weights)
    logits = model.logits_from_inference(inference)
    return {
        "seen": np.asarray(inference.images),
        "reconstructions": np.asarray(inference.reconstructions),
        "energies": parts.energies,
        "priors": parts.priors,
        "best": parts.best,
        "pixel_terms": parts.pixel_terms,
        "confidences": np.asarray(model.logits_to_confidences(logits)),
    }


def _state(kind: str, place: int, inputs: Arrays, explained: Arrays) -> dict[str, Any]:
    energies, priors = explained["energies"][place], explained["priors"][place]
    prediction, runner_up = (int(c) for c in explained["best"][place])
    stated: dict[str, Any] = {
        "prediction": prediction,
        "confidence": float(explained["confidences"][place, prediction]),
        "runner-up": runner_up,
        "weighted energies, nats": energies.tolist(),
        "of these prior terms": priors.tolist(),
        "margin": float(energies[runner_up] - energies[prediction]),
        "margin of pixels": float(explained["pixel_terms"][place].sum()),
        "margin of prior terms": float(priors[runner_up] - priors[prediction]),
    }
    if kind != "noise":
        stated |= {"test image": int(inputs["index"]), "label": int(inputs["label"])}
    if kind == "adversarial":
        stated["distance"] = float(inputs["distance"])
    return stated


def _summarize(margins: Arrays) -> dict[str, Any]:
    shares = margins["priors"] / margins["margins"]
    medians = {
        "margin, nats": margins["margins"],
        "share of the prior terms": shares,
        "pixels that carry half of the margin": margins["pixels"],
    }
    return {"num_images": len(shares)} | {
        f"median {name}": dataclasses.asdict(median_interval(values.astype(np.float64)))
        for name, values in medians.items()
    }


def draw(data: Data) -> Mapping[str, matplotlib.figure.Figure]:
    """A picture for each model, with a block for each input."""
    pictures = {}
    for name, numbers in data.numbers.items():
        arrays = data.arrays_of(name)
        pictures[f"explanations_{name}"] = _draw_model(name, numbers, arrays)
    return pictures


def _draw_model(name: str, numbers: Mapping[str, Any], arrays: Arrays) -> matplotlib.figure.Figure:
    shown = min(arrays["energies"].shape[1], MAX_CLASSES)
    inputs = numbers["inputs"]
    middle = _MARGIN + (2 if numbers["binary"] else 1) * _LARGE_PITCH + _SIDE
    right = middle + shown * _PITCH + 0.15
    width = right + _LARGE_PANEL + _MARGIN
    note, legend = (
        textwrap.wrap(text, int((width - 2 * _MARGIN) * _CHARACTERS[size]))
        for text, size in ((_note(numbers["test images"]), MEDIUM), (_LEGEND, SMALL))
    )
    header = _HEADER + _LINE * (len(note) - 1)
    bottom = header + len(inputs) * _BLOCK
    page = Page(width, bottom + _LINE * len(legend) + 0.2)
    page.text(_MARGIN, 0.18, f"Why this class: {name}", fontsize=LARGE, fontweight="bold")
    page.text(_MARGIN, 0.44, "\n".join(note), color=FAINT)
    page.text(_MARGIN, bottom, "\n".join(legend), fontsize=SMALL, color=FAINT, linespacing=1.3)
    for place, (kind, stated) in enumerate(inputs.items()):
        top = header + place * _BLOCK
        _draw_heading(page, top, kind, stated)
        each = {key: array[place] for key, array in arrays.items()}
        _draw_inputs(page, top + _TEXT, each, numbers["binary"])
        _draw_classes(page, middle, top + _TEXT, each, stated)
        _draw_decision(page, right, top + _TEXT, each)
    return page.figure


def _note(summary: Mapping[str, Any]) -> str:
    share = summary["median share of the prior terms"]
    pixels = summary["median pixels that carry half of the margin"]
    return (
        f"Over {summary['num_images']:,} test images the prior terms carry {share['value']:.0%} of"
        f" the margin (median; 95% interval {share['low']:.0%} to {share['high']:.0%}), and"
        f" {pixels['value']:.0f} pixels carry half of it ({pixels['low']:.0f} to"
        f" {pixels['high']:.0f})."
    )


def _draw_heading(page: Page, top: float, kind: str, stated: Mapping[str, Any]) -> None:
    titles = {
        "clean": "Test image {test image}, label {label}",
        "adversarial": "Adversarial example of it, $L_2$ distance {distance:.2f} (PGD, verified)",
        "noise": "Uniform noise",
    }
    page.text(_MARGIN, top, titles[kind].format_map(stated), fontweight="bold")
    page.text(
        _MARGIN,
        top + 0.17,
        f"predicts {stated['prediction']} ({stated['confidence']:.1%});"
        f" margin over {stated['runner-up']}: {_signed(stated['margin'])} nats ="
        f" pixels {_signed(stated['margin of pixels'])},"
        f" prior {_signed(stated['margin of prior terms'])}",
        color=_color(stated),
    )


def _draw_inputs(page: Page, top: float, arrays: Arrays, binary: bool) -> None:
    shown = {"input": arrays["images"]}
    if binary:
        shown["thresholded"] = arrays["seen"]
    for column, (label, image) in enumerate(shown.items()):
        left = _MARGIN + column * _LARGE_PITCH
        page.text(left, top - 0.17, label, fontsize=SMALL, color=FAINT)
        show_image(page.panel(left, top, _LARGE_PANEL), image)


def _draw_classes(
    page: Page, left: float, top: float, arrays: Arrays, stated: Mapping[str, Any]
) -> None:
    """Explanations above residuals, in the order of the classes."""
    energies, priors = arrays["energies"], arrays["priors"]
    second = _LARGE_PANEL - _PANEL
    for label, at in (("explanation", 0.0), ("residual", second)):
        page.text(
            left - 0.1, top + at + _PANEL / 2, label, rotation=90, ha="right", va="center",
            fontsize=SMALL, color=FAINT,
        )  # fmt: skip
    for column, c in enumerate(np.sort(np.argsort(energies)[:MAX_CLASSES])):
        at = left + column * _PITCH
        upper, lower = page.panel(at, top, _PANEL), page.panel(at, top + second, _PANEL)
        show_image(upper, arrays["reconstructions"][c])
        residual = strongest_channel(arrays["seen"] - arrays["reconstructions"][c])
        lower.imshow(residual, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        predicted = c == stated["prediction"]
        color = _color(stated) if predicted else FAINT
        if predicted:
            set_frame(upper, color, 2.5)
        elif c == stated["runner-up"]:
            set_frame(upper, _RUNNER_UP, 2)
            upper.spines[:].set_linestyle((0, (2, 1.5)))
        weight = "bold" if predicted else "normal"
        middle = at + _PANEL / 2
        page.text(middle, top - 0.17, f"{c}: {_short(energies[c])}", fontsize=SMALL, ha="center",
                  color=color, fontweight=weight)  # fmt: skip
        page.text(
            middle, top + _LARGE_PANEL + 0.05,
            f"{_short(energies[c] - priors[c])} + {_short(priors[c])}",
            fontsize=SMALL, ha="center", color=color, fontweight=weight,
        )  # fmt: skip


def _draw_decision(page: Page, left: float, top: float, arrays: Arrays) -> None:
    terms = arrays["pixel_terms"]
    limit = float(np.max(np.abs(terms))) or 1.0
    axes = page.panel(left, top, _LARGE_PANEL)
    axes.imshow(terms, cmap="PuOr", vmin=-limit, vmax=limit, interpolation="nearest")
    for c, dashes in zip(arrays["best"], ("solid", (0, (2, 1.5))), strict=True):
        outline = arrays["reconstructions"][c].mean(axis=-1)
        axes.contour(outline, levels=[0.5], colors=INK, linewidths=0.7, linestyles=[dashes])
    page.text(
        left, top - 0.17, f"decision, \N{PLUS-MINUS SIGN}{limit:.2g} nats",
        fontsize=SMALL, color=FAINT,
    )  # fmt: skip


def _color(stated: Mapping[str, Any]) -> str:
    if "label" not in stated:
        return _NO_LABEL
    return _RIGHT if stated["prediction"] == stated["label"] else _WRONG


def _signed(number: float) -> str:
    return f"{number:.1f}".replace("-", "\N{MINUS SIGN}")


def _short(energy: float) -> str:
    return f"{energy:.1f}" if energy < 99.95 else f"{energy:.0f}"


register(
    Figure(
        "explanations",
        "Why a class: explanations by all classes and the pixels that decide",
        compute,
        draw,
        models=("abs", "binary_abs"),
        num_images=100,
    )
)
