"""Devices, and how work is spread over them.

This is the one place that makes meshes. With one device nothing here does anything; with several,
all are used, without a flag. (CUDA_VISIBLE_DEVICES, or JAX_NUM_CPU_DEVICES, chooses them.)

- Images of inference and attacks: `over_devices` gives each device its share. Images do not depend
  on each other, so devices exchange nothing, and each ends its own search when it is done.
- Training: `training_mesh` has an axis for classes, whose VAEs do not depend on each other either,
  and one for the images of a batch, over which XLA adds up gradients and batch statistics. It spans
  the devices of all processes (`processes`); `over_devices` those of this one.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

PyTree = Any
CLASS, DATA = "class", "data"


def training_mesh(num_classes: int, batch_size: int) -> Mesh:
    """All devices as (classes, images of a batch).

    As many as possible go to classes, because these need no communication; both numbers divide
    what they share. Devices that are left over are not used.

    Args:
        num_classes: Models that are trained side by side; 1 for a network.
        batch_size: Images of a step of each.
    """
    devices = jax.devices()
    shapes = [
        (classes, images)
        for classes in _divisors(num_classes)
        for images in _divisors(batch_size)
        if classes * images <= len(devices)
    ]
    shape = max(shapes, key=lambda shape: (math.prod(shape), shape[0]))
    return _mesh(devices, shape)


def over_devices(function: Callable[..., PyTree], model: PyTree, *others: PyTree) -> PyTree:
    """`function(model, *others)`, with each device's share of the images on that device.

    To be called in a jitted function. Pads the images with copies of the last one, and drops these
    rows again.

    Args:
        function: Returns a pytree whose leaves have a leading axis of images.
        model: A pytree that every device gets whole.
        *others: Pytrees of arrays with a leading axis of images, which is shared out, and of
            scalars, which every device gets.
    """
    if jax.local_device_count() == 1:
        return function(model, *others)
    length = jax.tree.leaves(others)[0].shape[0]
    padded_length = images_per_device(length) * jax.local_device_count()
    rows = np.minimum(np.arange(padded_length), length - 1)

    def is_shared(leaf: jax.Array) -> bool:
        if leaf.ndim == 0:
            return False
        assert leaf.shape[0] == length, (leaf.shape, length)
        return True

    specs = jax.tree.map(lambda leaf: P(DATA) if is_shared(leaf) else P(), others)
    padded = jax.tree.map(lambda leaf: leaf[rows] if is_shared(leaf) else leaf, others)
    outputs = jax.shard_map(
        function,
        mesh=_local_mesh(),
        in_specs=(P(), *specs),
        out_specs=P(DATA),
        check_vma=False,
    )(model, *padded)
    return jax.tree.map(lambda leaf: leaf[:length], outputs)


def images_per_device(count: int) -> int:
    """How many of a batch's images `over_devices` gives each device, copies included."""
    return -(-count // jax.local_device_count())


def replicate(tree: PyTree) -> PyTree:
    """The arrays on every device, so that no call of `over_devices` has to send them."""
    return place(tree, _local_mesh())


def place(tree: PyTree, mesh: Mesh, axis: str | None = None) -> PyTree:
    """The arrays on the devices of a mesh: whole, or their leading axes shared out along an axis.

    Scalars are whole everywhere.
    """
    if mesh.size == 1:
        return tree

    def placed(leaf: Any) -> jax.Array:
        return put(leaf, NamedSharding(mesh, P(axis) if jnp.ndim(leaf) else P()))

    return jax.tree.map(placed, tree)


def put(array: Any, sharding: Sharding) -> jax.Array:
    """The array, which every process has whole, laid out over devices."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    # jax.device_put would compare the arrays of all processes, and wait for them.
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def constrain(array: jax.Array, mesh: Mesh, *axes: str | None) -> jax.Array:
    """The array, laid out along axes of the mesh in a jitted function."""
    if mesh.size == 1:
        return array
    return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, P(*axes)))


@functools.cache
def _local_mesh() -> Mesh:
    return _mesh(jax.local_devices(), (1, jax.local_device_count()))


def _mesh(devices: Sequence[jax.Device], shape: tuple[int, int]) -> Mesh:
    chosen = np.array(devices[: math.prod(shape)]).reshape(shape)
    # XLA lays out what is between, which explicit axes would leave to every line of code.
    return Mesh(chosen, (CLASS, DATA), axis_types=(AxisType.Auto, AxisType.Auto))


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]
