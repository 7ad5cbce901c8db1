"""Fooling images: can a model be made confident of what is no digit?

Nguyen, Yosinski and Clune 2015, "Deep Neural Networks are Easily Fooled"
(https://arxiv.org/abs/1412.1897); figure 4 of the ABS paper (Schott et al. 2019) shows such images
for several models. From noise, from uniform gray and from digits, each class is ascended until the
model's confidence in it reaches 90 % or the steps end.

What is ascended: for networks, the margin of the target's logit over the largest other one, which
the softmax makes a confidence. For ABS models, the target's logit, which is its negative energy.
Their confidence also takes a low energy in absolute terms (`eta`, see `docs/concepts.md`): its own
gradient leads from noise into regions where no class explains the image, and that of the margin
raises all energies.

Because of `eta`, a confidence of 90 % bounds the target's energy, so that the image (thresholded
for Binary ABS) lies within the square root of the bound of an image that the target's decoder draws
(`energy_bound`).

Whether images look like the target is measured by the nearest training image. It must be of the
target, and no farther than 99 % of test images are from theirs: noise has a nearest neighbor, too.

Models that threshold images are no default: with the straight-through gradient, pixels switch on
and off around the threshold without end, so that an ascent that fails says little about them.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

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
from abs_model.evaluation.tables.statistics import clustered_share
from abs_model.figures.ascent import ascend, target_logits, target_margins
from abs_model.figures.registry import Arrays, Data, Figure, Picture, Work, register
from abs_model.models.abs import ABSClassifier
from abs_model.models.classifier import Classifier
from abs_model.models.nearest_neighbor import NearestNeighborClassifier, nearest_neighbor

CONFIDENCE = 0.9
_ENOUGH = 0.91  # where the ascent stops: a cold query may find a little less
_STEP_LENGTH, _NUM_STEPS = 0.25, 120
_NUM_USUAL, _USUAL = 1000, 0.99  # test images, and the share of them that is near enough
_NUM_NOISE = 100  # noise images whose confidences are measured
_SEED = 0
_STARTS_PER_BATCH = 3
_KINDS = ("noise", "gray", "digit")
_ALIKE = "of these like the target"

_MARGIN, _TOP = 0.25, 1.5  # inches, as all that follow
_SIDE = 0.6
_PANEL, _PITCH, _ROW = 0.72, 0.8, 0.92
_HEADING, _GAP = 0.32, 0.12
_LIKE, _UNLIKE = MODEL_COLORS[0], MODEL_COLORS[3]


def compute(work: Work) -> Data:
    """Ascends every class from every start, and asks the nearest neighbor what came of it."""
    classes = work.dataset.num_classes
    starts, kinds, labels = _starts(work)
    images = np.repeat(starts, classes, axis=0)
    targets = np.tile(np.arange(classes, dtype=np.int32), len(starts))
    origins = np.repeat(np.arange(len(starts)), classes)
    neighbor = nearest_neighbor(work.dataset)
    near = _nearness(work, neighbor)
    noise = _noise(work, _NUM_NOISE)
    numbers: dict[str, Any] = {
        "confidence": CONFIDENCE,
        "step length, L2": _STEP_LENGTH,
        "steps at most": _NUM_STEPS,
        "largest L2 distance to the nearest training image of 99% of test images": near,
        "starts": {kind: int(np.sum(kinds == kind)) for kind in _KINDS},
        "models": {},
    }
    arrays: Arrays = {}
    for name, model in work.models.items():
        ends = work.in_batches(
            f"ascent of {name}",
            [model, _STEP_LENGTH, _NUM_STEPS, _ENOUGH],
            [images, targets],
            functools.partial(_ascend, model),
            size=_STARTS_PER_BATCH * classes,
        )["images"]
        reached = _confidences(work, f"ends of {name}", model, ends)
        confidences = reached[np.arange(len(targets)), targets]
        distances = _distances(work, f"distances of {name}", neighbor, ends)
        on_noise = _confidences(work, f"noise to {name}", model, noise).max(axis=1)
        # A digit's own class takes no fooling.
        counted = np.repeat(labels, classes) != targets
        numbers["models"][name] = {
            "ascended": (
                "logit of the target" if _is_generative(model) else "margin of the target's logit"
            ),
            "energy bound": energy_bound(model),
            "highest confidence on noise": {
                "images": len(noise),
                "median": float(np.median(on_noise)),
                "maximum": float(on_noise.max()),
            },
            **{
                kind: _summary(chosen, images, ends, targets, confidences, distances, near, origins)
                for kind, chosen in _groups(np.repeat(kinds, classes), counted).items()
            },
        }
        shown = [np.flatnonzero(kinds == kind)[0] for kind in _KINDS]
        for key, values in (
            ("images", ends),
            ("confidences", confidences),
            ("alike", looks_like(distances, targets, near)),
            ("counted", counted),
        ):
            arrays[f"{name}/{key}"] = values.reshape(len(starts), classes, *values.shape[1:])[shown]
        arrays[f"{name}/starts"] = starts[shown]
    return Data(numbers, arrays)


def _noise(work: Work, count: int) -> np.ndarray:
    """Pixels uniform in [0, 1], float32 (count, height, width, channels)."""
    shape = (count, *work.dataset.image_shape)
    return np.random.default_rng(_SEED).uniform(size=shape).astype(np.float32)


def _starts(work: Work) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, their kinds, and their labels, -1 where they have none."""
    gray = np.full((1, *work.dataset.image_shape), 0.5, np.float32)
    counts = (work.num_images, 1, work.num_images)
    return (
        np.concatenate([_noise(work, work.num_images), gray, work.images]),
        np.repeat(_KINDS, counts),
        np.concatenate([np.full(work.num_images + 1, -1), work.labels]),
    )


def _is_generative(model: Classifier) -> bool:
    return hasattr(model, "infer")


def _ascend(model: Classifier, images: np.ndarray, targets: np.ndarray) -> Arrays:
    paths = ascend(
        model,
        images,
        targets,
        score=target_logits if _is_generative(model) else target_margins,
        step_length=_STEP_LENGTH,
        num_steps=_NUM_STEPS,
        enough=_ENOUGH,
    )
    return {"images": paths[:, -1]}


def _confidences(work: Work, part: str, model: Classifier, images: np.ndarray) -> np.ndarray:
    """Cold, (N, classes)."""
    return work.in_batches(
        part,
        [model],
        [images],
        lambda rows: {"confidences": model.confidences(rows)},
        size=model.batch_size,
    )["confidences"]


def _distances(
    work: Work, part: str, neighbor: NearestNeighborClassifier, images: np.ndarray
) -> np.ndarray:
    """L2 distances to the nearest training image of each class, (N, classes)."""
    squares = work.in_batches(
        part, [neighbor], [images], lambda rows: {"squares": -np.asarray(neighbor.logits(rows))}
    )["squares"]
    return np.sqrt(np.maximum(squares.astype(np.float64), 0))


def _nearness(work: Work, neighbor: NearestNeighborClassifier) -> float:
    """How far, in L2, an image may be from the nearest training image to pass for a digit."""
    images = work.dataset.test.images[:_NUM_USUAL].astype(np.float32) / 255
    distances = _distances(work, "distances of test images", neighbor, images).min(axis=1)
    return float(np.quantile(distances, _USUAL))


def looks_like(distances: np.ndarray, targets: np.ndarray, near: float) -> np.ndarray:
    """Whether the nearest training image is of the target, and near enough, bool (N,).

    Args:
        distances: To the nearest training image of each class, (N, classes).
        targets: Int (N,).
        near: How far it may be.
    """
    return (distances.argmin(axis=1) == targets) & (distances.min(axis=1) <= near)


def energy_bound(model: Classifier) -> dict[str, float] | None:
    """The largest energy that a class can have where its confidence is 90 %, and its square root.

    With e_c = exp(alpha l_c), the confidence (e_c + eta) / sum over k of (e_k + eta) is largest
    where the other K - 1 classes have e_k = 0. There it is 90 % for e_c = eta (0.9 K - 1) / 0.1,
    and l_c = -w_c E_c / pixels gives E_c. The smallest weight gives the largest energy.

    Returns:
        In nats, and in L2; None for models without energies.
    """
    if not isinstance(model, ABSClassifier):
        return None
    least = float(model.eta) * (CONFIDENCE * model.num_classes - 1) / (1 - CONFIDENCE)
    pixels = math.prod(model.image_shape)
    largest = -math.log(least) * pixels / (model.alpha * float(model.class_weights.min()))
    return {"nats": largest, "L2 from what the decoder draws": math.sqrt(max(0.0, largest))}


def _groups(kinds: np.ndarray, counted: np.ndarray) -> dict[str, np.ndarray]:
    """Which pairs of a start and a target belong to each kind, and to all, bool (N,)."""
    return {"all": counted, **{kind: counted & (kinds == kind) for kind in _KINDS}}


def _summary(
    chosen: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    targets: np.ndarray,
    confidences: np.ndarray,
    distances: np.ndarray,
    near: float,
    origins: np.ndarray,
) -> dict[str, Any]:
    """How often 90 % were reached, and what the images are that reached it.

    Args:
        chosen: Pairs of a start and a target to count, bool (N,).
        starts: (N, height, width, channels).
        ends: As `starts`.
        targets: (N,).
        confidences: In the targets, at the ends, (N,).
        distances: From the ends to the nearest training image of each class, (N, classes).
        near: As for `looks_like`.
        origins: Which start each pair is of, (N,).
    """
    reached = chosen & (confidences >= CONFIDENCE)
    count = int(reached.sum())
    found: dict[str, Any] = {
        "pairs": int(chosen.sum()),
        "reached": dataclasses.asdict(
            clustered_share(confidences[chosen] >= CONFIDENCE, origins[chosen])
        ),
        _ALIKE: None,
    }
    if count:
        assigned = distances[reached].argmin(axis=1) == targets[reached]
        alike = looks_like(distances[reached], targets[reached], near)
        moved = (ends - starts)[reached].reshape(count, -1).astype(np.float64)
        found |= {
            _ALIKE: dataclasses.asdict(clustered_share(alike, origins[reached])),
            "of these assigned to the target by the nearest neighbor": dataclasses.asdict(
                clustered_share(assigned, origins[reached])
            ),
            "median L2 distance to the start": float(np.median(np.linalg.norm(moved, axis=1))),
            "median L2 distance to the nearest training image": float(
                np.median(distances[reached].min(axis=1))
            ),
        }
    return found


def draw(data: Data) -> Mapping[str, Picture]:
    """A block for each model, a row for each kind of start, a column for each target."""
    models = data.numbers["models"]
    classes = next(iter(data.arrays.values())).shape[1]
    block = _HEADING + len(_KINDS) * _ROW + _GAP
    left = _MARGIN + _SIDE
    targets = left + _PITCH + _GAP
    page = Page(targets + classes * _PITCH + _MARGIN - 0.08, _TOP + len(models) * block + 0.05)
    page.text(_MARGIN, 0.18, "Fooling images", fontsize=LARGE, fontweight="bold")
    page.text(
        _MARGIN, 0.44,
        f"Ascent towards each class until {CONFIDENCE:.0%} confidence, at most {_NUM_STEPS} steps"
        f" of {_STEP_LENGTH} in L2. Below each image: the model's confidence in the target.",
        color=FAINT,
    )  # fmt: skip
    page.text(
        _MARGIN, 0.64,
        "Like the target: the nearest training image is of the target, and as near as that of"
        f" {_USUAL:.0%} of the first {_NUM_USUAL:,} test images.",
        color=FAINT,
    )  # fmt: skip
    at = _MARGIN
    for color, text in (
        (_LIKE, f"{CONFIDENCE:.0%} reached, image like the target"),
        (_UNLIKE, f"{CONFIDENCE:.0%} reached, image unlike the target"),
        ("#cccccc", "not reached; blank: the digit's own class"),
    ):
        set_frame(page.panel(at, 0.9, 0.12), color, 1.8 if color != "#cccccc" else 0.5)
        page.text(at + 0.2, 0.895, text, color=FAINT)
        at += 0.5 + 0.062 * len(text)
    page.text(left + _PANEL / 2, _TOP - 0.27, "start", ha="center", fontweight="bold")
    for c in range(classes):
        page.text(
            targets + c * _PITCH + _PANEL / 2, _TOP - 0.27, str(c), ha="center", fontweight="bold"
        )
    for place, (name, numbers) in enumerate(models.items()):
        top = _TOP + place * block
        page.text(_MARGIN, top + 0.06, name, fontweight="bold")
        page.text(left + 0.4, top + 0.06, _heading(numbers["all"]), color=FAINT)
        arrays = data.arrays_of(name)
        for row, kind in enumerate(_KINDS):
            _draw_row(page, top + _HEADING + row * _ROW, kind, row, arrays, left, targets)
    return {"fooling": page.figure}


def _heading(numbers: Mapping[str, Any]) -> str:
    reached = percent_with_interval(numbers["reached"])
    text = f"{reached} of {numbers['pairs']} starts and targets reached"
    if numbers[_ALIKE] is None:
        return text
    return f"{text}; of these, {percent_with_interval(numbers[_ALIKE])} like the target"


def _draw_row(
    page: Page, top: float, kind: str, row: int, arrays: Arrays, left: float, targets: float
) -> None:
    page.text(_MARGIN, top + _PANEL / 2, kind, va="center")
    show_image(page.panel(left, top, _PANEL), arrays["starts"][row])
    for c, image in enumerate(arrays["images"][row]):
        if not arrays["counted"][row, c]:
            continue
        axes = page.panel(targets + c * _PITCH, top, _PANEL)
        show_image(axes, image)
        confidence = arrays["confidences"][row, c]
        reached = confidence >= CONFIDENCE
        if reached:
            set_frame(axes, _LIKE if arrays["alike"][row, c] else _UNLIKE, 1.8)
        page.text(
            targets + c * _PITCH + _PANEL / 2, top + _PANEL + 0.03,
            f"{math.floor(100 * confidence)}%",
            ha="center", fontsize=SMALL, fontweight="bold" if reached else "normal",
        )  # fmt: skip


register(
    Figure(
        "fooling",
        "Images that are no digits, and models that are sure of them",
        compute,
        draw,
        models=("cnn", "madry", "madry_l2", "abs"),
        num_images=10,
    )
)
