"""Writes an evaluation as one HTML page, which opens without a network.

python scripts/report.py runs/table1
python scripts/report.py runs/table1 --output=table1.html --num_images=20

Tables, curves, and the adversarial images with what ABS models reconstruct of them. WORKDIR is that
of evaluate.py, which may still be at work.
"""

import argparse
import sys
from collections.abc import Sequence

from abs_model._runtime.atomic_files import as_path
from abs_model._runtime.command_line import argument_parser, output_file, positive, run_main
from abs_model.evaluation.report.write import make_page, write_page


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("workdir", metavar="WORKDIR", type=as_path, help="of evaluate.py")
    parser.add_argument(
        "--output", type=output_file, help="the page to write (WORKDIR/report.html)"
    )
    parser.add_argument(
        "--num_images",
        type=positive,
        default=100,
        help="test images in the gallery, the first ones (%(default)s); tables and curves are of"
        " all",
    )
    parser.add_argument(
        "--data_dir", help="folder of TFDS (the first that a model's training names)"
    )
    return parser.parse_args(argv[1:])


def main(options: argparse.Namespace) -> None:
    """Writes the page."""
    output = options.output or options.workdir / "report.html"
    page, notes = make_page(options.workdir, options.num_images, options.data_dir)
    write_page(output, page)
    for note in notes:
        print(note, file=sys.stderr)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_main(main, parse)
