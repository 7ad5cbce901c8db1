"""Runs a sweep over settings without an account at Weights & Biases.

python scripts/sweep.py configs/sweeps/abs_elbo.yaml --count=8

The file is in the format of W&B, whose `wandb sweep` takes it, too. Optuna proposes the settings.
Rerunning the same command resumes an interrupted sweep; a larger --count adds trials. At the end a
table (results.md), its data (results.json) and a picture (trials.png) are in --folder.
"""

import argparse
import sys
from collections.abc import Sequence

from abs_model._runtime.atomic_files import as_path
from abs_model._runtime.command_line import argument_parser, positive, run_main
from abs_model.sweeps.run import run_sweep


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "file",
        metavar="FILE",
        type=as_path,
        help="the sweep's YAML file, such as configs/sweeps/abs_elbo.yaml",
    )
    parser.add_argument(
        "--count", type=positive, required=True, help="trials that there are to be in the end"
    )
    parser.add_argument("--parallel", type=positive, default=1, help="trials at a time (1)")
    parser.add_argument("--folder", type=as_path, help="default: runs/sweeps/NAME of the file")
    parser.add_argument("--seed", type=int, default=0, help="of the proposals (0)")
    return parser.parse_args(argv[1:])


def main(options: argparse.Namespace) -> int:
    """Runs the sweep and prints the files of its report; returns the exit status."""
    folder = options.folder or as_path(f"runs/sweeps/{options.file.stem}")
    done, files = run_sweep(
        options.file, folder, count=options.count, parallel=options.parallel, seed=options.seed
    )
    print("\n".join(map(str, files)))
    if not done:
        print("Stopped; the same command resumes the sweep.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    run_main(main, parse)
