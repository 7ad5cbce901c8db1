"""Several processes that train or evaluate together, on one machine or many.

JAX's distributed runtime joins them; it finds clusters of SLURM, TPUs and Kubernetes by itself.
With one process nothing here does anything. All processes run the same program: what writes files
is the first process, the primary one, and what reads them needs a file system that all share.
"""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from abs_model._runtime.errors import UserError

PyTree = Any
T = TypeVar("T")
# After this long without a sign of life of one process, the others are ended.
_HEARTBEAT_SECONDS = 30
# How long processes that are done wait for the one that still writes.
_SHUTDOWN_SECONDS = 24 * 3600
# Of a process that ends because another one has, or because of an error of its own.
_EXIT_STATUS = 75


def define_process_flags() -> None:
    """Defines the flags that `joined` reads; to be called once, by a script."""
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of the first of several processes, the same for all."
    )
    flags.DEFINE_integer("num_processes", None, "With --coordinator: how many there are.")
    flags.DEFINE_integer("process_id", None, "With --coordinator: number of this one, from 0.")
    flags.DEFINE_bool(
        "cluster", False, "Join the processes of this job, as SLURM, TPUs or Kubernetes tell."
    )


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Joins the processes that the flags name, for as long as the context lasts.

    An error ends this process at once, and by that the others, which would wait for it.

    Raises:
        UserError: The flags contradict each other, or there is no cluster.
    """
    values = flags.FLAGS
    given = {name: values[name].value for name in ("coordinator", "num_processes", "process_id")}
    missing = [name for name, value in given.items() if value is None]
    if values.cluster and len(missing) < 3:
        raise UserError("--cluster takes no --coordinator, --num_processes or --process_id")
    if 0 < len(missing) < 3:
        raise UserError(f"several processes also need --{' and --'.join(missing)}")
    if not values.cluster and missing:
        yield
        return
    try:
        jax.distributed.initialize(
            given["coordinator"],
            given["num_processes"],
            given["process_id"],
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the processes can't be joined: {error}") from error
    try:
        yield
    except Exception as error:
        # Not through JAX's exit handlers, which would wait for processes that wait for this one.
        if not isinstance(error, UserError):
            traceback.print_exc()
        print(
            f"process {jax.process_index()} of {jax.process_count()} stops: {error}\n"
            "If another one has ended, this is why. Start all of them again: they resume.",
            file=sys.stderr,
        )
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_EXIT_STATUS)


def is_primary() -> bool:
    """Whether this process writes the files."""
    return jax.process_index() == 0


def wait_for_all(place: str) -> None:
    """Waits until all processes have come to this place, which has a name of its own."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(place)


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all of them must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def primary_first(function: Callable[[], T], place: str) -> T:
    """What a function returns that the other processes call only after the primary one has."""
    if is_primary():
        found = function()
    wait_for_all(place)
    return found if is_primary() else function()


def check_same(number: int, description: str) -> None:
    """Raises a UserError unless all processes have the same number."""
    if jax.process_count() == 1:
        return
    numbers = multihost_utils.process_allgather(np.asarray(number)).tolist()
    if len(set(numbers)) > 1:
        raise UserError(
            f"processes differ in {description}: {numbers}; they need a file system that all share"
        )


def local_copy(tree: PyTree) -> PyTree:
    """The arrays, which processes share, whole in each of them; all must call it."""
    if jax.process_count() == 1:
        return tree
    return jax.device_put(
        jax.tree.map(lambda leaf: multihost_utils.process_allgather(leaf, tiled=True), tree)
    )
