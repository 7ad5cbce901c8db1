"""Puts an evaluation's results into a folder to commit.

python scripts/publish_results.py runs/table1 results/table1

Tables (results.json, results.md), pictures, and workdir.tar.xz, from which anyone can go on: with
another model, for instance,

    mkdir -p runs/table1 && tar -xf results/table1/workdir.tar.xz -C runs/table1
    python evaluate.py --config=configs/table1.py:cpu --models=abs,madry,mine=runs/mine \\
        --workdir=runs/table1

attacks only what is new. Of the images the archive holds the closest adversarial one of each test
image, model and norm.
"""

import argparse
import json
import pathlib
import sys

from abs_model._runtime.atomic_files import as_path, atomic_write_bytes
from abs_model._runtime.errors import UserError
from abs_model._runtime.provenance import DIRTY
from abs_model.evaluation import UNSHARDED, collect, locked, make_tables, pack, to_json
from abs_model.evaluation.render import CURVES, find_pictures
from abs_model.evaluation.run.archive import lost_images

_ARCHIVE = "workdir.tar.xz"
_TABLES = ("results.json", "results.md")


def main() -> None:
    """Writes the folder; what the user can fix ends as one message and exit status 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", metavar="WORKDIR", type=as_path, help="of evaluate.py")
    parser.add_argument("folder", metavar="FOLDER", type=as_path, help="made if needed")
    options = parser.parse_args()
    try:
        _publish(options.workdir, options.folder)
    except (UserError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def _publish(workdir: pathlib.Path, folder: pathlib.Path) -> None:
    if not workdir.is_dir():
        raise UserError(f"there is no directory {workdir}")
    with locked(workdir, UNSHARDED):
        results = collect(workdir)
        tables = json.dumps(to_json(make_tables(results), results), default=list)
        try:
            shown = json.loads((workdir / "results.json").read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            shown = None
        if shown != json.loads(tables) or not (workdir / f"{CURVES}.png").exists():
            raise UserError(
                f"the tables in {workdir} are not those of its ledger, or lack their pictures; run"
                " evaluate.py there, without --shard, which makes both"
            )
        archive = pack(workdir, results)
        files = {path.name: path.read_bytes() for path in find_pictures(workdir)}
        files |= {name: (workdir / name).read_bytes() for name in _TABLES}
    folder.mkdir(parents=True, exist_ok=True)
    for path in find_pictures(folder):
        if path.name not in files:
            path.unlink()
    for name, content in (files | {_ARCHIVE: archive}).items():
        atomic_write_bytes(folder / name, content)
    for path in sorted(folder.iterdir()):
        if path.is_file():
            print(f"{path}: {path.stat().st_size / 1e3:,.0f} kB")
    if dirty := [commit for commit in results.commits if commit.endswith(DIRTY)]:
        print(
            f"Note: some results are of code that no commit holds ({', '.join(dirty)}). To have"
            " them found again, delete their folders of the ledger and run evaluate.py",
            file=sys.stderr,
        )
    if lost := lost_images(results):
        print(
            f"Note: some of the closest adversarial images were not kept ({'; '.join(lost)}). To"
            " have them found again, delete the ledgers of these attacks and run evaluate.py",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
