"""The benchmark of whole processes."""

import pytest

from abs_model._runtime.errors import UserError
from benchmarks import processes
from tests.conftest import ROOT


def test_time_and_memory_are_those_of_the_programs(monkeypatch):
    programs = {
        "small": ("import time; time.sleep(0.3)\n", False),
        "large": ("kept = bytearray(200 * 2**20)\n", True),
    }
    monkeypatch.setattr(processes, "TASKS", programs)
    found = processes.measure(1, str(ROOT))["tasks"]
    small, large = found["small"]["ours"], found["large"]["ours"]
    assert 0.3 < small["seconds"] < 30
    assert 190 < large["peak MiB"] - small["peak MiB"] < 210
    assert found["large"]["ratio of memory"] == pytest.approx(1, abs=0.05)


def test_only_cached_programs_find_the_others_results(monkeypatch):
    program = """
import os, pathlib

folder = pathlib.Path(os.environ["XDG_CACHE_HOME"])
folder.mkdir(parents=True, exist_ok=True)
before = len(list(folder.iterdir()))
(folder / str(before)).touch()
assert before {expected}, before
"""
    # The first run of a cached program, which is not timed, fills the cache.
    tasks = {"cached": (program.format(expected=">= 0"), True)}
    monkeypatch.setattr(
        processes, "TASKS", tasks | {"new": (program.format(expected="== 0"), False)}
    )
    assert processes.measure(2, None)["turns"] == 2
    monkeypatch.setattr(processes, "TASKS", {"cached": (program.format(expected="== 0"), True)})
    with pytest.raises(UserError, match="a task failed"):
        processes.measure(1, None)


def test_another_checkout_must_be_one(tmp_path):
    with pytest.raises(UserError, match="must be a checkout"):
        processes.measure(1, str(tmp_path))
