"""The files of one checkpoint: host arrays and a JSON record, written and read with Orbax.

Orbax notices missing and cut-off files, but a flipped bit within the data comes back as another
number; so the record also holds a checksum of each item.
"""

import contextlib
import logging
import os
import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging

RECORD = "record"
Arrays = Mapping[str, np.ndarray]


class DamagedError(Exception):
    """The files of a checkpoint can't be read, or not as they were written."""


def write_step(path: pathlib.Path, items: Mapping[str, Arrays], record: Mapping[str, Any]) -> None:
    """Writes a directory with all items and the record; it appears under `path` once it is whole.

    Args:
        path: The directory to make; it must not exist.
        items: The arrays of each item by path.
        record: What JSON can hold.

    Raises:
        OSError: Writing failed; there is nothing under `path` then.
    """
    # An item without arrays (the state of plain SGD, say) has nothing to write.
    args = {name: ocp.args.StandardSave(dict(arrays)) for name, arrays in items.items() if arrays}
    checksums = {name: _checksum(arrays) for name, arrays in items.items()}
    args[RECORD] = ocp.args.JsonSave({**record, "checksums": checksums})
    try:
        with _checkpointer() as checkpointer:
            checkpointer.save(path, args=ocp.args.Composite(**args))
    except ValueError as error:  # Orbax's for what a file system refuses, such as a full disk
        if (code := re.search(r"os_error_code='(\d+)'", str(error))) is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


def read_step(
    path: pathlib.Path, names: Sequence[str]
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """Reads some items of a checkpoint, and its record.

    Args:
        path: A directory that `write_step` made.
        names: The items to read; those that were not written are left out of the result.

    Returns:
        The arrays of each item by path, and the record.

    Raises:
        DamagedError: A file is missing, cut off or altered.
        PermissionError: A file may not be read.
    """
    try:
        with _checkpointer() as checkpointer:
            args = ocp.args.Composite(**{RECORD: ocp.args.JsonRestore()})
            record = checkpointer.restore(path, args=args)[RECORD]
            checksums = record.pop("checksums")
            present = [name for name in names if name in checksums]
            filled = [name for name in present if checksums[name] != _checksum({})]
            args = ocp.args.Composite(**{name: ocp.args.StandardRestore() for name in filled})
            restored = checkpointer.restore(path, args=args) if filled else {}
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # Orbax names no classes for damaged files.
        reason = " ".join(str(error).split())[:200]
        raise DamagedError(f"{type(error).__name__}: {reason}") from error
    items = {name: dict(restored[name]) if name in filled else {} for name in present}
    altered = [name for name in present if _checksum(items[name]) != checksums[name]]
    if altered:
        raise DamagedError(f"the checksum of {', '.join(altered)} is wrong")
    return items, record


def _checksum(arrays: Arrays) -> int:
    """A CRC-32 of the paths, dtypes, shapes and contents."""
    checksum = 0
    for path in sorted(arrays):
        array = np.ascontiguousarray(arrays[path])
        description = f"{path} {array.dtype} {arrays[path].shape}\n"
        checksum = zlib.crc32(description.encode(), checksum)
        checksum = zlib.crc32(array.reshape(-1).view(np.uint8).data, checksum)
    return checksum


@contextlib.contextmanager
def _checkpointer() -> Iterator[ocp.Checkpointer]:
    """This process's synchronous Orbax checkpointer; its messages stay out of the run's log."""
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"process_{jax.process_index()}",
    )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
    )
    logger = absl_logging.get_absl_logger()
    level = logger.level
    # Orbax logs through absl's logger, which the user's script logs through as well: quiet it
    # only while Orbax works. Its errors come with tracebacks, and are raised besides.
    logger.setLevel(max(level, logging.CRITICAL))
    try:
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            yield checkpointer
    finally:
        logger.setLevel(level)
