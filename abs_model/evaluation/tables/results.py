"""The results of an evaluation, read from its workdir: the plan and the ledgers."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from abs_model._runtime.atomic_files import write_json
from abs_model._runtime.errors import UserError
from abs_model.attacks._core.checks import NORMS
from abs_model.attacks.registry import limit_of, minimizes
from abs_model.evaluation.run.batch_log import Origin, read_origins
from abs_model.evaluation.run.ledger import RESUME_HINT, SETTINGS_FILE, Record, read_records
from abs_model.evaluation.run.probe import Probe, read_probe
from abs_model.evaluation.run.workdir import CERTIFIED, CLEAN

PLAN_FILE = "evaluation.json"
GROUPS = ("paper", "stronger")


class ResultsError(UserError):
    """A workdir holds no evaluation."""


@dataclasses.dataclass(frozen=True)
class PlannedAttack:
    """A row of the table, as planned.

    Attributes:
        name: Of the row, for files.
        title: For tables.
        norm: What it attacks in.
        group: "paper" or "stronger".
        reference: The attack in the registry, or package.module:function.
        settings: By model, all settings, defaults among them.
        ledgers: By model, the folder of its ledger, relative to the workdir.
        refusals: By model that it does not take, why.
        access: What it requires of a model, of `registry.Access`; empty where that is not known, as
            of user-defined attacks, and in plans from before it was noted.
        targets: See `suite.AttackSpec`.
    """

    name: str
    title: str
    norm: str
    group: str
    reference: str
    settings: Mapping[str, Mapping[str, Any]]
    ledgers: Mapping[str, str]
    refusals: Mapping[str, str]
    access: str = ""
    targets: str | int | None = None

    def minimizes(self, model: str) -> bool:
        """Whether it looks for the closest adversarial image of a model."""
        return minimizes(self.settings.get(model, {}))

    def limit(self, model: str) -> float:
        """How far from the clean images it looks on a model; infinite without a limit."""
        return limit_of(self.reference, self.norm, self.settings.get(model, {}))


@dataclasses.dataclass(frozen=True)
class Plan:
    """What an evaluation is of.

    Attributes:
        models: Names.
        attacks: The rows.
        num_clean: Test images for clean accuracy.
        num_images: Test images attacked.
        clean_ledgers: By model, as in `PlannedAttack.ledgers`.
        about: Seed, data set, packages and the like.
        certificates: By norm and model, the folder of the ledger of its certificates.
    """

    models: Sequence[str]
    attacks: Sequence[PlannedAttack]
    num_clean: int
    num_images: int
    clean_ledgers: Mapping[str, str]
    about: Mapping[str, Any]
    certificates: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)

    def write(self, workdir: pathlib.Path) -> None:
        """Writes evaluation.json, atomically.

        Raises:
            ResultsError: The disk does not allow it.
        """
        try:
            write_json(workdir / PLAN_FILE, dataclasses.asdict(self))
        except OSError as error:
            raise ResultsError(
                f"can't write {workdir / PLAN_FILE}: {error}. {RESUME_HINT}"
            ) from error

    @classmethod
    def read(cls, workdir: pathlib.Path) -> "Plan":
        """Reads evaluation.json.

        Raises:
            ResultsError: There is none, or it is damaged.
        """
        path = workdir / PLAN_FILE
        try:
            content = json.loads(path.read_text("utf-8"))
            attacks = [PlannedAttack(**attack) for attack in content.pop("attacks")]
            return cls(attacks=attacks, **content)
        except FileNotFoundError as error:
            raise ResultsError(
                f"{workdir} holds no evaluation: there is no {PLAN_FILE}; evaluate.py makes one"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsError(f"{path} is damaged: {error}; run evaluate.py again") from error

    def evaluated(self, workdir: pathlib.Path, model: str) -> dict[str, Any]:
        """The fingerprints of a model and of the images it was evaluated on; none not noted."""
        try:
            path = workdir / self.clean_ledgers[model] / SETTINGS_FILE
            return json.loads(path.read_text("utf-8"))
        except (OSError, KeyError, ValueError):
            return {}


@dataclasses.dataclass(frozen=True)
class Results:
    """The records of an evaluation.

    Attributes:
        plan: What was to be done.
        clean: By model, the records of the clean images.
        found: By model and attack's name, those of the attacked ones.
        origins: By model and attack's name, `CLEAN` or of `CERTIFIED`, how these records came
            about, as far as it is known.
        probes: By model that has been probed, what that found (`abs_model.evaluation.run.probe`).
        certified: By model and norm, the records whose distances are certified radii.
        identities: The evaluated models' `workdir.model_identity` by name, where it was noted.
    """

    plan: Plan
    clean: Mapping[str, Mapping[int, Record]]
    found: Mapping[tuple[str, str], Mapping[int, Record]]
    origins: Mapping[tuple[str, str], Origin] = dataclasses.field(default_factory=dict)
    probes: Mapping[str, Probe] = dataclasses.field(default_factory=dict)
    certified: Mapping[tuple[str, str], Mapping[int, Record]] = dataclasses.field(
        default_factory=dict
    )
    identities: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def seconds(self) -> dict[str, float]:
        """By model, how long all its records took, as far as it is known."""
        seconds = dict.fromkeys(self.plan.models, 0.0)
        for (model, _), origin in self.origins.items():
            seconds[model] += origin.seconds
        return seconds

    @property
    def commits(self) -> list[str]:
        """Commits of the code that found the records, as far as known."""
        return self._all_origins("commits")

    @property
    def devices(self) -> list[str]:
        """On which they were found, likewise."""
        return self._all_origins("devices")

    @property
    def packages(self) -> list[str]:
        """With which versions of Python and packages, a text for each combination, likewise."""
        return self._all_origins("packages")

    def _all_origins(self, key: str) -> list[str]:
        values = (value for origin in self.origins.values() for value in getattr(origin, key))
        return list(dict.fromkeys(values))

    @property
    def finished(self) -> str | None:
        """When the last was found, in UTC as "2026-11-26 04:01"; None where not known."""
        times = (origin.finished for origin in self.origins.values() if origin.finished)
        return max(times, default=None)

    @property
    def num_without_provenance(self) -> int:
        """How many records there are of which it isn't known how they came about."""
        everything = {(model, CLEAN): records for model, records in self.clean.items()}
        everything |= {(m, CERTIFIED[norm]): found for (m, norm), found in self.certified.items()}
        return sum(
            len(records.keys() - (self.origins[key].images if key in self.origins else ()))
            for key, records in {**everything, **self.found}.items()
        )

    @property
    def complete(self) -> bool:
        """Whether every planned image has a record."""
        missing_clean = any(len(records) < self.plan.num_clean for records in self.clean.values())
        attacked = range(self.plan.num_images)
        return not missing_clean and all(
            index in records
            for records in (*self.found.values(), *self.certified.values())
            for index in attacked
        )

    @property
    def all_targets(self) -> list[str | int | None]:
        """What attacks lead to, each once; None stands for the untargeted ones."""
        return list(dict.fromkeys(attack.targets for attack in self.plan.attacks))

    @property
    def norms(self) -> list[str]:
        """The norms attacked in, in their usual order."""
        there = {attack.norm for attack in self.plan.attacks}
        return [norm for norm in NORMS if norm in there]

    def clean_accuracy(self, model: str) -> float:
        """Share of the clean images that are classified correctly; NaN without any."""
        records = self.clean[model].values()
        return float(np.mean([not record.clean_error for record in records])) if records else np.nan

    def records(self, model: str, attack: str) -> list[Record]:
        """Those of the planned images, in their order, without images of the target's class."""
        records = self.found.get((model, attack), {})
        known = (records[index] for index in range(self.plan.num_images) if index in records)
        return [record for record in known if record.counts]

    def num_expected(self, model: str, attack: str) -> int:
        """How many `records` there are once all are found, as far as is known by now."""
        records = self.found.get((model, attack), {})
        known = (records[index] for index in range(self.plan.num_images) if index in records)
        return self.plan.num_images - sum(not record.counts for record in known)

    def distances(self, model: str, attack: str) -> np.ndarray:
        """float64 (num_images,): verified distances; NaN where `records` has none."""
        distances = np.full(self.plan.num_images, np.nan)
        for record in self.records(model, attack):
            distances[record.index] = record.distance
        return distances

    def attacks_on(
        self, model: str, norm: str, groups: Sequence[str], targets: str | int | None = None
    ) -> list[PlannedAttack]:
        """The attacks of a norm, some groups and some targets that a model is attacked with.

        By default the untargeted ones.
        """
        return [
            attack
            for attack in self.plan.attacks
            if (attack.norm, attack.targets) == (norm, targets)
            and attack.group in groups
            and model in attack.ledgers
        ]

    def certified_radii(self, model: str, norm: str) -> np.ndarray:
        """float64, of those of the planned images that have a certificate; 0 where misclassified.

        Below its radius no change of an image can alter a correct decision.
        """
        records = self.certified.get((model, norm), {})
        known = (records[index] for index in range(self.plan.num_images) if index in records)
        return np.array([record.distance for record in known], np.float64)

    def limit(self, model: str, norm: str, groups: Sequence[str]) -> float:
        """How far the farthest of these attacks looks; minus infinity without an attack."""
        attacks = self.attacks_on(model, norm, groups)
        return max((attack.limit(model) for attack in attacks), default=-math.inf)

    def closest_records(
        self,
        model: str,
        norm: str,
        groups: Sequence[str] = GROUPS,
        targets: str | int | None = None,
    ) -> list[tuple[PlannedAttack, Record]]:
        """For each image that has records, the closest of `attacks_on` and the attack."""
        found: dict[int, tuple[PlannedAttack, Record]] = {}
        for attack in self.attacks_on(model, norm, groups, targets):
            for record in self.records(model, attack.name):
                before = found.get(record.index)
                if before is None or record.distance < before[1].distance:
                    found[record.index] = (attack, record)
        return [found[index] for index in sorted(found)]

    def closest(self, model: str, norm: str, groups: Sequence[str]) -> np.ndarray:
        """The minimum over attacks, per image, float64 (num_images,).

        NaN where one of the attacks that take the model has no record yet.
        """
        attacks = [
            self.distances(model, attack.name) for attack in self.attacks_on(model, norm, groups)
        ]
        if not attacks:
            return np.full(self.plan.num_images, np.nan)
        return np.min(attacks, axis=0)


def collect(workdir: pathlib.Path) -> Results:
    """Reads an evaluation's plan and all shards' ledgers.

    Raises:
        ResultsError: There is no evaluation.
        LedgerError: A ledger is damaged.
        ProbeError: A probe is damaged.
    """
    plan = Plan.read(workdir)
    clean = {
        model: {
            index: record
            for index, record in read_records(workdir / folder).items()
            if index < plan.num_clean
        }
        for model, folder in plan.clean_ledgers.items()
    }
    attacked = {
        (model, attack.name): folder
        for attack in plan.attacks
        for model, folder in attack.ledgers.items()
    }
    found = {key: read_records(workdir / folder) for key, folder in attacked.items()}
    certificates = {
        (model, norm): folder
        for norm, ledgers in plan.certificates.items()
        for model, folder in ledgers.items()
    }
    certified = {key: read_records(workdir / folder) for key, folder in certificates.items()}
    folders = {(model, CLEAN): folder for model, folder in plan.clean_ledgers.items()} | attacked
    folders |= {(model, CERTIFIED[norm]): path for (model, norm), path in certificates.items()}
    known = read_origins(workdir)
    origins = {key: known[folder] for key, folder in folders.items() if folder in known}
    probes = {
        model: found_probe
        for model, folder in plan.clean_ledgers.items()
        if (found_probe := read_probe(workdir / folder)) is not None
    }
    evaluated = {model: plan.evaluated(workdir, model) for model in plan.models}
    identities = {model: each["model"] for model, each in evaluated.items() if "model" in each}
    return Results(plan, clean, found, origins, probes, certified, identities)
