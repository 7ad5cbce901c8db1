"""Compiled programs on disk, so that they are compiled once per machine, not per process."""

import os
import pathlib

import jax
from jax.experimental.compilation_cache import compilation_cache


def keep_compiled() -> None:
    """Keeps what JAX compiles from now on, unless a cache has been chosen already.

    In ~/.cache/abs_model/xla, or under XDG_CACHE_HOME; JAX_COMPILATION_CACHE_DIR chooses another
    folder, JAX_ENABLE_COMPILATION_CACHE=false none. JAX keeps what takes over a second to compile.
    """
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = pathlib.Path(cache) / "abs_model" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # JAX looks for the setting once, when it first compiles, which may have been before.
        compilation_cache.reset_cache()
