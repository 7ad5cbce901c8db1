"""Imports the authors' released ABS model: python scripts/import_released_weights.py SRC OUT

SRC holds their ten PyTorch files ABS_0.net to ABS_9.net, from
https://github.com/bethgelab/AnalysisBySynthesis. OUT becomes the workdir of a finished run:
`abs_model.load(OUT)` is their ABS, `abs_model.load(OUT, binary=True)` their Binary ABS.
PyTorch is not among the requirements: `pip install torch`.
"""

import argparse
import sys
from collections.abc import Sequence

from abs_model._runtime.atomic_files import as_path
from abs_model._runtime.command_line import argument_parser, run_main
from abs_model.zoo.released_weights import import_released_weights
from configs.abs import get_config


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argument_parser(__doc__)
    parser.add_argument(
        "source", metavar="SRC", type=as_path, help="the folder of ABS_0.net to ABS_9.net"
    )
    parser.add_argument(
        "out", metavar="OUT", type=as_path, help="the workdir to make; must not exist, or empty"
    )
    return parser.parse_args(argv[1:])


def main(options: argparse.Namespace) -> None:
    """Runs the import."""
    import_released_weights(options.source, options.out, get_config())
    print(f"Imported: {options.out}", file=sys.stderr)


if __name__ == "__main__":
    run_main(main, parse)
