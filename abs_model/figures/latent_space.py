"""What each class's decoder can draw: samples from the prior, traversals, and interpolations.

Whether a class's VAE is a good model of its class shows in what it generates. For each ABS model:

- samples, z ~ N(0, I) through each class's decoder, and how often the model itself classifies them
  as the class that generated them. The energy of a sample by its own class is at most
  ||z||^2 / 2, because z explains it without error; where the search finds only a higher one, it
  has missed the global minimum (this does not hold for Binary ABS, which thresholds samples);
- traversals: the explanation of a test image with each latent dimension moved in turn;
- interpolations: decoded points on the line between the latents of two test images of a class.
  Latents of two classes belong to different decoders, so that no line joins them.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes

from abs_model.evaluation.images.style import (
    FAINT,
    LARGE,
    MODEL_COLORS,
    SMALL,
    Page,
    percent_with_interval,
    set_frame,
    show_image,
)
from abs_model.evaluation.tables.statistics import median_interval, share_interval
from abs_model.figures.registry import Arrays, Data, Figure, Work, register
from abs_model.models.abs import ABSClassifier
from abs_model.models.decoders import Decoder

SAMPLES = 100  # of each class
_SHOWN = 12  # of these
_SEED = 0
_STEPS = np.linspace(-3, 3, 7, dtype=np.float32)  # of traversals
_SHARES = np.linspace(0, 1, 9, dtype=np.float32)  # of interpolations

_MARGIN, _TOP = 0.25, 0.95  # inches, as all that follow
_PANEL, _PITCH = 0.62, 0.7
_SIDE, _NOTES = 0.5, 2.2  # labels of rows to the left, what is known of them to the right
_CELL, _BLOCK_COLUMNS = 0.27, 5  # of traversals
_WRONG = MODEL_COLORS[3]


def compute(work: Work) -> Data:
    """Images and their numbers, from the test images' latents."""
    numbers: dict[str, Any] = {}
    arrays: Arrays = {}
    for name, model in work.models_with("infer").items():
        explained = work.in_batches(
            f"latents of {name}", [model], [work.images], functools.partial(_infer, model)
        )
        pairs = _choose_pairs(explained["predictions"], work.labels, model.num_classes)
        samples, drawn = _sample(work, name, model)
        traversals, moved = _traverse(model, explained["latents"], pairs)
        interpolations, joined = _interpolate(work, name, model, explained["latents"], pairs)
        numbers[name] = {
            "samples": samples,
            "traversals": traversals,
            "interpolations": interpolations,
        }
        found = drawn | moved | joined | {"images": _of_pairs(work.images, pairs)}
        arrays |= {f"{name}/{key}": array for key, array in found.items()}
    return Data(numbers, arrays)


def _infer(model: ABSClassifier, images: np.ndarray) -> Arrays:
    inference = model.infer(images)
    logits = model.logits_from_inference(inference)
    return {
        "latents": np.asarray(inference.latents),
        "energies": np.asarray(inference.energies),
        "predictions": np.asarray(jnp.argmax(logits, axis=1)),
    }


def _choose_pairs(
    predictions: np.ndarray, labels: np.ndarray, num_classes: int
) -> dict[int, np.ndarray]:
    """The first two correctly classified test images of each class that has two."""
    correct = [np.flatnonzero((labels == c) & (predictions == c))[:2] for c in range(num_classes)]
    return {c: rows for c, rows in enumerate(correct) if len(rows) == 2}


def _of_pairs(array: np.ndarray, pairs: Mapping[int, np.ndarray]) -> np.ndarray:
    """The rows of each pair, (classes with a pair, 2, ...)."""
    rows = np.array(list(pairs.values()), int).reshape(-1, 2)
    return array[rows]


def sample_images(model: ABSClassifier, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images that each class's decoder draws from the prior, and their latents.

    Args:
        model: ABS or Binary ABS.
        count: Images of each class.

    Returns:
        (classes, count, height, width, channels), and (classes, count, latent).
    """
    shape = (model.num_classes, count, model.solver.decoder.latent_size)
    latents = np.random.default_rng(_SEED).standard_normal(shape).astype(np.float32)
    images = np.stack([_decode_class(model, c, latents[c]) for c in range(model.num_classes)])
    return images, latents


def _sample(work: Work, name: str, model: ABSClassifier) -> tuple[dict[str, Any], Arrays]:
    """Samples of all classes from the prior, and what the model makes of them."""
    images, latents = sample_images(model, SAMPLES)
    shape = latents.shape
    classes = np.repeat(np.arange(model.num_classes), SAMPLES)
    found = work.in_batches(
        f"samples of {name}",
        [model],
        [images.reshape(-1, *model.image_shape)],
        functools.partial(_infer, model),
        size=2 * model.batch_size,
    )
    own = np.take_along_axis(found["energies"], classes[:, None], axis=1)
    own = own.reshape(shape[:2]).astype(np.float64)
    bounds = 0.5 * np.sum(latents.astype(np.float64) ** 2, axis=2)
    predictions = found["predictions"].reshape(shape[:2])
    numbers = {
        "samples of each class": SAMPLES,
        "classified as own class": [
            dataclasses.asdict(share_interval(np.sum(each == c), SAMPLES))
            for c, each in enumerate(predictions)
        ],
        "classified as own class, all": dataclasses.asdict(
            share_interval(np.sum(predictions.reshape(-1) == classes), len(classes))
        ),
        "predictions": [np.bincount(each, minlength=len(own)).tolist() for each in predictions],
        "median energy of own class, nats": [_median(each) for each in own],
        "median of half the squared norm of latents": [_median(each) for each in bounds],
    }
    if not model.binary:
        missed = own > bounds + model.solver.settings.tolerance
        numbers["samples whose energy the search misses"] = int(missed.sum())
    shown = {
        "samples": images[:, :_SHOWN],
        "sample_predictions": predictions[:, :_SHOWN],
    }
    return numbers, shown


def _median(values: np.ndarray) -> dict[str, float]:
    return dataclasses.asdict(median_interval(values))


def _decode_class(model: ABSClassifier, c: int, latents: np.ndarray) -> np.ndarray:
    """Images of latents (n, latent) by the decoder of class c, (n, height, width, channels)."""
    return np.asarray(_decode(model.solver.decoder, jnp.asarray(c), jnp.asarray(latents)))


@jax.jit
def _decode(decoders: Decoder, c: jax.Array, latents: jax.Array) -> jax.Array:
    decoder = jax.tree.map(lambda leaf: leaf[c], decoders)
    return decoder.to_images(decoder(latents.T))


def _traverse(
    model: ABSClassifier, latents: np.ndarray, pairs: Mapping[int, np.ndarray]
) -> tuple[dict[str, Any], Arrays]:
    """The first image of each pair, explained with each latent dimension moved in turn."""
    shape, size = model.image_shape, latents.shape[-1]
    images = np.zeros((len(pairs), size, len(_STEPS), *shape), np.float32)
    starts = np.zeros((len(pairs), size), np.float32)
    explanations = np.zeros((len(pairs), *shape), np.float32)
    for place, (c, rows) in enumerate(pairs.items()):
        starts[place] = latents[rows[0], c]
        explanations[place] = _decode_class(model, c, starts[place : place + 1])[0]
        moved = traverse(starts[place])
        images[place] = _decode_class(model, c, moved.reshape(-1, size)).reshape(images.shape[1:])
    effects = np.sum((images[:, :, -1] - images[:, :, 0]) ** 2, axis=(2, 3, 4))
    numbers = {
        "classes": list(pairs),
        "test images": [int(rows[0]) for rows in pairs.values()],
        "latents": starts.tolist(),
        "squared distance of the two ends, by latent dimension": effects.tolist(),
    }
    return numbers, {"traversals": images, "starts": starts, "explanations": explanations}


def traverse(start: np.ndarray) -> np.ndarray:
    """Latents (latent,) with each dimension set to each step, (latent, steps, latent)."""
    moved = np.tile(start, (len(start), len(_STEPS), 1))
    dimensions = np.arange(len(start))
    moved[dimensions, :, dimensions] = _STEPS
    return moved


def _interpolate(
    work: Work,
    name: str,
    model: ABSClassifier,
    latents: np.ndarray,
    pairs: Mapping[int, np.ndarray],
) -> tuple[dict[str, Any], Arrays]:
    """What lies between the explanations of the two images of each pair."""
    images = np.zeros((len(pairs), len(_SHARES), *model.image_shape), np.float32)
    for place, (c, rows) in enumerate(pairs.items()):
        start, end = latents[rows, c]
        images[place] = _decode_class(
            model, c, (1 - _SHARES[:, None]) * start + _SHARES[:, None] * end
        )
    predictions = np.zeros(images.shape[:2], int)
    if pairs:
        found = work.in_batches(
            f"interpolations of {name}",
            [model],
            [images.reshape(-1, *model.image_shape)],
            functools.partial(_infer, model),
        )
        predictions = found["predictions"].reshape(images.shape[:2])
    own = predictions == np.array(list(pairs), int)[:, None]
    numbers = {
        "classes": list(pairs),
        "test images": [rows.tolist() for rows in pairs.values()],
        "images on each line": len(_SHARES),
        "of these classified as own class": own.sum(axis=1).tolist(),
    }
    return numbers, {"interpolations": images, "interpolation_predictions": predictions}


def draw(data: Data) -> Mapping[str, matplotlib.figure.Figure]:
    """Three pictures for each model, with its name in theirs if there are several."""
    pictures = {}
    for name, numbers in data.numbers.items():
        suffix = f"_{name}" if len(data.numbers) > 1 else ""
        arrays = data.arrays_of(name)
        pictures[f"latent_samples{suffix}"] = _draw_samples(name, numbers["samples"], arrays)
        pictures[f"latent_traversals{suffix}"] = _draw_traversals(
            name, numbers["traversals"], arrays
        )
        pictures[f"latent_interpolations{suffix}"] = _draw_interpolations(
            name, numbers["interpolations"], arrays
        )
    return pictures


def _draw_samples(
    name: str, numbers: Mapping[str, Any], arrays: Arrays
) -> matplotlib.figure.Figure:
    images, predictions = arrays["samples"], arrays["sample_predictions"]
    count = images.shape[1]
    left = _MARGIN + _SIDE
    page = _open_page(
        left + count * _PITCH + _NOTES,
        _TOP + len(images) * _PITCH + 0.15,
        f"Samples of each class from the prior, {name}",
        "z ~ N(0, I) through each class's decoder. "
        + _note_on_frames(predictions, range(len(images)))
        + f" Right: of {numbers['samples of each class']} samples, with 95% intervals.",
    )
    notes = left + count * _PITCH + 0.1
    page.text(_MARGIN, _TOP - 0.22, "Class", fontweight="bold")
    page.text(
        notes, _TOP - 0.37, "Predicted as own class\nMedian energy by own class",
        fontweight="bold", linespacing=1.15,
    )  # fmt: skip
    for c, row in enumerate(images):
        top = _TOP + c * _PITCH
        _draw_row(page, left, top, row, predictions[c], c)
        share = numbers["classified as own class"][c]
        energy = numbers["median energy of own class, nats"][c]
        page.text(
            notes,
            top + _PANEL / 2,
            f"{percent_with_interval(share)}\n"
            f"{energy['value']:.2f} nats ({energy['low']:.2f}\N{EN DASH}{energy['high']:.2f})",
            va="center",
        )
    return page.figure


def _draw_interpolations(
    name: str, numbers: Mapping[str, Any], arrays: Arrays
) -> matplotlib.figure.Figure:
    images, predictions = arrays["interpolations"], arrays["interpolation_predictions"]
    count, gap = images.shape[1], 0.15
    left = _MARGIN + _SIDE
    first = left + _PITCH + gap
    last = first + count * _PITCH + gap
    page = _open_page(
        last + _PITCH + _MARGIN - (_PITCH - _PANEL),
        _TOP + len(images) * _PITCH + 0.15,
        f"Interpolations between two test images of each class, {name}",
        "Equally spaced points on the line between their latents, decoded. "
        + _note_on_frames(predictions, numbers["classes"]),
    )
    page.text(_MARGIN, _TOP - 0.22, "Class", fontweight="bold")
    headings = ((left, "Image"), (first, "Explanation"), (last, "Image"))
    for at, heading in headings:
        page.text(at, _TOP - 0.22, heading, fontweight="bold")
    page.text(
        first + count * _PITCH - (_PITCH - _PANEL), _TOP - 0.22, "Explanation",
        fontweight="bold", ha="right",
    )  # fmt: skip
    for place, c in enumerate(numbers["classes"]):
        top = _TOP + place * _PITCH
        _draw_row(page, first, top, images[place], predictions[place], c)
        for at, image in zip((left, last), arrays["images"][place], strict=True):
            show_image(page.panel(at, top, _PANEL), image)
    return page.figure


def _draw_row(
    page: Page,
    left: float,
    top: float,
    images: np.ndarray,
    predictions: np.ndarray,
    c: int,
) -> None:
    """Images of a class in a row, with frames around those that the model takes for another."""
    page.text(_MARGIN + 0.1, top + _PANEL / 2, str(c), va="center", fontweight="bold")
    for column, (image, predicted) in enumerate(zip(images, predictions, strict=True)):
        axes = page.panel(left + column * _PITCH, top, _PANEL)
        show_image(axes, image)
        if predicted != c:
            set_frame(axes, _WRONG, 2)
            axes.text(
                0.95, 0.95, str(predicted), transform=axes.transAxes, ha="right", va="top",
                fontsize=SMALL, color="white", fontweight="bold",
                bbox={"facecolor": _WRONG, "edgecolor": "none", "pad": 1.2},
            )  # fmt: skip


def _draw_traversals(
    name: str, numbers: Mapping[str, Any], arrays: Arrays
) -> matplotlib.figure.Figure:
    images = arrays["traversals"]
    _, size, steps = images.shape[:3]
    width, height = steps * _CELL, size * _CELL
    beside, gap = 0.86, 0.3  # of each block: the image to the left, to the next block
    columns = min(_BLOCK_COLUMNS, max(1, len(images)))
    block_width, block_height = beside + width + gap, height + 0.55
    page = _open_page(
        max(2 * _MARGIN + columns * block_width - gap, 6.0),
        _TOP + -(-len(images) // columns) * block_height - 0.2,
        f"Traversals of the latent dimensions, {name}",
        f"The explanation of a test image, with one latent at a time moved from"
        f" {_signed(_STEPS[0])} to {_signed(_STEPS[-1])}. Orange line: its value in the"
        " explanation.",
    )
    for place, c in enumerate(numbers["classes"]):
        left = _MARGIN + place % columns * block_width
        top = _TOP + place // columns * block_height
        page.text(left, top - 0.22, f"Class {c}", fontweight="bold")
        for row, (shown, label) in enumerate(
            ((arrays["images"][place, 0], "image"), (arrays["explanations"][place], "explanation"))
        ):
            at = top + row * 0.85
            show_image(page.panel(left, at, 0.55), shown)
            page.text(left, at + 0.58, label, fontsize=SMALL, color=FAINT)
        axes = page.axes(left + beside, top, width, height)
        _draw_grid(axes, images[place], arrays["starts"][place])
    return page.figure


def _draw_grid(axes: Axes, images: np.ndarray, start: np.ndarray) -> None:
    """A latent dimension in each row, its values along the columns."""
    size, steps, height, width = images.shape[:4]
    cells = np.ones((size, steps, height + 1, width + 1, images.shape[-1]))  # gaps of a pixel
    cells[:, :, :height, :width] = images
    mosaic = cells.transpose(0, 2, 1, 3, 4).reshape(size * (height + 1), steps * (width + 1), -1)
    show_image(axes, mosaic[:-1, :-1], aspect="auto")
    places = np.interp(start, _STEPS, np.arange(steps)) * (width + 1) + (width - 1) / 2
    tops = np.arange(size) * (height + 1) - 0.5
    axes.vlines(places, tops, tops + height, color=MODEL_COLORS[1], lw=1.0)
    axes.set_xticks(
        (np.arange(steps) * (width + 1) + (width - 1) / 2)[:: steps // 2],
        [_signed(step) for step in _STEPS[:: steps // 2]],
    )
    axes.set_yticks(tops + (height + 1) / 2, [f"$z_{{{k + 1}}}$" for k in range(size)])
    axes.tick_params(length=0, labelsize=SMALL, labelcolor=FAINT, pad=2)
    axes.spines[:].set_visible(False)


def _signed(number: float) -> str:
    return f"{number:.0f}".replace("-", "\N{MINUS SIGN}")


def _note_on_frames(predictions: np.ndarray, classes: Iterable[int]) -> str:
    if np.all(predictions == np.array(list(classes), int)[:, None]):
        return "The model predicts their own class for all that are shown."
    return "Framed: the model predicts another class, whose number is in the corner."


def _open_page(width: float, height: float, title: str, note: str) -> Page:
    page = Page(width, height)
    page.text(_MARGIN, 0.18, title, fontsize=LARGE, fontweight="bold")
    page.text(_MARGIN, 0.44, note, color=FAINT)
    return page


register(
    Figure(
        "latent_space",
        "Samples, traversals and interpolations of each class's decoder",
        compute,
        draw,
        models=("abs",),
        num_images=100,
    )
)
