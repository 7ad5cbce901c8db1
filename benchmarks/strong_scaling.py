"""Measures two processes against one, each on a core: python benchmarks/strong_scaling.py

An evaluation in two shards against one process, whole processes with compiled programs cached; and
two processes that train together against one, images/s after compilation. Linux only, because
processes are pinned to cores.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import track

from abs_model._runtime.atomic_files import write_json
from abs_model._runtime.command_line import argument_parser, output_file, positive, run_main
from abs_model._runtime.errors import UserError
from abs_model._runtime.provenance import environment, git_commit
from benchmarks.loopback import free_address, killed_at_the_end

_REPOSITORY = pathlib.Path(__file__).parent.parent
_EVALUATE = (
    "evaluate.py", "--config=configs/table1.py:cpu", "--models=abs", "--attacks=pgd_l2",
    "--config.num_images=40", "--config.num_clean=40", "--config.batch_size=10",
    "--config.certify=False",
)  # fmt: skip
_TRAIN = ("train.py", "--config=configs/abs.py", "--wandb=off")
_DISPATCHES = 12  # of training; the first ones compile
_COMPILING = 2


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argument_parser(__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--turns", type=positive, default=3, help="how often each is timed")
    parser.add_argument("--json", type=output_file, help="also write the result to this file")
    return parser.parse_args(argv[1:])


def main(options: argparse.Namespace) -> None:
    """Measures, and prints the result as JSON."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        raise UserError(
            "this benchmark pins processes to two cores: it needs Linux, and at least two cores"
            " that this process may use (`taskset --cpu-list --pid $$` shows them)"
        )
    found: dict[str, dict[int, list[float]]] = {"evaluation": {}, "training": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        order = [(turn, count) for turn in range(options.turns + 1) for count in (1, 2)]
        for turn, count in track(order, "running", console=Console(stderr=True)):
            rates = {"evaluation": 1 / _evaluate(count, folder), "training": _train(count, folder)}
            for task, rate in rates.items():
                if turn:  # the first one fills the cache
                    found[task].setdefault(count, []).append(rate)
    result = {"benchmark": "strong_scaling", "turns": options.turns, "commit": git_commit()}
    result |= environment()
    for task, rates_of in found.items():
        ratios = [two / one for one, two in zip(rates_of[1], rates_of[2], strict=True)]
        result[task] = {
            "ratio": round(statistics.median(ratios), 2),
            "range": [round(min(ratios), 2), round(max(ratios), 2)],
        }
    print(json.dumps(result, indent=2))
    if options.json:
        write_json(options.json, result)


def _evaluate(count: int, folder: pathlib.Path) -> float:
    """Seconds of an evaluation by so many processes."""
    workdir = folder / "evaluation"
    shutil.rmtree(workdir, ignore_errors=True)
    flags = [[f"--workdir={workdir}", f"--shard={i + 1}/{count}"] for i in range(count)]
    start = time.perf_counter()
    with _pinned([[*_EVALUATE, *each] for each in flags], folder) as processes:
        for number, process in enumerate(processes):
            if process.wait():
                raise UserError(f"the evaluation failed:\n{_log(folder, number)}")
    return time.perf_counter() - start


def _train(count: int, folder: pathlib.Path) -> float:
    """Images/s of a training by so many processes."""
    workdir = folder / "training"
    shutil.rmtree(workdir, ignore_errors=True)
    together = [f"--coordinator={free_address()}", f"--num_processes={count}"]
    commands = [[*_TRAIN, f"--workdir={workdir}"]]
    if count > 1:
        commands = [[*commands[0], *together, f"--process_id={i}"] for i in range(count)]
    metrics = workdir / "metrics.jsonl"
    with _pinned(commands, folder) as processes:
        while len(rates := _rates(metrics)) < _DISPATCHES:
            time.sleep(0.2)
            if any(process.poll() is not None for process in processes):
                raise UserError(f"the training failed:\n{_log(folder, 0)}")
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait()
    return statistics.median(rates[_COMPILING:])


def _rates(metrics: pathlib.Path) -> list[float]:
    """Images/s of each dispatch so far."""
    if not metrics.exists():
        return []
    lines = metrics.read_text().splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    key = "train/images_per_second"
    return [record[key] for record in records if key in record]


@contextlib.contextmanager
def _pinned(
    commands: Sequence[Sequence[str]], folder: pathlib.Path
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Python processes, each on a core of its own; what is left of them is killed."""
    cores = sorted(os.sched_getaffinity(0))
    settings = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    started = []
    for number, command in enumerate(commands):
        with (folder / f"{number}.txt").open("wb") as log:
            process = subprocess.Popen(
                ["taskset", "--cpu-list", str(cores[number]), sys.executable, *command],
                cwd=_REPOSITORY,
                env=settings,
                stdout=log,
                stderr=log,
            )
        started.append(process)
    with killed_at_the_end(started):
        yield started


def _log(folder: pathlib.Path, number: int) -> str:
    return (folder / f"{number}.txt").read_text()[-2000:]


if __name__ == "__main__":
    run_main(main, parse)
