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
from abs_model._runtime.errors import UserError
from abs_model.evaluation.zoo_export import export_run
from abs_model.zoo import cards
from configs import pgd


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the export; what the user can fix ends as one message and exit status 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", metavar="WORKDIR", type=as_path, help="of the training run")
    parser.add_argument("name", metavar="NAME", help="what abs_model.load will call the model")
    parser.add_argument("--binary_name", help="also the same model on thresholded images")
    parser.add_argument(
        "--num_attacked", type=int, default=1000, help="test images that are attacked (%(default)s)"
    )
    parser.add_argument(
        "--replace", action="store_true", help="put it in the place of an entry of that name"
    )
    options = parser.parse_args(arguments)
    names = [options.name, *([options.binary_name] if options.binary_name else [])]
    try:
        cards.check_names(options.name, names, replace=options.replace)
        path = export_run(options.workdir, names, pgd.get_config(), options.num_attacked)
    except (UserError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(f"Exported: {path}, {path.stat().st_size / 1e6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
