"""Dataclasses as pytrees; pytrees as flat dictionaries of host arrays, and back.

The paths are those of `jax.tree_util.keystr`, e.g. "conv/kernel"; a lone leaf is called "value".
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from abs_model._runtime.mesh import put

PyTree = Any
T = TypeVar("T")

_registered: set[type] = set()


@dataclasses.dataclass(frozen=True)
class _Labels:
    """Values that structures are not compared by."""

    values: tuple[Any, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Labels)

    def __hash__(self) -> int:
        return 0


def register_dataclass(cls: type[T]) -> type[T]:
    """Makes a dataclass a pytree; a decorator, above that of the dataclass.

    Fields are leaves or subtrees. Those with the metadata `{"static": True}` are part of the
    structure and must be hashable. Those with `{"label": True}` are carried along, but structures
    that differ only in them are equal: a jitted function does not compile again for another label,
    and must not go by one.

    `jax.tree_util.register_dataclass` does the same. But in JAX 0.10.2 the structures of two
    classes compare equal if these have as many other fields and equal static values. A jitted
    function called with one class may then run the program of the other. See
    `findings/jax_jit_confuses_registered_dataclasses.sh`.

    Raises:
        TypeError: The class itself is no dataclass, or a field is no argument of `__init__`.
    """
    if "__dataclass_fields__" not in cls.__dict__:
        raise TypeError(
            f"{cls.__name__} must be a dataclass: write @dataclasses.dataclass below"
            " @register_dataclass"
        )
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    for field in fields:
        if not field.init:
            raise TypeError(f"field {field.name!r} of {cls.__name__} must not have init=False")
    labels = tuple(field.name for field in fields if field.metadata.get("label", False))
    static = tuple(field.name for field in fields if field.metadata.get("static", False))
    dynamic = tuple(field.name for field in fields if field.name not in static + labels)

    def flatten(tree: T) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        children = tuple(getattr(tree, name) for name in dynamic)
        settings = tuple(getattr(tree, name) for name in static)
        return children, (settings, _Labels(tuple(getattr(tree, name) for name in labels)))

    def flatten_with_keys(tree: T) -> tuple[tuple[tuple[Any, Any], ...], tuple[Any, ...]]:
        children, structure = flatten(tree)
        return tuple(zip(keys, children, strict=True)), structure

    def unflatten(structure: tuple[Any, ...], children: Iterable[Any]) -> T:
        settings, others = structure
        named = zip(dynamic + static + labels, (*children, *settings, *others.values), strict=True)
        return cls(**dict(named))

    keys = tuple(jax.tree_util.GetAttrKey(name) for name in dynamic)
    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    _registered.add(cls)
    return cls


def is_registered(cls: type) -> bool:
    """Whether `register_dataclass` has made the class a pytree."""
    return cls in _registered


def leaves_by_path(name: str, tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by path, in the order of the tree.

    Raises:
        ValueError: Two leaves have the same path; `name` is what the message calls the tree.
    """
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        key = jax.tree_util.keystr(path, simple=True, separator="/") or "value"
        if key in leaves:
            raise ValueError(f"item {name!r} has two leaves with the path {key!r}")
        leaves[key] = leaf
    return leaves


def to_arrays(name: str, tree: PyTree) -> dict[str, np.ndarray]:
    """The leaves of a tree as host arrays by path.

    Raises:
        TypeError: A leaf is neither an array of numbers nor a scalar.
        ValueError: Two leaves have the same path.
    """
    leaves = leaves_by_path(name, tree)
    for path, leaf in leaves.items():
        dtype = getattr(leaf, "dtype", None)
        typed_key = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
        if typed_key or not isinstance(
            leaf, jax.Array | np.ndarray | np.generic | bool | int | float
        ):
            raise TypeError(
                f"{name}/{path} must be an array or a scalar, got"
                f" {dtype if typed_key else type(leaf).__name__}"
                + ("; save jax.random.key_data of it" if typed_key else "")
            )
    return {path: np.asarray(leaf) for path, leaf in jax.device_get(leaves).items()}


def _shape_and_dtype(leaf: Any) -> tuple[tuple[int, ...], np.dtype]:
    if not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    return tuple(leaf.shape), np.dtype(leaf.dtype)


def mismatches(name: str, template: PyTree, found: Mapping[str, np.ndarray]) -> list[str]:
    """One line for each leaf that is missing, superfluous, or of another shape or dtype."""
    wanted = leaves_by_path(name, template)
    lines = []
    for path in sorted(wanted.keys() | found.keys()):
        expected = _described(wanted[path]) if path in wanted else "no such leaf"
        there = _described(found[path]) if path in found else "no such leaf"
        if expected != there:
            lines.append(f"{name}/{path}: expected {expected}, found {there}")
    return lines


def _described(leaf: Any) -> str:
    shape, dtype = _shape_and_dtype(leaf)
    return f"{dtype}[{','.join(map(str, shape))}]"


def from_arrays(name: str, template: PyTree, found: Mapping[str, np.ndarray]) -> PyTree:
    """The tree that `found` holds the leaves of, in the structure of `template`.

    Each leaf is of the kind of the template's: numpy array, Python scalar, or jax array with the
    sharding of the template's leaf. Call it only where `mismatches` finds none.
    """
    leaves = [_like(leaf, found[path]) for path, leaf in leaves_by_path(name, template).items()]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _like(template: Any, value: np.ndarray) -> Any:
    """`value` as the kind of leaf that `template` is."""
    if isinstance(template, jax.Array) or getattr(template, "sharding", None) is not None:
        return put(value, template.sharding)
    if isinstance(template, jax.ShapeDtypeStruct):
        return jax.device_put(value)
    if isinstance(template, np.ndarray):
        return value
    return type(template)(value[()])


def array_identity(array: Any) -> str:
    """A hash of an array."""
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        with jax.ensure_compile_time_eval():  # now, even inside a trace
            array = jax.random.key_data(array)
    array = np.asarray(array)
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    digest.update(content.data)
    return digest.hexdigest()[:16]
