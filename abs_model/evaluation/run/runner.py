"""One batch after the other: attack, verification, ledger."""

import dataclasses
import datetime
import math
import pathlib
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abs_model._runtime.compilation_cache import clear_if_near_map_limit
from abs_model._runtime.provenance import device_name, git_commit, package_versions
from abs_model.attacks._core.checks import check_epsilon
from abs_model.attacks._core.keys import fold_in
from abs_model.attacks._core.result import AttackResult
from abs_model.attacks.registry import minimizes
from abs_model.data import Dataset
from abs_model.evaluation.images.eight_bit import with_eight_bit
from abs_model.evaluation.run.batch_log import note_batch
from abs_model.evaluation.run.launcher import Launcher
from abs_model.evaluation.run.ledger import Part, Record, read_records
from abs_model.evaluation.run.probe import probe, read_probe, write_probe
from abs_model.evaluation.run.progress import Progress
from abs_model.evaluation.run.suite import AttackSpec
from abs_model.evaluation.run.targets import choose_targets
from abs_model.evaluation.run.thorough_search import adversarial_by_search
from abs_model.evaluation.run.verification import (
    Verification,
    cold_decisions,
    cold_logits,
    judge,
    uncertain_margins,
    verify,
)
from abs_model.evaluation.run.workdir import CERTIFIED, CLEAN, Shard
from abs_model.evaluation.tables.statistics import THRESHOLDS, median, robust
from abs_model.models.classifier import Classifier
from abs_model.models.decisions import decide

Array = np.ndarray
_COUNTS = ("num_queries", "num_gradients", "num_zero_gradients", "num_nonfinite_gradients")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is evaluated, for every model alike.

    Attributes:
        num_clean: Test images for clean accuracy, the first ones.
        num_images: Test images that are attacked, the first ones.
        batch_size: Images at a time; a kill costs at most one batch. No result depends on it, but
            for float rounding.
        seed: Of all that is random.
        certify: Whether models that have `certify` also certify their decisions on the attacked
            images.
    """

    num_clean: int
    num_images: int
    batch_size: int
    seed: int
    certify: bool = False


@dataclasses.dataclass(frozen=True)
class Task:
    """An attack on a model, certificates in a norm, or neither, for clean images.

    Attributes:
        model: The model.
        spec: The attack.
        folder: The ledger's folder.
        identity: What determines the results.
        batches: The images still to do.
        certified_norm: The norm of the certificates; None for other tasks.
    """

    model: Classifier
    spec: AttackSpec | None
    folder: pathlib.Path
    identity: Mapping[str, Any]
    batches: Sequence[Sequence[int]]
    certified_norm: str | None = None

    @property
    def name(self) -> str:
        """As the ledger calls it."""
        if self.certified_norm is not None:
            return CERTIFIED[self.certified_norm]
        return CLEAN if self.spec is None else self.spec.name

    @property
    def is_clean(self) -> bool:
        """Whether it only classifies clean images."""
        return self.name == CLEAN

    @property
    def description(self) -> str:
        if self.certified_norm is not None:
            return f"{self.model.name}: certificates {self.certified_norm}"
        if self.spec is None:
            return f"{self.model.name}: clean images"
        return f"{self.model.name}: {self.spec.display_title} {self.spec.norm}"


class Runner:
    """Does tasks, one batch after the other."""

    def __init__(
        self,
        dataset: Dataset,
        settings: Settings,
        workdir: pathlib.Path,
        shard: Shard,
        launcher: Launcher,
    ) -> None:
        self._dataset = dataset
        self._settings = settings
        self._workdir = workdir
        self._shard = shard
        self._launcher = launcher
        self._commit = git_commit()
        self._device = device_name()
        self._packages = ", ".join(f"{name} {each}" for name, each in package_versions().items())
        self._clean: dict[str, dict[int, Record]] = {}
        self._logits: dict[tuple[Any, ...], Array] = {}

    def run(self, task: Task, progress: Progress) -> None:
        """Runs a task's batches; each is in the ledger before the next one starts."""
        if task.is_clean:
            # Read again, because other shards may have added to it.
            self._clean[task.model.name] = read_records(task.folder)
            self._probe(task, progress)
        if not task.batches:
            return
        clear_if_near_map_limit()
        num_images = sum(map(len, task.batches))
        progress.start(task.description, num_images, attacked=task.spec is not None)
        known = read_records(task.folder).keys()
        found: list[Record] = []
        with Part(task.folder, self._shard.part, task.identity) as part:
            for batch in task.batches:
                start = time.perf_counter()
                records = self._records(task, batch, progress)
                part.append(record for record in records if record.index not in known)
                found += records
                self._note(task, batch, time.perf_counter() - start)
                progress.advance(len(batch))
        if task.is_clean:
            self._clean[task.model.name] = read_records(task.folder)
        progress.finish(_outcome(task, found))

    def _probe(self, task: Task, progress: Progress) -> None:
        """Probes a model, unless it has been with as many images; the first shard does it."""
        count = min(self._settings.batch_size, self._settings.num_images)
        known = read_probe(task.folder)
        if (known is not None and known.num_images >= count) or self._shard.index > 1:
            return
        progress.start(f"{task.model.name}: probe", count, attacked=False)
        first = slice(count)
        images = self._dataset.test.images[first].astype(np.float32) / 255
        found = probe(task.model, images, self._dataset.test.labels[first])
        task.folder.mkdir(parents=True, exist_ok=True)
        write_probe(task.folder, found)
        progress.finish(found.summary)

    def _records(self, task: Task, batch: Sequence[int], progress: Progress) -> list[Record]:
        # Padded with the last image: one shape, and no result depends on the split.
        size = self._settings.batch_size
        rows = np.array([*batch, *[batch[-1]] * (size - len(batch))])
        images = self._dataset.test.images[rows].astype(np.float32) / 255
        labels = self._dataset.test.labels[rows]
        if task.certified_norm is not None:
            return _certified_records(task.model, task.certified_norm, batch, images, labels)
        if task.spec is None:
            logits = cold_decisions(task.model, images)
            return _clean_records(batch, labels, _decided(task.model, logits, labels))
        keys = derive_keys(self._settings.seed, task.model.name, task.spec.name, rows)
        targets = self._targets(task, images, labels, rows)
        goals = None
        if targets is not None:
            # Images of the target's class do not count; but a batch has one shape.
            other = (labels + 1) % task.model.num_classes
            goals = np.where(targets == labels, other, targets)
        found = self._launcher(task.spec, task.model, images, labels, keys, progress.queries, goals)
        adversarial = np.asarray(found.images)
        verification = verify(
            task.model,
            images,
            labels,
            adversarial,
            norm=task.spec.norm,
            epsilon=_epsilon(task.spec, task.model),
            targets=goals,
        )
        by_search = adversarial_by_search(task.model, adversarial, labels, verification.verified)
        clean = self._clean_answers(task.model, batch, images, labels, goals)
        records = _attack_records(
            batch, labels, targets, clean, found, adversarial, verification, by_search
        )
        return with_eight_bit(task.model, images, records)

    def _targets(self, task: Task, images: Array, labels: Array, rows: Array) -> Array | None:
        if task.spec is None or task.spec.targets is None:
            return None
        seed = self._settings.seed
        return choose_targets(task.spec.targets, task.model, images, labels, rows, seed)

    def _clean_answers(
        self,
        model: Classifier,
        batch: Sequence[int],
        images: Array,
        labels: Array,
        targets: Array | None,
    ) -> tuple[Array, Array]:
        """Predictions, those of the ledger where it has them, and margins as of the attack."""
        key = model.name, *batch
        if key not in self._logits:
            # All attacks are made on the same batches.
            self._logits[key] = cold_logits(model, images)
        logits = self._logits[key]
        known = self._clean[model.name]
        if all(index in known for index in batch):
            predictions = np.array([known[index].clean_prediction for index in batch])
        else:
            predictions = _decided(model, logits, labels)
        classes = labels if targets is None else targets
        return predictions, judge(model, logits, classes, targeted=targets is not None)[1]

    def _note(self, task: Task, batch: Sequence[int], seconds: float) -> None:
        note_batch(
            self._workdir,
            {
                "model": task.model.name,
                "attack": task.name,
                "fingerprint": task.folder.name,
                "first": batch[0],
                "num_images": len(batch),
                "seconds": round(seconds, 3),
                "shard": self._shard.part,
                "commit": self._commit,
                "device": self._device,
                "packages": self._packages,
                "finished": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M}",
            },
        )


def _outcome(task: Task, records: Sequence[Record]) -> str:
    """In a few words, what was found about the images just done."""
    distances = np.array([record.distance for record in records if record.counts])
    if task.certified_norm is not None:
        at = THRESHOLDS[task.certified_norm]
        return f"{len(records):,} images, {robust(distances, at).mean():.0%} certified at {at:g}"
    if task.spec is None:
        errors = sum(record.clean_error for record in records)
        return f"{len(records):,} images, {errors} misclassified"
    if not len(distances):
        return "all images are of the target's class"
    limit = task.spec.limit(task.model)
    at = min(limit, THRESHOLDS[task.spec.norm])
    parts = [f"{len(distances):,} images", f"accuracy {robust(distances, at).mean():.0%} at {at:g}"]
    if minimizes(task.spec.settings_on(task.model)):
        middle = median(distances)
        shown = f">{limit:g}" if math.isinf(middle) and math.isfinite(limit) else f"{middle:.3g}"
        parts.append(f"median distance {shown}")
    return ", ".join(parts)


def derive_keys(seed: int, model_name: str, attack_name: str, indices: Array) -> jax.Array:
    """The keys of test images, (n,): each from seed, model, attack and image alone."""
    key = jax.random.key(seed)
    for name in (model_name, attack_name):
        key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return fold_in(jnp.broadcast_to(key, indices.shape), jnp.asarray(indices))


def _epsilon(spec: AttackSpec, model: Classifier) -> float:
    """The distance that an attack promises to keep within; infinite where it does not."""
    try:
        epsilon = spec.settings_on(model).get("epsilon")
        return check_epsilon(epsilon, spec.norm, model.image_shape)
    except ValueError:  # none, or what a user-defined attack calls by that name
        return math.inf


def _decided(model: Classifier, logits: Array, labels: Array) -> Array:
    """What a model calls clean images of these logits, as `Record.clean_prediction` has it."""
    return decide(logits, labels, uncertain_margins(model, logits, labels))


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


def _certified_records(
    model: Any, norm: str, batch: Sequence[int], images: Array, labels: Array
) -> list[Record]:
    """The radii as distances, 0 where the model misclassifies the image, and who comes closest."""
    certificate = model.certify(images, norm=norm)
    radii, predictions, rivals = map(
        np.asarray, (certificate.radii, certificate.predictions, certificate.rivals)
    )
    return [
        Record(
            index=index,
            label=int(labels[row]),
            clean_prediction=int(predictions[row]),
            claimed=False,
            reasons=(),
            prediction=int(rivals[row]),
            distance=float(radii[row]) if predictions[row] == labels[row] else 0.0,
            num_queries=None,
            num_gradients=None,
            image=None,
        )
        for row, index in enumerate(batch)
    ]


def _attack_records(
    batch: Sequence[int],
    labels: Array,
    targets: Array | None,
    clean: tuple[Array, Array],
    found: AttackResult,
    adversarial: Array,
    verification: Verification,
    by_search: Array | None,
) -> list[Record]:
    claimed, verified = np.asarray(found.success), verification.verified
    counts = {name: getattr(found, name) for name in _COUNTS}
    predictions, clean_margins = clean
    records = []
    for row, index in enumerate(batch):
        of_image: dict[str, Any] = {
            name: None if n is None else int(n[row]) for name, n in counts.items()
        }
        record = Record(
            index=index,
            label=int(labels[row]),
            clean_prediction=int(predictions[row]),
            claimed=bool(claimed[row]),
            reasons=verification.reasons(row) if claimed[row] else (),
            prediction=int(verification.predictions[row]),
            distance=float(verification.adversarial_distances[row]),
            # What failed is no one's business.
            image=adversarial[row] if claimed[row] or verified[row] else None,
            margin=_finite(verification.margins[row]),
            clean_margin=_finite(clean_margins[row]),
            by_search=None if by_search is None else bool(by_search[row]),
            target=None if targets is None else int(targets[row]),
            **of_image,
        )
        if not record.counts:
            record = dataclasses.replace(
                record, claimed=False, reasons=(), distance=math.inf, image=None
            )
        elif record.clean_success:
            # The clean image needs no second copy.
            record = dataclasses.replace(record, distance=0.0, image=None)
        records.append(record)
    return records


def _finite(value: float) -> float | None:
    """What JSON can hold."""
    return float(value) if math.isfinite(value) else None
