"""Compares an attack on a model with all others in its norm, and of its targets."""

import collections
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from abs_model._runtime.errors import UserError
from abs_model.evaluation.report import open_sources
from abs_model.evaluation.run.ledger import Record
from abs_model.evaluation.run.thorough_search import has_thorough_search, more_thorough
from abs_model.evaluation.tables.results import GROUPS, PlannedAttack, Results
from abs_model.evaluation.tables.statistics import robust
from abs_model.models.abs import ABSClassifier

_TOLERANCES = (0.0, 1e-4, 1e-3, 2e-3, 1e-2)  # of the distance

Closer = tuple[PlannedAttack, Record]


def compare(results: Results, model: str, name: str) -> list[Closer]:
    """Prints how the attack compares; returns by image what is closer than it.

    Raises:
        UserError: There is no such model or attack, or not all attacks are done.
    """
    attack, others = _attacks(results, model, name)
    ours = results.distances(model, attack.name)
    theirs = np.array([results.distances(model, other.name) for other in others])
    counted = ~np.isnan(ours)  # all but images of a target's class
    if counted.sum() < results.num_expected(model, name) or np.isnan(theirs[:, counted]).any():
        raise UserError(
            f"not all attacks on {model} in {attack.norm} are done; resume with evaluate.py"
        )
    closest = theirs.min(axis=0)
    limit = min(attack.limit(model), max(other.limit(model) for other in others))
    compared = counted & ~robust(np.minimum(ours, closest), limit)
    number, left_out = counted.sum(), (counted & ~compared).sum()
    print(f"{attack.title} on {model}, {attack.norm}: {number} images, others: {len(others)}")
    if left_out:
        print(f"images left out, with nothing within {limit:g}: {left_out}")
    for tolerance in _TOLERANCES:
        count = int((ours <= closest * (1 + tolerance))[compared].sum())
        beyond = f" by more than {tolerance:.2%}" if tolerance else ""
        print(f"images with no other closer{beyond}: {count}")
    closer = []
    for index in np.flatnonzero((ours > closest) & compared):
        other = others[int(theirs[:, index].argmin())]
        closer.append((other, results.found[model, other.name][int(index)]))
    for title, count in collections.Counter(other.title for other, _ in closer).most_common():
        print(f"closest there: {title}, {count}")
    return closer


def _attacks(
    results: Results, model: str, name: str
) -> tuple[PlannedAttack, Sequence[PlannedAttack]]:
    if model not in results.plan.models:
        raise UserError(f"no model {model!r}; there are {', '.join(results.plan.models)}")
    taken = [attack for attack in results.plan.attacks if model in attack.ledgers]
    attack = next((each for each in taken if each.name == name), None)
    if attack is None:
        raise UserError(
            f"no attack {name!r} on {model}; there are {', '.join(each.name for each in taken)}"
        )
    alike = results.attacks_on(model, attack.norm, GROUPS, attack.targets)
    others = [each for each in alike if each is not attack]
    if not others:
        raise UserError(f"{name} is the only attack on {model} in {attack.norm}")
    return attack, others


def compare_thoroughly(
    workdir: pathlib.Path, results: Results, name: str, closer: Sequence[Closer]
) -> None:
    """Prints the margins of the closer images by the model's own search and a thorough one."""
    sources = open_sources(workdir, results.plan)
    model = sources.models.get(name)
    if not isinstance(model, ABSClassifier) or not has_thorough_search(model):
        message = f"--thorough needs an ABS model with the solver quasi_newton, which {name} is not"
        raise UserError("\n".join([message, *sources.notes]))
    images = {r.index: r.adversarial for _, r in closer if r.adversarial is not None}
    if not images:
        return
    thorough = more_thorough(model)
    labels = sources.test.labels[list(images)].astype(int)
    print("Searching again, which takes a minute or so", file=sys.stderr)
    own, deep = (
        _margins(each, np.stack(list(images.values())), labels) for each in (model, thorough)
    )
    print("energy of the label above the lowest other, in nats (adversarial: above 0):")
    for index, by_own, by_thorough in zip(images, own, deep, strict=True):
        print(f"image {index}: {by_own:.4f} by its own search, {by_thorough:.4f} by a thorough one")
    print(f"adversarial: {(own > 0).sum()} by its own search, {(deep > 0).sum()} by a thorough one")


def _margins(model: ABSClassifier, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """By how many nats the label's weighted energy is above the lowest other, (N,)."""
    model = model.with_batch_size(len(images))
    energies = np.array(model.weighted_energies(model.infer(images)))
    rows = np.arange(len(labels))
    own = energies[rows, labels]
    energies[rows, labels] = np.inf
    return own - energies.min(axis=1)
