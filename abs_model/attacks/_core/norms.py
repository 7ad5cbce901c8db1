"""The geometry of the norms in which attacks measure changes.

Images are float32 (N, height, width, channels) in [0, 1]; distances are in the same unit, over all
pixels and channels of an image: "l2" is the Euclidean distance, "linf" the largest change of any
value; "l0" is the number of pixels that change, in whichever channels. All functions are pure
and can be traced.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from abs_model.attacks._core.checks import check_norm

PyTree = Any


def distances(first: jax.Array, second: jax.Array, norm: str) -> jax.Array:
    """The distance of each pair of images, float32 (N,).

    Args:
        first: Images (N, height, width, channels).
        second: Images of the same shape.
        norm: One of NORMS.

    Raises:
        ValueError: `norm` is none of these.
    """
    return lengths(first - second, norm)


def project(
    images: jax.Array, centers: jax.Array, epsilon: float | jax.Array, norm: str
) -> jax.Array:
    """Moves images into [0, 1] and to within `epsilon` of their centers.

    In L-infinity this is the nearest such image. In L2 it is the nearest point of the ball, clipped
    to [0, 1]; clipping comes no farther from the center, which lies in [0, 1] itself, so that both
    bounds hold.

    Args:
        images: (N, height, width, channels), any values.
        centers: Same shape, in [0, 1].
        epsilon: Radius, at least 0; a number, or one for each image, (N,).
        norm: "l2" or "linf".

    Returns:
        Images of the same shape, within `epsilon` up to float rounding; finite input stays finite.

    Raises:
        ValueError: `norm` is neither.
    """
    check_norm(norm, ("l2", "linf"))
    change = images - centers
    if norm == "linf":
        radius = per_image(jnp.broadcast_to(epsilon, images.shape[:1]))
        change = jnp.clip(change, -radius, radius)
    else:
        length = lengths(change, norm)
        scale = jnp.where(length > epsilon, epsilon / jnp.where(length > 0, length, 1.0), 1.0)
        change = change * per_image(scale)
    return jnp.clip(centers + change, 0.0, 1.0)


def snap(images: jax.Array, originals: jax.Array) -> jax.Array:
    """The images closest to the originals, in any norm, that look like `images` when thresholded.

    Values on the other side of the threshold than the original's go just across: down to 0.5, which
    counts as 0, or up to the next float above. All others are the original's. Each channel has
    values of its own.

    Args:
        images: (n, height, width, channels), or thresholded ones.
        originals: Same shape.
    """
    wanted = images > 0.5
    across = jnp.where(wanted, jnp.nextafter(jnp.float32(0.5), jnp.float32(1.0)), 0.5)
    return jnp.where(wanted == (originals > 0.5), originals, across)


@functools.partial(jax.jit, static_argnames="norm")
def random_start(
    keys: jax.Array, images: jax.Array, epsilon: float | jax.Array, norm: str
) -> jax.Array:
    """Draws a point uniformly from the ball around each image, clipped to [0, 1].

    Args:
        keys: A key for each image, (N,); see `image_keys`.
        images: (N, height, width, channels) in [0, 1].
        epsilon: Radius, at least 0; a number, or one for each image, (N,).
        norm: "l2" or "linf".

    Raises:
        ValueError: `norm` is neither.
    """
    check_norm(norm, ("l2", "linf"))
    shape = images.shape[1:]

    def draw_linf(key: jax.Array) -> jax.Array:
        return jax.random.uniform(key, shape, images.dtype, minval=-1.0, maxval=1.0)

    def draw_l2(key: jax.Array) -> jax.Array:
        direction_key, radius_key = jax.random.split(key)
        direction = jax.random.normal(direction_key, shape, images.dtype)
        # The volume within radius r grows as r^d, so its d-th root turns uniform into uniform.
        radius = jax.random.uniform(radius_key, (), images.dtype) ** (1.0 / math.prod(shape))
        return radius * direction / jnp.linalg.norm(direction)

    noise = jax.vmap(draw_linf if norm == "linf" else draw_l2)(keys)
    radius = per_image(jnp.broadcast_to(epsilon, images.shape[:1]))
    return project(images + radius * noise, images, epsilon, norm)


def ascent_direction(gradients: jax.Array, norm: str) -> jax.Array:
    """The change of length 1 in `norm` that follows each gradient most steeply.

    The sign of the gradient for "linf" and the normalized gradient for "l2"; zero where the
    gradient is zero.

    Raises:
        ValueError: `norm` is neither.
    """
    check_norm(norm, ("l2", "linf"))
    if norm == "linf":
        return jnp.sign(gradients)
    # Scaled to a largest entry of 1 first: squares of tiny gradients would underflow to zero.
    largest = lengths(gradients, "linf")
    scaled = gradients / per_image(jnp.where(largest > 0, largest, 1.0))
    return scaled / per_image(jnp.maximum(lengths(scaled, "l2"), 1.0))


def lengths(changes: jax.Array, norm: str) -> jax.Array:
    """The norm of each change, float32 (N,)."""
    check_norm(norm)
    if norm == "l0":
        return jnp.any(changes != 0, axis=3).sum((1, 2)).astype(jnp.float32)
    flat = changes.reshape(changes.shape[0], -1)
    return jnp.abs(flat).max(1) if norm == "linf" else jnp.sqrt(jnp.sum(flat * flat, 1))


def dual_norms(gradients: jax.Array, norm: str) -> jax.Array:
    """How much a linear function grows at most per unit of distance: the dual norm of its gradient.

    The sum of absolute values for "linf", the Euclidean norm for "l2".

    Args:
        gradients: (..., height, width, channels), of any scale: squares do not underflow.
        norm: "l2" or "linf", of the distance.

    Returns:
        float32 (...).

    Raises:
        ValueError: `norm` is neither.
    """
    check_norm(norm, ("l2", "linf"))
    axes = (-3, -2, -1)
    sizes = jnp.abs(gradients)
    largest = sizes.max(axes, keepdims=True)
    sizes = sizes / jnp.where(largest > 0, largest, 1.0)
    total = sizes.sum(axes) if norm == "linf" else jnp.sqrt((sizes * sizes).sum(axes))
    return largest.squeeze(axes) * total


def max_distance(images: jax.Array, norm: str) -> jax.Array:
    """The distance from each image to the farthest image in [0, 1], float32 (n,)."""
    return lengths(jnp.maximum(images, 1.0 - images), norm)


def per_image(values: jax.Array) -> jax.Array:
    """(N,) as (N, 1, 1, 1), to go with images."""
    return values[:, None, None, None]


def take_class(values: jax.Array, classes: jax.Array) -> jax.Array:
    """From values (n, classes, ...) those of one class for each image, (n, ...)."""
    index = classes.reshape(-1, *(1,) * (values.ndim - 1))
    return jnp.take_along_axis(values, index, axis=1)[:, 0]


def choose(condition: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """For each image, `new` where the condition (N,) holds, else `old`.

    Args:
        condition: bool (N,).
        new: A pytree whose leaves have a leading axis of N.
        old: Of the same structure.
    """

    def pick(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(condition.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(pick, new, old)
