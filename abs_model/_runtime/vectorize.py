"""Doing the same thing for each class or image, in the form the platform runs fastest.

Loops over classes and over few images at a time on a CPU, one batch of everything on accelerators
and on several devices. The environment variable ABS_MODEL_FORMULATION, "loops" or "batched", forces
either; it is read when a program is traced, so set it before the first one.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from abs_model._runtime.errors import UserError

FORMULATION = "ABS_MODEL_FORMULATION"
_LOOPS, _BATCHED = "loops", "batched"
_CPU_CHUNK = 24
_REFINED_CHUNK = 16
_LEAST_CHUNK = 8  # fewer are no faster
_WORTH_DECODING = 4


def map_classes(function: Callable[..., Any], *arguments: Any) -> Any:
    """Applies `function` to each class's slice of the arguments.

    A loop on CPU, where one class's work already fills the cores and its data the caches; batched
    on accelerators, where ten small matrix products are slower than one batched product.

    Args:
        function: A function of one class's slices.
        *arguments: Pytrees whose leaves have a leading class axis.

    Returns:
        What `function` returns, with a leading class axis.
    """
    if _in_loops():
        return lax.map(lambda slices: function(*slices), arguments)
    return jax.vmap(function)(*arguments)


def chunk_size(length: int, most: int = _CPU_CHUNK) -> int:
    """How many of `length` images to put through a network at once, in chunks of about one size.

    On CPU as many as keep its hidden layers in the caches and fill vector registers; everything on
    accelerators, which want wide work.

    Args:
        length: Number of images.
        most: How many fit on a CPU; by default into a decoder.
    """
    if not _in_loops():
        return length
    return -(-length // -(-length // most))


def list_size(entries: int, images: int) -> int:
    """How many of a list's entries, one or a few for each of `images`, to decode at once."""
    if not _in_loops():
        return min(entries, images)
    # With one for each image, where latents are refined, only a fifth is worth decoding; with a
    # few, about four for each image.
    most = _REFINED_CHUNK if entries <= images else max(_LEAST_CHUNK, _WORTH_DECODING * images)
    return min(most, _CPU_CHUNK, entries)


def map_chunks(function: Callable[..., Any], *arrays: jax.Array, size: int | None = None) -> Any:
    """Applies `function` to chunks of the arrays' last axes, which are of one length.

    Args:
        function: From arrays (..., n) to a pytree of arrays (..., n).
        *arrays: (..., N).
        size: Of the chunks; `chunk_size` of N by default.

    Returns:
        What `function` returns, with leaves (..., N).
    """
    length = arrays[0].shape[-1]
    size = chunk_size(length) if size is None else size
    if size >= length:
        return function(*arrays)

    def split(array: jax.Array) -> jax.Array:
        padding = [(0, 0)] * (array.ndim - 1) + [(0, -length % size)]
        padded = jnp.pad(array, padding)
        return jnp.moveaxis(padded.reshape(*array.shape[:-1], -1, size), -2, 0)

    def join(chunks: jax.Array) -> jax.Array:
        joined = jnp.moveaxis(chunks, 0, -2)
        return joined.reshape(*joined.shape[:-2], -1)[..., :length]

    outputs = lax.map(lambda chunks: function(*chunks), tuple(map(split, arrays)))
    return jax.tree.map(join, outputs)


def map_chosen(
    function: Callable[..., Any], chosen: jax.Array, *arrays: Any, size: int, default: Any
) -> Any:
    """Applies `function` to the chosen entries of the arrays' last axes, a chunk at a time.

    The time goes by how many are chosen, in steps of `size`.

    Args:
        function: From pytrees with leaves (..., size) to a pytree of arrays (..., size).
        chosen: Which entries, bool (N,).
        *arrays: Pytrees with leaves (..., N).
        size: Entries at a time.
        default: What the others get, in the structure of what `function` returns: scalars.

    Returns:
        What `function` returns, with leaves (..., N).
    """
    length = len(chosen)
    size = min(size, length)
    # The chosen ones first; the last chunk is filled up with others, whose results are dropped.
    order = jnp.argsort(~chosen, stable=True)
    order = jnp.concatenate([order, jnp.broadcast_to(order[-1:], (-length % size,))])

    def part(first: jax.Array) -> tuple[jax.Array, Any]:
        rows = lax.dynamic_slice_in_dim(order, first, size)
        return rows, function(*jax.tree.map(lambda leaf: leaf[..., rows], arrays))

    shapes = jax.eval_shape(lambda: part(jnp.int32(0))[1])
    filled = jax.tree.map(
        lambda leaf, value: jnp.full((*leaf.shape[:-1], length), value, leaf.dtype),
        shapes,
        default,
    )

    def proceed(carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        first, results = carry
        rows, new = part(first)
        rows = jnp.where(chosen[rows], rows, length)  # out of bounds
        results = jax.tree.map(
            lambda old, leaf: old.at[..., rows].set(leaf, mode="drop"), results, new
        )
        return first + size, results

    count = jnp.sum(chosen)
    return lax.while_loop(lambda carry: carry[0] < count, proceed, (jnp.int32(0), filled))[1]


def _in_loops() -> bool:
    chosen = os.environ.get(FORMULATION)
    if chosen is None:
        return jax.default_backend() == "cpu" and jax.device_count() == 1
    if chosen not in (_LOOPS, _BATCHED):
        raise UserError(f"{FORMULATION} must be {_LOOPS} or {_BATCHED}, got {chosen!r}")
    return chosen == _LOOPS
