"""The rows of the results, and the three ways to show them: terminal, Markdown, JSON.

A row without an attack is clean accuracy; a row with one is the accuracy that is left at a fixed
threshold, for the given number of steps and restarts.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import rich.box
import rich.table

NORM_NAMES = {"l2": "L2", "linf": "L-inf"}
TITLE = "Accuracy, clean and at fixed attack thresholds"
EXPLANATION = (
    "Accuracy at a threshold: images that are classified correctly when clean and for which the"
    " attack, at this budget, found no verified adversarial image. A stronger attack can only"
    " lower it. In brackets: the attacked images that are correct when clean. Gradients are exact,"
    " except that those of models on thresholded images pass straight through the threshold."
    " Intervals: Wilson, 95 %. Rejected: images that the attack claimed as adversarial and that"
    " verification refused."
)
_NORMAL_QUANTILE = 1.959963984540054  # of 0.975
_COLUMNS = (
    "Model",
    "Condition",
    "Budget",
    "Correct",
    "Accuracy",
    "95 % interval",
    "Rejected",
    "Time",
)


@dataclasses.dataclass(frozen=True)
class AttackSettings:
    """A PGD attack at one threshold.

    Attributes:
        norm: "l2" or "linf".
        epsilon: The threshold, in units of the pixel range [0, 1].
        step_size: Length of a step, in the same units.
        num_steps: Gradient steps of each restart.
        num_restarts: Random starts; the attack succeeds when one of them does.
    """

    norm: str
    epsilon: float
    step_size: float
    num_steps: int
    num_restarts: int

    @property
    def threat(self) -> str:
        """E.g. "L2 <= 1.5"."""
        return f"{NORM_NAMES[self.norm]} <= {self.epsilon:g}"

    @property
    def budget(self) -> str:
        """E.g. "40 steps, 1 restart"."""
        steps = f"{self.num_steps} step{'s' * (self.num_steps != 1)}"
        return f"{steps}, {self.num_restarts} restart{'s' * (self.num_restarts != 1)}"


@dataclasses.dataclass(frozen=True)
class Row:
    """One accuracy of one model.

    Attributes:
        model: The name the user gave it.
        attack: None for clean accuracy.
        num_images: The first so many images of the test split.
        num_correct: Correct ones; under attack, also without a verified adversarial image.
        seconds: Wall-clock time by part, compilation included.
        num_clean_errors: Images that are misclassified without any attack (distance 0).
        num_claimed: Images that the attack reported as adversarial.
        num_rejected: Claims that verification refused.
        rejections: Refused claims by reason; an image may have several.
    """

    model: str
    attack: AttackSettings | None
    num_images: int
    num_correct: int
    seconds: Mapping[str, float]
    num_clean_errors: int = 0
    num_claimed: int = 0
    num_rejected: int = 0
    rejections: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """From 0 to 1."""
        return self.num_correct / self.num_images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the accuracy."""
        return wilson_interval(self.num_correct, self.num_images)

    @property
    def condition(self) -> str:
        """ "clean", or the threat."""
        return "clean" if self.attack is None else self.attack.threat


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927, "Probable inference").

    Unlike the normal approximation it stays within [0, 1] and has a width at 0 and at 1.

    Raises:
        ValueError: `trials` isn't positive, or `successes` not from 0 to `trials`.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"successes must be from 0 to trials >= 1, got {successes} of {trials}")
    z2 = _NORMAL_QUANTILE**2
    proportion = successes / trials
    centre = (proportion + z2 / (2 * trials)) / (1 + z2 / trials)
    spread = math.sqrt(proportion * (1 - proportion) / trials + z2 / (4 * trials**2))
    half_width = _NORMAL_QUANTILE * spread / (1 + z2 / trials)
    # The ends are exactly 0 and 1 there; rounding would leave 1e-17 beyond.
    low = 0.0 if successes == 0 else centre - half_width
    high = 1.0 if successes == trials else centre + half_width
    return low, high


def to_rich(rows: Sequence[Row]) -> rich.table.Table:
    """A table for the terminal."""
    table = rich.table.Table(title=TITLE, caption=EXPLANATION, box=rich.box.SIMPLE_HEAD)
    for position, header in enumerate(_COLUMNS):
        table.add_column(header, justify="left" if position < 2 else "right", overflow="fold")
    for position, row in enumerate(rows):
        last_of_model = position + 1 < len(rows) and rows[position + 1].model != row.model
        table.add_row(*_cells(row), end_section=last_of_model)
    return table


def to_markdown(rows: Sequence[Row]) -> str:
    """A Markdown table with its explanation below."""
    rule = ["---" if position < 2 else "---:" for position in range(len(_COLUMNS))]
    lines = [list(_COLUMNS), rule]
    lines += [[cell.replace("|", r"\|") for cell in _cells(row)] for row in rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{table}\n\n{EXPLANATION}\n"


def to_dict(row: Row) -> dict[str, Any]:
    """What results.json keeps of a row; times are rounded to milliseconds."""
    content: dict[str, Any] = {
        "model": row.model,
        "condition": row.condition,
        "num_images": row.num_images,
        "num_correct": row.num_correct,
        "accuracy": row.accuracy,
        "wilson_95": list(row.interval),
    }
    if row.attack is not None:
        content["attack"] = {"name": "pgd", **dataclasses.asdict(row.attack)}
        content["num_clean_errors"] = row.num_clean_errors
        content["num_claimed"] = row.num_claimed
        content["num_rejected"] = row.num_rejected
        content["rejections"] = dict(row.rejections)
    content["seconds"] = {part: round(value, 3) for part, value in row.seconds.items()}
    return content


def _cells(row: Row) -> list[str]:
    attack = row.attack
    low, high = row.interval
    return [
        row.model,
        "clean" if attack is None else f"PGD {attack.threat}",
        "-" if attack is None else attack.budget,
        f"{row.num_correct} of {row.num_images}"
        + ("" if attack is None else f" ({row.num_images - row.num_clean_errors} clean)"),
        f"{row.accuracy:.1%}",
        f"{low:.1%} to {high:.1%}",
        "-" if attack is None else _rejected(row),
        f"{sum(row.seconds.values()):.1f} s",
    ]


def _rejected(row: Row) -> str:
    reasons = [f"{n} {reason.replace('_', ' ')}" for reason, n in row.rejections.items() if n]
    detail = f" ({', '.join(reasons)})" if reasons else ""
    return f"{row.num_rejected} of {row.num_claimed}{detail}"
