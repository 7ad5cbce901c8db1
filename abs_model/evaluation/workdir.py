"""The working directory of an evaluation: what it is of, and where each ledger lies.

    evaluation.json    the plan: models, attacks, images; rewritten by each command
    ledger/            see `abs_model.evaluation.ledger`
    timings.jsonl      how long each batch took
    results.*          the tables

Whatever decides over a result goes into the fingerprint of its ledger, so that results of other
settings, models or seeds lie elsewhere and never mix.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from abs_model.classifiers import Classifier
from abs_model.errors import UserError

CLEAN = "clean"
TIMES_FILE = "timings.jsonl"
_ADDRESS = re.compile(r"0x[0-9a-f]+")


class WorkdirError(UserError):
    """The working directory can't be used."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """The share of the work that a process takes: number `index` of `count`, from 1."""

    index: int = 1
    count: int = 1

    @property
    def part(self) -> str:
        """The name of its part of each ledger."""
        return "all" if self.count == 1 else f"{self.index}-of-{self.count}"

    def takes(self, number: int) -> bool:
        """Whether a batch, by its number among all, is its own."""
        return number % self.count == self.index - 1


WHOLE = Shard()


def parse_shard(text: str) -> Shard:
    """Reads "2/4".

    Raises:
        WorkdirError: It is something else.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise WorkdirError(f"--shard must be i/n with i from 1 to n, such as 2/4; got {text!r}")
    return Shard(int(match[1]), int(match[2]))


def ledger_folder(
    workdir: pathlib.Path, model_name: str, attack_name: str, identity: Mapping[str, Any]
) -> pathlib.Path:
    """Where the ledger of an attack on a model lies.

    Args:
        workdir: Of the evaluation.
        model_name: The model's name in the evaluation.
        attack_name: That of the attack, or `CLEAN`.
        identity: What decides over the results.
    """
    text = json.dumps(identity, sort_keys=True)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:12]
    return workdir / _folder(model_name, attack_name, fingerprint)


def _folder(model_name: str, attack_name: str, fingerprint: str) -> str:
    return f"ledger/{model_name}/{attack_name}/{fingerprint}"


def model_identity(model: Classifier) -> str:
    """A hash of a classifier's arrays and settings, whatever its name and batch size."""
    nameless = dataclasses.replace(model, name="", batch_size=1)
    leaves, structure = jax.tree.flatten(nameless)
    digest = hashlib.sha256(_ADDRESS.sub("", repr(structure)).encode())
    for leaf in leaves:
        digest.update(array_identity(np.asarray(leaf)).encode())
    return digest.hexdigest()[:16]


def array_identity(array: np.ndarray) -> str:
    """A hash of an array."""
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def locked(workdir: pathlib.Path, shard: Shard) -> Iterator[None]:
    """Makes sure that no other process works on the same share; a kill frees it.

    Raises:
        WorkdirError: Another does, or the directory can't be written to.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(workdir / f".{shard.part}.lock", "w")
    except OSError as error:
        raise WorkdirError(f"can't use --workdir={workdir}: {error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise WorkdirError(
                f"another process is at work in --workdir={workdir}; give each a share of its own"
                " with --shard=1/2 and --shard=2/2"
            ) from error
        yield


def note_time(workdir: pathlib.Path, entry: Mapping[str, Any]) -> None:
    """Appends an entry to `TIMES_FILE`: of interest, but of no consequence for any result."""
    line = json.dumps(dict(entry)) + "\n"
    with contextlib.suppress(OSError):
        descriptor = os.open(workdir / TIMES_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        with os.fdopen(descriptor, "w") as file:
            file.write(line)


def read_times(workdir: pathlib.Path) -> dict[str, float]:
    """Seconds that the batches of each ledger took, by its folder in the workdir.

    Of a batch that was done more than once, after a kill, the last time counts. Entries that were
    lost, or never written, are missing from the sums.
    """
    with contextlib.suppress(OSError):
        lines = (workdir / TIMES_FILE).read_text("utf-8").splitlines()
        batches: dict[tuple[str, int], float] = {}
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                folder = _folder(entry["model"], entry["attack"], entry["fingerprint"])
                batches[folder, entry["first"]] = float(entry["seconds"])
        totals: dict[str, float] = {}
        for (name, _), seconds in batches.items():
            totals[name] = totals.get(name, 0.0) + seconds
        return totals
    return {}
