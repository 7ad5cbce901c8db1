"""Accuracy under the fifteen corruptions of MNIST-C (Mu and Gilmer 2019, arXiv 1906.02337).

`abs_model.data.corruptions` makes them and says how they differ from the published files.
"""

import dataclasses
from collections.abc import Mapping

import matplotlib.figure
import numpy as np

from abs_model._runtime.errors import UserError
from abs_model.data.corruptions import CORRUPTIONS, IMAGE_SHAPE, corrupt
from abs_model.evaluation.images.style import (
    FAINT,
    INK,
    LARGE,
    MEDIUM,
    SMALL,
    Page,
    set_frame,
    show_image,
)
from abs_model.evaluation.tables.statistics import Estimate, clustered_share, share_interval
from abs_model.figures.registry import Data, Figure, Work, register

_CONTROL = "identity"
_MEAN = "mean"

# Inches.
_MARGIN, _HEADER, _NAMES = 0.3, 1.05, 1.15
_CELL_WIDTH, _CELL_HEIGHT, _IMAGE = 0.62, 0.36, 0.54
_GAP = 0.12  # beside the control and the mean


def compute(work: Work) -> Data:
    """Accuracy of each model under each corruption, and the mean over the corruptions.

    Raises:
        UserError: The images are not 28 by 28 and gray.
    """
    if work.dataset.image_shape != IMAGE_SHAPE:
        raise UserError(
            f"figure {work.figure!r} requires images of 28 x 28 x 1, as MNIST has;"
            f" {work.dataset.name} has {' x '.join(map(str, work.dataset.image_shape))}"
        )
    corrupted = np.stack([corrupt(name, work.images) for name in CORRUPTIONS])
    accuracies = {}
    for name, model in work.models.items():
        # All in one row of batches, so that few are padded.
        predictions = work.in_batches(
            f"predictions of {name}",
            [model],
            [corrupted.reshape(-1, *IMAGE_SHAPE)],
            lambda images, model=model: {"predictions": model.predict(images)},
            size=128,
        )["predictions"]
        correct = predictions.reshape(len(CORRUPTIONS), -1) == work.labels
        shares = {
            corruption: share_interval(int(row.sum()), len(row))
            for corruption, row in zip(CORRUPTIONS, correct, strict=True)
        }
        control = list(CORRUPTIONS).index(_CONTROL)
        shares[_MEAN] = mean_accuracy(np.delete(correct, control, axis=0))
        accuracies[name] = {key: dataclasses.asdict(share) for key, share in shares.items()}
    numbers = {"accuracies": accuracies, "num_images": len(work.labels)}
    return Data(numbers, {"examples": corrupted[:, 0]})


def mean_accuracy(correct: np.ndarray) -> Estimate:
    """The mean over corruptions, with a bootstrap interval over images.

    Images are drawn with all their corruptions, because these succeed or fail together.

    Args:
        correct: bool (corruptions, N).
    """
    images = np.tile(np.arange(correct.shape[1]), len(correct))
    return clustered_share(correct.reshape(-1), images)


def draw(data: Data) -> Mapping[str, matplotlib.figure.Figure]:
    """A table, colored by accuracy, with an example above each corruption."""
    accuracies = data.numbers["accuracies"]
    examples = dict(zip(CORRUPTIONS, data.arrays["examples"], strict=True))
    corruptions = [name for name in CORRUPTIONS if name != _CONTROL]
    width = 2 * _MARGIN + _NAMES + (len(corruptions) + 2) * _CELL_WIDTH + 2 * _GAP
    top = _HEADER + _IMAGE + 0.08
    page = Page(width, top + len(accuracies) * _CELL_HEIGHT + 0.25)
    page.text(_MARGIN, 0.15, "Accuracy under corruptions", fontsize=LARGE, fontweight="bold")
    note = (
        f"Accuracy in percent on the first {data.numbers['num_images']:,} test images, corrupted as"
        " in MNIST-C."
        " Identity is the control and not part of the mean."
    )
    page.text(_MARGIN, 0.42, note, color=FAINT)
    for row, name in enumerate(accuracies):
        middle = top + (row + 0.5) * _CELL_HEIGHT
        page.text(_MARGIN + _NAMES - 0.08, middle, name, ha="right", va="center")
    left = _MARGIN + _NAMES
    for block in ([_CONTROL], corruptions, [_MEAN]):
        for column, name in enumerate(block):
            place = left + column * _CELL_WIDTH
            weight = "bold" if name == _MEAN else "normal"
            # The mean has no image, and its name stands right above its numbers.
            bottom = _HEADER - 0.06 if name in examples else top - 0.06
            page.text(
                place + _CELL_WIDTH / 2, bottom, name.replace(" ", "\n"),
                ha="center", va="bottom", fontweight=weight, fontsize=SMALL,
            )  # fmt: skip
            if name in examples:
                panel = page.panel(place + (_CELL_WIDTH - _IMAGE) / 2, _HEADER, _IMAGE)
                show_image(panel, examples[name])
        values = [[of_model[name]["value"] for name in block] for of_model in accuracies.values()]
        _draw_block(page, left, top, np.array(values))
        left += len(block) * _CELL_WIDTH + _GAP
    return {"corruptions": page.figure}


def _draw_block(page: Page, left: float, top: float, values: np.ndarray) -> None:
    """Cells, from white, no image correct, to dark blue, all of them.

    Args:
        page: To draw on.
        left: Left edge of the block, in inches.
        top: Top edge, in inches.
        values: Accuracies, (models, columns).
    """
    width, height = values.shape[1] * _CELL_WIDTH, values.shape[0] * _CELL_HEIGHT
    axes = page.axes(left, top, width, height)
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1.15, aspect="auto", interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    set_frame(axes, "#cccccc", 0.5)
    for (row, column), value in np.ndenumerate(values):
        color = "white" if value > 0.7 else INK
        axes.text(
            column, row, f"{100 * value:.1f}", ha="center", va="center",
            fontsize=MEDIUM, color=color,
        )  # fmt: skip


register(
    Figure(
        "corruptions",
        "Accuracy under the corruptions of MNIST-C",
        compute,
        draw,
        models=("cnn", "madry", "nearest_neighbor", "abs", "binary_abs"),
        num_images=200,
    )
)
