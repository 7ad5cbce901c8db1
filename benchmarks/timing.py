"""Timing candidates in turns: on a shared machine only what ran in the same minute compares."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Key = TypeVar("Key", bound=Hashable)


def time_in_turns(
    candidates: Mapping[Key, tuple[Callable[[], object], int]], turns: int
) -> dict[Key, list[float]]:
    """Images/s of each candidate in each turn, after a first turn that only warms up.

    Args:
        candidates: What to run, and how many images one run takes.
        turns: How often each is timed.
    """
    rates: dict[Key, list[float]] = {key: [] for key in candidates}
    for turn in track(range(turns + 1), "timing, in turns", console=Console(stderr=True)):
        for key, (run, images) in candidates.items():
            start = time.perf_counter()
            run()
            if turn:
                rates[key].append(images / (time.perf_counter() - start))
    return rates


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over turns of the ratio of two rates."""
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 2)
