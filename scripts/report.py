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
from abs_model._runtime.errors import UserError
from abs_model.evaluation.report.write import check_output, make_page, write_page


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the page; what the user can fix ends as one message and exit status 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", metavar="WORKDIR", type=as_path, help="of evaluate.py")
    parser.add_argument("--output", type=as_path, help="the page to write (WORKDIR/report.html)")
    parser.add_argument(
        "--num_images",
        type=_positive,
        default=100,
        help="test images in the gallery, the first ones (%(default)s); tables and curves are of"
        " all",
    )
    parser.add_argument(
        "--data_dir", help="folder of TFDS (the first that a model's training names)"
    )
    options = parser.parse_args(arguments)
    output = options.output or options.workdir / "report.html"
    try:
        if options.output is not None:
            check_output(output)
        page, notes = make_page(options.workdir, options.num_images, options.data_dir)
        write_page(output, page)
    except (UserError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    for note in notes:
        print(note, file=sys.stderr)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
