"""How results came about, and compiled programs on disk."""

import os
import shutil
import subprocess
import sys

import jax
import pytest

from abs_model import provenance
from tests.conftest import ROOT


def git(*arguments, cwd):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of a Python file and another one, committed."""
    for name in ("code.py", "weights.json"):
        (tmp_path / name).write_text("1\n")
    git("init", cwd=tmp_path)
    git("add", ".", cwd=tmp_path)
    git("commit", "-m", "first", cwd=tmp_path)
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    return tmp_path


def test_the_commit_is_that_of_the_code(repository):
    head = git("rev-parse", "HEAD", cwd=repository).strip()
    assert provenance.git_commit() == head
    (repository / "weights.json").write_text("2\n")
    (repository / "untracked.py").write_text("2\n")
    assert provenance.git_commit() == head
    (repository / "code.py").write_text("2\n")
    assert provenance.git_commit() == head + "-dirty"


def test_without_a_repository_there_is_no_commit(repository):
    shutil.rmtree(repository / ".git")
    assert provenance.git_commit() is None


def test_the_environment_names_versions_and_device():
    environment = provenance.environment()
    assert environment["packages"]["jax"] == jax.__version__
    assert environment["device"]["cpu_cores"] == os.cpu_count()
    assert environment["device"]["cpu"]


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
