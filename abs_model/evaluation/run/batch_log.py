"""How results came about: `timings.jsonl` says it of each batch that was done.

It has a line for each: how long the batch took and when it was done, on which device, by which
commit and with which packages. It is of interest, but of no consequence for any result: where it
can't be written, or a kill comes between a batch and its line, that batch's origin is unknown.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

TIMES_FILE = "timings.jsonl"


@dataclasses.dataclass(frozen=True)
class Origin:
    """How a ledger came about, as far as it was noted.

    Attributes:
        seconds: That its batches took.
        commits: That they were done by, in the order of time.
        devices: On which they were done, likewise.
        packages: The versions of Python and packages, a text for each combination, likewise.
        finished: When the last one was, in UTC as "2026-11-26 04:01"; None where it isn't known.
        images: The numbers of the images that all this is known of.
    """

    seconds: float
    commits: Sequence[str]
    devices: Sequence[str]
    packages: Sequence[str]
    finished: str | None
    images: frozenset[int]


def note_batch(workdir: pathlib.Path, entry: Mapping[str, Any]) -> None:
    """Appends a batch's line, with the keys that `read_origins` reads."""
    line = json.dumps(dict(entry)) + "\n"
    with contextlib.suppress(OSError):
        with open(workdir / TIMES_FILE, "ab+") as file:
            # A line that a kill or a full disk cut short must not take this one with it.
            if file.tell() > 0:
                file.seek(-1, 2)
                line = line if file.read(1) == b"\n" else "\n" + line
            file.write(line.encode())


def read_origins(workdir: pathlib.Path) -> dict[str, Origin]:
    """How each ledger came about, by its folder relative to the workdir.

    If a batch was done more than once, such as after a kill, the last time counts. Entries
    that were lost, or never written, are missing.
    """
    try:
        lines = (workdir / TIMES_FILE).read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    folders: dict[str, dict[int, dict[str, Any]]] = {}
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            folder = "/".join(
                ["ledger", *(entry[key] for key in ("model", "attack", "fingerprint"))]
            )
            first = int(entry["first"])
            entry["seconds"] = float(entry["seconds"])
            entry["images"] = range(first, first + int(entry["num_images"]))
            batches = folders.setdefault(folder, {})
            batches.pop(first, None)
            batches[first] = entry
    return {folder: _origin(list(batches.values())) for folder, batches in folders.items()}


def _origin(entries: Sequence[Mapping[str, Any]]) -> Origin:
    commits, devices, packages, times = (
        list(dict.fromkeys(entry[key] for entry in entries if entry.get(key)))
        for key in ("commit", "device", "packages", "finished")
    )
    seconds = sum(entry["seconds"] for entry in entries)
    images = frozenset(index for entry in entries for index in entry["images"])
    return Origin(seconds, commits, devices, packages, max(times, default=None), images)
