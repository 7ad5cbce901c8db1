"""The attacks by name: what each declares of itself in its own file.

    @register(
        title="PGD",
        norms=("l2", "linf"),
        access=Access.GRADIENTS,
        source="Madry et al. 2018",
        smoke={"num_steps": 5},
    )
    def pgd(model, images, labels, key, *, norm, ...):

These declarations give the table in `docs/attacks.md`, the reasons why an attack is not applicable
to a model, the budgets of `configs/table1.py:smoke`, and the contract tests. Attacks of other
packages register in the same way, before a configuration names them.
"""

import dataclasses
import enum
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from abs_model._runtime.registries import is_redefinition
from abs_model.attacks._core.checks import NORMS
from abs_model.attacks._core.result import AttackResult
from abs_model.models.abs import ABSClassifier
from abs_model.models.classifier import Classifier

Function = TypeVar("Function", bound=Callable[..., AttackResult])


class Access(enum.Enum):
    """What an attack sees of a classifier."""

    DECISIONS = "decisions"
    SCORES = "scores"  # logits
    GRADIENTS = "gradients"
    BINARY = "a model on thresholded images"
    ABS = "an ABS model"


# An attack that sees no more than these can be made on any classifier.
BLACK_BOX = (Access.DECISIONS, Access.SCORES)

# Parameters of attacks that are no settings.
GIVEN = ("model", "images", "labels", "key", "norm", "progress", "targets")

# The setting that limits how far from the clean images an attack looks, in each norm.
_EPSILON = dict.fromkeys(NORMS, "epsilon")


@dataclasses.dataclass(frozen=True)
class Queries:
    """Numbers of queries of an image; infinite where nothing limits them.

    Attributes:
        logits: Those without gradient.
        gradients: Those with the gradient of a loss.
        jacobians: Those with gradients of several logits.
    """

    logits: float = 0
    gradients: float = 0
    jacobians: float = 0

    def evaluations(self, model: Classifier) -> float:
        """How often a classifier is evaluated for them; see `AttackResult.num_queries`."""
        with_gradients = self.gradients + self.jacobians
        return (
            self.logits * model.evaluations_per_query
            + with_gradients * model.evaluations_per_gradient
        )


# From an attack's settings, the defaults included, the norm and the classifier.
MostQueries = Callable[[Mapping[str, Any], str, Classifier], Queries]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackInfo:
    """What an attack declares.

    Attributes:
        function: The attack.
        title: For tables.
        norms: That it attacks in.
        access: What it requires of the classifier.
        source: The paper that it is from.
        smoke: Settings of a tiny budget, for trying whether it runs.
        resources: Settings that an evaluation provides from a name or a number: "surrogate", a
            model; "starting_points", training images.
        limits: By norm, the setting that limits how far it looks, where it has such a setting.
        most_queries: Most queries of an image, by `MostQueries`; None where that is not declared.
            Classifiers with warm starts (ABS) take some more, which confirm successes. Queries of a
            surrogate are not counted.
        min_num_classes: From the attack's settings, and whether it leads to given targets, how many
            classes the classifier must have.
        newer: Settings that published ledgers lack. At their defaults, which are what these were
            made with, they are no part of a fingerprint.
    """

    function: Callable[..., AttackResult]
    title: str
    norms: tuple[str, ...]
    access: Access
    source: str = ""
    smoke: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    resources: tuple[str, ...] = ()
    limits: Mapping[str, str] = dataclasses.field(default_factory=lambda: _EPSILON)
    most_queries: MostQueries | None = None
    min_num_classes: Callable[[Mapping[str, Any], bool], int] = lambda settings, targeted: 2
    newer: tuple[str, ...] = ()

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Parameters of the function, by name."""
        return inspect.signature(self.function).parameters

    @property
    def defaults(self) -> dict[str, Any]:
        """The settings that have default values, with these."""
        return {
            name: parameter.default
            for name, parameter in self.parameters.items()
            if parameter.default is not inspect.Parameter.empty and name not in GIVEN
        }

    @property
    def can_be_targeted(self) -> bool:
        """Whether it takes `targets`."""
        return "targets" in self.parameters

    @property
    def within_epsilon(self) -> bool:
        """Whether it looks for the worst image within a distance, not for the closest one."""
        return "epsilon" in self.parameters

    @property
    def built_in(self) -> bool:
        """Whether it is one of this package's own."""
        return self.function.__module__.partition(".")[0] == __name__.partition(".")[0]

    def why_not(
        self, model: Classifier, settings: Mapping[str, Any], *, targeted: bool = False
    ) -> str | None:
        """Why it is not applicable to a classifier with all its settings; None if it is."""
        if targeted and not self.can_be_targeted:
            return "cannot be targeted"
        if self.access is Access.GRADIENTS and not model.differentiable:
            return "requires gradients, and the model is a black box"
        if self.access is Access.BINARY and not model.binary:
            return f"requires {Access.BINARY.value}"
        if self.access is Access.ABS and not isinstance(model, ABSClassifier):
            return f"requires {Access.ABS.value}"
        if model.num_classes < (fewest := self.min_num_classes(settings, targeted)):
            return f"requires {fewest} classes, and the model has {model.num_classes}"
        return None


ATTACKS: dict[str, AttackInfo] = {}


def register(
    *, title: str, norms: tuple[str, ...], access: Access, **others: Any
) -> Callable[[Function], Function]:
    """Declares the function that it decorates as the attack of that name.

    A function that is defined again, such as by a notebook's cell, replaces itself.

    Args:
        title: See `AttackInfo`.
        norms: See `AttackInfo`.
        access: See `AttackInfo`.
        **others: Further fields of `AttackInfo`, but `function`.

    Raises:
        ValueError: There is another attack of that name; or `norms` or `access` is not as
            described.
    """
    if isinstance(norms, str) or not set(norms) <= set(NORMS):
        raise ValueError(f"norms must be a tuple of some of {', '.join(NORMS)}, got {norms!r}")
    if not isinstance(access, Access):
        known = ", ".join(map(str, Access))
        raise ValueError(f"access must be one of {known}, got {access!r}")

    def add(function: Function) -> Function:
        name = function.__name__
        if name in ATTACKS and not is_redefinition(ATTACKS[name].function, function):
            raise ValueError(f"there is an attack {name!r} already; give yours another name")
        ATTACKS[name] = AttackInfo(
            function=function, title=title, norms=tuple(norms), access=access, **others
        )
        return function

    return add


def limit_of(reference: str, norm: str, settings: Mapping[str, Any]) -> float:
    """How far from the clean images an attack looks; infinite where no setting limits it.

    Args:
        reference: The attack's name in `ATTACKS`; any other stands for a user-defined attack, which
            is limited by its `epsilon`.
        norm: That it attacks in; the limit is in its unit.
        settings: All settings, defaults included.
    """
    limits = ATTACKS[reference].limits if reference in ATTACKS else _EPSILON
    value = settings.get(limits.get(norm, ""))
    # A user-defined attack may have any value there.
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return math.inf


def minimizes(settings: Mapping[str, Any]) -> bool:
    """Whether an attack with these settings looks for the closest adversarial image.

    One within an `epsilon` looks for the worst image instead: its distances say nothing.

    Args:
        settings: All settings, defaults included.
    """
    return "epsilon" not in settings and bool(settings.get("minimize", True))


def markdown_table() -> str:
    """The attacks, as `docs/attacks.md` lists them."""
    lines = ["| Attack | Norms | Requires | Targeted | Source |", "| --- | --- | --- | --- | --- |"]
    shown = {"l2": "L2", "linf": "L-inf", "l0": "L0"}
    order = list(Access)
    for name, info in sorted(ATTACKS.items(), key=lambda item: order.index(item[1].access)):
        norms = ", ".join(shown[norm] for norm in info.norms)
        norms += ", within `epsilon`" * info.within_epsilon
        access = info.access.value + ", a surrogate" * ("surrogate" in info.resources)
        targeted = "yes" if info.can_be_targeted else "no"
        lines.append(f"| `{name}` | {norms} | {access} | {targeted} | {info.source} |")
    return "\n".join(lines) + "\n"
