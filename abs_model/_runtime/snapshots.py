"""What a function of images computes at one moment, whatever becomes of it afterwards.

JAX compiles a program once for each function. So a function whose weights, globals or attributes
change keeps its old answers where it was compiled, and gives new ones elsewhere. A snapshot has the
operations that the function was traced to, and copies of the arrays that it held. Operations depend
on the number of images, and not every function can be traced for all numbers at once. So for a
number that is new, the function is traced again, and refused if it has changed.
"""

import dataclasses
import functools
import types
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import errors, nnx
from jax.extend.core import ClosedJaxpr

from abs_model._runtime.precision import Precision
from abs_model._runtime.pytrees import array_identity
from abs_model._runtime.traces import Program, copied, inlined, program, trace, trace_identity

PyTree = Any

_REFERENCE = 2  # images: the trace that tells whether a function has changed
_EVAL = (
    "; if it has dropout or batch normalization in training mode, call .eval() on the module before"
    " abs_model.from_function"
)


@dataclasses.dataclass(frozen=True, eq=False)
class _Source:
    """Where a snapshot comes from.

    Attributes:
        call: From the state and images (n, *image_shape) to logits.
        code: The function or class that has the Python code.
        image_shape: (height, width, channels).
        precision: In force when the function was wrapped; it is traced with it.
    """

    call: Callable[[PyTree, jax.Array], Any]
    code: Any
    image_shape: tuple[int, ...]
    precision: Precision = dataclasses.field(default_factory=Precision.current)

    def trace(self, state: PyTree, count: int = _REFERENCE) -> ClosedJaxpr:
        """The operations on `count` images."""
        try:
            with self.precision.in_force():
                traced = trace(self.call, state, self.images(count))
        except errors.TraceContextError as error:
            raise ValueError(f"{self} changes a module's state ({error}){_EVAL}") from error
        except jax.errors.TracerArrayConversionError as error:
            raise ValueError(
                f"{self} must be what JAX can trace, but makes a NumPy array of its images; call"
                " what is not JAX through jax.pure_callback, and give from_function black_box=True"
            ) from error
        for array in (*traced.consts, *jax.tree.leaves(state)):
            if isinstance(array, jax.Ref):
                raise ValueError(
                    f"{self} reads a jax.Ref, whose content changes in place; give it the content,"
                    " such as jax.freeze(ref)"
                )
        return traced

    def trace_closed(self, state: PyTree) -> ClosedJaxpr:
        """The same with the state among the arrays that it holds."""
        with self.precision.in_force():
            return trace(functools.partial(self.call, state), self.images(_REFERENCE))

    def trace_gradient(self, state: PyTree, count: int = _REFERENCE) -> ClosedJaxpr | None:
        """From images and the gradients by their logits to those by the images; None without."""

        def pull(state: PyTree, images: jax.Array, gradients: jax.Array) -> jax.Array:
            _, pull_back = jax.vjp(lambda images: self.call(state, images), images)
            return pull_back(gradients)[0]

        try:
            with self.precision.in_force():
                logits = jax.eval_shape(self.call, state, self.images(count))
                return trace(pull, state, self.images(count), logits)
        except (TypeError, ValueError):  # such as of a callback: whoever asks is told so by JAX
            return None

    def identity(self, state: PyTree) -> tuple[list[str], list[str]]:
        """What changes when the function does: texts of its operations, and of its gradient's.

        JAX finds out about the latter by itself, and has them among the former, unless they are the
        function's own (`jax.custom_vjp`).
        """
        identity = trace_identity(self.trace(state))
        gradient = self.trace_gradient(state) if has_own_gradient(identity[0]) else None
        return identity, [] if gradient is None else trace_identity(gradient)

    def images(self, count: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *self.image_shape), jnp.float32)

    def __str__(self) -> str:
        return f"the function {getattr(self.code, '__qualname__', type(self.code).__name__)!r}"


class _Key:
    """The static part of a snapshot, by which JAX finds what it has compiled.

    What JAX has compiled outlives the models that it was compiled for, and so do its keys; hence
    this one refers to the source weakly.
    """

    def __init__(
        self, source: _Source, code: Hashable, state: PyTree, held: Sequence[jax.Array]
    ) -> None:
        self.source = weakref.ref(source)
        self.identity = source.identity(state)
        self.held_identity = [array_identity(array) for array in held]
        self.programs: dict[int, tuple[Program, Program | None]] = {}
        self._content = (code, source.image_shape, *map(tuple, self.identity))

    def __hash__(self) -> int:
        return hash(self._content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._content == other._content

    def __repr__(self) -> str:
        return "function"  # in the structures of trees, which are the same on every machine


@jax.tree_util.register_pytree_node_class
class Snapshot:
    """A function of images, as `take` has found it; a pytree, whose leaves are its arrays.

    That of a Flax module is complete. That of any other function has the operations on the numbers
    of images seen so far; further ones can follow as long as the function does not change.
    """

    def __init__(
        self, key: _Key, source: _Source | None, state: PyTree, held: Sequence[jax.Array]
    ) -> None:
        self._key = key
        self._source = source
        self._state = state
        self._held = held

    def tree_flatten(self) -> tuple[tuple[PyTree, Sequence[jax.Array]], _Key]:
        return (self._state, self._held), self._key

    @classmethod
    def tree_unflatten(cls, key: _Key, children: Sequence[Any]) -> "Snapshot":
        return cls(key, key.source(), *children)

    def __call__(self, images: jax.Array) -> jax.Array:
        """The function of images (n, height, width, channels), for any n.

        Raises:
            ValueError: It has changed, and n is new.
        """
        images = jnp.asarray(images)
        forward, backward = self._programs(len(images))
        if backward is None:
            return forward(self._held, self._state, images)
        return _with_gradient(forward, backward, self._held, self._state, images)

    @property
    def code(self) -> Any:
        """The function or class that has the Python code."""
        return self._living().code

    def identity(self) -> list[str]:
        """Texts that are the same on every machine: of its operations, and of each array."""
        identity = self._key.identity[0]
        if jax.tree.leaves(self._state):
            source = self._living()
            self._check_unchanged(source)
            identity = trace_identity(source.trace_closed(self._state))
        held = [array_identity(array) for array in self._held]
        return identity + (held if held != self._key.held_identity else [])

    def has_gradient(self, count: int) -> bool:
        """Whether JAX can differentiate it: it can't where Python code is called back.

        Args:
            count: A number of images that it knows.
        """

        def pull(images: jax.Array) -> jax.Array:
            logits, pull_back = jax.vjp(self, images)
            return pull_back(jnp.ones_like(logits))[0]

        try:
            jax.eval_shape(pull, self._living().images(count))
        except (TypeError, ValueError):
            return False
        return True

    def _programs(self, count: int) -> tuple[Program, Program | None]:
        programs = self._key.programs
        if count not in programs:
            source = self._living()
            forward, backward = source.trace(self._state, count), None
            if has_own_gradient(self._key.identity[0][0]):
                backward = source.trace_gradient(self._state, count)
            self._check_unchanged(source)  # after these traces: then they were of the same
            held = self._key.held_identity
            programs[count] = (
                program(inlined(forward, own_gradients=backward is None), held),
                None if backward is None else program(inlined(backward), held),
            )
        return programs[count]

    def _living(self) -> _Source:
        if self._source is None:
            raise ValueError("the wrapped function is no longer there; keep the classifier itself")
        return self._source

    def _check_unchanged(self, source: _Source) -> None:
        if source.identity(self._state) != self._key.identity:
            raise ValueError(
                f"what {source} computes has changed since abs_model.from_function, or changes with"
                " each call; call it again after each change. Best give it a Flax module itself (or"
                " its bound method), whose arrays it copies; and draw random numbers of Python or"
                " NumPy inside jax.pure_callback"
            )


def take(
    function: Callable[..., Any], image_shape: tuple[int, ...], count: int
) -> tuple[Snapshot, PyTree]:
    """Takes a snapshot of a function from images (n, *image_shape) to logits.

    Args:
        function: A Flax module, a bound method of one, a `functools.partial` of either, or any
            other function that JAX can trace.
        image_shape: (height, width, channels).
        count: A number of images that it is to know from the start.

    Returns:
        The snapshot, and the shapes and dtypes of what the function gives for two images.

    Raises:
        ValueError: JAX can't trace the function; it changes the state of a module, as modules in
            training mode do; it reads what changes in place; or it differs from call to call.
    """
    code, state, source = _split(function, image_shape)
    state = jax.tree.map(copied, state)
    held = [copied(array) for array in inlined(source.trace(state)).consts]
    snapshot = Snapshot(_Key(source, code, state, held), source, state, held)
    given = jax.eval_shape(source.call, state, source.images(_REFERENCE))
    if isinstance(given, jax.ShapeDtypeStruct):
        snapshot._programs(count)
    return snapshot, given


def has_own_gradient(operations: str) -> bool:
    """Whether a gradient of a function is given by Python code (`jax.custom_vjp`)."""
    return "custom_vjp" in operations


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _with_gradient(
    forward: Program, backward: Program, held: PyTree, state: PyTree, images: jax.Array
) -> jax.Array:
    return forward(held, state, images)


def _forward(
    forward: Program, backward: Program, held: PyTree, state: PyTree, images: jax.Array
) -> tuple[jax.Array, PyTree]:
    return forward(held, state, images), (held, state, images)


def _backward(
    forward: Program, backward: Program, given: PyTree, gradients: jax.Array
) -> tuple[None, None, jax.Array]:
    return None, None, backward(*given, gradients)


_with_gradient.defvjp(_forward, _backward)


def _split(
    function: Callable[..., Any], image_shape: tuple[int, ...]
) -> tuple[Hashable, PyTree, _Source]:
    """A static key for a function's code, its state, and the function of both.

    Only modules have a state; the arrays of any other function are found when it is traced.
    """
    partial = function if isinstance(function, functools.partial) else functools.partial(function)
    module: Any = partial.func
    method = None
    if isinstance(module, types.MethodType):
        module, method = module.__self__, module.__func__
    if not isinstance(module, nnx.Module):
        return object(), (), _Source(lambda _, images: function(images), function, image_shape)
    graphdef, state = nnx.split(module)
    method = method or type(module).__call__
    call = functools.partial(_call_module, graphdef, method, partial.args, partial.keywords)
    code: Hashable = (graphdef, method, partial.args, tuple(sorted(partial.keywords.items())))
    try:
        hash(code)
    except TypeError:  # of arguments that are arrays, say: it shares no compiled programs, then
        code = object()
    return (
        code,
        state,
        _Source(call, type(module) if partial.func is module else method, image_shape),
    )


def _call_module(
    graphdef: nnx.GraphDef,
    method: Callable[..., Any],
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    state: PyTree,
    images: jax.Array,
) -> Any:
    module = nnx.merge(graphdef, state)
    before = _variables(module)
    logits = method(module, *arguments, images, **keywords)
    after = _variables(module)
    changed = [name for name in before if after.get(name) is not before[name]]
    if changed:
        raise ValueError(
            f"the module {type(module).__name__} changes its own state when it is called"
            f" ({', '.join(changed)}){_EVAL}"
        )
    return logits


def _variables(module: nnx.Module) -> dict[str, Any]:
    """A module's arrays by name; none that it only puts by for others (`Module.sow`)."""
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(module, nnx.Not(nnx.Intermediate)))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
