"""Confidence on test images and on images of another distribution.

A model that knows what it does not know is less confident on the latter. AUROC is the chance that
it is more confident on a test image than on one of another set, where a tie counts half: 0.5 if
confidence says nothing, 1 if it tells the two apart. ABS models have another score, the lowest
weighted energy, which is how badly the best class explains the image.

Some shifted or rotated digits still are digits: an AUROC below 1 is no mistake there.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes

from abs_model._runtime.errors import UserError
from abs_model.data import DataError, load_dataset
from abs_model.evaluation.images.style import (
    FAINT,
    INK,
    LARGE,
    MODEL_COLORS,
    SMALL,
    Page,
    set_frame,
    show_image,
)
from abs_model.evaluation.tables.statistics import NUM_RESAMPLES, Estimate, summarize
from abs_model.figures.registry import Arrays, Data, Figure, Work, register

TEST = "test images"
_CONFIDENT = 0.9
_SHIFT = 8  # pixels, to the right
_OTHER = "fashion_mnist"
_OTHER_SHAPE = (28, 28, 1)
_BINS = 18

# Inches.
_MARGIN, _HEADER, _NAMES = 0.3, 1.95, 1.75
_WIDTH, _HEIGHT, _COLUMN, _ROW = 1.2, 0.8, 1.38, 1.22
_IMAGE = 0.6


def compute(work: Work) -> Data:
    """Confidences of each model on each set, and AUROC."""
    sets = other_sets(work.images)
    left_out: dict[str, str] = {}
    try:
        sets[_OTHER] = _other_images(work)
    except UserError as error:
        left_out[_OTHER] = str(error)
    sets = {TEST: work.images, **sets}
    ends = np.cumsum([len(images) for images in sets.values()])[:-1]
    numbers: dict[str, Any] = {"num_images": len(work.images), "left out": left_out, "models": {}}
    arrays: Arrays = {f"example/{name}": images[0] for name, images in sets.items() if name != TEST}
    for name, model in work.models.items():
        # All sets in one row of batches, so that few are padded.
        found = work.in_batches(
            f"confidences of {name}",
            [model],
            [np.concatenate(list(sets.values()))],
            lambda images, model=model: _judge(model, images),
            size=128,
        )
        parts = {key: dict(zip(sets, np.split(found[key], ends), strict=True)) for key in found}
        scores = {"confidence": {key: -each for key, each in parts["doubt"].items()}}
        if "energy" in parts:
            scores["energy"] = {key: -each for key, each in parts["energy"].items()}
        described = {key: _describe(parts["confidence"][key]) for key in sets}
        for key in sets.keys() - {TEST}:
            for score, each in scores.items():
                described[key][f"AUROC by {score}"] = dataclasses.asdict(
                    auroc(each[TEST], each[key])
                )
        numbers["models"][name] = described
        arrays |= {f"confidence/{name}/{key}": parts["confidence"][key] for key in sets}
    return Data(numbers, arrays)


def other_sets(images: np.ndarray) -> Arrays:
    """What can be made of test images, by name; the same at each call.

    Args:
        images: float32 (N, height, width, channels) in [0, 1].

    Returns:
        Each of the shape of `images`; images that are not square have no rotated ones.
    """
    random = np.random.default_rng(0)
    pixels = images.reshape(len(images), -1, images.shape[-1])
    orders = random.permuted(np.tile(np.arange(pixels.shape[1]), (len(images), 1)), axis=1)
    shifted = np.zeros_like(images)
    shifted[:, :, _SHIFT:] = images[:, :, :-_SHIFT]
    sets = {
        "uniform noise": random.random(images.shape, np.float32),
        "shuffled pixels": np.take_along_axis(pixels, orders[..., None], 1).reshape(images.shape),
        "inverted": 1 - images,
        f"shifted by {_SHIFT} pixels": shifted,
    }
    if images.shape[1] == images.shape[2]:
        sets["rotated by 90°"] = np.ascontiguousarray(np.rot90(images, axes=(1, 2)))
    return sets


def auroc(inside: np.ndarray, outside: np.ndarray) -> Estimate:
    """The chance that a score inside is above one outside, ties half, with a bootstrap interval.

    Args:
        inside: Scores, (N,).
        outside: Scores, (M,).
    """
    values, places = np.unique(np.concatenate([inside, outside]), return_inverse=True)
    parts = places[: len(inside)], places[len(inside) :]

    def area(first: np.ndarray, second: np.ndarray) -> float:
        counts, others = (np.bincount(part, minlength=len(values)) for part in (first, second))
        below = np.cumsum(others) - others / 2
        return float(counts @ below / (len(first) * len(second)))

    random = np.random.default_rng(0)
    resampled = [
        area(*(part[random.integers(0, len(part), len(part))] for part in parts))
        for _ in range(NUM_RESAMPLES)
    ]
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Estimate(area(*parts), float(low), float(high))


def _other_images(work: Work) -> np.ndarray:
    """As many images of another data set.

    Raises:
        UserError: They can't be loaded, or have another shape, or are the data set itself.
    """
    if work.dataset.name == _OTHER:
        raise UserError("the models were trained on it")
    if work.dataset.image_shape != _OTHER_SHAPE:
        raise UserError("its images have another shape")
    try:
        images = load_dataset(_OTHER, data_dir=work.data_dir).test.images[: len(work.images)]
    except (DataError, ImportError, ValueError) as error:
        # The message may name folders of this machine, which published numbers must not.
        raise UserError(f"it can't be loaded ({type(error).__name__})") from error
    return images.astype(np.float32) / 255


def _judge(model: Any, images: np.ndarray) -> Arrays:
    """Scores of images, each (N,).

    Returns:
        "confidence" of the predicted class, "doubt", and for ABS models "energy", the lowest
        weighted one in nats. Doubt is the sum of the other classes' confidences, which does not
        round to 0 where confidence rounds to 1.
    """
    scores = {}
    if hasattr(model, "infer"):
        inference = model.infer(images)
        logits = model.logits_from_inference(inference)
        scores["energy"] = np.asarray(model.weighted_energies(inference)).min(axis=1)
    else:
        logits = model.logits(images)
    ordered = np.sort(np.asarray(model.logits_to_confidences(logits), np.float64), axis=1)
    return scores | {"confidence": ordered[:, -1], "doubt": ordered[:, :-1].sum(axis=1)}


def _describe(confidences: np.ndarray) -> dict[str, Any]:
    found = summarize(confidences, _CONFIDENT)
    return {
        "median confidence": dataclasses.asdict(found.median),
        f"confidence above {_CONFIDENT:.0%}": dataclasses.asdict(found.accuracy),
    }


def draw(data: Data) -> Mapping[str, matplotlib.figure.Figure]:
    """A row of histograms for each model, a column for each set."""
    models = data.numbers["models"]
    sets = [name for name in next(iter(models.values())) if name != TEST]
    page = Page(_MARGIN + _NAMES + len(sets) * _COLUMN + 0.1, _HEADER + len(models) * _ROW + 0.2)
    page.text(
        _MARGIN, 0.15, "Confidence on images of another distribution",
        fontsize=LARGE, fontweight="bold",
    )  # fmt: skip
    note = (
        "Confidence of the predicted class. Blue line: "
        f"{data.numbers['num_images']:,} test images; filled: the set of the column.\n"
        "AUROC of telling the two apart by confidence and, for ABS models, by energy."
    )
    page.text(_MARGIN, 0.42, note, color=FAINT)
    for column, key in enumerate(sets):
        left = _MARGIN + _NAMES + column * _COLUMN
        page.text(
            left + _WIDTH / 2, page.height - 0.27, "confidence, %",
            fontsize=SMALL, color=FAINT, ha="center", va="bottom",
        )  # fmt: skip
        _draw_example(page, left + (_WIDTH - _IMAGE) / 2, key, data.arrays[f"example/{key}"])
        for row, (model, described) in enumerate(models.items()):
            top = _HEADER + row * _ROW
            axes = _draw_histogram(
                page, left, top,
                data.arrays[f"confidence/{model}/{TEST}"],
                data.arrays[f"confidence/{model}/{key}"],
            )  # fmt: skip
            scores = [described[key]["AUROC by confidence"]["value"]]
            if "AUROC by energy" in described[key]:
                scores.append(described[key]["AUROC by energy"]["value"])
            title = "AUROC " + ", ".join(f"{score:.3f}" for score in scores)
            page.text(
                left + _WIDTH / 2, top - 0.04, title, fontsize=SMALL, ha="center", va="bottom"
            )
            axes.tick_params(labelleft=column == 0, labelbottom=row == len(models) - 1)
    for row, model in enumerate(models):
        middle = _HEADER + row * _ROW + _HEIGHT / 2
        page.text(_MARGIN, middle, model, va="center")
        page.text(
            _MARGIN + _NAMES - 0.42, middle, "images, %",
            fontsize=SMALL, color=FAINT, rotation=90, ha="center", va="center",
        )  # fmt: skip
    return {"out_of_distribution": page.figure}


def _draw_example(page: Page, left: float, name: str, image: np.ndarray) -> None:
    top = _HEADER - 0.35 - _IMAGE
    show_image(page.panel(left, top, _IMAGE), image)
    page.text(left + _IMAGE / 2, top - 0.05, name, ha="center", va="bottom")


def _draw_histogram(
    page: Page, left: float, top: float, inside: np.ndarray, outside: np.ndarray
) -> Axes:
    axes = page.axes(left, top, _WIDTH, _HEIGHT)
    bins = np.linspace(0, 1, _BINS + 1)
    shares = [np.histogram(each, bins)[0] / len(each) for each in (outside, inside)]
    axes.stairs(shares[0], bins, fill=True, color=MODEL_COLORS[1], alpha=0.75)
    axes.stairs(shares[1], bins, color=MODEL_COLORS[0], lw=1.1)
    axes.set_xlim(0, 1.01)
    axes.set_ylim(0, 1.05)
    axes.set_xticks([0, 0.5, 1], ["0", "50", "100"])
    axes.set_yticks([0, 0.5, 1], ["0", "50", "100"])
    axes.tick_params(length=2, width=0.5, labelsize=SMALL, labelcolor=INK, color="#cccccc")
    set_frame(axes, "#cccccc", 0.5)
    return axes


register(
    Figure(
        "out_of_distribution",
        "Confidence on test images and on images of another distribution",
        compute,
        draw,
        models=("cnn", "madry", "nearest_neighbor", "abs", "binary_abs"),
        num_images=500,
    )
)
