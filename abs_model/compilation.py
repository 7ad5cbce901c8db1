"""Compiled programs: kept on disk, so that a machine compiles them once; unloaded when too many."""

import os
import pathlib

import jax

_LEAST_SECONDS = 0.2
_MAPS, _MOST_MAPS = pathlib.Path("/proc/self/maps"), pathlib.Path("/proc/sys/vm/max_map_count")


def keep_compiled() -> None:
    """Keeps what JAX compiles from now on, unless a cache has been chosen already.

    In ~/.cache/abs_model/xla, or under XDG_CACHE_HOME; JAX_COMPILATION_CACHE_DIR chooses another
    folder, JAX_ENABLE_COMPILATION_CACHE=false none. What takes over 0.2 seconds to compile is kept
    (JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS), and nothing is ever deleted.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    except RuntimeError:  # no home, no cache
        return
    folder = pathlib.Path(cache) / "abs_model" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # An evaluation compiles hundreds of programs that JAX's own second leaves out.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)


def unload_programs() -> None:
    """Unloads all compiled programs if they take over half of the memory maps a process may have.

    On a CPU each program takes several, and some thousand programs make 65,530, as many as Linux
    grants by default; XLA then ends the process without a word. Does nothing on other systems.
    """
    try:
        most = int(_MOST_MAPS.read_text())
        with open(_MAPS) as file:
            count = sum(1 for _ in file)
    except (OSError, ValueError):
        return
    if count > most / 2:
        jax.clear_caches()
