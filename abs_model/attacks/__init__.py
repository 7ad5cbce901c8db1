"""Attacks: small changes of images that make a classifier wrong.

Every attack is a call of one form, `attack(model, images, labels, key, **settings)`, that returns
an `AttackResult`; the settings name the norm, and `epsilon` where the attack keeps within one. What
they share is in `running` (checks, batches), `oracle` (questions to the classifier), `best` (what
was found) and `base` (norms). `ascend` is PGD as a pure function, for adversarial training.
"""

from abs_model.attacks.base import (
    NORMS,
    AttackResult,
    ascent_direction,
    distances,
    project,
    random_start,
)
from abs_model.attacks.batch import Batch
from abs_model.attacks.losses import log_odds, margins
from abs_model.attacks.pgd import ascend, pgd

__all__ = [
    "NORMS",
    "AttackResult",
    "Batch",
    "ascend",
    "ascent_direction",
    "distances",
    "log_odds",
    "margins",
    "pgd",
    "project",
    "random_start",
]
