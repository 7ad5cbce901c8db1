"""The ledger: what was found for each image, attack and model, on disk as it is found.

    ledger/MODEL/ATTACK/FINGERPRINT/settings.json    what the fingerprint stands for
    ledger/MODEL/ATTACK/FINGERPRINT/PART.jsonl       a line for each image

Each process appends to a part of its own. A line that a kill cut short is taken away when its part
is opened again; any other damage is reported, never passed over.
"""

import base64
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from abs_model._runtime.atomic_files import write_json
from abs_model._runtime.errors import UserError

SETTINGS_FILE = "settings.json"
RESUME_HINT = "What was computed before stays; make room and run the same command again"


class LedgerError(UserError):
    """A ledger can't be read or written."""


@dataclasses.dataclass(frozen=True)
class Record:
    """What is known of one image under one attack on one model.

    Attributes:
        index: Of the image in the test split.
        label: Its class.
        clean_prediction: What the model calls the clean image: its label unless it misclassifies
            that beyond doubt (`abs_model.models.decisions`); `NO_DECISION` where a logit is NaN.
        claimed: Whether the attack reported an adversarial image.
        reasons: Why verification rejected it, of `verification.REASONS`; empty if it did not.
        prediction: What the model calls the attack's image, by a cold query. In a ledger of
            certificates, the class that comes closest to winning.
        distance: From the clean image, in the attack's norm, measured again; infinite where there
            is no verified adversarial image, 0 for an image that is misclassified when clean, or,
            under a targeted attack, of the target. In a ledger of certificates, the radius.
        num_queries: Queries of the model, with or without gradient, until the last image of its
            batch was done, which may be later than this one; None where the attack does not count.
        num_gradients: Those with gradient.
        image: What the attack reported, or did not report though it is adversarial, float32
            (height, width, channels); None without either, and where the clean image is
            misclassified.
        num_zero_gradients: How many of the gradients were zero; None where the attack does not
            count, and in ledgers from before this was noted, as all that follows.
        num_nonfinite_gradients: How many had an entry that was not finite.
        margin: Of the attack's image, as `verification.Verification.margins` has it.
        clean_margin: Of the clean image, against the same class.
        by_search: See `thorough_search.adversarial_by_search`.
        eight_bit: What becomes of the adversarial image in 8 bits, an outcome of
            `abs_model.evaluation.images.eight_bit`; None also without such an image.
        target: The class that a targeted attack led to; None for an untargeted one.
    """

    index: int
    label: int
    clean_prediction: int
    claimed: bool
    reasons: tuple[str, ...]
    prediction: int
    distance: float
    num_queries: int | None
    num_gradients: int | None
    image: np.ndarray | None
    num_zero_gradients: int | None = None
    num_nonfinite_gradients: int | None = None
    margin: float | None = None
    clean_margin: float | None = None
    by_search: bool | None = None
    eight_bit: str | None = None
    target: int | None = None

    @property
    def clean_error(self) -> bool:
        """Whether the model gets the clean image wrong."""
        return self.clean_prediction != self.label

    @property
    def counts(self) -> bool:
        """Whether it is an image for the attack: no target is the class that an image is of."""
        return self.target != self.label

    @property
    def goal(self) -> int:
        """The class to lead to, or, untargeted, to lead away from."""
        return self.label if self.target is None else self.target

    @property
    def clean_success(self) -> bool:
        """Whether the clean image is what the attack looks for: misclassified, or of the target."""
        return self.clean_error if self.target is None else self.clean_prediction == self.target

    @property
    def is_verified(self) -> bool:
        """Whether an attack found an adversarial image that verification did not reject."""
        return math.isfinite(self.distance) and not self.clean_success

    @property
    def adversarial(self) -> np.ndarray | None:
        """The image, where it is verified; None also where a published ledger does not keep it."""
        return self.image if self.is_verified else None


class Part:
    """The lines of one process, opened for appending.

    Use as a context manager, or call `close`.
    """

    def __init__(self, folder: pathlib.Path, name: str, settings: Mapping[str, Any]) -> None:
        """Opens `folder`/`name`.jsonl, made if need be, and takes away a line cut short.

        Raises:
            LedgerError: The disk does not allow it.
        """
        self._path = folder / f"{name}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / SETTINGS_FILE).exists():
                write_json(folder / SETTINGS_FILE, settings)
            self._file = open(self._path, "ab+", buffering=0)
            _cut_torn_line(self._file)
        except OSError as error:
            raise LedgerError(
                f"can't write to the ledger {self._path}: {error}. {RESUME_HINT}"
            ) from error

    def append(self, records: Iterable[Record]) -> None:
        """Appends a line for each record, and sees to it that they are on disk.

        Raises:
            LedgerError: The disk is full, or fails; the ledger is then as it was before, or ends
                with a line cut short.
        """
        data = b"".join(to_line(record) for record in records)
        end = self._file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise LedgerError(
                f"can't write to the ledger {self._path}: {error}. {RESUME_HINT}"
            ) from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "Part":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_records(folder: pathlib.Path) -> dict[int, Record]:
    """The records of all parts in a folder, by image; none where there is no folder.

    Raises:
        LedgerError: A line is damaged, which the message names, or the disk fails.
    """
    records: dict[int, Record] = {}
    for path in sorted(folder.glob("*.jsonl")):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise LedgerError(f"can't read the ledger {path}: {error}") from error
        # What follows the last newline is a line in the making, or one that a kill cut short.
        for number, line in enumerate(content.split(b"\n")[:-1], start=1):
            try:
                record = _from_line(line)
            except (ValueError, KeyError, TypeError, zlib.error) as error:
                raise LedgerError(
                    f"line {number} of the ledger {path} is damaged ({error}); remove that line,"
                    " and its image will be attacked again. The other lines stay"
                ) from error
            records.setdefault(record.index, record)
    return records


def missing(records: Mapping[int, Record], indices: Sequence[int]) -> list[int]:
    """Those of the images that there is no record of."""
    return [index for index in indices if index not in records]


def _cut_torn_line(file: Any) -> None:
    file.seek(0)
    content = file.read()
    if content and not content.endswith(b"\n"):
        file.truncate(content.rfind(b"\n") + 1)


def to_line(record: Record) -> bytes:
    """A record as a ledger has it."""
    content = dataclasses.asdict(record)
    content["distance"] = record.distance if math.isfinite(record.distance) else None
    if record.image is not None:
        image = np.ascontiguousarray(record.image, "<f4")
        content["image"] = base64.b64encode(zlib.compress(image.tobytes())).decode()
        content["shape"] = list(image.shape)
    text = json.dumps(content, separators=(",", ":"))
    return f'{{"crc32":{zlib.crc32(text.encode())},"record":{text}}}\n'.encode()


def _from_line(line: bytes) -> Record:
    head, separator, rest = line.partition(b',"record":')
    if not separator or not rest.endswith(b"}"):
        raise ValueError("it is no record")
    text = rest[:-1]
    if head != b'{"crc32":%d' % zlib.crc32(text):
        raise ValueError("its checksum is off")
    content = json.loads(text)
    shape = content.pop("shape", None)
    if content["image"] is not None:
        image = zlib.decompress(base64.b64decode(content["image"]))
        content["image"] = np.frombuffer(image, "<f4").reshape(shape).astype(np.float32)
    content["distance"] = math.inf if content["distance"] is None else content["distance"]
    content["reasons"] = tuple(content["reasons"])
    return Record(**content)
