"""Verifies the adversarial examples of an evaluation again, in batches of other sizes.

python scripts/reverify.py runs/table1 --batch_sizes 1 7 64 100 256

On another machine, or with XLA_FLAGS=--xla_cpu_max_isa=AVX2, the same examples meet other kernels.
Exits with 1 if any are no longer adversarial.
"""

import argparse
import sys
from collections.abc import Sequence

from abs_model._runtime.atomic_files import as_path
from abs_model._runtime.errors import UserError
from abs_model.evaluation.run.reverification import reverify_workdir


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a line for each model and batch size; errors end as one message and exit status 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", metavar="WORKDIR", type=as_path, help="of evaluate.py")
    parser.add_argument(
        "--batch_sizes", type=int, nargs="+", default=[1, 7, 64, 100, 256], metavar="N"
    )
    options = parser.parse_args(arguments)
    try:
        num_lost = reverify_workdir(options.workdir, options.batch_sizes)
    except (UserError, OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    sys.exit(num_lost > 0)


if __name__ == "__main__":
    main()
