"""Files: paths as people write them, atomic writes, and locks.

A reader of an atomic file, or a run after a kill, sees the old content or the new, never a part.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

import numpy as np

PathLike = str | os.PathLike[str]


def as_path(path: PathLike) -> pathlib.Path:
    """The path, with the home directory in place of a leading ~.

    A shell replaces only a ~ at the start of a word, which that of --workdir=~/runs is not.

    Args:
        path: As a person wrote it.

    Raises:
        ValueError: It is empty, which `pathlib` would take for the current directory.
    """
    if not os.fspath(path):
        raise ValueError("must name a file or directory, got ''")
    return pathlib.Path(os.path.expanduser(path))


@contextlib.contextmanager
def locked(path: PathLike, *, shared: bool = False) -> Iterator[TextIO]:
    """Holds the lock of a file while the context lasts; a kill of the process frees it, too.

    Args:
        path: The file, made if needed; its directory must exist.
        shared: Whether others may hold it at the same time, if theirs are shared, too.

    Yields:
        The file, open for appending. A process that inherits it holds the lock until it ends, too.

    Raises:
        BlockingIOError: Another process holds it.
        OSError: The file can't be made or locked.
    """
    with open(path, "a") as file:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        yield file


def atomic_write_bytes(path: PathLike, data: bytes) -> None:
    """Writes `data` to `path` through a temporary file in the same directory, fsync and rename.

    Args:
        path: The file to create or replace; its directory must exist.
        data: The whole content.

    Raises:
        OSError: The directory is missing, not writable, or the disk is full; `path` is then
            as it was before.
    """
    path = pathlib.Path(path)
    descriptor, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            # mkstemp makes a private file (0600); give it what open() would have given it.
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def atomic_write_text(path: PathLike, text: str) -> None:
    """Writes `text` as UTF-8; see `atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode("utf-8"))


def write_json(path: PathLike, content: Mapping[str, Any]) -> None:
    """Writes `content` as indented JSON; see `atomic_write_bytes`.

    Args:
        path: The file to create or replace; its directory must exist.
        content: What JSON can hold, and numpy or jax arrays and scalars, which are written as
            lists and numbers.

    Raises:
        ValueError: A number is not finite; JSON has no way to write it.
        TypeError: A value is nothing JSON can hold.
        OSError: As in `atomic_write_bytes`.
    """
    text = json.dumps(dict(content), indent=2, allow_nan=False, default=_as_json)
    atomic_write_text(path, text + "\n")


def _as_json(value: Any) -> Any:
    if hasattr(value, "__array__"):
        return np.asarray(value).tolist()
    raise TypeError(f"{type(value).__name__} can't be written as JSON")


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_directory(directory: pathlib.Path) -> None:
    """Makes a rename in `directory` survive a power cut, not only a kill."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
