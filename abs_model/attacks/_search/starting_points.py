"""Where attacks that see only decisions start: at any image that is adversarial.

With images to choose from (`StartingPoints`), at the closest one that is adversarial. Otherwise at
plain grays, uniform noise, or blends of noise with the image, as in Foolbox (Rauber et al.,
"Foolbox Native", JOSS 2020, https://github.com/bethgelab/foolbox).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.keys import split_keys
from abs_model.attacks._core.norms import choose, distances
from abs_model.attacks._core.query import Query
from abs_model.attacks._search.line_search import interpolate, search_line
from abs_model.models.checks import check_images
from abs_model.models.classifier import Classifier

# Attacks number their own draws from 0.
_FIRST_KEY = 2**30
_GRAYS = (0.0, 0.5, 1.0)
_NUM_DRAWS = 20
_NUM_BLENDS = 20


class StartingPoints:
    """Images to start from, which are classified once, when first needed, for all batches.

    Attributes:
        images: Float32 (M, height, width, channels) in [0, 1].
    """

    def __init__(self, images: Any, image_shape: tuple[int, int, int]) -> None:
        """Checks the images.

        Raises:
            ValueError: They are not as described.
        """
        self.images = check_images(images, image_shape, "starting_points")
        self._logits: np.ndarray | None = None

    def logits(self, model: Classifier) -> np.ndarray:
        """Logits (M, classes), as far as they decide."""
        if self._logits is None:
            self._logits = model.decision_logits(self.images)
        return self._logits


def read_starting_points(images: Any, image_shape: tuple[int, int, int]) -> StartingPoints | None:
    """The setting `starting_points` of an attack, checked; None stays None."""
    return None if images is None else StartingPoints(images, image_shape)


def search_starting_points(
    query: Query, points: StartingPoints | None, idle: jax.Array | None = None
) -> None:
    """Searches for an adversarial starting point for each image, which `query.best` then has.

    With starting points: queries the closest of them that is adversarial for the image. That they
    were classified is not counted, because queries are about versions of an image.
    Without: queries plain grays, noise until every image of the batch has an adversarial one (at
    most 20 draws), and at most 20 blends of the image with the noise; at most
    `most_starting_queries(None)` times in all.

    Args:
        query: The session.
        points: The images to choose from.
        idle: Without starting points: images that are left out, bool (n,). None, by default.
    """
    batch = query.batch
    idle = jnp.zeros(len(batch.images), bool) if idle is None else idle
    if points is not None:
        nearest = _nearest(batch, points.images, points.logits(query.model), query.norm)
        query.decisions(choose(query.best.success, query.best.images, nearest))
        return
    for gray in _GRAYS:
        query.decisions(choose(idle, batch.images, jnp.full_like(batch.images, gray)))
    noise = _adversarial_noise(query, idle)
    path = functools.partial(interpolate, batch.images, noise, norm="l2")
    search_line(query, path, num_levels=_NUM_BLENDS, num_bisections=0)


def most_starting_queries(points: StartingPoints | None) -> int:
    """Most queries of `search_starting_points`."""
    return 1 if points is not None else len(_GRAYS) + _NUM_DRAWS + _NUM_BLENDS


def _adversarial_noise(query: Query, idle: jax.Array) -> jax.Array:
    """For each image, the first adversarial draw of noise, otherwise the last one."""
    batch = query.batch
    noise, adversarial = batch.images, idle
    for number in range(_NUM_DRAWS):
        drawn = _draw(split_keys(batch, _FIRST_KEY + number), noise)
        noise = choose(adversarial, noise, drawn)
        adversarial = adversarial | batch.is_adversarial(query.decisions(noise).logits)
        if bool(adversarial.all()):
            break
    return noise


@jax.jit
def _draw(keys: jax.Array, like: jax.Array) -> jax.Array:
    """Images of uniform noise, from a key for each."""
    return jax.vmap(lambda key: jax.random.uniform(key, like.shape[1:]))(keys)


@functools.partial(jax.jit, static_argnames="norm")
def _nearest(batch: Batch, images: jax.Array, logits: jax.Array, norm: str) -> jax.Array:
    """For each original the closest adversarial one of the images (M, ...); any if none is."""

    def nearest(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        original, label = pair
        alike = dataclasses.replace(batch, classes=jnp.full(len(images), label))
        away = distances(images, original[None], norm)
        return images[jnp.where(alike.is_adversarial(logits), away, jnp.inf).argmin()]

    # One by one: all pairs at the same time would take M times the memory of the batch.
    return lax.map(nearest, (batch.images, batch.classes))
