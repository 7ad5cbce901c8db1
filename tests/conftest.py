"""Shared fixtures: the committed sample as arrays, prepared data folders, a small trained ABS."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent

# Programs that several tests, and the scripts they start, compile are compiled once.
_CACHE = ROOT / ".pytest_cache" / "xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("WANDB_MODE", "offline")

from abs_model.compilation import unload_programs  # noqa: E402, which reads the environment


@pytest.fixture(scope="module", autouse=True)
def room_for_programs() -> None:
    """Before each file: some compile hundreds."""
    unload_programs()


@pytest.fixture(scope="session")
def mnist_sample() -> dict[str, np.ndarray]:
    """Real MNIST images and labels: train_images, train_labels, test_images, test_labels."""
    with np.load(ROOT / "tests" / "data" / "mnist_sample.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> pathlib.Path:
    """A TFDS folder in which tests/tiny_datasets.py's data sets are prepared when first used."""
    return tmp_path_factory.mktemp("tfds")


def run_script(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs a Python script of the repository, from its root."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout
    )


def train_arguments(
    config: str, workdir: pathlib.Path, data_dir: pathlib.Path, dataset: str
) -> list[str]:
    """The command line that trains a `tiny` variant on one of the tiny data sets."""
    return [
        "train.py",
        f"--config=configs/{config}.py:tiny",
        f"--workdir={workdir}",
        f"--config.dataset.name={dataset}",
        "--config.dataset.module=tests.tiny_datasets",
        f"--config.dataset.data_dir={data_dir}",
        "--config.dataset.validation_size=50",
        "--wandb=off",
    ]


@pytest.fixture(scope="session")
def abs_run(tmp_path_factory, data_dir) -> pathlib.Path:
    """The workdir of a finished `tiny` ABS run on the MNIST sample."""
    workdir = tmp_path_factory.mktemp("runs") / "abs"
    done = run_script(*train_arguments("abs", workdir, data_dir, "mnist_sample"))
    assert done.returncode == 0, done.stderr
    return workdir
