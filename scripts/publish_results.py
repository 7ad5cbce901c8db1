"""Puts an evaluation's results into a folder to commit.

python scripts/publish_results.py runs/table1 results/table1

Tables (results.json, results.md), pictures, and workdir.tar.xz, from which anyone can continue:
with another model, for instance,

    mkdir -p runs/table1 && tar -xf results/table1/workdir.tar.xz -C runs/table1
    python evaluate.py --config=configs/table1.py:cpu --models=abs,madry,mine=runs/mine \\
        --workdir=runs/table1

attacks only what is new. Of the images the archive holds the closest adversarial one of each test
image, model and norm.
"""

import argparse
from collections.abc import Sequence

from abs_model._runtime.atomic_files import as_path
from abs_model._runtime.errors import UserError
from abs_model.evaluation.publish import publish


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the folder; what the user can fix ends as one message and exit status 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", metavar="WORKDIR", type=as_path, help="of evaluate.py")
    parser.add_argument("folder", metavar="FOLDER", type=as_path, help="made if needed")
    options = parser.parse_args(arguments)
    try:
        publish(options.workdir, options.folder)
    except (UserError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
