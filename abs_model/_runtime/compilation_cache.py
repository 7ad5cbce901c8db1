"""Compiled programs: kept on disk, so that a machine compiles them once; unloaded when too many."""

import functools
import importlib
import os
import pathlib
import zlib

import jax

_LEAST_SECONDS = 0.02
_CHECKED = ".checked"  # no entry older than this file needs checking
_ZSTANDARD_MAGIC = bytes.fromhex("28b52ffd")
_MAPS, _MOST_MAPS = pathlib.Path("/proc/self/maps"), pathlib.Path("/proc/sys/vm/max_map_count")


def enable_compilation_cache() -> None:
    """Keeps what JAX compiles from now on, unless a cache has been chosen already.

    In ~/.cache/abs_model/xla, or under XDG_CACHE_HOME; JAX_COMPILATION_CACHE_DIR chooses another
    folder, JAX_ENABLE_COMPILATION_CACHE=false none. What takes over 0.02 seconds to compile is kept
    (JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS), and nothing is ever deleted but what a kill or a
    full disk cut short.
    """
    _choose_folder()
    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if folder and jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        _remove_cut_short(pathlib.Path(folder))


def _choose_folder() -> None:
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    except RuntimeError:  # no home, no cache
        return
    folder = pathlib.Path(cache) / "abs_model" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # An evaluation compiles hundreds of programs that JAX's own second leaves out. Loading even
        # small ones instead of compiling them saves memory: 45 MiB of 2,000 predictions of ABS.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)


@functools.cache  # once in a process
def _remove_cut_short(folder: pathlib.Path) -> None:
    """Removes what a kill or a full disk cut short, so that it is compiled and kept again.

    JAX writes entries in place, and never replaces one: it warns of one that it can't read, and
    compiles that program again at each start. Entries are checked once, by decompressing them.
    One that another process is just writing may be removed, too, and is kept the next time.
    """
    stamp, new_stamp = folder / _CHECKED, folder / f"{_CHECKED}.{os.getpid()}"
    try:
        since = stamp.stat().st_mtime_ns if stamp.exists() else 0
        if not folder.is_dir():
            return
        new_stamp.touch()
        for path in folder.glob("*-cache"):
            if path.stat().st_mtime_ns >= since and not _is_whole(path.read_bytes()):
                path.unlink()
        new_stamp.replace(stamp)
    except OSError:  # a cache that can't be changed, or that others change, too
        new_stamp.unlink(missing_ok=True)


def _is_whole(entry: bytes) -> bool:
    """Whether an entry is complete: zlib's, or zstandard's where that is installed."""
    if entry.startswith(_ZSTANDARD_MAGIC):
        try:
            zstandard = importlib.import_module("zstandard")
        except ImportError:  # JAX can't read it now, but another environment can
            return True
        decompressor, errors = zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError
    else:
        decompressor, errors = zlib.decompressobj(), zlib.error
    try:
        decompressor.decompress(entry)
    except errors:
        return False
    return decompressor.eof


def clear_if_near_map_limit() -> None:
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
