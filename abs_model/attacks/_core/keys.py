"""Random keys: one for each image, so that no result depends on the batch or on the order."""

import jax
import jax.numpy as jnp

from abs_model._runtime.checks import shown
from abs_model._runtime.hints import key_hint
from abs_model.attacks._core.batch import Batch


def image_keys(key: jax.Array, count: int) -> jax.Array:
    """A key for each of `count` images, (count,).

    Args:
        key: One `jax.random.key`, from which a key for each image is made by its place; or the
            keys themselves, (count,), for results that do not depend on an image's place.

    Raises:
        ValueError: `key` is neither.
    """
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise ValueError(f"key must be a jax.random.key, got {shown(key)}{key_hint(key)}")
    if key.shape == (count,):
        return key
    if key.shape:
        raise ValueError(f"key must be one key or one for each image, ({count},); got {key.shape}")
    return fold_in(jnp.broadcast_to(key, (count,)), jnp.arange(count))


fold_in = jax.jit(jax.vmap(jax.random.fold_in, in_axes=(0, 0)))


def split_keys(batch: Batch, number: int | jax.Array) -> jax.Array:
    """A key for each image of the batch, (n,), that differs from those of other numbers."""
    return fold_in(batch.keys, jnp.full(batch.keys.shape, number))
