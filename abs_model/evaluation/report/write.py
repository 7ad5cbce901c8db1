"""Writes an evaluation as one HTML page: reads, reconstructs, and shows progress on stderr."""

import functools
import pathlib
import sys

import rich.console
import rich.progress

from abs_model._runtime.atomic_files import atomic_write_text
from abs_model._runtime.errors import UserError
from abs_model.evaluation.report.content import make_content
from abs_model.evaluation.report.page import to_html
from abs_model.evaluation.report.reconstructions import Reconstructions, num_inferences, reconstruct
from abs_model.evaluation.report.sources import Sources, open_sources
from abs_model.evaluation.tables.results import Results, collect


def write_page(output: pathlib.Path, page: str) -> None:
    """Writes the page, atomically; raises a UserError where that fails."""
    try:
        atomic_write_text(output, page)
    except OSError as error:
        raise UserError(f"can't write --output={output}: {error}") from error


def make_page(
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
