"""Where attacks that see only decisions begin: at any image that fools the classifier.

With images to choose from (`Starts`), at the closest one that is adversarial. Else at plain grays,
uniform noise, or blends of noise with the image, as in Foolbox (Rauber et al., "Foolbox Native",
JOSS 2020, https://github.com/bethgelab/foolbox).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from abs_model.attacks import best as bests
from abs_model.attacks.base import choose, distances
from abs_model.attacks.batch import Batch
from abs_model.attacks.best import Best
from abs_model.attacks.line_search import between, search_line
from abs_model.attacks.oracle import Oracle
from abs_model.attacks.running import split_keys
from abs_model.classifiers import Classifier
from abs_model.images import check_images

# Attacks number their own draws from 0.
_FIRST_KEY = 2**30
_GRAYS = (0.0, 0.5, 1.0)
_NUM_DRAWS = 20
_NUM_BLENDS = 20


class Starts:
    """Images to start from, which are classified once, when first needed, for all batches.

    Attributes:
        images: Float32 (M, height, width, channels) in [0, 1].
    """

    def __init__(self, images: Any, image_shape: tuple[int, int, int]) -> None:
        """Checks the images.

        Raises:
            ValueError: They are not as described.
        """
        self.images = check_images(images, image_shape, "starts")
        self._logits: jax.Array | None = None

    def logits(self, model: Classifier) -> jax.Array:
        """Logits (M, classes)."""
        if self._logits is None:
            self._logits = model.logits(self.images)
        return self._logits


def make_starts(images: Any, image_shape: tuple[int, int, int]) -> Starts | None:
    """The setting `starts` of an attack as a `Starts`; None stays None."""
    return None if images is None else Starts(images, image_shape)


def starting_images(
    oracle: Oracle, batch: Batch, starts: Starts | None, best: Best, norm: str
) -> Best:
    """Looks for an image to begin at, for each image of the batch.

    With `starts`: asks once about the closest of them that is adversarial for the image. That they
    were classified is not among the questions, which are those about versions of an image.
    Without: asks about plain grays, about noise until every image of the batch has an adversarial
    one (at most 20 draws), and about at most 20 blends of the image with the noise; at most
    `max_questions(None)` times in all.

    Args:
        oracle: The classifier.
        batch: The originals.
        starts: The images to choose from.
        best: What has been found, such as originals that are wrong already; it is improved on.
        norm: Of the distances.

    Returns:
        `best`, which holds the images to begin at: without success where none was found.
    """
    if starts is not None:
        images = _nearest(batch, starts.images, starts.logits(oracle.model), norm)
        images = choose(best.success, best.images, images)
        return bests.update(best, batch, images, oracle.logits(images)[0], norm)
    for gray in _GRAYS:
        images = jnp.full_like(batch.images, gray)
        best = bests.update(best, batch, images, oracle.logits(images)[0], norm)
    far, best = _noise(oracle, batch, best, norm)
    _, best = search_line(
        oracle, batch, lambda shares: between(batch.images, far, shares, "l2"), best, norm,
        num_levels=_NUM_BLENDS, num_bisections=0,
    )  # fmt: skip
    return best


def max_questions(starts: Starts | None) -> int:
    """How often `starting_images` asks at most."""
    return 1 if starts is not None else len(_GRAYS) + _NUM_DRAWS + _NUM_BLENDS


def _noise(oracle: Oracle, batch: Batch, best: Best, norm: str) -> tuple[jax.Array, Best]:
    """For each image, the first adversarial draw of noise, else the last one."""
    far = batch.images
    fooled = jnp.zeros(len(far), bool)
    for number in range(_NUM_DRAWS):
        images = choose(fooled, far, _draw(split_keys(batch, _FIRST_KEY + number), far))
        far = images
        logits, _ = oracle.logits(images)
        best = bests.update(best, batch, images, logits, norm)
        fooled = fooled | batch.fooled(logits)
        if bool(fooled.all()):
            break
    return far, best


@jax.jit
def _draw(keys: jax.Array, like: jax.Array) -> jax.Array:
    """Images of uniform noise, from a key for each."""
    return jax.vmap(lambda key: jax.random.uniform(key, like.shape[1:]))(keys)


@functools.partial(jax.jit, static_argnames="norm")
def _nearest(batch: Batch, images: jax.Array, logits: jax.Array, norm: str) -> jax.Array:
    """For each original the closest of the images (M, ...) that fools; any if none does."""

    def nearest(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        original, label = pair
        alike = dataclasses.replace(batch, classes=jnp.full(len(images), label))
        lengths = distances(images, original[None], norm)
        return images[jnp.where(alike.fooled(logits), lengths, jnp.inf).argmin()]

    # One by one: all pairs at the same time would take M times the memory of the batch.
    return lax.map(nearest, (batch.images, batch.classes))
