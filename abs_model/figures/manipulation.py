"""Class manipulation: a digit turned into another by gradient ascent.

The gradient of a robust network's logit is said to change images as people would (Engstrom,
Santurkar, Tsipras et al. 2019, "Adversarial Robustness as a Prior for Learned Representations",
https://arxiv.org/abs/1906.00945; Santurkar et al. 2019, "Image Synthesis with a Single (Robust)
Classifier", https://arxiv.org/abs/1906.09453). Here the logit of a target class is ascended from a
test image: no epsilon, steps of one L2 length, pixels kept in [0, 1]. Whether the images turn into
the target is for other models to say: the nearest neighbor, and ABS on images that ABS did not
make. `madry_l2` and `plain` have one architecture, adversarially trained and not.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from abs_model.evaluation.images.style import (
    FAINT,
    INK,
    LARGE,
    MEDIUM,
    MODEL_COLORS,
    SMALL,
    Page,
    percent_with_interval,
    set_frame,
    set_percent_axis,
    show_image,
    style_curves,
)
from abs_model.evaluation.tables.statistics import clustered_share
from abs_model.figures.ascent import ascend, target_logits
from abs_model.figures.registry import Arrays, Data, Figure, Film, Picture, Work, register
from abs_model.models.classifier import Classifier
from abs_model.models.nearest_neighbor import nearest_neighbor

_STEP_LENGTH, _NUM_STEPS = 0.4, 40
_FILMED = np.arange(0, _NUM_STEPS + 1, 2)
_JUDGED = _FILMED[::2]  # steps after which images are classified, and drawn
_JUDGED_BY_OTHER_ABS = _JUDGED[::2]  # which takes long
_BATCH = 30
_NEIGHBOR = "nearest_neighbor"
_STATED = ((2, 0), (4, 0))  # pairs to draw and to state, from and to
_FALLBACK = ((1, 0),)  # where there are fewer classes

_MARGIN, _TOP = 0.25, 0.95  # inches, as all that follow
_SIDE = 0.85  # names of models to the left of the strips
_PANEL, _PITCH, _ROW = 0.95, 1.05, 1.22
_HEADING = 0.5  # above each pair
_FILM_PANEL, _FILM_PITCH, _FILM_ROW = 1.6, 1.8, 1.98
_MAP, _MAP_PITCH = 2.4, 2.85
_BELOW = 1.15  # from the maps to the curves


def compute(work: Work) -> Data:
    """Ascends from test images of each class to all others, and asks the judges."""
    starts, origins, targets = _all_pairs(work)
    classes = work.dataset.num_classes
    pairs = _pairs_to_show(classes)
    shown = [np.flatnonzero((origins == a) & (targets == b))[0] for a, b in pairs]
    numbers: dict[str, Any] = {
        "step length, L2": _STEP_LENGTH,
        "images": len(starts),
        "images of each pair of classes": len(starts) // (classes * (classes - 1)),
        "drawn pairs": [list(pair) for pair in pairs],
        "models": {},
    }
    arrays: Arrays = {}
    for name, model in work.models.items():
        paths = work.in_batches(
            f"ascent of {name}",
            [model, _STEP_LENGTH, _NUM_STEPS],
            [starts, targets],
            functools.partial(_ascend, model),
            size=_BATCH,
        )["images"]
        assigned = {}
        for judge, found in {name: model, **_judges(work, model)}.items():
            is_other_abs = hasattr(found, "infer") and found is not model
            steps = _JUDGED_BY_OTHER_ABS if is_other_abs else _JUDGED
            logits = _logits(work, name, judge, found, paths[:, steps])
            assigned["itself" if found is model else judge] = (
                steps,
                logits.argmax(axis=2) == targets[:, None],
            )
        numbers["models"][name] = _numbers(assigned, origins, targets, paths, classes, pairs)
        film = paths[shown][:, _FILMED]
        film_logits = _logits(work, name, name, model, film, part="film")
        confidences = np.asarray(
            model.logits_to_confidences(jnp.asarray(film_logits.reshape(-1, classes)))
        ).reshape(film_logits.shape)
        arrays |= {
            f"{name}/film": film,
            f"{name}/logits": _of_targets(film_logits, targets[shown]),
            f"{name}/confidences": _of_targets(confidences, targets[shown]),
        }
    return Data(numbers, arrays)


def _all_pairs(work: Work) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images to start from, their classes, and a target for each; every ordered pair of classes."""
    test, classes = work.dataset.test, work.dataset.num_classes
    rows = np.concatenate(
        [np.flatnonzero(test.labels == c)[: work.num_images] for c in range(classes)]
    )
    origins = np.repeat(test.labels[rows], classes)
    rows, targets = np.repeat(rows, classes), np.tile(np.arange(classes), len(rows))
    others = origins != targets
    images = test.images[rows[others]].astype(np.float32) / 255
    return images, origins[others].astype(np.int32), targets[others].astype(np.int32)


def _pairs_to_show(num_classes: int) -> tuple[tuple[int, int], ...]:
    return tuple(pair for pair in _STATED if max(pair) < num_classes) or _FALLBACK


def _judges(work: Work, model: Classifier) -> dict[str, Classifier]:
    """Models of another kind: the nearest neighbor, and ABS of what no ABS model made."""
    neighbor = work.models.get(_NEIGHBOR) or nearest_neighbor(work.dataset, _NEIGHBOR)
    judges = {_NEIGHBOR: neighbor}
    if not hasattr(model, "infer"):
        judges |= {name: each for name, each in work.models.items() if hasattr(each, "infer")}
    return {name: judge for name, judge in judges.items() if judge is not model}


def _ascend(model: Classifier, images: np.ndarray, targets: np.ndarray) -> Arrays:
    paths = ascend(
        model, images, targets, score=target_logits, step_length=_STEP_LENGTH, num_steps=_NUM_STEPS
    )
    return {"images": paths}


def _logits(
    work: Work, name: str, judge: str, model: Classifier, images: np.ndarray, part: str = "images"
) -> np.ndarray:
    """Cold logits, (N, frames, classes), of images (N, frames, height, width, channels)."""
    flat = images.reshape(-1, *images.shape[2:])
    # All targets have the test images in common.
    distinct, places = np.unique(flat, axis=0, return_inverse=True)
    found = work.in_batches(
        f"{part} of {name} to {judge}",
        [model],
        [distinct],
        lambda rows: {"logits": np.asarray(model.logits(rows))},
        size=2 * model.batch_size,
    )
    return found["logits"][places.reshape(-1)].reshape(*images.shape[:2], -1)


def _of_targets(values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(N, frames), of values (N, frames, classes)."""
    return np.take_along_axis(values, targets[:, None, None], axis=2)[..., 0]


def _numbers(
    assigned: Mapping[str, tuple[np.ndarray, np.ndarray]],
    origins: np.ndarray,
    targets: np.ndarray,
    paths: np.ndarray,
    num_classes: int,
    pairs: Sequence[tuple[int, int]],
) -> dict[str, Any]:
    """What is known of one model's images.

    Args:
        assigned: By judge, steps (frames,), and whether it assigns the image that is reached after
            these to the target, bool (N, frames).
        origins: Classes that the images had, (N,).
        targets: Classes that they should get, (N,).
        paths: All iterates, (N, steps + 1, ...).
        num_classes: Number of classes.
        pairs: Pairs of classes to state one by one, from and to.
    """
    # Each test image is started from once for every other class.
    starts = np.arange(len(paths)) // (num_classes - 1)
    moved = (paths[:, -1] - paths[:, 0]).reshape(len(paths), -1).astype(np.float64)
    judged = {}
    for judge, (steps, each) in assigned.items():
        matrix = pair_shares(each[:, -1], origins, targets, num_classes)
        judged[judge] = {
            "at the end": dataclasses.asdict(clustered_share(each[:, -1], starts)),
            "steps": steps.tolist(),
            "after these steps": [
                dataclasses.asdict(clustered_share(hits, starts)) for hits in each.T
            ],
            "at the end, from (rows) to (columns)": [
                [None if np.isnan(share) else float(share) for share in row] for row in matrix
            ],
            "at the end, by class from which": np.nanmean(matrix, axis=1).tolist(),
            "at the end, by target": np.nanmean(matrix, axis=0).tolist(),
            "pairs": [
                {"from": a, "to": b} | settled(each[(origins == a) & (targets == b)], steps)
                for a, b in pairs
            ],
        }
    return {
        "median L2 distance of the end from the start": float(
            np.median(np.linalg.norm(moved, axis=1))
        ),
        "assigned to the target": judged,
    }


def settled(assigned: np.ndarray, steps: np.ndarray) -> dict[str, Any]:
    """How many images end as the target, and from which step on each stays it.

    Args:
        assigned: Whether an image is assigned to the target, bool (n, frames).
        steps: After which step, (frames,).
    """
    stays = np.logical_and.accumulate(assigned[:, ::-1], axis=1)[:, ::-1]
    first = steps[np.argmax(stays, axis=1)]
    ends = assigned[:, -1]
    return {
        "images": len(assigned),
        "at the end": int(ends.sum()),
        "from step": [int(step) if end else None for step, end in zip(first, ends, strict=True)],
    }


def pair_shares(
    assigned: np.ndarray, origins: np.ndarray, targets: np.ndarray, num_classes: int
) -> np.ndarray:
    """Share of the images of each pair that are assigned to the target, (from, to).

    NaN where a pair has no image, as on the diagonal.

    Args:
        assigned: Whether they are, bool (N,).
        origins: Classes that the images had, int (N,).
        targets: Classes that they should get, int (N,).
        num_classes: Number of classes.
    """
    hits, counts = np.zeros((2, num_classes, num_classes))
    np.add.at(hits, (origins, targets), assigned)
    np.add.at(counts, (origins, targets), 1)
    return np.where(counts > 0, hits / np.maximum(counts, 1), np.nan)


def draw(data: Data) -> Mapping[str, Picture]:
    """Strips of single steps, the same as a film, and how often each pair succeeds."""
    return {
        "manipulation": _draw_strips(data),
        "manipulation_film": _draw_film(data),
        "manipulation_pairs": _draw_pairs(data),
    }


def _draw_strips(data: Data) -> Picture:
    models, pairs = data.numbers["models"], data.numbers["drawn pairs"]
    block = _HEADING + len(models) * _ROW
    page = Page(
        2 * _MARGIN + _SIDE + len(_JUDGED) * _PITCH - (_PITCH - _PANEL),
        _TOP - 0.2 + len(pairs) * block,
    )
    page.text(
        _MARGIN, 0.18, "Ascending the logit of a target class", fontsize=LARGE, fontweight="bold"
    )
    page.text(
        _MARGIN, 0.44,
        f"Steps of {_STEP_LENGTH} in L2 from a test image, without epsilon. Below each image: logit"
        " of the target, and the model's confidence in it.",
        color=FAINT,
    )  # fmt: skip
    left = _MARGIN + _SIDE
    for place, (origin, target) in enumerate(pairs):
        top = _TOP - 0.2 + place * block
        page.text(
            _MARGIN, top + 0.2, f"{origin} to {target}", fontweight="bold", fontsize=MEDIUM + 1
        )
        for column, step in enumerate(_JUDGED):
            page.text(
                left + column * _PITCH + _PANEL / 2, top + 0.2,
                "test image" if step == 0 else f"step {step}", ha="center", color=FAINT,
            )  # fmt: skip
        for row, name in enumerate(models):
            at = top + _HEADING - 0.08 + row * _ROW
            page.text(_MARGIN, at + _PANEL / 2, name, va="center", fontweight="bold")
            for column, frame in enumerate(np.searchsorted(_FILMED, _JUDGED)):
                _draw_frame(
                    page, data.arrays, name, place, frame, left + column * _PITCH, at, _PANEL
                )
    return page.figure


def _draw_frame(
    page: Page,
    arrays: Arrays,
    name: str,
    place: int,
    frame: int,
    left: float,
    top: float,
    size: float,
) -> None:
    """An image of the film with the logit and confidence of its target below."""
    show_image(page.panel(left, top, size), arrays[f"{name}/film"][place, frame])
    logits = arrays[f"{name}/logits"]
    decimals = 1 if np.abs(logits).max() >= 1 else 4
    logit = f"{logits[place, frame]:.{decimals}f}".replace("-", "\N{MINUS SIGN}")
    confidence = arrays[f"{name}/confidences"][place, frame]
    below = top + size + 0.03
    page.text(left, below, logit, fontsize=SMALL, color=FAINT)
    page.text(
        left + size, below, f"{confidence:.0%}", fontsize=SMALL, ha="right",
        color=INK, fontweight="bold" if confidence >= 0.5 else "normal",
    )  # fmt: skip


def _draw_film(data: Data) -> Film:
    models, pairs = data.numbers["models"], data.numbers["drawn pairs"]
    frames = []
    for frame, step in enumerate(_FILMED):
        page = Page(
            2 * _MARGIN + 0.45 + len(models) * _FILM_PITCH - (_FILM_PITCH - _FILM_PANEL),
            0.95 + len(pairs) * _FILM_ROW - (_FILM_ROW - _FILM_PANEL) + 0.4,
        )
        page.text(
            _MARGIN, 0.15, "Ascending the logit of a target class", fontsize=LARGE - 1,
            fontweight="bold",
        )  # fmt: skip
        page.text(
            _MARGIN, 0.4,
            f"Step {step} of {_NUM_STEPS}. Below: logit of the target, confidence in it.",
            color=FAINT,
        )  # fmt: skip
        for column, name in enumerate(models):
            left = _MARGIN + 0.45 + column * _FILM_PITCH
            page.text(left + _FILM_PANEL / 2, 0.7, name, ha="center", fontweight="bold")
            for place in range(len(pairs)):
                _draw_frame(
                    page, data.arrays, name, place, frame, left, 0.9 + place * _FILM_ROW,
                    _FILM_PANEL,
                )  # fmt: skip
        for place, (origin, target) in enumerate(pairs):
            page.text(
                _MARGIN, 0.9 + place * _FILM_ROW + _FILM_PANEL / 2,
                f"{origin} to {target}", va="center", rotation=90, fontweight="bold",
            )  # fmt: skip
        frames.append(page.figure)
    return Film(frames, seconds=0.12)


def _draw_pairs(data: Data) -> Picture:
    models = data.numbers["models"]
    left, top = _MARGIN + 0.35, _TOP + 0.4
    page = Page(
        left + len(models) * _MAP_PITCH + 0.4,
        top + 2 * _MAP + _BELOW + 0.6,
    )
    page.text(
        _MARGIN, 0.18, "Do the images turn into the target class?", fontsize=LARGE,
        fontweight="bold",
    )  # fmt: skip
    page.text(
        _MARGIN, 0.44,
        f"Upper row: share of the images of each pair of classes"
        f" ({data.numbers['images of each pair of classes']} each) that the nearest neighbor"
        f" assigns to the target after {_NUM_STEPS} steps of {_STEP_LENGTH} in L2.\n"
        "Lower row: share of all images, by who assigns them. Brackets and bands: 95% intervals.",
        color=FAINT, linespacing=1.4,
    )  # fmt: skip
    for column, (name, numbers) in enumerate(models.items()):
        place = left + column * _MAP_PITCH
        judged = numbers["assigned to the target"]
        found = judged.get(_NEIGHBOR, judged["itself"])
        _draw_map(page.panel(place, top, _MAP), found["at the end, from (rows) to (columns)"])
        share = found["at the end"]
        page.text(place, top - 0.2, name, fontweight="bold")
        page.text(
            place + _MAP, top - 0.2,
            percent_with_interval(share), ha="right",
        )  # fmt: skip
        page.text(place + _MAP / 2, top + _MAP + 0.22, "to", ha="center", color=FAINT)
    page.text(_MARGIN, top + _MAP / 2, "from", rotation=90, va="center", color=FAINT)
    _draw_color_bar(page, left + len(models) * _MAP_PITCH - 0.25, top)
    _draw_curves(page, data, left, top + _MAP + _BELOW)
    return page.figure


def _draw_map(axes: Axes, matrix: list[list[float | None]]) -> None:
    shares = np.array(matrix, float)
    axes.set_facecolor("#dddddd")  # of the diagonal
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    ticks = np.arange(len(shares))
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks(ticks[1:] - 0.5, minor=True)
    axes.set_yticks(ticks[1:] - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="both", length=0, labelsize=SMALL, labelcolor=INK, pad=2)
    set_frame(axes, "#cccccc", 0.5)


def _draw_color_bar(page: Page, left: float, top: float) -> None:
    axes = page.panel(left, top, _MAP)
    box = axes.get_position()
    axes.set_position((box.x0, box.y0, 0.12 / page.width, box.height))
    bar = page.figure.colorbar(ScalarMappable(Normalize(0, 1), "Blues"), cax=axes)
    bar.set_ticks([0, 0.5, 1], labels=["0%", "50%", "100%"])
    axes.tick_params(length=0, labelsize=SMALL, labelcolor=INK)
    bar.outline.set_visible(False)


def _draw_curves(page: Page, data: Data, left: float, top: float) -> None:
    """Share of images assigned to the target by the length of all steps, a panel per judge."""
    models = data.numbers["models"]
    titles = {
        _NEIGHBOR: "By the nearest neighbor",
        **{name: f"By {name}" for name in models if name != _NEIGHBOR},
        "itself": "By the model itself",
    }
    judged = {name: numbers["assigned to the target"] for name, numbers in models.items()}
    asked = [judge for judge in titles if any(judge in each for each in judged.values())]
    end = _STEP_LENGTH * _NUM_STEPS
    for column, judge in enumerate(asked):
        axes = page.panel(left + column * _MAP_PITCH, top, _MAP)
        for place, (name, each) in enumerate(judged.items()):
            if judge in each:
                _draw_curve(axes, each[judge], name, place)
        axes.set_title(titles[judge], fontsize=MEDIUM, color=INK, loc="left", fontweight="bold")
        axes.set_xlim(0, end)
        axes.set_ylim(0, 1.02)
        axes.set_xticks(np.linspace(0, end, 5))
        set_percent_axis(axes, 5)
        axes.set_xlabel("length of all steps, $L_2$", fontsize=MEDIUM, color=INK)
        style_curves(axes)
    page.figure.legend(
        handles=axes.get_lines(), loc="upper left", ncols=len(models), frameon=False,
        bbox_to_anchor=(left / page.width, 1 - (top - 0.55) / page.height), borderaxespad=0,
        borderpad=0, fontsize=MEDIUM, labelcolor=INK, handlelength=2.6,
    )  # fmt: skip


_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


def _draw_curve(axes: Axes, judged: Mapping[str, Any], name: str, place: int) -> None:
    color = MODEL_COLORS[place % len(MODEL_COLORS)]
    at = _STEP_LENGTH * np.array(judged["steps"])
    shares = judged["after these steps"]
    low, value, high = ([share[key] for share in shares] for key in ("low", "value", "high"))
    axes.fill_between(at, low, high, color=color, alpha=0.15, lw=0)
    axes.plot(at, value, color=color, lw=1.5, label=name, ls=_DASHES[place % len(_DASHES)])


register(
    Figure(
        "manipulation",
        "Digits turned into others by ascending a logit",
        compute,
        draw,
        models=("plain", "madry_l2", "abs"),
        num_images=2,
    )
)
