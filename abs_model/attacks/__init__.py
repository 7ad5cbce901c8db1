"""Attacks: small changes of images that make a classifier wrong.

`pgd` attacks any classifier of `abs_model.classifiers`; `ascend` is the same attack as a pure
function of a logits function, for adversarial training. `distances`, `project`, `random_start` and
`ascent_direction` are the geometry of the norms, for further attacks.
"""

from abs_model.attacks.base import (
    NORMS,
    AttackResult,
    ascent_direction,
    distances,
    project,
    random_start,
)
from abs_model.attacks.pgd import ascend, log_odds, margins, pgd, pgd_step

__all__ = [
    "NORMS",
    "AttackResult",
    "ascend",
    "ascent_direction",
    "distances",
    "log_odds",
    "margins",
    "pgd",
    "pgd_step",
    "project",
    "random_start",
]
