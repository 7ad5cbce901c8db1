"""Measures minimal-norm attacks by exact distances: python benchmarks/exactness.py [--json PATH]

On linear classifiers the distance to the closest adversarial image is known, with the range of
images taken into account (`benchmarks/linear.py`). Each attack of ours that looks for the closest
adversarial image is compared with it in each norm on two test beds (`benchmarks/beds.py`), and so
are Foolbox's where it is installed. Prints a Markdown table for each bed. With --json, a run that
was stopped goes on where it was, unless the code has changed.
"""

import argparse
import importlib.util
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

import abs_model
from abs_model._runtime.atomic_files import write_json
from abs_model._runtime.command_line import argument_parser, output_file, positive, run_main
from abs_model._runtime.errors import UserError
from abs_model._runtime.provenance import DIRTY, environment, git_commit
from abs_model.data import Split
from abs_model.evaluation.run.verification import verify
from benchmarks.beds import NAMES, Bed, make_bed
from benchmarks.candidates import Candidate, foolboxes, ours
from benchmarks.linear import exact_distances, exact_logits

_NUM_TRAIN = 4000
_NORMS = {"l2": "L2", "linf": "L-inf", "l0": "L0"}
_HEAD = (
    "Attack",
    "Norm",
    "Library",
    "Ratio: median",
    "Ratio: worst",
    "Adversarial in float64",
    "One by one",
    "8 bits",
)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argument_parser(__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--images", type=positive, default=50, help="validation images of each bed")
    parser.add_argument("--attacks", nargs="+", metavar="TITLE", help="only these, such as FAB")
    parser.add_argument("--json", type=output_file, help="file to write to and go on with")
    return parser.parse_args(argv[1:])


def main(options: argparse.Namespace) -> None:
    """Measures the attacks and prints the tables."""
    dataset = abs_model.load_dataset("mnist")
    train = Split(dataset.train.images[:_NUM_TRAIN], dataset.train.labels[:_NUM_TRAIN])
    beds = [make_bed(name, train, dataset.validation, options.images) for name in NAMES]
    work = [(bed, candidate) for bed in beds for candidate in candidates(bed)]
    titles = list(dict.fromkeys(candidate.title for _, candidate in work))
    for title in options.attacks or ():
        if title not in titles:
            raise UserError(f"--attacks: there is no {title!r}; there are {', '.join(titles)}")
    chosen = [pair for pair in work if pair[1].title in (options.attacks or titles)]
    about = {"benchmark": "exactness", "images": options.images, "commit": git_commit()}
    about |= environment()
    found = _finished(options.json, about)
    for bed, candidate in track(chosen, "measuring attacks", console=Console(stderr=True)):
        if not any(_is_of(bed, candidate, each) for each in found):
            found.append(measure(bed, candidate))
            if options.json:
                write_json(options.json, about | {"measurements": found})
    print("\n\n".join(f"{bed.name}\n\n{table(found, bed.name)}" for bed in beds))


def _finished(path: pathlib.Path | None, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The measurements that a stopped run of the same code has left."""
    if path is None or not path.exists() or str(about["commit"]).endswith(DIRTY):
        return []
    try:
        before = dict(json.loads(path.read_text()))
    except (ValueError, TypeError):  # something else, which is overwritten
        return []
    found = before.pop("measurements", [])
    return found if before == about else []


def _is_of(bed: Bed, candidate: Candidate, found: Mapping[str, Any]) -> bool:
    names = (bed.name, candidate.title, candidate.library, candidate.norm)
    return names == tuple(found[key] for key in ("bed", "attack", "library", "norm"))


def candidates(bed: Bed) -> list[Candidate]:
    """The attacks to measure on a bed."""
    if importlib.util.find_spec("foolbox") is None:
        return ours(bed)
    return ours(bed) + foolboxes(bed)


def measure(bed: Bed, candidate: Candidate) -> dict[str, Any]:
    """Runs an attack and compares what it finds with the exact distances.

    Returns:
        `ratio_median` and `ratio_worst` of distances over exact ones, of the images that are
        adversarial in float64 (None where there are none); the shares of images that are
        `adversarial` in float64, `one_by_one` in float32 by the classifier itself, and in float64
        after rounding to `eight_bits`; `seconds`, compilation included.
    """
    start = time.perf_counter()
    found = np.asarray(candidate.run(), np.float32)
    seconds = time.perf_counter() - start
    if not np.all((found >= 0) & (found <= 1)):
        raise ValueError(f"{candidate.library}'s {candidate.title} left [0, 1]")
    norm, adversarial = candidate.norm, _adversarial(bed, found)
    away = verify(bed.model, bed.images, bed.labels, found, norm=norm).distances
    ratios = (away / exact_distances(bed.model, bed.images, bed.labels, norm))[adversarial]
    alone = bed.model.with_batch_size(1).predict(found) != bed.labels
    rounded = _adversarial(bed, np.round(255 * found.astype(np.float64)) / 255)
    return {
        "bed": bed.name,
        "attack": candidate.title,
        "norm": norm,
        "library": candidate.library,
        "settings": dict(candidate.settings),
        "ratio_median": float(np.median(ratios)) if len(ratios) else None,
        "ratio_worst": float(ratios.max()) if len(ratios) else None,
        "adversarial": float(adversarial.mean()),
        "one_by_one": float(alone.mean()),
        "eight_bits": float(rounded.mean()),
        "seconds": round(seconds, 1),
    }


def _adversarial(bed: Bed, images: np.ndarray) -> np.ndarray:
    """Which images are of another class than their labels in float64, bool (N,)."""
    return exact_logits(bed.model, images).argmax(1) != bed.labels


def table(measurements: Sequence[Mapping[str, Any]], bed: str) -> str:
    """The measurements on a bed as a Markdown table, by norm."""
    rows = [
        _row(each)
        for norm in _NORMS
        for each in measurements
        if (each["bed"], each["norm"]) == (bed, norm)
    ]
    rule = ["---", "---", "---", *["---:"] * 5]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [_HEAD, rule, *rows])


def _row(found: Mapping[str, Any]) -> list[str]:
    settings = ", ".join(
        f"{key} {value}" for key, value in found["settings"].items() if key != "constraint"
    )
    title = f"{found['attack']} ({settings})" if settings else found["attack"]
    ratios = (found[key] for key in ("ratio_median", "ratio_worst"))
    shares = (found[key] for key in ("adversarial", "one_by_one", "eight_bits"))
    return [
        title,
        _NORMS[found["norm"]],
        found["library"],
        *("-" if ratio is None else f"{ratio:.3f}" for ratio in ratios),
        *(f"{share:.0%}" for share in shares),
    ]


if __name__ == "__main__":
    run_main(main, parse)
