"""Random changes of training images that leave the label of a digit as it is."""

import functools

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates


def shift_and_rotate(
    images: jax.Array, key: jax.Array, *, max_shift: float, max_rotation: float
) -> jax.Array:
    """Shifts and rotates each image at random, about its center; what comes in is black.

    Pixels between the old ones are interpolated bilinearly.

    Args:
        images: float32 (N, height, width, channels).
        key: JAX random key.
        max_shift: In pixels along each axis, the largest one, either way.
        max_rotation: In degrees, likewise.

    Returns:
        As `images`.
    """
    height, width = images.shape[1:3]
    center = jnp.array([height - 1, width - 1])[:, None, None] / 2
    offsets = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")) - center
    shift_key, angle_key = jax.random.split(key)
    draw = functools.partial(jax.random.uniform, minval=-1, maxval=1)
    shifts = max_shift * draw(shift_key, (len(images), 2))
    angles = jnp.deg2rad(max_rotation) * draw(angle_key, (len(images),))

    def change(image: jax.Array, shift: jax.Array, angle: jax.Array) -> jax.Array:
        # Where each pixel comes from: the inverse of a rotation about the center, then a shift.
        rows, columns = offsets - shift[:, None, None]
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        sources = jnp.stack([cos * rows - sin * columns, sin * rows + cos * columns]) + center
        resample = functools.partial(map_coordinates, coordinates=list(sources), order=1)
        return jax.vmap(resample, in_axes=-1, out_axes=-1)(image)

    return jax.vmap(change)(images, shifts, angles)
