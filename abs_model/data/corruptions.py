"""The fifteen corruptions of MNIST-C, which leave the label of a digit as it is.

MNIST-C is Mu and Gilmer (2019), arXiv 1906.02337; these are its definitions with the severities of
its published files, reimplemented in numpy and scipy. From 1 to 5:

    shot noise 5       3 photons for a white pixel
    impulse noise 4    17 % of the pixels, black or white
    glass blur 1       sigma 0.7, swaps with neighbors, 2 rounds
    motion blur 1      radius 10, sigma 3 pixels, within 45 degrees of the horizontal
    shear 2, rotate 2  0.4 radians, left or right
    scale 3            to 70 %
    brightness 5       plus 0.5
    translate 3        3 pixels along each axis
    fog 5              strength 3, decay 1.4
    spatter 4          mud: threshold 0.65, blurred by 1.5 pixels

Stripe, dotted line, zigzag and canny edges have no severity. What differs from the published files:

- Random numbers are others. They depend on the image and the corruption alone, so that an image is
  corrupted in the same way in every batch.
- Nothing is rounded to 8 bits in between, as the original does before it shuffles (glass blur) and
  blurs (motion blur).
- Motion blur follows ImageMagick's algorithm, whose library the original calls.
- Shear, rotation, scaling, Gaussian blurs and Canny's edges are scikit-image's of 2019, with scipy:
  its shear by an angle a also stretches by 1 / cos(a), and the blurs of glass blur, to which the
  original passes the columns as channels, are vertical only.
"""

import itertools
import zlib
from collections.abc import Callable

import numpy as np
from scipy import ndimage

IMAGE_SHAPE = (28, 28, 1)
_SIZE = 28
_CENTER = (_SIZE - 1) / 2

_CANNY_LOW, _CANNY_HIGH = 0.1, 0.2  # of the gradient by Sobel's filter, which is 8 times too large
_LINE_WIDTH = 2.3  # where a line has faded, in pixels above and below


def corrupt(name: str, images: np.ndarray) -> np.ndarray:
    """Corrupts each image; the same image always in the same way.

    Args:
        name: One of `CORRUPTIONS`.
        images: float32 (N, 28, 28, 1) in [0, 1].

    Returns:
        As `images`.

    Raises:
        ValueError: There is no such corruption, or the images have another shape.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"name must be one of {', '.join(CORRUPTIONS)}, got {name!r}")
    if images.shape[1:] != IMAGE_SHAPE:
        raise ValueError(f"images must be (N, 28, 28, 1), got {images.shape}")
    corrupted = np.empty(images.shape, np.float32)
    for index, image in enumerate(np.asarray(images, np.float64)[..., 0]):
        seed = [zlib.crc32(name.encode()), zlib.crc32(image.tobytes())]
        changed = CORRUPTIONS[name](image, np.random.default_rng(seed))
        corrupted[index, ..., 0] = np.clip(changed, 0, 1)
    return corrupted


# Each takes an image, float64 (28, 28) in [0, 1], and returns another, which `corrupt` clips.


def _identity(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return image


def _shot_noise(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return random.poisson(3 * image) / 3


def _impulse_noise(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    hit, white = random.random((2, *image.shape)) < np.array([0.17, 0.5])[:, None, None]
    return np.where(hit, white, image)


def _glass_blur(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    def blurred(pixels: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter1d(pixels, 0.7, axis=0, mode="nearest")

    shuffled = blurred(image)
    backwards = range(_SIZE - 1, 1, -1)
    places = [(row, column) for _ in range(2) for row in backwards for column in backwards]
    draws = random.integers(0, 2, (len(places), 3)).tolist()
    for (row, column), (swapped, up, left) in zip(places, draws, strict=True):
        if swapped:
            here, there = (row, column), (row - up, column - left)
            shuffled[here], shuffled[there] = shuffled[there], shuffled[here]
    return blurred(shuffled)


def _motion_blur(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Half of a Gaussian, on the pixels nearest to a ray."""
    steps = np.arange(21)  # the width of a whole kernel of radius 10
    weights = np.exp(-(steps**2) / (2 * 3**2))
    angle = np.radians(random.uniform(-45, 45))
    down, right = (np.ceil(steps * f(angle) - 0.5).astype(int) for f in (np.sin, np.cos))
    pixels = np.arange(_SIZE)
    rows = np.clip(pixels + down[:, None], 0, _SIZE - 1)
    columns = np.clip(pixels + right[:, None], 0, _SIZE - 1)
    shifted = image[rows[:, :, None], columns[:, None, :]]
    return np.tensordot(weights / weights.sum(), shifted, axes=1)


def _shear(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    angle = 0.4 * _either_way(random)
    return _warp(image, [[np.cos(angle), 0], [-np.sin(angle), 1]])


def _scale(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return _warp(image, np.eye(2) / 0.7)


def _rotate(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    angle = 0.4 * _either_way(random)
    return _warp(image, [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _brightness(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return image + 0.5


def _translate(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    shift = [3 * _either_way(random), 3 * _either_way(random)]
    return ndimage.shift(image, shift, order=0)


def _stripe(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Inverts the left quarter and the right one."""
    column = np.arange(_SIZE)
    return np.where((column < 7) | (column >= 21), 1 - image, image)


def _fog(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    strength, brightest = 3.0, image.max()
    fog = _plasma(random, decay=1.4)[:_SIZE, :_SIZE]
    return (image + strength * fog) * brightest / (brightest + strength)


def _spatter(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    threshold, mud = 0.65, 63 / 255
    liquid = ndimage.gaussian_filter(random.normal(0.65, 0.3, image.shape), 1, mode="nearest")
    drops = ndimage.gaussian_filter((liquid > threshold).astype(float), 1.5, mode="nearest")
    drops = np.where(drops < 0.8, 0.0, drops)
    return image * (1 - drops) + mud * drops


def _dotted_line(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A line from the left to the right edge that is there in two columns out of four."""
    start, end = random.integers(0, 27, 2)
    line = _line((0, start), (27, end))
    return image + np.where(np.arange(_SIZE) // 2 % 2 == 1, line, 0.0)


def _zigzag(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A zigzag of amplitude 2 and wavelength 8 along a line from column 2 to column 25."""
    first, last, reach = 2, 25, 2
    start = random.integers(0, 27)
    rise = random.integers(-5, 5)
    angle = np.arctan(rise / (last - first))
    length = (last - first) / np.cos(angle)
    turns = np.arange(int((length - reach) // (2 * reach)) + 1)
    along = (2 * turns + 1) * reach
    across = reach * (-1.0) ** turns
    # The end is off the line, as in the original.
    off = across[-1] / (2 * (length % (2 * reach)))
    corners = np.array([[0, *along, length], [0, *across, off]])
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    columns, rows = turned @ corners + np.array([[first], [start]])
    points = list(zip(columns, rows, strict=True))
    return image + sum(_line(*ends) for ends in itertools.pairwise(points))


def _canny_edges(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Canny's edges (1986): ridges of the gradient's length, above a threshold or linked to that.

    The image is blurred by 1 pixel.
    """
    inside = ndimage.gaussian_filter(np.ones_like(image), 1, mode="constant")
    smooth = ndimage.gaussian_filter(image, 1, mode="constant") / inside
    gradient = np.stack([ndimage.sobel(smooth, axis=0), ndimage.sobel(smooth, axis=1)])
    lengths = np.hypot(*gradient)
    # A step to the edge of the 3 by 3 pixels around, where a length is between two pixels' lengths.
    largest = np.abs(gradient).max(axis=0)
    step = gradient / np.where(largest > 0, largest, 1)
    place = np.indices(image.shape)
    ahead = ndimage.map_coordinates(lengths, place + step, order=1)
    behind = ndimage.map_coordinates(lengths, place - step, order=1)
    ridge = (lengths >= ahead) & (lengths >= behind)
    ridge[[0, -1]] = ridge[:, [0, -1]] = False
    linked = ndimage.label(ridge & (lengths >= _CANNY_LOW), np.ones((3, 3)))[0]
    strong = np.unique(linked[ridge & (lengths >= _CANNY_HIGH)])
    return np.isin(linked, strong[strong > 0]).astype(float)


def _either_way(random: np.random.Generator) -> int:
    return 1 if random.random() < 0.5 else -1


def _warp(image: np.ndarray, matrix: np.ndarray | list[list[float]]) -> np.ndarray:
    """The image whose pixel at c + d is the old one's at c + matrix d, c the center, linearly.

    Args:
        image: (28, 28); black outside.
        matrix: (2, 2), acts on displacements in rows and columns.
    """
    matrix = np.asarray(matrix)
    center = np.full(2, _CENTER)
    offset = center - matrix @ center
    return ndimage.affine_transform(image, matrix, offset, order=1, mode="grid-constant")


def _line(start: tuple[float, float], end: tuple[float, float]) -> np.ndarray:
    """A line between two points (column, row), which fades above and below it, (28, 28)."""
    (left, top), (right, bottom) = start, end
    columns, rows = np.arange(_SIZE), np.arange(_SIZE)[:, None]
    middle = top + (bottom - top) / (right - left) * (columns - left)
    distance = np.minimum(np.abs(rows - middle) / _LINE_WIDTH, 1 - 1e-10)
    brightness = np.clip(1 + np.log(1 - distance), 0, 1)
    return np.where((columns >= np.floor(left)) & (columns < np.ceil(right)), brightness, 0.0)


def _plasma(random: np.random.Generator, decay: float, size: int = 256) -> np.ndarray:
    """Heights from 0 to 1 by the diamond-square algorithm on a torus, (size, size).

    Args:
        random: Draws the displacements, uniform within a square number, at first 100 squared.
        decay: What halving the step divides the number by before it is squared.
        size: A power of two.
    """
    heights = np.zeros((size, size))
    step, reach = size, 100.0

    def displaced(*around: np.ndarray) -> np.ndarray:
        noise = random.uniform(-(reach**2), reach**2, around[0].shape)
        return sum(around) / 4 + noise

    while step > 1:
        half = step // 2
        corners = heights[::step, ::step]
        right = np.roll(corners, -1, axis=1)
        below = np.roll(corners, -1, axis=0)
        centers = displaced(corners, right, below, np.roll(right, -1, axis=0))
        heights[half::step, half::step] = centers
        heights[::step, half::step] = displaced(corners, right, centers, np.roll(centers, 1, 0))
        heights[half::step, ::step] = displaced(corners, below, centers, np.roll(centers, 1, 1))
        step, reach = half, reach / decay
    heights -= heights.min()
    return heights / heights.max()


CORRUPTIONS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "identity": _identity,
    "shot noise": _shot_noise,
    "impulse noise": _impulse_noise,
    "glass blur": _glass_blur,
    "motion blur": _motion_blur,
    "shear": _shear,
    "scale": _scale,
    "rotate": _rotate,
    "brightness": _brightness,
    "translate": _translate,
    "stripe": _stripe,
    "fog": _fog,
    "spatter": _spatter,
    "dotted line": _dotted_line,
    "zigzag": _zigzag,
    "canny edges": _canny_edges,
}
