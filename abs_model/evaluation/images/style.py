"""The style of all pictures: sizes, colors, and the parts that they share.

Drawn with matplotlib's objects, without pyplot and its global state. Colors of models differ in
brightness, so that they can be told apart in gray and by the color-blind.
"""

import io
import os
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from abs_model._runtime.atomic_files import atomic_write_bytes

DPI = 150
SMALL, MEDIUM, LARGE = 7, 8, 12  # points
INK, FAINT = "#222222", "#767676"
NORM_SYMBOLS = {"l2": "$L_2$", "linf": r"$L_\infty$", "l0": "$L_0$"}
UNITS = {"l2": "", "linf": "", "l0": ", pixels"}
MODEL_COLORS = (
    "#1f5fa8", "#d98200", "#2e8b57", "#c8401a", "#6a3d9a", "#8c6d46", "#d16ba5", "#5c5c5c",
    "#17a2b8",
)  # fmt: skip


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure as PNG, atomically; its directory must exist."""
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    atomic_write_bytes(path, content.getvalue())


class Page:
    """A figure whose parts are placed in inches from its top left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = new_figure(width, height)
        self.width, self.height = width, height

    def text(self, left: float, top: float, content: str, **options: Any) -> None:
        """Text whose top left corner is at the place; `options` may change that."""
        placed: dict[str, Any] = {"fontsize": MEDIUM, "color": INK, "va": "top", **options}
        self.figure.text(left / self.width, 1 - top / self.height, content, **placed)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes whose top left corner is at the place."""
        return self.figure.add_axes(
            (
                left / self.width,
                1 - (top + height) / self.height,
                width / self.width,
                height / self.height,
            )
        )

    def panel(self, left: float, top: float, size: float) -> Axes:
        """A square for an image, without ticks and with a faint frame."""
        axes = self.axes(left, top, size, size)
        axes.set_xticks([])
        axes.set_yticks([])
        set_frame(axes, "#cccccc", 0.5)
        return axes


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, `width` by `height` inches."""
    return Figure(figsize=(width, height), dpi=DPI, facecolor="white")


def style_curves(axes: Axes) -> None:
    """Gives axes with curves their grid, small ticks, and two spines."""
    axes.tick_params(axis="both", length=0, labelsize=SMALL, labelcolor=INK)
    axes.grid(color="#e8e8e8", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def set_percent_axis(axes: Axes, count: int) -> None:
    """Ticks of shares, from 0% to 100%, so many, on the vertical axis."""
    ticks = np.linspace(0, 1, count)
    axes.set_yticks(ticks, [f"{tick:.0%}" for tick in ticks])


def percent_with_interval(share: Mapping[str, float]) -> str:
    """E.g. "61% (54%–67%)", of a share with "value", "low" and "high"."""
    return f"{share['value']:.0%} ({share['low']:.0%}\N{EN DASH}{share['high']:.0%})"


def set_frame(axes: Axes, color: str, width: float) -> None:
    """Sets color and line width, in points, of the frame around `axes`."""
    for spine in axes.spines.values():
        spine.set(edgecolor=color, linewidth=width)


def show_image(
    axes: Axes, image: np.ndarray, *, aspect: Literal["equal", "auto"] = "equal"
) -> None:
    """Shows an image (height, width, channels) in [0, 1], in gray unless it has three channels."""
    if image.shape[-1] == 3:
        axes.imshow(image, interpolation="nearest", aspect=aspect)
    else:
        gray = image.mean(-1)
        axes.imshow(gray, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect=aspect)


def strongest_channel(perturbation: np.ndarray) -> np.ndarray:
    """The signed change of largest size in each pixel: (h, w, c) to (h, w).

    A mean would show a change of hue as none.
    """
    strongest = np.argmax(np.abs(perturbation), axis=-1, keepdims=True)
    return np.take_along_axis(perturbation, strongest, axis=-1)[..., 0]
