"""How results came about, and compiled programs on disk."""

import os
import shutil
import subprocess

import jax
import pytest

from abs_model._runtime import provenance


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


def test_an_installed_package_has_no_commit_of_the_repository_around_it(repository, monkeypatch):
    monkeypatch.setattr(provenance, "_ROOT", repository / "lib" / "site-packages")
    (repository / "lib" / "site-packages").mkdir(parents=True)
    assert provenance.git_commit() is None


def test_the_environment_names_versions_and_device():
    environment = provenance.environment()
    assert environment["packages"]["jax"] == jax.__version__
    assert environment["device"]["cpu_cores"] == os.cpu_count()
    assert environment["device"]["cpu"]
