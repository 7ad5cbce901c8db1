"""Puts an evaluation's results into a folder to commit.

python scripts/publish_results.py runs/table1 results/table1

Tables (results.json, results.md), pictures, and workdir.tar.xz, from which anyone can continue:
with another model, for instance,

    mkdir -p runs/table1 && tar -xf results/table1/workdir.tar.xz -C runs/table1
    python evaluate.py --config=configs/table1.py:cpu --models=abs,madry,mine=runs/my_abs \\
        --workdir=runs/table1

attacks only what is new. Of the images the archive holds the closest adversarial one of each test
image, model and norm.
"""

import argparse
from collections.abc import Sequence

from abs_model._runtime.atomic_files import as_path
from abs_model._runtime.command_line import argument_parser, run_main
from abs_model._runtime.errors import UserError
from abs_model.evaluation.publish import publish


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("workdir", metavar="WORKDIR", type=as_path, help="of evaluate.py")
    parser.add_argument("folder", metavar="FOLDER", type=as_path, help="made if needed")
    return parser.parse_args(argv[1:])


def main(options: argparse.Namespace) -> None:
    """Writes the folder."""
    try:
        publish(options.workdir, options.folder)
    except OSError as error:
        raise UserError(f"can't publish {options.workdir}: {error}") from error


if __name__ == "__main__":
    run_main(main, parse)
