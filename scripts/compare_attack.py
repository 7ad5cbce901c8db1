"""Compares an attack on a model with all others in its norm, and of its targets.

python scripts/compare_attack.py runs/table1 abs cutting_planes_l2
python scripts/compare_attack.py runs/table1 abs cutting_planes_l2 --thorough

Prints on how many images the attack is as close as the closest other attack, exactly and within
small tolerances, and which attacks are closer on the rest. Images are left out whose closest
adversarial one lies beyond the epsilon of the attack, or beyond that of all others. WORKDIR is that
of evaluate.py.

--thorough, for ABS models, classifies the closer images again with a much more thorough latent
search: some are adversarial only because the model's own search misses a better explanation.
"""

import argparse
from collections.abc import Sequence

from abs_model._runtime.atomic_files import as_path
from abs_model._runtime.command_line import argument_parser, run_main
from abs_model.evaluation import collect
from abs_model.evaluation.comparison import compare, compare_thoroughly


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argument_parser(__doc__)
    parser.add_argument("workdir", metavar="WORKDIR", type=as_path, help="of evaluate.py")
    parser.add_argument("model", metavar="MODEL", help="its name in the tables")
    parser.add_argument("attack", metavar="ATTACK", help="its name in the configuration")
    parser.add_argument("--thorough", action="store_true", help="also run a thorough search")
    return parser.parse_args(argv[1:])


def main(options: argparse.Namespace) -> None:
    """Prints the comparison."""
    results = collect(options.workdir)
    closer = compare(results, options.model, options.attack)
    if options.thorough:
        compare_thoroughly(options.workdir, results, options.model, closer)


if __name__ == "__main__":
    run_main(main, parse)
