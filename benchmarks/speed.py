"""Measures speed: python benchmarks/speed.py {training,inference,attacks,processes} [--json PATH]

`training` times the jitted step of `configs/abs.py` on random images, and with `--against torch` a
tight PyTorch loop over the same ten VAEs, in turns within one run: the ratio is what counts.
`inference` times the solvers of latent search on a trained model, compares their energies, and
with `--against torch` times the paper's algorithm in PyTorch in the same turns.
`attacks` times ours against Foolbox's on JAX. `processes` runs whole programs for their time and
their peak memory, with `--against PATH` in turns with those of another checkout. PyTorch is not
among the requirements (`pip install torch`), and Foolbox is among those of the tests.
"""

import argparse
import functools
import importlib.util
import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence

import jax
import numpy as np

from abs_model._runtime.atomic_files import write_json
from abs_model._runtime.command_line import argument_parser, output_file, positive, run_main
from abs_model._runtime.errors import UserError
from abs_model.data import Dataset, Split
from abs_model.training.abs_task import ABSTask
from benchmarks import attack_speed, inference_speed, processes
from benchmarks.timing import median_ratio, time_in_turns
from configs.abs import get_config

_IMAGE_SHAPE = (28, 28, 1)
_NUM_CLASSES = 10


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argument_parser(__doc__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--turns", type=positive, default=7, help="how often each is timed")
    common.add_argument("--json", type=output_file, help="also write the result to this file")
    torch = argparse.ArgumentParser(add_help=False)
    torch.add_argument("--against", choices=["torch"], help="time another implementation in turns")
    benchmarks = parser.add_subparsers(
        dest="benchmark", required=True, parser_class=argparse.ArgumentParser
    )
    form = argparse.ArgumentDefaultsHelpFormatter
    training = benchmarks.add_parser("training", parents=[common, torch], formatter_class=form)
    training.add_argument(
        "--batch_size", type=positive, default=64, help="images per class and step"
    )
    training.add_argument("--steps", type=positive, default=8, help="steps per turn")
    inference = benchmarks.add_parser("inference", parents=[common, torch], formatter_class=form)
    inference.add_argument("--workdir", default="runs/released", help="of a trained ABS model")
    inference.add_argument(
        "--batch_sizes", type=positive, nargs="+", default=[64, 128, 256], help="images at a time"
    )
    inference.add_argument(
        "--images", type=positive, default=1000, help="test images whose energies are compared"
    )
    attacks = benchmarks.add_parser("attacks", parents=[common], formatter_class=form)
    attacks.add_argument(
        "--batch_sizes", type=positive, nargs="+", default=[10, 100], help="images at a time"
    )
    whole = benchmarks.add_parser("processes", parents=[common], formatter_class=form)
    whole.add_argument("--against", help="another checkout, to run in the same turns")
    return parser.parse_args(argv[1:])


def main(options: argparse.Namespace) -> None:
    """Runs a benchmark and prints its result as JSON."""
    if getattr(options, "against", None) == "torch" and importlib.util.find_spec("torch") is None:
        raise UserError("--against torch requires PyTorch: pip install torch")
    if options.benchmark == "attacks" and importlib.util.find_spec("foolbox") is None:
        raise UserError("attacks requires Foolbox: pip install -r tests/requirements.txt")
    measure = {
        "training": _measure_training,
        "inference": _measure_inference,
        "attacks": _measure_attacks,
        "processes": _measure_processes,
    }[options.benchmark]
    result = {"benchmark": options.benchmark} | measure(options) | {"machine": _machine()}
    print(json.dumps(result, indent=2))
    if options.json:
        write_json(options.json, result)


def _measure_inference(options: argparse.Namespace) -> dict[str, object]:
    return inference_speed.measure(
        options.workdir,
        options.batch_sizes,
        options.turns,
        options.images,
        against_torch=options.against == "torch",
    )


def _measure_attacks(options: argparse.Namespace) -> dict[str, object]:
    return attack_speed.measure(options.batch_sizes, options.turns)


def _measure_processes(options: argparse.Namespace) -> dict[str, object]:
    return processes.measure(options.turns, options.against)


def _measure_training(options: argparse.Namespace) -> dict[str, object]:
    candidates = {"jax": training_steps(options.batch_size, options.steps)}
    if options.against:
        # Only here, so that the benchmark runs without PyTorch.
        from benchmarks import torch_training

        candidates["torch"] = torch_training.training_steps(options.batch_size, _NUM_CLASSES)
    images = options.steps * options.batch_size * _NUM_CLASSES
    rates = time_in_turns(
        {name: (functools.partial(run, options.steps), images) for name, run in candidates.items()},
        options.turns,
    )
    result: dict[str, object] = {
        "batch_size_per_class": options.batch_size,
        "images_per_second": {name: round(statistics.median(r)) for name, r in rates.items()},
        "range": {name: [round(min(r)), round(max(r))] for name, r in rates.items()},
    }
    if options.against:
        result["ratio"] = median_ratio(rates["jax"], rates["torch"])
    return result


def training_steps(batch_size: int, steps_per_epoch: int) -> Callable[[int], None]:
    """A function that makes up to an epoch of our training steps and waits for them."""
    config = get_config()
    config.train.batch_size_per_class = batch_size
    task = ABSTask(config, _random_dataset(batch_size * steps_per_epoch))
    states = [task.init_state()]

    def run(steps: int) -> None:
        state, _ = task.run_steps(states.pop(), 0, steps)
        states.append(jax.block_until_ready(state))

    return run


def _random_dataset(images_per_class: int) -> Dataset:
    random = np.random.default_rng(0)
    labels = np.tile(np.arange(_NUM_CLASSES, dtype=np.int32), images_per_class)
    images = random.integers(0, 256, (len(labels), *_IMAGE_SHAPE), dtype=np.uint8)
    split = Split(images, labels)
    return Dataset("random", _NUM_CLASSES, split, split, split)


def _machine() -> dict[str, object]:
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


if __name__ == "__main__":
    run_main(main, parse)
