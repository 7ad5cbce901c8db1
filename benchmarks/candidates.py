"""The minimal-norm attacks that `benchmarks/exactness.py` measures: ours, and Foolbox's."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import abs_model
from abs_model.attacks.registry import ATTACKS
from benchmarks.beds import Bed

OURS = "ours"
FOOLBOX = "Foolbox"
_SEED = 0
# Of ours, besides their defaults.
_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "boundary": {"num_steps": 2000},
    "carlini_wagner": {"num_steps": 1000},
    "hop_skip_jump": {"num_steps": 32},
    "sparse_rs": {"num_pixels": 64, "minimize": True, "num_steps": 1000},
}
# Class of foolbox.attacks, title, norm, settings; all that look for the closest image in these
# norms and run on JAX without further packages.
_FOOLBOX: tuple[tuple[str, str, str, Mapping[str, Any]], ...] = (
    ("BoundaryAttack", "Boundary", "l2", {"steps": 2000}),
    ("L2CarliniWagnerAttack", "Carlini-Wagner", "l2", {"steps": 1000}),
    ("DDNAttack", "DDN", "l2", {}),
    ("L2DeepFoolAttack", "DeepFool", "l2", {}),
    ("LinfDeepFoolAttack", "DeepFool", "linf", {}),
    ("L2FMNAttack", "FMN", "l2", {}),
    ("LInfFMNAttack", "FMN", "linf", {}),
    ("L0FMNAttack", "FMN", "l0", {}),
    ("HopSkipJumpAttack", "HopSkipJump", "l2", {"steps": 16, "constraint": "l2"}),
    ("HopSkipJumpAttack", "HopSkipJump", "linf", {"steps": 16, "constraint": "linf"}),
    ("NewtonFoolAttack", "NewtonFool", "l2", {}),
    ("SaltAndPepperNoiseAttack", "Salt and pepper", "l0", {}),
)
_TAKE_STARTS = ("BoundaryAttack", "HopSkipJumpAttack")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An attack on a bed.

    Attributes:
        title: For tables.
        library: `OURS` or `FOOLBOX`.
        norm: "l2", "linf" or "l0".
        settings: Besides the defaults, for tables.
        run: Attacks all images of the bed in one batch, and returns what it found, of their shape.
    """

    title: str
    library: str
    norm: str
    settings: Mapping[str, Any]
    run: Callable[[], Any]


def ours(bed: Bed) -> list[Candidate]:
    """Every attack of the catalogue that a linear classifier takes, in each norm.

    But for those that look for the worst image within an epsilon.
    """
    found = []
    for name, entry in ATTACKS.items():
        settings = dict(_SETTINGS.get(name, {}))
        accepted = inspect.signature(entry.function).parameters
        if "epsilon" in accepted or entry.why_not(bed.model, settings) is not None:
            continue
        shown = dict(settings)
        if "surrogate" in accepted:
            settings["surrogate"], shown["surrogate"] = bed.surrogate, "linear, of other images"
        if "starting_points" in accepted:
            settings["starting_points"], shown["starting_points"] = bed.starts, len(bed.starts)
        for norm in entry.norms:
            given = settings | ({"norm": norm} if "norm" in accepted else {})
            run = functools.partial(_run_ours, entry.function, bed, given)
            found.append(Candidate(entry.title, OURS, norm, shown, run))
    return found


def foolboxes(bed: Bed) -> list[Candidate]:
    """Foolbox's attacks in these norms; requires Foolbox."""
    found = []
    for name, title, norm, settings in _FOOLBOX:
        shown = (
            {**settings, "starting_points": len(bed.starts)} if name in _TAKE_STARTS else settings
        )
        run = functools.partial(_run_theirs, name, bed, settings)
        found.append(Candidate(title, FOOLBOX, norm, shown, run))
    return found


def _run_ours(attack: Callable[..., Any], bed: Bed, settings: Mapping[str, Any]) -> Any:
    return attack(bed.model, bed.images, bed.labels, jax.random.key(_SEED), **settings).images


def _run_theirs(name: str, bed: Bed, settings: Mapping[str, Any]) -> Any:
    import foolbox

    np.random.seed(_SEED)
    attack = getattr(foolbox.attacks, name)(**settings)
    given = {"starting_points": _nearest_starts(bed)} if name in _TAKE_STARTS else {}
    images, labels = jnp.asarray(bed.images), jnp.asarray(bed.labels)
    return attack(abs_model.to_foolbox(bed.model), images, labels, epsilons=None, **given)[0]


def _nearest_starts(bed: Bed) -> jax.Array:
    """Of each image the closest of the starts that is adversarial for it, as ours picks it."""
    starts = bed.starts.reshape(len(bed.starts), -1)
    away = np.linalg.norm(bed.images.reshape(len(bed.images), 1, -1) - starts, axis=2)
    away[bed.model.predict(bed.starts) == bed.labels[:, None]] = np.inf
    return jnp.asarray(bed.starts[away.argmin(1)])
