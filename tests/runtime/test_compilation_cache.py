"""Compiled programs on disk and in memory."""

import os
import subprocess
import sys
import zlib

import jax
import pytest

from abs_model._runtime import compilation_cache
from tests.conftest import ROOT
from tests.forked_scripts import run_forked


@pytest.mark.parametrize("chosen", [None, "mine"])
def test_compiled_programs_are_kept_even_after_a_first_one(chosen, tmp_path):
    code = """
import jax
from abs_model._runtime.compilation_cache import enable_compilation_cache

jax.jit(lambda x: x + 1)(1.0)
enable_compilation_cache()
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
    monkeypatch.setattr(compilation_cache, "_MOST_MAPS", tmp_path / "most")
    for _ in range(2):
        program(1.0)
        compilation_cache.clear_if_near_map_limit()
    assert len(traced) == 1 + unloaded
    monkeypatch.setattr(compilation_cache, "_MOST_MAPS", tmp_path / "absent")
    compilation_cache.clear_if_near_map_limit()


@pytest.mark.parametrize("chosen", [None, "mine"])
@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_a_program_whose_file_was_cut_short_is_kept_again(chosen, part, tmp_path):
    folder = tmp_path / (chosen or "abs_model/xla")
    script = tmp_path / "script.py"
    script.write_text(f"""
import warnings
import jax
from abs_model._runtime.compilation_cache import enable_compilation_cache

warnings.simplefilter("error")  # JAX warns of entries that it can't read
jax.config.update("jax_compilation_cache_dir", {chosen and str(folder)!r})
enable_compilation_cache()
print(jax.jit(lambda x: x + 2)(1.0))
""")

    def start():
        done = run_forked(script, XDG_CACHE_HOME=str(tmp_path))
        assert done.stdout == "3.0\n", done.stderr
        return {path.name: path.read_bytes() for path in folder.glob("*-cache")}

    kept = start()
    assert start() == kept  # what is read is not written again
    for name, content in kept.items():
        os.truncate(folder / name, int(part * len(content)))
    again = start()
    assert again.keys() == kept.keys()
    assert all(len(again[name]) > 0.995 * len(content) for name, content in kept.items())
    assert start() == again
    assert not [path for path in folder.iterdir() if ".checked." in path.name]


def test_an_entry_is_checked_once(tmp_path, monkeypatch):
    read = []
    is_whole = compilation_cache._is_whole
    monkeypatch.setattr(
        compilation_cache, "_is_whole", lambda entry: read.append(entry) or is_whole(entry)
    )
    (tmp_path / "a-cache").write_bytes(zlib.compress(b"program"))
    os.utime(tmp_path / "a-cache", (1, 1))
    (tmp_path / "other").write_bytes(b"cut short")
    for _ in range(2):
        compilation_cache._remove_cut_short.__wrapped__(tmp_path)
    assert len(read) == 1
    (tmp_path / "b-cache").write_bytes(zlib.compress(b"program")[:-1])
    compilation_cache._remove_cut_short.__wrapped__(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".checked", "a-cache", "other"]


def test_entries_of_zstandard_are_known_by_their_end():
    zstandard = pytest.importorskip("zstandard")
    entry = zstandard.ZstdCompressor().compress(b"program" * 100)
    assert compilation_cache._is_whole(entry)
    for length in (3, 4, 10, len(entry) - 1):
        assert not compilation_cache._is_whole(entry[:length])
