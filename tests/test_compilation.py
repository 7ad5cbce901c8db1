"""Compiled programs on disk and in memory."""

import os
import subprocess
import sys

import jax
import pytest

from abs_model import compilation
from tests.conftest import ROOT


@pytest.mark.parametrize("chosen", [None, "mine"])
def test_compiled_programs_are_kept_even_after_a_first_one(chosen, tmp_path):
    code = """
import jax
from abs_model.compilation import keep_compiled

jax.jit(lambda x: x + 1)(1.0)
keep_compiled()
jax.jit(lambda x: x + 2)(1.0)
"""
    variables = {
        "PATH": os.environ["PATH"],
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    expected = tmp_path / "abs_model" / "xla"
    if chosen is not None:
        expected = tmp_path / chosen
        variables["JAX_COMPILATION_CACHE_DIR"] = str(expected)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables, check=True)
    assert [path for path in tmp_path.rglob("*-cache") if path.parent == expected]
    assert not [path for path in tmp_path.rglob("*-cache") if path.parent != expected]


@pytest.mark.parametrize(("allowed", "unloaded"), [("10", True), ("1000000000", False)])
def test_programs_are_unloaded_when_they_take_too_many_maps(
    allowed, unloaded, tmp_path, monkeypatch
):
    traced = []
    program = jax.jit(lambda x: traced.append(x) or x + 1)
    (tmp_path / "most").write_text(allowed)
    monkeypatch.setattr(compilation, "_MOST_MAPS", tmp_path / "most")
    for _ in range(2):
        program(1.0)
        compilation.unload_programs()
    assert len(traced) == 1 + unloaded
    monkeypatch.setattr(compilation, "_MOST_MAPS", tmp_path / "absent")
    compilation.unload_programs()
