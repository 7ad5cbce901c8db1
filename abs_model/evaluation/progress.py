"""Progress of long parts of an evaluation, on stderr."""

import contextlib
from collections.abc import Callable, Iterator

import rich.console
import rich.progress


@contextlib.contextmanager
def count_progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar with the time left while its body runs.

    Args:
        description: What is being done, with the unit that is counted.
        total: Number of units.

    Yields:
        A function that takes the number of units done so far.
    """
    columns = (
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("left"),
        rich.progress.TimeRemainingColumn(),
    )
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.update(task, completed=done)
