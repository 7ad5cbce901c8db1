"""Evaluation of classifiers: clean accuracy, attacks at the thresholds, verification, files.

In the workdir of an evaluation::

    results.json                  settings, environment and rows; rewritten after every part
    results.md                    the same as a table
    adversarial_MODEL_NORM.npz    the images of an attack and what verification found
    examples_MODEL_NORM.png       some of these as a picture
    summary.png                   all accuracies

Attacks get the first `num_attacked` test images, and the same random numbers for every model.
"""

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from abs_model.attacks.pgd import pgd
from abs_model.data import Split
from abs_model.errors import UserError
from abs_model.evaluation import figures, tables
from abs_model.evaluation.attacked import Attacked
from abs_model.evaluation.examples import draw_examples
from abs_model.evaluation.progress import count_progress
from abs_model.evaluation.tables import AttackSettings, Row
from abs_model.evaluation.verification import verify
from abs_model.files import atomic_write_text, write_json
from abs_model.provenance import environment, git_commit

# The thresholds of the paper (Schott et al. 2019, arXiv 1805.09190), table 1.
THRESHOLDS = {"l2": 1.5, "linf": 0.3}
# A walk of all steps can cross the ball, from wherever in it it starts.
_STEP_LENGTHS_PER_RADIUS = 2.5


class EvaluationError(UserError):
    """The evaluation asked for isn't possible."""


class Attack(Protocol):
    """`abs_model.attacks.pgd.pgd`, or another with its arguments."""

    def __call__(
        self,
        model: Any,
        images: np.ndarray,
        labels: np.ndarray,
        key: jax.Array,
        *,
        norm: str,
        epsilon: float,
        step_size: float,
        num_steps: int,
        num_restarts: int,
        progress: Callable[[int], None],
    ) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is evaluated, for every model alike.

    Attributes:
        num_clean: Test images for clean accuracy.
        num_attacked: Test images that are attacked.
        num_steps: Steps of PGD.
        num_restarts: Random restarts of PGD.
        seed: Of the random starts.
        norms: Of `THRESHOLDS`, those attacked in; no figure depends on which others are.
    """

    num_clean: int = 1000
    num_attacked: int = 20
    num_steps: int = 40
    num_restarts: int = 1
    seed: int = 0
    norms: tuple[str, ...] = tuple(THRESHOLDS)

    def attacks(self) -> list[AttackSettings]:
        """The attack of each threshold."""
        return [
            AttackSettings(
                norm=norm,
                epsilon=THRESHOLDS[norm],
                step_size=_STEP_LENGTHS_PER_RADIUS * THRESHOLDS[norm] / self.num_steps,
                num_steps=self.num_steps,
                num_restarts=self.num_restarts,
            )
            for norm in self.norms
        ]


def evaluate(
    models: Mapping[str, Any],
    test: Split,
    settings: Settings,
    workdir: str | os.PathLike[str],
    *,
    about: Mapping[str, Any] | None = None,
    attack: Attack = pgd,
) -> list[Row]:
    """Evaluates every model and writes the files named above.

    Args:
        models: Classifiers by name; the names become part of file names.
        test: The test split.
        settings: How much of it, and how strong the attack.
        workdir: Directory of the results, made if needed. What an earlier evaluation left under
            the same names is replaced.
        about: More for results.json, such as the models' paths.
        attack: Called once for each model and threshold.

    Returns:
        The rows of the table: for each model clean accuracy, then one row for each threshold.

    Raises:
        EvaluationError: There are fewer test images than asked for, or the workdir can't be made.
    """
    directory = _prepare(settings, test, workdir)
    header = {
        "settings": dataclasses.asdict(settings),
        **(about or {}),
        "git_commit": git_commit(),
        **environment(),
    }
    rows: list[Row] = []
    for name, model in models.items():
        for row, attacked in _evaluate_model(name, model, test, settings, attack):
            rows.append(row)
            if attacked is not None:
                stem = f"{name}_{attacked.settings.norm}"
                attacked.save(directory / f"adversarial_{stem}.npz")
            _write_results(directory, header, rows, complete=False)
            if attacked is not None:
                figure = draw_examples(model, attacked, name=name)
                figures.save(figure, directory / f"examples_{stem}.png")
    figures.save(figures.draw_summary(rows), directory / "summary.png")
    _write_results(directory, header, rows, complete=True)
    return rows


def _prepare(settings: Settings, test: Split, workdir: str | os.PathLike[str]) -> pathlib.Path:
    for flag in ("num_clean", "num_attacked"):
        if not 1 <= getattr(settings, flag) <= len(test.labels):
            raise EvaluationError(
                f"--{flag} must be from 1 to the {len(test.labels)} test images there are,"
                f" got {getattr(settings, flag)}"
            )
    directory = pathlib.Path(workdir)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(f"can't use --workdir={workdir}: {error}") from error
    return directory


def _evaluate_model(
    name: str, model: Any, test: Split, settings: Settings, attack: Attack
) -> Iterator[tuple[Row, Attacked | None]]:
    count = max(settings.num_clean, settings.num_attacked)
    images = test.images[:count].astype(np.float32) / 255
    labels = test.labels[:count]
    start = time.perf_counter()
    predictions = _predict(name, model, images)
    correct = int(np.sum((predictions == labels)[: settings.num_clean]))
    seconds = {"classification": time.perf_counter() - start}
    yield Row(name, None, settings.num_clean, correct, seconds), None
    first = slice(settings.num_attacked)
    for attack_settings in settings.attacks():
        number = list(THRESHOLDS).index(attack_settings.norm)
        key = jax.random.fold_in(jax.random.key(settings.seed), number)
        yield _attack(
            name,
            model,
            (images[first], labels[first], predictions[first]),
            key,
            attack_settings,
            attack,
        )


def _predict(name: str, model: Any, images: np.ndarray) -> np.ndarray:
    parts = []
    with count_progress(f"{name}: clean images", len(images)) as show:
        for start in range(0, len(images), model.batch_size):
            parts.append(np.asarray(model.predict(images[start : start + model.batch_size])))
            show(min(start + model.batch_size, len(images)))
    return np.concatenate(parts)


def _attack(
    name: str,
    model: Any,
    subjects: tuple[np.ndarray, np.ndarray, np.ndarray],
    key: jax.Array,
    settings: AttackSettings,
    attack: Attack,
) -> tuple[Row, Attacked]:
    images, labels, predictions = subjects
    start = time.perf_counter()
    total = settings.num_steps * settings.num_restarts
    with count_progress(f"{name}: PGD {settings.threat}, steps", total) as show:
        found = attack(model, images, labels, key, **dataclasses.asdict(settings), progress=show)
    seconds = {"attack": time.perf_counter() - start}
    start = time.perf_counter()
    adversarial = np.asarray(found.images)
    verification = verify(
        model, images, labels, adversarial, norm=settings.norm, epsilon=settings.epsilon
    )
    seconds["verification"] = time.perf_counter() - start
    claimed = np.asarray(found.success)
    attacked = Attacked(settings, images, labels, predictions, adversarial, claimed, verification)
    return attacked.row(name, seconds), attacked


def _write_results(
    directory: pathlib.Path, header: Mapping[str, Any], rows: Sequence[Row], *, complete: bool
) -> None:
    content = {"complete": complete, **header, "rows": [tables.to_dict(row) for row in rows]}
    write_json(directory / "results.json", content)
    note = "" if complete else "\nThis evaluation isn't complete.\n"
    atomic_write_text(
        directory / "results.md", f"# {tables.TITLE}\n\n{tables.to_markdown(rows)}{note}"
    )
