"""Evaluation of classifiers: every attack on every model, verified, image by image.

The way of an image: `evaluate` takes the test images in batches through `Launcher` (the attack) and
`verify` into the ledger; `abs_model.evaluation.results` reads the ledger and makes the tables. A
run that was killed goes on where it was, since what is in the ledger is not done again.
"""

import dataclasses
import math
import pathlib
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abs_model.attacks.base import AttackResult, fold_in
from abs_model.classifiers import Classifier
from abs_model.data import Dataset
from abs_model.errors import UserError
from abs_model.evaluation.ledger import Part, Record, missing, read_records
from abs_model.evaluation.progress import Progress
from abs_model.evaluation.results import Plan, PlannedAttack, Results, collect
from abs_model.evaluation.suite import AttackSpec, Launcher
from abs_model.evaluation.verification import Verification, verify
from abs_model.evaluation.workdir import (
    CLEAN,
    WHOLE,
    Shard,
    array_identity,
    ledger_folder,
    locked,
    model_identity,
    note_time,
)
from abs_model.provenance import environment, git_commit

Array = np.ndarray


class EvaluationError(UserError):
    """The evaluation asked for isn't possible."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is evaluated, for every model alike.

    Attributes:
        num_clean: Test images for clean accuracy, the first ones.
        num_images: Test images that are attacked, the first ones.
        batch_size: Images at a time; a kill costs at most one batch. No result depends on it, but
            for float rounding.
        seed: Of all that is random.
    """

    num_clean: int
    num_images: int
    batch_size: int
    seed: int


@dataclasses.dataclass(frozen=True)
class _Task:
    """An attack, or none, on a model, with the batches of images still to do."""

    model: Classifier
    spec: AttackSpec | None
    folder: pathlib.Path
    identity: Mapping[str, Any]
    batches: Sequence[Sequence[int]]

    @property
    def attack_name(self) -> str:
        return CLEAN if self.spec is None else self.spec.name

    @property
    def description(self) -> str:
        if self.spec is None:
            return f"{self.model.name}: clean images"
        return f"{self.model.name}: {self.spec.shown} {self.spec.norm}"


def evaluate(
    models: Mapping[str, Classifier],
    dataset: Dataset,
    suite: Sequence[AttackSpec],
    settings: Settings,
    workdir: pathlib.Path,
    *,
    shard: Shard = WHOLE,
    about: Mapping[str, Any] | None = None,
) -> Results:
    """Runs every attack on every model that takes it, and writes tables.

    Args:
        models: Classifiers by name; the names become part of paths.
        dataset: Its test images are attacked.
        suite: The attacks.
        settings: How much of it.
        workdir: Made if needed. What it holds of these models, attacks and settings is not done
            again.
        shard: This process's share of the work.
        about: More for evaluation.json, such as the models' paths.

    Returns:
        What there is of results, which other shards may still be adding to.

    Raises:
        EvaluationError: There are fewer test images than asked for.
        UserError: The workdir, its ledger or an attack can't be used.
    """
    _check(dataset, settings)
    models = {
        name: dataclasses.replace(model, name=name, batch_size=settings.batch_size)
        for name, model in models.items()
    }
    with locked(workdir, shard):
        data = {"dataset": dataset.name, "images": array_identity(dataset.test.images)}
        tasks = _tasks(models, suite, settings, workdir, data)
        _plan(tasks, models, suite, settings, workdir, about or {}).write(workdir)
        runner = _Runner(dataset, settings, workdir, shard)
        shares = _share(tasks, shard)
        with Progress(sum(len(batch) for task in shares for batch in task.batches)) as progress:
            for task in shares:
                runner.run(task, progress)
    return collect(workdir)


def _check(dataset: Dataset, settings: Settings) -> None:
    available = len(dataset.test.labels)
    for key in ("num_clean", "num_images"):
        if not 1 <= getattr(settings, key) <= available:
            raise EvaluationError(
                f"{key} must be from 1 to the {available} test images there are, got"
                f" {getattr(settings, key)}"
            )


def _tasks(
    models: Mapping[str, Classifier],
    suite: Sequence[AttackSpec],
    settings: Settings,
    workdir: pathlib.Path,
    data: Mapping[str, Any],
) -> list[_Task]:
    """All there is to do, done or not; the same for every shard."""
    tasks = []
    for name, model in models.items():
        identity = {"model": model_identity(model), **data}
        folder = ledger_folder(workdir, name, CLEAN, identity)
        batches = _batches(settings.num_clean, settings.batch_size)
        tasks.append(_Task(model, None, folder, identity, batches))
        for spec in suite:
            if spec.refusal(model) is None:
                attack_identity = identity | {"seed": settings.seed} | spec.identity(model)
                folder = ledger_folder(workdir, name, spec.name, attack_identity)
                batches = _batches(settings.num_images, settings.batch_size)
                tasks.append(_Task(model, spec, folder, attack_identity, batches))
    return tasks


def _plan(
    tasks: Sequence[_Task],
    models: Mapping[str, Classifier],
    suite: Sequence[AttackSpec],
    settings: Settings,
    workdir: pathlib.Path,
    about: Mapping[str, Any],
) -> Plan:
    """What the tasks amount to, for those who read the results."""
    folders = {
        (task.attack_name, task.model.name): task.folder.relative_to(workdir).as_posix()
        for task in tasks
    }
    attacks = [
        PlannedAttack(
            name=spec.name,
            title=spec.shown,
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
            refusals={
                name: reason for name, model in models.items() if (reason := spec.refusal(model))
            },
        )
        for spec in suite
    ]
    return Plan(
        models=list(models),
        attacks=attacks,
        num_clean=settings.num_clean,
        num_images=settings.num_images,
        clean_ledgers={name: folders[CLEAN, name] for name in models},
        about={
            **about,
            "seed": settings.seed,
            "batch_size": settings.batch_size,
            "git_commit": git_commit(),
            **environment(),
        },
    )


def _batches(count: int, size: int) -> list[list[int]]:
    """The first `count` images in batches of `size`."""
    return [list(range(first, min(first + size, count))) for first in range(0, count, size)]


def _share(tasks: Sequence[_Task], shard: Shard) -> list[_Task]:
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


class _Runner:
    """Does tasks, one batch after the other."""

    def __init__(
        self, dataset: Dataset, settings: Settings, workdir: pathlib.Path, shard: Shard
    ) -> None:
        self._dataset = dataset
        self._settings = settings
        self._workdir = workdir
        self._shard = shard
        self._launcher = Launcher(dataset.train.images)
        self._clean: dict[str, dict[int, Record]] = {}

    def run(self, task: _Task, progress: Progress) -> None:
        """Runs a task's batches; each is in the ledger before the next one starts."""
        if task.spec is None:
            # Read anew, because other shards may have added to it.
            self._clean[task.model.name] = read_records(task.folder)
        if not task.batches:
            return
        progress.start(task.description, sum(map(len, task.batches)))
        known = read_records(task.folder).keys()
        with Part(task.folder, self._shard.part, task.identity) as part:
            for batch in task.batches:
                start = time.perf_counter()
                records = self._records(task, batch, progress)
                part.append(record for record in records if record.index not in known)
                self._note(task, batch, time.perf_counter() - start)
                progress.advance(len(batch))
        if task.spec is None:
            self._clean[task.model.name] = read_records(task.folder)
        progress.finish(f"{sum(map(len, task.batches))} images")

    def _records(self, task: _Task, batch: Sequence[int], progress: Progress) -> list[Record]:
        # Padded with the last image: one shape, and no result depends on the split.
        size = self._settings.batch_size
        rows = np.array([*batch, *[batch[-1]] * (size - len(batch))])
        images = self._dataset.test.images[rows].astype(np.float32) / 255
        labels = self._dataset.test.labels[rows]
        if task.spec is None:
            return _clean_records(batch, labels, task.model.predict(images))
        keys = derive_keys(self._settings.seed, task.model.name, task.spec.name, rows)
        found = self._launcher(task.spec, task.model, images, labels, keys, progress.questions)
        adversarial = np.asarray(found.images)
        epsilon = task.spec.settings_on(task.model).get("epsilon", math.inf)
        verification = verify(
            task.model, images, labels, adversarial, norm=task.spec.norm, epsilon=epsilon
        )
        clean = self._clean_predictions(task.model, batch, images)
        return _attack_records(batch, labels, clean, found, adversarial, verification)

    def _clean_predictions(
        self, model: Classifier, batch: Sequence[int], images: Array
    ) -> Sequence[int]:
        known = self._clean[model.name]
        if all(index in known for index in batch):
            return [known[index].clean_prediction for index in batch]
        return model.predict(images).tolist()

    def _note(self, task: _Task, batch: Sequence[int], seconds: float) -> None:
        note_time(
            self._workdir,
            {
                "model": task.model.name,
                "attack": task.attack_name,
                "fingerprint": task.folder.name,
                "first": batch[0],
                "num_images": len(batch),
                "seconds": round(seconds, 3),
                "shard": self._shard.part,
            },
        )


def derive_keys(seed: int, model_name: str, attack_name: str, indices: Array) -> jax.Array:
    """The keys of test images, (n,): each from seed, model, attack and image alone."""
    key = jax.random.key(seed)
    for name in (model_name, attack_name):
        key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return fold_in(jnp.broadcast_to(key, indices.shape), jnp.asarray(indices))


def _clean_records(batch: Sequence[int], labels: Array, predictions: Array) -> list[Record]:
    return [
        Record(
            index=index,
            label=int(label),
            clean_prediction=int(prediction),
            claimed=False,
            reasons=(),
            prediction=int(prediction),
            distance=math.inf if prediction == label else 0.0,
            num_queries=1,
            num_gradients=0,
            image=None,
        )
        for index, label, prediction in zip(batch, labels, predictions, strict=False)
    ]


def _attack_records(
    batch: Sequence[int],
    labels: Array,
    clean: Sequence[int],
    found: AttackResult,
    adversarial: Array,
    verification: Verification,
) -> list[Record]:
    claimed, verified = np.asarray(found.success), verification.verified
    counts = [
        None if each is None else np.asarray(each)
        for each in (found.num_queries, found.num_gradients)
    ]
    records = []
    for row, index in enumerate(batch):
        wrong = clean[row] != labels[row]
        distance = 0.0 if wrong else verification.adversarial_distances[row]
        queries, gradients = (None if each is None else int(each[row]) for each in counts)
        records.append(
            Record(
                index=index,
                label=int(labels[row]),
                clean_prediction=int(clean[row]),
                claimed=bool(claimed[row]),
                reasons=verification.reasons(row) if claimed[row] else (),
                prediction=int(verification.predictions[row]),
                distance=float(distance),
                num_queries=queries,
                num_gradients=gradients,
                # What failed is no one's business, and a clean error needs no second copy.
                image=adversarial[row] if not wrong and (claimed[row] or verified[row]) else None,
            )
        )
    return records
