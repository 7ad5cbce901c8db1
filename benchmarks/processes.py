"""What `speed.py processes` measures: time and peak memory of whole processes.

Each task is a Python program of its own, so that imports, compilation and all memory count. Memory
is the largest resident set that the operating system notes of the process. The process itself
reads it, at its end: on Linux, `ru_maxrss` of a child is at least what its parent held when it
started it, because the kernel carries the number through `exec`.
"""

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import track

from abs_model._runtime.errors import UserError

_PREDICT = """
import abs_model

images = abs_model.load_dataset("mnist").test.images[:{count}].astype("float32") / 255
abs_model.load("{name}").predict(images)
"""
_TRAIN = """
from benchmarks.speed import training_steps

training_steps(batch_size=64, steps_per_epoch=32)(32)
"""
_REPORT = """
import sys

if sys.platform == "linux":
    with open("/proc/self/status") as status:
        [line] = [line for line in status if line.startswith("VmHWM:")]
    print(int(line.split()[1]) / 2**10)
else:
    import resource

    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""
# By name: the program, and whether it finds compiled programs in the cache.
TASKS: Mapping[str, tuple[str, bool]] = {
    "1 prediction of ABS, nothing cached": (_PREDICT.format(name="abs", count=1), False),
    "1 prediction of ABS, programs cached": (_PREDICT.format(name="abs", count=1), True),
    "8 predictions of ABS, nothing cached": (_PREDICT.format(name="abs", count=8), False),
    "8 predictions of ABS, programs cached": (_PREDICT.format(name="abs", count=8), True),
    "2,000 predictions of ABS": (_PREDICT.format(name="abs", count=2000), True),
    "10,000 predictions of Madry's network": (_PREDICT.format(name="madry", count=10_000), True),
    "32 training steps of ABS": (_TRAIN, True),
}
_REPOSITORY = pathlib.Path(__file__).parent.parent


def measure(turns: int, against: str | None) -> dict[str, Any]:
    """Seconds and peak mebibytes of each task, and of another checkout's in the same turns.

    Args:
        turns: How often each is run; before the first turn each fills its cache.
        against: Folder of another checkout of this repository.

    Raises:
        UserError: There is no checkout there, or a task fails.
    """
    checkouts = {"ours": _REPOSITORY}
    if against is not None:
        checkouts["other"] = pathlib.Path(against).expanduser().resolve()
        if not (checkouts["other"] / "abs_model").is_dir():
            raise UserError(f"--against must be a checkout of this repository, got {against}")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as caches:
        runs = [(name, side) for name in TASKS for side in checkouts]
        results: dict[tuple[str, str], list[tuple[float, float]]] = {run: [] for run in runs}
        order = [(turn, *run) for turn in range(turns + 1) for run in runs]
        for turn, name, side in track(order, "running", console=Console(stderr=True)):
            program, cached = TASKS[name]
            with tempfile.TemporaryDirectory() as empty:
                cache = f"{caches}/{side}" if cached else empty
                if turn or cached:
                    result = _run(program, checkouts[side], cache)
                if turn:
                    results[name, side].append(result)
    for name in TASKS:
        found[name] = {side: _summary(results[name, side]) for side in checkouts}
        if against is not None:
            pairs = list(zip(results[name, "ours"], results[name, "other"], strict=True))
            found[name]["ratio of times"] = _ratio([ours[0] / theirs[0] for ours, theirs in pairs])
            found[name]["ratio of memory"] = _ratio([ours[1] / theirs[1] for ours, theirs in pairs])
    return {"turns": turns, "tasks": found}


def _run(program: str, checkout: pathlib.Path, cache: str) -> tuple[float, float]:
    """Seconds, and the largest resident set in MiB."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "XDG_CACHE_HOME": cache}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # it would go before
    start = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-c", program + _REPORT],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if process.returncode:
        raise UserError(f"a task failed in {checkout}:\n{program}\n{process.stderr[-2000:]}")
    return seconds, float(process.stdout.split()[-1])


def _summary(results: Sequence[tuple[float, float]]) -> dict[str, float]:
    seconds, memory = (statistics.median(values) for values in zip(*results, strict=True))
    return {"seconds": round(seconds, 2), "peak MiB": round(memory)}


def _ratio(values: Sequence[float]) -> float:
    return round(statistics.median(values), 2)
