"""Salt-and-pepper noise, and the search for the least of one draw that is adversarial."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from abs_model._runtime.pytrees import register_dataclass
from abs_model.attacks._core.norms import per_image
from abs_model.attacks._core.query import Query
from abs_model.attacks._search.line_search import search_line


def search_salt_and_pepper(query: Query, keys: jax.Array, num_epsilons: int) -> jax.Array:
    """Searches the least salt-and-pepper noise, of one draw, that is adversarial.

    Queries the classifier at most `most_noise_queries(images.shape, num_epsilons)` times.

    Args:
        query: The session.
        keys: A key for each image, (n,): of the noise.
        num_epsilons: Steps of the share of pixels.

    Returns:
        The first adversarial images, (n, ...), or those of full noise where there were none.
    """
    images = query.batch.images
    path = functools.partial(_season, images, _draw_jitted(keys, images))
    fractions = search_line(
        query, path, num_levels=num_epsilons,
        num_bisections=_bisections_to_pixel(images.shape, num_epsilons),
    )  # fmt: skip
    return path(fractions)


def most_noise_queries(shape: tuple[int, ...], num_epsilons: int) -> int:
    """Most queries of `search_salt_and_pepper` for images of this shape (n, h, w, c)."""
    return num_epsilons + _bisections_to_pixel(shape, num_epsilons)


def _bisections_to_pixel(shape: tuple[int, ...], num_epsilons: int) -> int:
    """Bisections after which a step of the share is a pixel at most."""
    return max(0, math.ceil(math.log2(shape[1] * shape[2] / num_epsilons)))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Noise:
    """Salt and pepper for n images.

    Attributes:
        ranks: The place of each pixel in the order of change, from 0; (n, height, width, 1).
        colors: What it changes to, 0 or 1; likewise.
        counts: How many pixels can change, (n,).
    """

    ranks: jax.Array
    colors: jax.Array
    counts: jax.Array


def draw_noise(keys: jax.Array, images: jax.Array) -> Noise:
    """Draws noise for images (n, height, width, channels) from a key for each, (n,)."""

    def draw(key: jax.Array, image: jax.Array) -> Noise:
        place_key, color_key = jax.random.split(key)
        shape = (*image.shape[:2], 1)
        colors = jax.random.bernoulli(color_key, 0.5, shape).astype(image.dtype)
        same = (image == colors).all(axis=2, keepdims=True)
        # Pixels that would not change come last.
        places = jax.random.uniform(place_key, shape) + same
        return Noise(places.ravel().argsort().argsort().reshape(shape), colors, jnp.sum(~same))

    return jax.vmap(draw)(keys, images)


@jax.jit
def _season(images: jax.Array, noise: Noise, fractions: jax.Array) -> jax.Array:
    """Images in which these fractions (n,) of the pixels that can change have done so."""
    return change_pixels(images, noise, jnp.round(fractions * noise.counts))


def change_pixels(images: jax.Array, noise: Noise, counts: jax.Array) -> jax.Array:
    """Images in which the first `counts` (n,) pixels of the noise have changed."""
    counts = jnp.minimum(counts, noise.counts)
    return jnp.where(noise.ranks < per_image(counts), noise.colors, images)


_draw_jitted = jax.jit(draw_noise)
