"""Shared fixtures: the committed sample as arrays, prepared data folders, a small trained ABS."""

import fcntl
import os
import pathlib
import subprocess
import sys
import types
from collections.abc import Callable

ROOT = pathlib.Path(__file__).parent.parent

# Programs that several tests, and the scripts they start, compile are compiled once.
_CACHE = ROOT / ".pytest_cache" / "xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Tests compile far more than they compute. The older code generator, little optimization by LLVM,
# and no splitting of programs (each core already runs a process of tests) more than halve the time,
# though programs for ABS run 1.7 times as long.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=1"
    " --xla_cpu_parallel_codegen_split_count=1",
)
# Two threads of OpenBLAS on busy cores took 6 s for an eigh of 0.04 s. NumPy's import reads it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import numpy as np  # noqa: E402, which reads the environment, as the next imports do
import pytest  # noqa: E402

from abs_model._runtime.compilation_cache import clear_if_near_map_limit  # noqa: E402
from abs_model.data import Dataset, load_dataset  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def room_for_programs() -> None:
    """Before each file: some compile hundreds."""
    clear_if_near_map_limit()


@pytest.fixture(scope="session")
def mnist_sample() -> dict[str, np.ndarray]:
    """Real MNIST images and labels: train_images, train_labels, test_images, test_labels."""
    with np.load(ROOT / "tests" / "data" / "mnist_sample.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> pathlib.Path:
    """A TFDS folder in which tests/tiny_datasets.py's data sets are prepared; not to be changed."""

    def prepare(folder: pathlib.Path) -> None:
        for name in ("mnist_sample", "tiny_rgb"):
            load_tiny(name, folder)

    return _made_once(tmp_path_factory, "tfds", prepare)


def load_tiny(name: str, data_dir: pathlib.Path) -> Dataset:
    """One of tests/tiny_datasets.py's data sets, split as `train_arguments` has it."""
    return load_dataset(
        name, data_dir=str(data_dir), validation_size=50, module="tests.tiny_datasets"
    )


def run_script(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs a Python script of the repository, from its root."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout
    )


def call_script(script: types.ModuleType, *arguments: str) -> int | None:
    """Calls a script's `main` with what its `parse` reads of the arguments, in this process."""
    return script.main(script.parse([script.__name__, *arguments]))


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
    """The workdir of a finished `tiny` ABS run on the MNIST sample; not to be changed."""

    def train(workdir: pathlib.Path) -> None:
        done = run_script(*train_arguments("abs", workdir, data_dir, "mnist_sample"))
        assert done.returncode == 0, done.stderr

    return _made_once(tmp_path_factory, "abs", train)


def _made_once(
    tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[pathlib.Path], None]
) -> pathlib.Path:
    """A folder that one of the processes that run tests makes, while the others wait for it."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of this run of all processes
    with open(base / f"{name}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.fstat(lock.fileno()).st_size:
            make(base / name)
            lock.write("made")
    return base / name
