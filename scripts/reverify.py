"""Verifies the adversarial examples of an evaluation again, in batches of other sizes.

python scripts/reverify.py runs/table1 --batch_sizes 1 7 64 100 256

On another machine, or with XLA_FLAGS=--xla_cpu_max_isa=AVX2, the same examples meet other kernels.
Exits with 1 if any are no longer adversarial.
"""

import argparse
from collections.abc import Sequence

from abs_model._runtime.atomic_files import as_path
from abs_model._runtime.command_line import argument_parser, positive, run_main
from abs_model.evaluation.run.reverification import reverify_workdir


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("workdir", metavar="WORKDIR", type=as_path, help="of evaluate.py")
    parser.add_argument(
        "--batch_sizes", type=positive, nargs="+", default=[1, 7, 64, 100, 256], metavar="N"
    )
    return parser.parse_args(argv[1:])


def main(options: argparse.Namespace) -> int:
    """Prints a line for each model and batch size; returns the exit status."""
    return int(reverify_workdir(options.workdir, options.batch_sizes) > 0)


if __name__ == "__main__":
    run_main(main, parse)
