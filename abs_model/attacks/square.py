"""Square attack: random search over square-shaped changes that uses only scores.

Andriushchenko, Croce, Flammarion and Hein, "Square Attack: a query-efficient black-box adversarial
attack via random search", ECCV 2020 (https://arxiv.org/abs/1912.00049). Each step changes the
perturbation in a square at a random place, so that it still uses up epsilon, and the change stays
where it raises the margin:

- L-infinity (Algorithm 2): the square's values go to the original's plus or minus epsilon, one sign
  for each channel. It starts from vertical stripes of random signs.
- L2 (Algorithm 3): two windows are drawn. The change in the second is taken away, and what it
  had of the squared norm, together with what is unused, goes to the first: its change, brought to
  length 1, plus or minus a pattern of two bumps of opposite sign (eq. 2), brought to length 1.
  It starts from a grid of 5 x 5 such patterns.

The square's share p of the image's area shrinks by halves at fixed shares of the steps.
"""

import bisect
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abs_model._runtime.checks import check_count, check_number
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.best_so_far import BestSoFar
from abs_model.attacks._core.checks import check_epsilon, check_norm
from abs_model.attacks._core.keys import split_keys
from abs_model.attacks._core.losses import margins
from abs_model.attacks._core.norms import choose, project
from abs_model.attacks._core.query import Answer, Query
from abs_model.attacks._core.result import AttackResult
from abs_model.attacks._core.run import Progress, run
from abs_model.attacks.registry import Access, Queries, register
from abs_model.models.classifier import Classifier

_NORMS = ("l2", "linf")
# After each of these of 10,000 steps, p is halved (the paper's supplement).
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# Squares of a larger share of the image move it too far for warm queries.
_LARGE = 0.25
_GRID = 5


@register(
    title="Square",
    norms=_NORMS,
    access=Access.SCORES,
    source="Andriushchenko et al. 2020",
    smoke={"num_steps": 10},
    most_queries=lambda settings, norm, model: Queries(
        logits=1 + settings["num_restarts"] * (1 + settings["num_steps"])
    ),
)
def square(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    norm: str,
    epsilon: float,
    num_steps: int = 10_000,
    p_init: float = 0.8,
    num_restarts: int = 1,
    targets: Any = None,
    progress: Progress | None = None,
) -> AttackResult:
    """Attacks a classifier with the Square attack on the margin of the logits; without gradients.

    The search of an image ends with its first success. Queries the classifier at most
    `1 + num_restarts * (num_steps + 1)` times; it stops when all images are adversarial. A
    square that would change nothing is drawn with the other signs, as in the authors' code.

    Args:
        images, labels, targets, key, progress: As for every attack; see `abs_model.attacks`.
        model: The classifier; may be a black box.
        norm: "l2" or "linf".
        epsilon: Largest distance in that norm, for pixels in [0, 1]: from 0 to that of black and
            white, 1 in L-infinity.
        num_steps: Squares to try from each start; 10,000 in the paper, to which the schedule of p
            is relative.
        p_init: Share of the image's area that the first squares cover, above 0 and at most 1. The
            paper has 0.8 for the Madry network on MNIST, as has AutoAttack for everything.
        num_restarts: Starts to try.

    Returns:
        Per image the adversarial one; where there is none, that of the highest margin.

    Raises:
        ValueError: An argument is invalid.
    """
    check_norm(norm, _NORMS)
    epsilon = check_epsilon(epsilon, norm, model.image_shape)
    num_steps = check_count("num_steps", num_steps)
    p_init = check_number("p_init", p_init, minimum=0.0, maximum=1.0, exclusive=True)
    num_restarts = check_count("num_restarts", num_restarts)

    def attack(query: Query, batch: Batch) -> None:
        query.logits(batch.images)
        for restart in range(num_restarts):
            number = restart * (num_steps + 1)
            here = query.logits(_start(batch, query.best, number, epsilon, norm))
            for step in range(num_steps):
                if query.all_succeeded():
                    break
                share = share_of_image(step, num_steps, p_init)
                side = side_of_square(share, model.image_shape, norm)
                proposals = _propose(
                    batch, here.images, query.best, number + 1 + step, side, epsilon, norm
                )
                near = None if share > _LARGE else here
                here = _accept(batch, here, query.logits(proposals, near, classes=batch.classes))
                if query.just_verified:
                    # The search must not be stuck at a margin that was wrong.
                    here = query.logits(here.images)
            query.settle()

    return run(
        attack, model, images, labels, key, norm=norm, norms=_NORMS, epsilon=epsilon,
        targets=targets, progress=progress,
    )  # fmt: skip


def share_of_image(step: int, num_steps: int, p_init: float) -> float:
    """The share of the image's area that the square of a step covers: the paper's schedule of p.

    Args:
        step: From 0.
        num_steps: To which the schedule, which is for 10,000 steps, is stretched.
        p_init: The first share.
    """
    return p_init / 2 ** bisect.bisect_left(_HALVINGS, int(step / num_steps * 10_000))


def side_of_square(share: float, image_shape: tuple[int, int, int], norm: str) -> int:
    """The side of a square of that share of an image, in pixels; odd and at least 3 for "l2"."""
    height, width, _ = image_shape
    side = round(math.sqrt(share * height * width))
    largest = min(height, width)
    if norm == "linf":
        return min(max(side, 1), largest)
    return min(max(side | 1, 3), largest - 1 + largest % 2)


@jax.jit
def _accept(batch: Batch, here: Answer, there: Answer) -> Answer:
    """Goes where the margin is higher."""
    return choose(margins(there.logits, batch) > margins(here.logits, batch), there, here)


@functools.partial(jax.jit, static_argnames="norm")
def _start(batch: Batch, best: BestSoFar, number: int, epsilon: float, norm: str) -> jax.Array:
    """Images at a distance of epsilon, clipped to [0, 1]; the best ones where these are done."""
    shape = batch.images.shape[1:]
    keys = split_keys(batch, number)
    start = _stripes if norm == "linf" else _tiles
    changes = epsilon * jax.vmap(lambda key: start(key, shape))(keys)
    started = project(batch.images + changes, batch.images, epsilon, norm)
    return choose(best.done, best.images, started)


@functools.partial(jax.jit, static_argnames="norm")
def _propose(
    batch: Batch,
    images: jax.Array,
    best: BestSoFar,
    number: int,
    side: int,
    epsilon: float,
    norm: str,
) -> jax.Array:
    """Images with the perturbation changed in a square (two squares for "l2") of that side;
    the best ones where these are done.

    One program for squares of all sizes: what lies inside is found by comparing coordinates.
    """
    keys = split_keys(batch, number)
    change = _change_linf if norm == "linf" else _change_l2

    def of_image(key: jax.Array, image: jax.Array, original: jax.Array) -> jax.Array:
        return change(key, image, original, side, epsilon)

    changed = jax.vmap(of_image)(keys, images, batch.images)
    changed = project(changed, batch.images, epsilon, norm)
    return choose(best.done, best.images, changed)


def _stripes(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    signs = jax.random.rademacher(key, (1, *shape[1:]), jnp.float32)
    return jnp.broadcast_to(signs, shape)


def _change_linf(
    key: jax.Array, image: jax.Array, original: jax.Array, side: int, epsilon: float
) -> jax.Array:
    place_key, sign_key = jax.random.split(key)
    inside = _window(place_key, image.shape, side)[2]
    signs = jax.random.rademacher(sign_key, image.shape[2:], jnp.float32)

    def with_signs(signs: jax.Array) -> jax.Array:
        return jnp.where(inside, jnp.clip(original + epsilon * signs, 0.0, 1.0), image)

    changed = with_signs(signs)
    # Not exactly equal only by rounding, which is no change worth a query.
    same = jnp.abs(changed - image).max() <= 1e-6
    return jnp.where(same, with_signs(-signs), changed)


def _tiles(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A grid of 5 x 5 patterns in the middle of the image, of random signs; of length 1."""
    height, width, channels = shape
    side = max(min(height, width) // _GRID, 1)
    rows = jnp.arange(height)[:, None] - (height - _GRID * side) // 2
    columns = jnp.arange(width)[None] - (width - _GRID * side) // 2
    shape_key, sign_key = jax.random.split(key)
    signs = jax.random.rademacher(sign_key, (_GRID, _GRID, channels), jnp.float32)
    transposed = jax.random.bernoulli(shape_key, shape=(_GRID, _GRID))
    row, column = (jnp.clip(x // side, 0, _GRID - 1) for x in (rows, columns))
    inside = (row * side <= rows) & (rows < (row + 1) * side)
    inside &= (column * side <= columns) & (columns < (column + 1) * side)
    pattern = _bumps(rows - row * side, columns - column * side, side, transposed[row, column])
    return _unit(jnp.where(inside, pattern, 0.0)[..., None] * signs[row, column])


def _change_l2(
    key: jax.Array, image: jax.Array, original: jax.Array, side: int, epsilon: float
) -> jax.Array:
    change = image - original
    to_key, from_key, shape_key, sign_key = jax.random.split(key, 4)
    rows, columns, inside = _window(to_key, image.shape, side)
    emptied = _window(from_key, image.shape, side)[2]
    signs = jax.random.rademacher(sign_key, image.shape[2:], jnp.float32)
    bumps = _unit(_bumps(rows, columns, side, jax.random.bernoulli(shape_key)))
    here = jnp.where(inside, change, 0.0)
    lengths = jnp.sqrt(jnp.sum(here**2, axis=(0, 1)))
    shape = bumps[..., None] * signs + here / jnp.where(lengths > 0, lengths, 1.0)
    unused = jnp.maximum(0.0, epsilon**2 - jnp.sum(change**2))
    in_both = jnp.sum(jnp.where(inside | emptied, change, 0.0) ** 2, axis=(0, 1))
    available = jnp.sqrt(in_both + unused / image.shape[2])
    norms = jnp.sqrt(jnp.sum(shape**2, axis=(0, 1)))
    new = available * shape / jnp.where(norms > 0, norms, 1.0)
    return original + jnp.where(inside, new, jnp.where(emptied, 0.0, change))


def _window(
    key: jax.Array, shape: tuple[int, ...], side: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A square at a random place: each row's (height, 1) and column's (1, width) number in it.

    And whether a pixel is inside, bool (height, width, 1).
    """
    height, width, _ = shape
    row_key, column_key = jax.random.split(key)
    rows = jnp.arange(height)[:, None] - jax.random.randint(row_key, (), 0, height - side + 1)
    columns = jnp.arange(width)[None] - jax.random.randint(column_key, (), 0, width - side + 1)
    inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    return rows, columns, inside[..., None]


def _bumps(rows: jax.Array, columns: jax.Array, side: int, transposed: jax.Array) -> jax.Array:
    """The paper's pattern, eq. 2: an upper half of positive and a lower half of negative values.

    Each half falls off from its middle. At a Chebyshev distance of d from there the absolute value
    is the sum of 1 / j^2 over j from d + 1 to side // 2 + 1.

    Args:
        rows: Number of the row in a square, any integers; outside it the pattern is zero.
        columns: Of the column; goes with `rows` by broadcasting.
        side: Of the square.
        transposed: Whether the halves lie beside each other instead; goes with the others, too.
    """
    rows, columns = jnp.broadcast_arrays(rows, columns)
    rows, columns = jnp.where(transposed, columns, rows), jnp.where(transposed, rows, columns)
    half = side // 2
    upper = rows < half
    middle = jnp.where(upper, half // 2, half + (side - half) // 2)
    distance = jnp.maximum(jnp.abs(rows - middle), jnp.abs(columns - half))
    terms = 1.0 / np.arange(1, max(rows.shape) + 2) ** 2
    sums = jnp.asarray(np.append(0.0, np.cumsum(terms)), jnp.float32)
    size = sums[half + 1] - sums[jnp.minimum(distance, half + 1)]
    inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    return jnp.where(inside, jnp.where(upper, size, -size), 0.0)


def _unit(change: jax.Array) -> jax.Array:
    """The change brought to length 1, which is not zero."""
    return change / jnp.sqrt(jnp.sum(change**2))
