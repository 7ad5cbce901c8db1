"""Random changes of training images that leave the label of a digit as it is."""

import functools

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates


def shift_and_rotate(
    images: jax.Array, key: jax.Array, *, max_shift: float, max_rotation: float
) -> jax.Array:
    """Rotates each image about its center and shifts it, both at random.

    Pixels from outside are black; values between pixels are interpolated bilinearly.

    Args:
        images: float32 (N, height, width, channels).
        key: JAX random key.
        max_shift: Largest shift along each axis, in pixels; drawn uniformly from
            [-max_shift, max_shift].
        max_rotation: Largest angle, in degrees; drawn uniformly from [-max_rotation, max_rotation].

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
        # The pixel at x comes from R (x - center - shift) + center.
        rows, columns = offsets - shift[:, None, None]
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        sources = jnp.stack([cos * rows - sin * columns, sin * rows + cos * columns]) + center
        resample = functools.partial(map_coordinates, coordinates=list(sources), order=1)
        return jax.vmap(resample, in_axes=-1, out_axes=-1)(image)

    return jax.vmap(change)(images, shifts, angles)
