"""Progress of an evaluation, on stderr: which attack, how far, how long to go."""

import rich.console
import rich.progress


class Progress:
    """A bar for all of it, and a line for what is at work; a line for each finished attack.

    Use as a context manager.
    """

    def __init__(self, num_images: int) -> None:
        """Takes the number of images of all attacks together."""
        columns = (
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("left"),
            rich.progress.TimeRemainingColumn(),
        )
        self._bar = rich.progress.Progress(*columns, console=rich.console.Console(stderr=True))
        self._all = self._bar.add_task("all attacks, images", total=num_images)
        self._current: rich.progress.TaskID | None = None
        self._description = ""

    def start(self, description: str, num_images: int) -> None:
        """An attack on a model begins."""
        self._description = description
        self._current = self._bar.add_task(f"{description}, images", total=num_images)

    def questions(self, count: int) -> None:
        """So many questions have been asked about each image of the batch."""
        if self._current is not None:
            self._bar.update(self._current, description=f"{self._description} ({count:,} queries)")

    def advance(self, num_images: int) -> None:
        """So many more images are done."""
        self._bar.advance(self._all, num_images)
        if self._current is not None:
            self._bar.advance(self._current, num_images)

    def finish(self, outcome: str) -> None:
        """The attack is done; `outcome` is what to say of it."""
        if self._current is None:
            return
        seconds = self._bar.tasks[self._bar.task_ids.index(self._current)].elapsed or 0.0
        self._bar.remove_task(self._current)
        self._current = None
        self._bar.console.print(
            f"{self._description}: {outcome}, {seconds:.0f} s", markup=False, highlight=False
        )

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
