"""The attacks of an evaluation, from a configuration and the command line.

A configuration's section `attacks` has an entry for each row of the table::

    "boundary": {
        "attack": "boundary",            # a name of abs_model.attacks.registry
        "norm": "l2",
        "group": "paper",                # or "stronger"
        "title": "Boundary",             # for tables; the declared one without it
        "settings": {"num_steps": 5000},
        "settings_for": {"abs": {"num_steps": 1000}},  # what differs by kind of model
        "only": ("network", "abs"),      # kinds of models, or pretrained ones; all without it
        "estimate_gradients": False,     # by finite differences of scores
        "targets": "next_class",         # a targeted attack; any class but the label without it
    }

`targets` is a rule for the class that each image is led to, "next_class", "least_likely" or
"random" (see `abs_model.evaluation.run.targets`), or the number of a class, whose own images do not
count then. Success is reaching it. Targeted rows stand at the end of a table, and are no part of
its minima. So a targeted PGD beside the untargeted one of configs/pgd.py is::

    config.attacks.pgd_linf_next = {
        "attack": "pgd", "norm": "linf", "group": "stronger", "targets": "next_class",
        "settings": {"epsilon": 0.3, "step_size": 0.02, "num_steps": 40},
    }
"""

import dataclasses
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from abs_model._runtime.configuration import check, section, suggestion
from abs_model._runtime.errors import UserError
from abs_model.attacks._core.checks import NORMS
from abs_model.attacks.registry import (
    ATTACKS,
    GIVEN,
    Access,
    AttackInfo,
    Queries,
    limit_of,
)
from abs_model.evaluation.run.plugins import import_function
from abs_model.evaluation.run.targets import RULES, Targets, is_targets, title_of
from abs_model.evaluation.run.workdir import CERTIFIED, CLEAN, source_identity
from abs_model.evaluation.tables.results import GROUPS
from abs_model.models.abs import ABSClassifier
from abs_model.models.classifier import Classifier
from abs_model.models.estimated_gradients import estimate_gradients
from abs_model.models.nearest_neighbor import NearestNeighborClassifier
from abs_model.zoo.cards import available

KINDS = ("network", "abs", "nearest_neighbor")
ALL = "all"
_KEYS = (
    "attack",
    "norm",
    "group",
    "title",
    "settings",
    "settings_for",
    "only",
    "estimate_gradients",
    "targets",
)
_TYPES: Mapping[str, tuple[Any, str]] = {
    "attack": (str, "a name"),
    "title": (str, "a text"),
    "settings": (Mapping, "a section"),
    "settings_for": (Mapping, "a section of sections"),
    "only": (list | tuple, "a sequence of names"),
    "estimate_gradients": (bool, "true or false"),
}


class SuiteError(UserError):
    """The requested attacks can't be used."""


@dataclasses.dataclass(frozen=True)
class AttackSpec:
    """A row of the table.

    Attributes:
        name: Of the row, for files; of letters, digits and _.
        reference: The attack's name in `ATTACKS`, or package.module:function.
        info: What the attack declares.
        norm: What it attacks in.
        group: Of `GROUPS`.
        settings: Of the attack, besides its defaults.
        settings_for: What differs by kind of model.
        only: The kinds of models that are attacked, or names of models.
        estimate_gradients: Whether gradients are estimated from scores.
        title: For tables, in the place of the declared one.
        targets: Of a targeted attack, which classes it leads to: of `targets.RULES`, or the number
            of a class. None for an untargeted one.
    """

    name: str
    reference: str
    info: AttackInfo
    norm: str
    group: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settings_for: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    only: tuple[str, ...] = KINDS
    estimate_gradients: bool = False
    title: str = ""
    targets: Targets | None = None

    def __post_init__(self) -> None:
        """Raises a SuiteError if the name is reserved."""
        reserved = {CLEAN: "the clean images"} | dict.fromkeys(CERTIFIED.values(), "certificates")
        if self.name in reserved:
            raise SuiteError(
                f"no attack can be called {self.name!r}: in an evaluation's files that stands for"
                f" {reserved[self.name]}; give it another name"
            )

    @property
    def display_title(self) -> str:
        """What tables call it."""
        title = self.title or self.info.title
        title = f"{title}, GE" if self.estimate_gradients else title
        return title if self.targets is None else f"{title}, targeted: {title_of(self.targets)}"

    @property
    def access(self) -> str:
        """What it requires, of `Access`; empty for a user-defined attack, which does not tell."""
        if self.reference not in ATTACKS:
            return ""
        return (Access.SCORES if self.estimate_gradients else self.info.access).value

    def why_not(self, model: Classifier) -> str | None:
        """Why a model is not attacked with it; None where it is."""
        if not {kind_of(model), model.name} & set(self.only):
            return f"the configuration has it for {', '.join(self.only)} only"
        if isinstance(self.targets, int) and self.targets >= model.num_classes:
            return f"its target is class {self.targets}, and the model has {model.num_classes}"
        attacked = estimate_gradients(model) if self.estimate_gradients else model
        targeted = self.targets is not None
        return self.info.why_not(attacked, self.settings_on(model), targeted=targeted)

    def settings_on(self, model: Classifier) -> dict[str, Any]:
        """All settings for a model: the attack's defaults where there are none, or None."""
        given = {**self.settings, **self.settings_for.get(kind_of(model), {})}
        return self.info.defaults | {
            key: value for key, value in given.items() if value is not None
        }

    def limit(self, model: Classifier) -> float:
        """How far from the clean images it looks on a model; infinite without a limit."""
        return limit_of(self.reference, self.norm, self.settings_on(model))

    def most_queries(self, model: Classifier) -> Queries | None:
        """The most queries of an image that it declares; None where it does not tell."""
        if self.info.most_queries is None:
            return None
        return self.info.most_queries(self.settings_on(model), self.norm, model)

    def identity(self, model: Classifier) -> dict[str, Any]:
        """What, besides the model, the data and the seed, decides over its results.

        Raises:
            SuiteError: A setting is not JSON-serializable.
        """
        settings, defaults = self.settings_on(model), self.info.defaults
        for key in self.info.newer:
            if settings[key] == defaults[key]:
                del settings[key]
        identity = {
            "attack": self.reference,
            "norm": self.norm,
            "settings": settings,
            "estimate_gradients": self.estimate_gradients,
        }
        if self.targets is not None:
            identity["targets"] = self.targets
        if not self.info.built_in:
            # User-defined attacks are under development, so their source file counts.
            modules = {self.reference.rpartition(":")[0], self.info.function.__module__} - {""}
            identity["source"] = source_identity(self.info.function, *sorted(modules))
        for key, value in settings.items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise SuiteError(
                    f"attack {self.name!r} ({self.reference}): setting {key} must be what JSON can"
                    f" hold, such as a finite number, a text or None, got {value!r}"
                ) from error
        return json.loads(json.dumps(identity))


def read_suite(config: ml_collections.ConfigDict) -> list[AttackSpec]:
    """The attacks of a configuration's section `attacks`, in its order.

    Raises:
        SuiteError: An entry is not as described above; the message names it.
    """
    check(config, {"attacks": section})
    return [_read_row(name, entry) for name, entry in config.attacks.to_dict().items()]


def choose_attacks(suite: Sequence[AttackSpec], entries: Sequence[str]) -> list[AttackSpec]:
    """The attacks that a command line names.

    Args:
        suite: Those of the configuration.
        entries: Names of these; "all" for all of them; NAME=package.module:function or
            NAME=package.module:function:NORM for user-defined ones. A function that takes `norm`
            and is given none attacks in all of `NORMS`.

    Raises:
        SuiteError: There is no such attack, or none is named.
    """
    if not any(entry.strip() for entry in entries):
        raise SuiteError("--attacks names no attack; give names of the configuration's, or all")
    known = {spec.name: spec for spec in suite}
    chosen: dict[str, AttackSpec] = {}
    for entry in entries:
        name, separator, reference = entry.strip().partition("=")
        if separator:
            specs = _own_attack(name, reference)
        elif name == ALL:
            specs = list(suite)
        elif name in known:
            specs = [known[name]]
        else:
            raise SuiteError(
                f"--attacks: the configuration has no attack {name!r}"
                f"{suggestion(name, list(known))}; it has {', '.join(known)}. Another"
                " configuration, such as configs/table1.py, has others; one of your own is"
                " NAME=package.module:function"
            )
        chosen |= {spec.name: spec for spec in specs}
    return list(chosen.values())


def check_applicable(specs: Sequence[AttackSpec], models: Mapping[str, Classifier]) -> None:
    """Raises a SuiteError for an attack that none of the models can be attacked with."""
    for spec in specs:
        refusals = {name: spec.why_not(model) for name, model in models.items()}
        if all(refusals.values()):
            reasons = "; ".join(f"{name}: {why}" for name, why in refusals.items())
            raise SuiteError(f"--attacks: {spec.name!r} can't attack any of the models ({reasons})")


def check_any_applicable(suite: Sequence[AttackSpec], models: Mapping[str, Classifier]) -> None:
    """Raises a SuiteError when no attack takes any of the models."""
    if not any(spec.why_not(model) is None for spec in suite for model in models.values()):
        reasons = "; ".join(
            f"{spec.name} on {name}: {spec.why_not(model)}"
            for spec in suite
            for name, model in models.items()
        )
        raise SuiteError(
            "none of the configuration's attacks can attack any of the models"
            f" ({reasons or 'it has no attacks'}); choose other --models or --config"
        )


def kind_of(model: Classifier) -> str:
    """The kind of the model, one of `KINDS`."""
    if isinstance(model, ABSClassifier):
        return "abs"
    return "nearest_neighbor" if isinstance(model, NearestNeighborClassifier) else "network"


def _read_row(name: str, entry: Mapping[str, Any]) -> AttackSpec:
    def error(what: str) -> SuiteError:
        return SuiteError(f"attacks.{name}: {what}")

    if not re.fullmatch("[A-Za-z0-9_]+", name):
        raise error("its name must be of letters, digits and _ (it becomes part of file names)")
    if not isinstance(entry, Mapping):
        raise error(f"it must be a section with {', '.join(_KEYS[:3])} and others; got {entry!r}")
    for key in entry:
        if key not in _KEYS:
            raise error(f"there is no key {key!r}{suggestion(key, _KEYS)}")
    for key, (kind, described) in _TYPES.items():
        if key in entry and not isinstance(entry[key], kind):
            raise error(f"{key} must be {described}, got {entry[key]!r}")
    reference = entry.get("attack")
    if reference not in ATTACKS:
        known = ", ".join(ATTACKS)
        hint = suggestion(str(reference), list(ATTACKS)) or "."
        raise error(
            f"attack must be one of {known}; got {reference!r}{hint} To use your own, register it,"
            " and import its file in the configuration"
        )
    found = ATTACKS[reference]
    for key, choices in (("norm", found.norms), ("group", GROUPS)):
        if entry.get(key) not in choices:
            raise error(f"{key} must be one of {', '.join(choices)}; got {entry.get(key)!r}")
    if (targets := entry.get("targets")) is not None and not is_targets(targets):
        raise error(
            f"targets must be one of {', '.join(RULES)} or the number of a class; got {targets!r}"
        )
    names = available() if "only" in entry else ()
    for key, choices in (("only", (*KINDS, *names)), ("settings_for", KINDS)):
        if unknown := [kind for kind in entry.get(key, ()) if kind not in choices]:
            raise error(f"{key}: {unknown[0]!r} is none of {', '.join(choices)}")
    accepted = [key for key in found.parameters if key not in GIVEN]
    for settings in (entry.get("settings", {}), *entry.get("settings_for", {}).values()):
        if not isinstance(settings, Mapping):
            raise error(f"settings must be a section, got {settings!r}")
        if given := [key for key in settings if key in GIVEN]:
            raise error(f"{given[0]!r} is no setting: the evaluation itself gives it to attacks")
        if unknown := [key for key in settings if key not in accepted]:
            hint = suggestion(unknown[0], accepted)
            raise error(f"{reference} has no setting {unknown[0]!r}{hint}")
    fields = {key: value for key, value in entry.items() if key != "attack"}
    if "only" in fields:
        fields["only"] = tuple(fields["only"])
    return AttackSpec(name=name, reference=reference, info=found, **fields)


def _own_attack(name: str, reference: str) -> list[AttackSpec]:
    if not name.isidentifier():
        raise SuiteError(f"--attacks: {name!r} must be of letters, digits and _, not digits first")
    norm = next((norm for norm in NORMS if reference.endswith(f":{norm}")), None)
    path = reference if norm is None else reference.removesuffix(f":{norm}")
    if path.count(":") > 1:
        given = path.rpartition(":")[2]
        raise SuiteError(
            f"--attacks: the norm of {name!r} must be {', '.join(NORMS)}, got {given!r}"
        )
    function = import_function(path, "--attacks")
    info = next((info for info in ATTACKS.values() if info.function is function), None)
    known = info.norms if info else NORMS
    if norm is not None and norm not in known:
        raise SuiteError(f"--attacks: {path} attacks in {', '.join(known)}, not in {norm}")
    norms = (norm,) if norm else known
    if info is None:
        info = AttackInfo(function=function, title=name, norms=norms, access=Access.SCORES)
    takes_norm = "norm" in inspect.signature(function).parameters
    if norm is None and not takes_norm and len(norms) > 1:
        raise SuiteError(
            f"--attacks: {path} does not take norm; say which it attacks in:"
            f" {name}={path}:{NORMS[0]}"
        )
    return [
        AttackSpec(name if norm else f"{name}_{each}", path, info, each, "stronger")
        for each in norms
    ]
