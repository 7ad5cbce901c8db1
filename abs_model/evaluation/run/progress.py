"""Progress of an evaluation, on stderr: which attack, how far, how long to go."""

import rich.console
import rich.progress

# Seconds that speeds are averaged over: a batch of a strong attack may take an hour.
_PERIOD = 24 * 3600.0


class Progress:
    """A bar for all attacks, and one for what is at work; a line for each that is finished.

    Clean images are no part of the bar for all: there are many, and each takes next to no time.

    Use as a context manager.
    """

    def __init__(self, num_attacked: int) -> None:
        """Takes the number of images of all attacks together, without the clean ones."""
        columns = (
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("left"),
            rich.progress.TimeRemainingColumn(),
        )
        console = rich.console.Console(stderr=True)
        self._bar = rich.progress.Progress(*columns, console=console, speed_estimate_period=_PERIOD)
        self._all = self._add("all attacks, images", num_attacked)
        self._current: rich.progress.TaskID | None = None
        self._attacked = False
        self._description = ""

    def start(self, description: str, num_images: int, *, attacked: bool) -> None:
        """An attack on a model begins, or, not `attacked`, its clean images."""
        self._description = description
        self._attacked = attacked
        self._current = self._add(f"{description}, images", num_images)

    def queries(self, count: int) -> None:
        """So many queries have been made of each image of the batch."""
        if self._current is not None:
            self._bar.update(self._current, description=f"{self._description} ({count:,} queries)")

    def advance(self, num_images: int) -> None:
        """So many more images are done."""
        if self._attacked:
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

    def _add(self, description: str, num_images: int) -> rich.progress.TaskID:
        task = self._bar.add_task(description, total=num_images)
        # Speed counts from the first step on: without this one, the first batch would not tell.
        self._bar.advance(task, 0)
        return task

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
