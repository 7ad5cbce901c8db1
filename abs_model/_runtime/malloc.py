"""Freed memory stays with the process, for the next step's arrays."""

import ctypes
import os
import platform

# Of <malloc.h>.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_GROWTH = 64 * 2**20


def retain_freed_memory() -> None:
    """Lets the C library reuse freed memory instead of giving it back to the system.

    XLA allocates the arrays of each call again on a CPU. By default large ones come from the
    system, which clears them page by page, and go back to it at the end of the call; on networks
    that takes a third of the time (PGD on 100 images; `benchmarks/speed.py attacks`). The price is
    that a process never shrinks.

    Does nothing where a variable MALLOC_... says how to allocate, and with other libraries than
    glibc.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    library.mallopt(_M_MMAP_MAX, 0)
    library.mallopt(_M_TRIM_THRESHOLD, -1)
    library.mallopt(_M_TOP_PAD, _GROWTH)
