"""Pictures of what VAEs draw, for the log of a training run."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from abs_model._runtime.vectorize import map_classes
from abs_model.data import Dataset
from abs_model.data.batches import to_float

PyTree = Any


def draw_pictures(
    graphdef: nnx.GraphDef, model: Mapping[str, PyTree], dataset: Dataset, columns: int
) -> dict[str, np.ndarray]:
    """Samples of each class, and validation images above their reconstructions.

    Args:
        graphdef: Structure of one VAE.
        model: {"params": ..., "statistics": ...}, leading axis classes.
        dataset: Whose validation images are shown.
        columns: Images in a row.

    Returns:
        "samples" and "reconstructions", float32 (height, width, 1 or 3).
    """
    samples, pairs = _draw(graphdef, model, _examples(dataset, columns))
    return {"samples": _grid(np.asarray(samples)), "reconstructions": _grid(np.asarray(pairs))}


@functools.partial(jax.jit, static_argnums=0)
def _draw(
    graphdef: nnx.GraphDef, model: PyTree, examples: jax.Array
) -> tuple[jax.Array, jax.Array]:
    columns = examples.shape[1]

    def class_pictures(
        params: PyTree, statistics: PyTree, images: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        vae = nnx.merge(graphdef, params, statistics)
        images = to_float(images)
        latents = jax.random.normal(jax.random.key(0), (columns, vae.latent_size))
        return vae.decode(latents), jnp.stack([images, vae.decode(vae.encode(images)[0])])

    samples, pairs = map_classes(class_pictures, model["params"], model["statistics"], examples)
    return samples, pairs.reshape(-1, *pairs.shape[2:])


def _examples(dataset: Dataset, columns: int) -> np.ndarray:
    """The first validation images of each class: uint8 (classes, columns, h, w, c).

    Blank where a class has fewer.
    """
    split = dataset.validation
    examples = np.zeros((dataset.num_classes, columns, *dataset.image_shape), np.uint8)
    for label, row in enumerate(examples):
        images = split.images[split.labels == label][:columns]
        row[: len(images)] = images
    return examples


def _grid(images: np.ndarray) -> np.ndarray:
    """(rows, columns, h, w, c) as one image (rows * h, columns * w, 1 or 3)."""
    if images.shape[-1] not in (1, 3):
        images = images.mean(axis=-1, keepdims=True)  # no colors that a PNG knows
    rows, columns, height, width, channels = images.shape
    return images.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
