"""Writes an evaluation as one HTML page, which opens without a network.

python scripts/report.py runs/table1
python scripts/report.py runs/table1 --output=table1.html --num_images=20

Tables, curves, and the adversarial images with what ABS models reconstruct of them. WORKDIR is that
of evaluate.py, which may still be at work.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Sequence

import rich.console
import rich.progress

from abs_model._runtime.atomic_files import as_path, atomic_write_text
from abs_model._runtime.errors import UserError
from abs_model.evaluation import Results, collect
from abs_model.evaluation.report import (
    Reconstructions,
    Sources,
    make_content,
    num_inferences,
    open_sources,
    reconstruct,
    to_html,
)


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
            _check_output(output)
        page, notes = _make_page(options.workdir, options.num_images, options.data_dir)
        _write(output, page)
    except (UserError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    for note in notes:
        print(note, file=sys.stderr)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


def _check_output(output: pathlib.Path) -> None:
    """Raises a UserError before the work where the page could not be written after it."""
    if not output.parent.is_dir():
        raise UserError(f"--output={output}: there is no directory {output.parent}; make it first")
    if output.is_dir():
        raise UserError(f"--output={output} must be a file, and is a directory")


def _write(output: pathlib.Path, page: str) -> None:
    try:
        atomic_write_text(output, page)
    except OSError as error:
        raise UserError(f"can't write --output={output}: {error}") from error


def _make_page(
    workdir: pathlib.Path, num_images: int, data_dir: str | None
) -> tuple[str, list[str]]:
    """The page, and what is missing from it."""
    print(f"Reading {workdir}", file=sys.stderr)
    results = collect(workdir)
    print("Opening the data set and the models", file=sys.stderr)
    sources = open_sources(workdir, results.plan, data_dir=data_dir)
    num_images = min(num_images, results.plan.num_images)
    reconstructions = _reconstruct(results, sources, num_images)
    print("Making the page", file=sys.stderr)
    content = make_content(
        results,
        sources.test,
        reconstructions,
        num_images=num_images,
        notes=sources.notes,
    )
    return to_html(content), sources.notes


def _reconstruct(
    results: Results, sources: Sources, num_images: int
) -> dict[str, dict[str, Reconstructions]]:
    """By model; its first batch takes the longest, since it is compiled."""
    clean, found = sources.test.images[:num_images], {}
    with rich.progress.Progress(
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        console=rich.console.Console(stderr=True),
    ) as progress:
        for name, model in sources.models.items():
            total = num_inferences(results, name, num_images)
            task = progress.add_task(f"{name}: reconstructions, images", total=total)
            found[name] = reconstruct(
                model,
                name,
                results,
                clean,
                progress=functools.partial(progress.advance, task),
            )
    return found


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
