"""Compiled programs on disk, so that they are compiled once per machine, not per process."""

import os
import pathlib

import jax


def keep_compiled() -> None:
    """Keeps what JAX compiles from now on, unless a cache has been chosen already.

    In ~/.cache/abs_model/xla, or under XDG_CACHE_HOME; JAX_COMPILATION_CACHE_DIR chooses another
    folder, JAX_ENABLE_COMPILATION_CACHE=false none. JAX keeps whatever takes the process over a
    second to compile, and never deletes any of it.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    except RuntimeError:  # no home, no cache
        return
    folder = pathlib.Path(cache) / "abs_model" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(folder))
