"""Makes an entry of the model zoo of a finished training run, after measuring the model.

python scripts/export_pretrained.py runs/cnn cnn --binary_name=binary_cnn
python scripts/export_pretrained.py runs/abs abs --binary_name=binary_abs --num_attacked=100

Measured are the accuracy on all test images, and on the first ones under 40 steps of PGD at the
thresholds of the paper. Tables, adversarial images and pictures are left in WORKDIR/measured.
"""

import argparse
import sys
from collections.abc import Sequence

from abs_model._runtime.atomic_files import as_path
from abs_model._runtime.command_line import argument_parser, positive, run_main
from abs_model._runtime.errors import UserError
from abs_model.evaluation.zoo_export import export_run
from abs_model.zoo import cards
from configs import pgd


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("workdir", metavar="WORKDIR", type=as_path, help="of the training run")
    parser.add_argument("name", metavar="NAME", help="what abs_model.load will call the model")
    parser.add_argument("--binary_name", help="also the same model on thresholded images")
    parser.add_argument(
        "--num_attacked",
        type=positive,
        default=1000,
        help="test images that are attacked (%(default)s)",
    )
    parser.add_argument(
        "--replace", action="store_true", help="put it in the place of an entry of that name"
    )
    return parser.parse_args(argv[1:])


def main(options: argparse.Namespace) -> None:
    """Runs the export."""
    names = [options.name, *([options.binary_name] if options.binary_name else [])]
    try:
        cards.check_names(options.name, names, replace=options.replace)
        path = export_run(options.workdir, names, pgd.get_config(), options.num_attacked)
    except OSError as error:
        raise UserError(f"can't export {options.workdir}: {error}") from error
    print(f"Exported: {path}, {path.stat().st_size / 1e6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    run_main(main, parse)
