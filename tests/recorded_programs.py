"""The programs that are compiled at the top level of abs_model's modules, as they are called."""

import contextlib
import sys

import jax
import jax.export

from abs_model._runtime.precision import Precision

_JITTED = type(jax.jit(lambda: 0))
PLATFORMS = ("cuda", "tpu")


@contextlib.contextmanager
def recorded_programs():
    """Yields a list of (function, arguments, keywords), one for each program that is called.

    All must be called in single precision.
    """
    calls, seen, originals = [], set(), []

    def recording(function):
        def call(*arguments, **keywords):
            assert Precision.current() == (False, "float32"), function
            leaves, structure = jax.tree.flatten((arguments, keywords))
            kinds = tuple(
                (leaf.shape, str(leaf.dtype)) if hasattr(leaf, "shape") else type(leaf)
                for leaf in leaves
            )
            if (program := (id(function), structure, kinds)) not in seen:
                seen.add(program)
                calls.append((function, arguments, keywords))
            return function(*arguments, **keywords)

        return call

    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "abs_model":
            for attribute, value in list(vars(module).items()):
                if isinstance(value, _JITTED):
                    originals.append((module, attribute, value))
                    setattr(module, attribute, recording(value))
    try:
        yield calls
    finally:
        for module, attribute, value in originals:
            setattr(module, attribute, value)


def check_lowering(function, arguments=(), keywords=None):
    """Raises an error where a function, jitted or not, has no form for CUDA or TPU.

    It is traced again, so that no trace of another formulation serves.
    """
    leaves, structure = jax.tree.flatten((arguments, keywords or {}))
    places = [place for place, leaf in enumerate(leaves) if hasattr(leaf, "shape")]

    def traced_again(*arrays):
        filled = dict(zip(places, arrays, strict=True))
        given = [filled.get(place, leaf) for place, leaf in enumerate(leaves)]
        arguments, keywords = jax.tree.unflatten(structure, given)
        return getattr(function, "__wrapped__", function)(*arguments, **keywords)

    arrays = [leaves[place] for place in places]
    exported = jax.export.export(jax.jit(traced_again), platforms=PLATFORMS)(*arrays)
    assert exported.platforms == PLATFORMS
