"""Traced functions (jaxprs): never remembered ones, compared by content, with their own arrays."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from abs_model._runtime.pytrees import array_identity

_ADDRESS = re.compile(r"0x[0-9a-f]+")
# JAX remembers traces by the function and this context: with a new value, jitted functions inside
# the function are traced again, too.
_trace_number = jax.make_user_context(None)
_numbers = itertools.count(1)


def trace(function: Callable[..., Any], *arguments: Any) -> ClosedJaxpr:
    """What a function does now, whatever has been remembered of it.

    Args:
        function: From arrays or pytrees of them.
        *arguments: Arrays, or their shapes and dtypes.
    """
    shapes = jax.tree.map(jax.typeof, arguments)
    with _trace_number(next(_numbers)):
        return jax.make_jaxpr(lambda *given: function(*given))(*shapes)


def trace_identity(traced: ClosedJaxpr) -> list[str]:
    """Texts that are the same on every machine: of the operations, and of each array held."""
    return [_ADDRESS.sub("", str(traced)), *map(array_identity, _constants(traced))]


def _constants(traced: ClosedJaxpr) -> Iterator[Any]:
    """The arrays that a traced function holds, those of functions inside it among them."""
    yield from traced.consts
    for equation in traced.eqns:
        for inner in jax.tree.leaves(equation.params):
            if isinstance(inner, Jaxpr):
                inner = ClosedJaxpr(inner, ())
            if isinstance(inner, ClosedJaxpr):
                yield from _constants(inner)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Program:
    """The operations of a traced function, apart from the arrays that it held.

    Attributes:
        jaxpr: From the constants and the flat arguments.
        constants: For each constant its index among the arrays held; or a copy of it, where it is
            not among these.
    """

    jaxpr: Jaxpr
    constants: tuple[Any, ...]

    def __call__(self, held: Sequence[Any], *arguments: Any) -> Any:
        """The only result.

        Args:
            held: The arrays.
            *arguments: As the function's.
        """
        constants = [held[each] if isinstance(each, int) else each for each in self.constants]
        return jaxpr_as_fun(ClosedJaxpr(self.jaxpr, constants))(*jax.tree.leaves(arguments))[0]


def program(traced: ClosedJaxpr, held: Sequence[str]) -> Program:
    """A traced function apart from those of its arrays whose `array_identity` is among `held`."""
    places = {identity: place for place, identity in enumerate(held)}
    known = [places.get(array_identity(array)) for array in traced.consts]
    constants = tuple(
        copied(array) if place is None else place
        for place, array in zip(known, traced.consts, strict=True)
    )
    return Program(traced.jaxpr, constants)


def copied(array: Any) -> Any:
    """The same array for itself: NumPy arrays change in place, and JAX arrays are donated."""
    with jax.ensure_compile_time_eval():  # now, even inside a trace
        if isinstance(array, jax.Array):
            return jnp.copy(array)
        return jnp.asarray(np.array(array)) if hasattr(array, "dtype") else array


def inlined(traced: ClosedJaxpr, *, own_gradients: bool = True) -> ClosedJaxpr:
    """The same with the operations of jitted functions in place of calls.

    The arrays that these hold are then constants of the whole. Those inside other operations, such
    as loops that call jitted functions, are copied.

    Args:
        traced: The function.
        own_gradients: Whether to keep gradients of its own (`jax.custom_vjp`), which are Python
            functions.
    """
    calls = {"jit": "jaxpr"} | ({} if own_gradients else {"custom_vjp_call": "call_jaxpr"})
    return jax.make_jaxpr(lambda *given: _evaluate(traced.jaxpr, traced.consts, given, calls))(
        *traced.in_avals
    )


def _evaluate(
    jaxpr: Jaxpr, constants: Sequence[Any], arguments: Sequence[Any], calls: dict[str, str]
) -> list[Any]:
    """The results of a jaxpr, with operations in place of `calls`: names, and where these are."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arguments), strict=True))

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        given = [value(atom) for atom in equation.invars]
        if equation.primitive.name in calls:
            inner = equation.params[calls[equation.primitive.name]]
            results = _evaluate(inner.jaxpr, inner.consts, given, calls)
        else:
            parameters = equation.primitive.get_bind_params(_owned(equation.params))
            with equation.ctx.manager:
                results = equation.primitive.bind(*given, **parameters)
            results = results if equation.primitive.multiple_results else [results]
        values.update(zip(equation.outvars, results, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _owned(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters of an operation, with copies of the arrays that functions among them hold."""

    def own(parameter: Any) -> Any:
        if not isinstance(parameter, ClosedJaxpr):
            return parameter
        equations = [_owned_equation(equation) for equation in parameter.jaxpr.eqns]
        jaxpr = parameter.jaxpr.replace(eqns=equations)
        return ClosedJaxpr(jaxpr, [copied(array) for array in parameter.consts])

    return {name: jax.tree.map(own, each) for name, each in parameters.items()}


def _owned_equation(equation: JaxprEqn) -> JaxprEqn:
    return equation.replace(params=_owned(equation.params))
