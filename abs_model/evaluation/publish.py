"""Puts an evaluation's results into a folder to commit: tables, pictures, and its ledger."""

import json
import pathlib
import sys

from abs_model._runtime.atomic_files import atomic_write_bytes
from abs_model._runtime.errors import UserError
from abs_model._runtime.provenance import DIRTY
from abs_model.evaluation.render import CURVES, find_pictures
from abs_model.evaluation.run.archive import lost_images, pack
from abs_model.evaluation.run.workdir import UNSHARDED, locked
from abs_model.evaluation.tables.results import collect
from abs_model.evaluation.tables.table import make_tables
from abs_model.evaluation.tables.table_formats import to_json

_ARCHIVE = "workdir.tar.xz"
_TABLES = ("results.json", "results.md")


def publish(workdir: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the folder, and says what it holds.

    Args:
        workdir: Of evaluate.py, with tables and pictures of all that its ledger holds.
        folder: Made if needed; pictures of an earlier publication are removed.

    Raises:
        UserError: The workdir does not exist, or its tables are not those of its ledger.
    """
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
            f"Note: some results come from uncommitted code ({', '.join(dirty)}). To recompute"
            " them, delete their ledger folders and run evaluate.py",
            file=sys.stderr,
        )
    if lost := lost_images(results):
        print(
            f"Note: some of the closest adversarial images were not kept ({'; '.join(lost)}). To"
            " recompute them, delete the ledgers of these attacks and run evaluate.py",
            file=sys.stderr,
        )
