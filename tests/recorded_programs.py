"""The programs that are compiled at the top level of abs_model's modules, as they are called."""

import contextlib
import sys

import jax
import jax.export

_JITTED = type(jax.jit(lambda: 0))
PLATFORMS = ("cuda", "tpu")


@contextlib.contextmanager
def recorded_programs():
    """Yields a list of (function, arguments, keywords), one for each program that is called."""
    calls, seen, originals = [], set(), []

    def recording(function):
        def call(*arguments, **keywords):
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


def check_lowering(function, arguments, keywords):
    """Raises an error where a program has no form for CUDA or TPU."""
    exported = jax.export.export(function, platforms=PLATFORMS)(*arguments, **keywords)
    assert exported.platforms == PLATFORMS
