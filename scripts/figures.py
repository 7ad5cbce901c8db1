"""Makes figures about what models see, and the numbers that they show.

python scripts/figures.py all
python scripts/figures.py certificates --models=abs,mine=runs/mine --num_images=100

Pictures (PNG and PDF, or GIF) and numbers (JSON) go to --workdir. Rerunning a command reuses what
has been computed.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from abs_model._runtime.atomic_files import as_path
from abs_model._runtime.command_line import argument_parser, positive, run_main
from abs_model._runtime.wandb_log import MODES
from abs_model.figures import FIGURES, choose_figures, make_figure, open_evaluation

_PUBLISHED = pathlib.Path("results/table1/workdir.tar.xz")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    listed = "\n".join(
        f"  {each.name:18} {each.title}" + (f" ({each.requires})" if each.requires else "")
        for each in FIGURES.values()
    )
    parser = argument_parser(
        __doc__,
        epilog=f"figures:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names",
        metavar="NAME",
        nargs="+",
        help="a figure from the list below, or all: every figure that needs no training",
    )
    parser.add_argument(
        "--models", help="as for evaluate.py, [NAME=]PATH[,...]; default: those of each figure"
    )
    parser.add_argument(
        "--workdir", type=as_path, default="runs/figures", help="made if needed (%(default)s)"
    )
    parser.add_argument(
        "--num_images", type=positive, help="test images, the first ones; default: of each figure"
    )
    parser.add_argument(
        "--evaluation",
        type=as_path,
        default=_PUBLISHED,
        help="workdir of evaluate.py, or its archive, with the attacks to show (%(default)s)",
    )
    parser.add_argument("--data_dir", help="folder of TFDS")
    parser.add_argument("--wandb", choices=MODES, default="auto", help="(%(default)s)")
    return parser.parse_args(argv[1:])


def main(options: argparse.Namespace) -> None:
    """Makes the figures and prints their files."""
    figures = choose_figures(options.names)
    evaluation = None
    if options.evaluation != _PUBLISHED or _PUBLISHED.exists():
        evaluation = open_evaluation(options.evaluation, options.workdir)
    else:
        print(f"Without attacks: there is no {_PUBLISHED}; give --evaluation", file=sys.stderr)
    for figure in figures:
        files = make_figure(
            figure,
            options.workdir,
            models=options.models.split(",") if options.models else None,
            num_images=options.num_images,
            data_dir=options.data_dir,
            evaluation=evaluation,
            wandb=options.wandb,
        )
        print("\n".join(map(str, files)), flush=True)


if __name__ == "__main__":
    run_main(main, parse)
