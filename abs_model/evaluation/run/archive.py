"""An evaluation in a form to publish: its ledger in one small file.

The archive holds the plan, the times, the probes and all records, but of the images only the
closest adversarial one of each test image, model and norm, and of each kind of targets: tables,
curves and pictures need no more. (A report's gallery of a single attack does.) Unpacked it is a
workdir: evaluate.py continues from there with further models or attacks, and report.py reads it.
"""

import dataclasses
import io
import json
import pathlib
import tarfile

from abs_model.evaluation.run import probe
from abs_model.evaluation.run.batch_log import TIMES_FILE
from abs_model.evaluation.run.ledger import SETTINGS_FILE, Record, to_line
from abs_model.evaluation.run.workdir import UNSHARDED
from abs_model.evaluation.tables.results import PLAN_FILE, PlannedAttack, Results


def pack(workdir: pathlib.Path, results: Results) -> bytes:
    """The archive, .tar.xz; the same bytes for the same evaluation.

    Args:
        workdir: Of the evaluation.
        results: What it holds, from `collect`.

    Raises:
        OSError: A file can't be read.
    """
    plan = results.plan
    closest = {
        (model, attack.name, record.index)
        for model in plan.models
        for attack, record in _closest(results, model)
    }
    files = {PLAN_FILE: json.dumps(dataclasses.asdict(plan), indent=2).encode()}
    if (times := workdir / TIMES_FILE).exists():
        files[TIMES_FILE] = times.read_bytes()
    for model, folder in plan.clean_ledgers.items():
        files |= _ledger(workdir, folder, list(results.clean[model].values()))
        if model in results.probes:
            files[f"{folder}/{probe.FILE}"] = (workdir / folder / probe.FILE).read_bytes()
    for attack in plan.attacks:
        for model, folder in attack.ledgers.items():
            records = [
                record
                if (model, attack.name, record.index) in closest
                else dataclasses.replace(record, image=None)
                for record in results.found[model, attack.name].values()
            ]
            files |= _ledger(workdir, folder, records)
    for norm, ledgers in plan.certificates.items():
        for model, folder in ledgers.items():
            files |= _ledger(workdir, folder, list(results.certified[model, norm].values()))
    return _archive(files)


def lost_images(results: Results) -> list[str]:
    """Closest adversarial images that a workdir lacks, e.g. "madry l2, fab_l2: images 24, 27".

    An archive keeps the closest only. Where one of its attacks is left out or done again, what is
    the closest then may have no image.
    """
    lost: dict[str, list[str]] = {}
    for model in results.plan.models:
        for attack, record in _closest(results, model):
            if record.is_verified and record.image is None:
                name = f"{model} {attack.norm}, {attack.name}"
                lost.setdefault(name, []).append(str(record.index))
    return [f"{name}: images {', '.join(indices)}" for name, indices in lost.items()]


def _closest(results: Results, model: str) -> list[tuple[PlannedAttack, Record]]:
    """For each image the closest records of the untargeted attacks, and of each kind of targets."""
    return [
        found
        for norm in results.norms
        for targets in results.all_targets
        for found in results.closest_records(model, norm, targets=targets)
    ]


def _ledger(workdir: pathlib.Path, folder: str, records: list[Record]) -> dict[str, bytes]:
    """The files of one ledger by their paths; none where it has not begun."""
    if not records:
        return {}
    lines = b"".join(map(to_line, sorted(records, key=lambda record: record.index)))
    return {
        f"{folder}/{SETTINGS_FILE}": (workdir / folder / SETTINGS_FILE).read_bytes(),
        f"{folder}/{UNSHARDED.part}.jsonl": lines,
    }


def _archive(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return content.getvalue()
