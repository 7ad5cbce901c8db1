"""Tables and pictures of an evaluation's results, into its workdir and to Weights & Biases.

results.{json,md,tex,csv}   the tables
curves.png                  accuracy left at each distance
examples_MODEL_NORM.png     adversarial images, the closest of all attacks
"""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping

from abs_model._runtime.errors import UserError
from abs_model._runtime.wandb_log import Tracker
from abs_model.data import Dataset
from abs_model.evaluation.images import curves, style
from abs_model.evaluation.images.examples import choose_examples, draw_examples
from abs_model.evaluation.run.ledger import RESUME_HINT
from abs_model.evaluation.tables.results import Results
from abs_model.evaluation.tables.rows import COLUMNS, rows_of
from abs_model.evaluation.tables.table import NORM_NAMES, Tables
from abs_model.evaluation.tables.table_formats import write_tables
from abs_model.models.classifier import Classifier

CURVES = "curves"


class ShowError(UserError):
    """Tables or pictures can't be written."""


def show(
    workdir: pathlib.Path,
    results: Results,
    models: Mapping[str, Classifier],
    dataset: Dataset,
    tracker: Tracker | None,
) -> Tables:
    """Writes the files named above in place of older ones, the curves last, and logs them.

    Args:
        workdir: Of the evaluation.
        results: What it holds.
        models: The classifiers by name.
        dataset: Whose test images were attacked.
        tracker: A Weights & Biases run, which is finished.

    Raises:
        ShowError: The disk does not allow it.
    """
    with _writing(workdir, "the tables"):
        # Of a model that is no longer in the tables no picture may stay beside them.
        for old in find_pictures(workdir):
            old.unlink()
        tables = write_tables(workdir, results)
    pictures = {}
    for model in results.plan.models:
        for norm in results.norms:
            examples = choose_examples(results.closest_records(model, norm), dataset.test.images)
            if examples:
                name = NORM_NAMES[norm]
                pictures[f"examples_{model}_{norm}"] = draw_examples(
                    models[model],
                    examples,
                    title=f"{model}: adversarial images, {name}",
                    note=f"The closest of all attacks in {name}; the first images that have one",
                )
    pictures[CURVES] = curves.draw_curves(results)
    with _writing(workdir, "the pictures"):
        for name, figure in pictures.items():
            style.save(figure, workdir / f"{name}.png")
    if tracker is not None:
        if rows := rows_of(tables):
            values = [[row[column] for column in COLUMNS] for row in rows]
            tracker.log_table(0, "results", COLUMNS, values)
        for name in pictures:
            tracker.log_image(0, name, workdir / f"{name}.png")
        tracker.finish()
    return tables


def find_pictures(folder: pathlib.Path) -> list[pathlib.Path]:
    """The pictures that `show` has left in a folder; with the curves, they are all there."""
    found = [*folder.glob(f"{CURVES}.png"), *folder.glob("examples_*.png")]
    return sorted(path for path in found if path.is_file())


@contextlib.contextmanager
def _writing(workdir: pathlib.Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ShowError(f"can't write {what} to {workdir}: {error}. {RESUME_HINT}") from error
