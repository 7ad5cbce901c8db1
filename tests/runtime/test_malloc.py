"""Freed memory that is kept, in processes of their own: the setting is one of the process."""

import os
import platform
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# Page faults while arrays of 16 MiB come and go.
CODE = """
import resource

from abs_model._runtime.malloc import retain_freed_memory

retain_freed_memory()


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        bytearray(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
@pytest.mark.parametrize(("chosen", "kept"), [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "1"}, False)])
def test_freed_memory_is_used_again_unless_something_else_was_chosen(chosen, kept):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, env=clean | chosen, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    pages = 20 * 2**24 // os.sysconf("SC_PAGE_SIZE")
    assert (int(done.stdout) < pages / 100) == kept
