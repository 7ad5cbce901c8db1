"""The attacks by name, with what each needs of a classifier."""

import dataclasses
import enum
from collections.abc import Callable

from abs_model.attacks.base import AttackResult
from abs_model.attacks.pgd import pgd
from abs_model.classifiers import ABSClassifier, Classifier


class Needs(enum.Enum):
    """What an attack needs of a classifier."""

    DECISIONS = "decisions"  # logits or no more than their argmax: any classifier will do
    GRADIENTS = "gradients"
    BINARY = "thresholded images"
    ABS = "an ABS model"


@dataclasses.dataclass(frozen=True)
class Entry:
    """An attack as evaluations name it.

    Attributes:
        title: For tables.
        function: The attack.
        needs: Of the classifier.
    """

    title: str
    function: Callable[..., AttackResult]
    needs: Needs

    def refusal(self, model: Classifier) -> str | None:
        """Why a classifier can't be attacked with it; None where it can."""
        if self.needs is Needs.GRADIENTS and not model.differentiable:
            return "it needs gradients, and the model is a black box"
        if self.needs is Needs.BINARY and not getattr(model, "binary", False):
            return "it is for models on thresholded images"
        if self.needs is Needs.ABS and not isinstance(model, ABSClassifier):
            return "it is for ABS models"
        return None


ATTACKS = {
    "pgd": Entry("PGD", pgd, Needs.GRADIENTS),
}
