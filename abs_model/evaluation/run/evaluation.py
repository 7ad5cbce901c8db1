"""Evaluation of classifiers: every attack on every model, verified, image by image.

The way of an image: `Runner` takes the test images in batches through `Launcher` (the attack) and
`verify` into the ledger; `collect` reads the ledger, and `show` makes tables and pictures of it. A
run that was killed resumes where it was, since what is in the ledger is skipped.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from abs_model._runtime.configuration import positive_int, seed
from abs_model._runtime.errors import UserError
from abs_model.data import Dataset
from abs_model.evaluation.run.launcher import Launcher
from abs_model.evaluation.run.ledger import missing, read_records
from abs_model.evaluation.run.progress import Progress
from abs_model.evaluation.run.runner import Runner, Settings, Task
from abs_model.evaluation.run.suite import AttackSpec
from abs_model.evaluation.run.workdir import (
    CERTIFIED,
    CLEAN,
    UNSHARDED,
    Shard,
    array_identity,
    ledger_folder,
    locked,
    model_identity,
)
from abs_model.evaluation.tables.results import Plan, PlannedAttack, Results, collect
from abs_model.inference.certificates import DEFAULT_SETTINGS
from abs_model.models.classifier import Classifier


class EvaluationError(UserError):
    """The requested evaluation isn't possible."""


def evaluate(
    models: Mapping[str, Classifier],
    dataset: Dataset,
    suite: Sequence[AttackSpec],
    settings: Settings,
    workdir: pathlib.Path,
    *,
    shard: Shard = UNSHARDED,
    about: Mapping[str, Any] | None = None,
) -> Results:
    """Runs every attack on every model that it is applicable to, and keeps what they find.

    Certifies decisions, too, where `settings.certify` says so.

    Args:
        models: Classifiers by name; the names become part of paths.
        dataset: Its test images are attacked.
        suite: The attacks.
        settings: How much of it.
        workdir: Made if needed. What it has of these models, attacks and settings is
            skipped.
        shard: This process's share of the work.
        about: More for evaluation.json, such as the models' paths.

    Returns:
        What there is of results, which other shards may still be adding to.

    Raises:
        EvaluationError: A setting can't be used, such as more images than there are test images.
        UserError: The workdir, its ledger or an attack can't be used.
    """
    _check(dataset, settings)
    models = {
        name: dataclasses.replace(model, name=name, batch_size=settings.batch_size)
        for name, model in models.items()
    }
    with locked(workdir, shard):
        launcher = Launcher(dataset.train.images)
        tasks = _tasks(models, dataset, suite, settings, workdir, launcher)
        shares = _share(tasks, shard)
        _check_attacks(shares, launcher, dataset)
        _plan(tasks, models, suite, settings, workdir, about or {}).write(workdir)
        runner = Runner(dataset, settings, workdir, shard, launcher)
        num_attacked = sum(
            len(batch) for task in shares if task.spec is not None for batch in task.batches
        )
        with Progress(num_attacked) as progress:
            for task in shares:
                runner.run(task, progress)
    return collect(workdir)


def _check(dataset: Dataset, settings: Settings) -> None:
    expected = dict.fromkeys(("num_clean", "num_images", "batch_size"), positive_int)
    for key, expectation in (expected | {"seed": seed}).items():
        value = getattr(settings, key)
        if not expectation.accepts(value):
            raise EvaluationError(f"{key} must be {expectation.description}, got {value!r}")
    available = len(dataset.test.labels)
    for key in ("num_clean", "num_images"):
        if getattr(settings, key) > available:
            raise EvaluationError(
                f"{key} must be from 1 to the {available} test images there are, got"
                f" {getattr(settings, key)}"
            )


def _tasks(
    models: Mapping[str, Classifier],
    dataset: Dataset,
    suite: Sequence[AttackSpec],
    settings: Settings,
    workdir: pathlib.Path,
    launcher: Launcher,
) -> list[Task]:
    """All there is to do, done or not; the same for every shard."""
    data = {
        "dataset": dataset.name,
        "images": array_identity(dataset.test.images),
        "labels": array_identity(dataset.test.labels),
    }
    tasks = []
    for name, model in models.items():
        identity = {"model": model_identity(model), **data}
        folder = ledger_folder(workdir, name, CLEAN, identity)
        batches = _batches(settings.num_clean, settings.batch_size)
        tasks.append(Task(model, None, folder, identity, batches))
        for spec in suite:
            if spec.why_not(model) is None:
                chosen = launcher.identity(spec, model)
                attack_identity = identity | {"seed": settings.seed} | chosen
                folder = ledger_folder(workdir, name, spec.name, attack_identity)
                batches = _batches(settings.num_images, settings.batch_size)
                tasks.append(Task(model, spec, folder, attack_identity, batches))
        if settings.certify and hasattr(model, "certify"):
            for norm in dict.fromkeys(spec.norm for spec in suite):
                search = {"norm": norm, **dataclasses.asdict(DEFAULT_SETTINGS)}
                certified_identity = identity | {"certificates": search}
                folder = ledger_folder(workdir, name, CERTIFIED[norm], certified_identity)
                batches = _batches(settings.num_images, settings.batch_size)
                tasks.append(Task(model, None, folder, certified_identity, batches, norm))
    return tasks


def _check_attacks(tasks: Sequence[Task], launcher: Launcher, dataset: Dataset) -> None:
    """Raises a SuiteError for settings that an attack would reject once its turn comes."""
    image = dataset.test.images[:1].astype(np.float32) / 255
    for task in tasks:
        if task.spec is not None and task.batches:
            launcher.check(task.spec, task.model, image, dataset.test.labels[:1])


def _plan(
    tasks: Sequence[Task],
    models: Mapping[str, Classifier],
    suite: Sequence[AttackSpec],
    settings: Settings,
    workdir: pathlib.Path,
    about: Mapping[str, Any],
) -> Plan:
    """What the tasks amount to, for those who read the results."""
    folders = {
        (task.name, task.model.name): task.folder.relative_to(workdir).as_posix() for task in tasks
    }
    attacks = [
        PlannedAttack(
            name=spec.name,
            title=spec.display_title,
            norm=spec.norm,
            group=spec.group,
            reference=spec.reference,
            settings={
                name: spec.settings_on(model)
                for name, model in models.items()
                if (spec.name, name) in folders
            },
            ledgers={
                name: folders[spec.name, name] for name in models if (spec.name, name) in folders
            },
            access=spec.access,
            refusals={
                name: reason for name, model in models.items() if (reason := spec.why_not(model))
            },
            targets=spec.targets,
        )
        for spec in suite
    ]
    return Plan(
        models=list(models),
        attacks=attacks,
        num_clean=settings.num_clean,
        num_images=settings.num_images,
        clean_ledgers={name: folders[CLEAN, name] for name in models},
        certificates={
            norm: ledgers
            for norm, certified in CERTIFIED.items()
            if (ledgers := {m: folders[certified, m] for m in models if (certified, m) in folders})
        },
        about={
            **about,
            "seed": settings.seed,
            "batch_size": settings.batch_size,
        },
    )


def _batches(count: int, size: int) -> list[list[int]]:
    """The first `count` images in batches of `size`."""
    return [list(range(first, min(first + size, count))) for first in range(0, count, size)]


def _share(tasks: Sequence[Task], shard: Shard) -> list[Task]:
    """The tasks with the batches that are a shard's and not done."""
    shares, first = [], 0
    for task in tasks:
        records = read_records(task.folder)
        batches = [
            batch
            for number, batch in enumerate(task.batches, start=first)
            if shard.takes(number) and missing(records, batch)
        ]
        shares.append(dataclasses.replace(task, batches=batches))
        first += len(task.batches)
    return shares
