"""The attacks by name, with the norms they attack in and what each needs of a classifier."""

import dataclasses
import enum
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from abs_model.attacks.apgd import apgd, fewest_classes
from abs_model.attacks.base import AttackResult
from abs_model.attacks.binary import flip_pixels
from abs_model.attacks.boundary import boundary
from abs_model.attacks.carlini_wagner import carlini_wagner
from abs_model.attacks.checks import NORMS
from abs_model.attacks.cutting_planes import cutting_planes
from abs_model.attacks.deepfool import deepfool
from abs_model.attacks.fab import fab
from abs_model.attacks.fast_gradient import fast_gradient
from abs_model.attacks.fmn import fmn
from abs_model.attacks.greedy_pixels import greedy_pixels
from abs_model.attacks.hop_skip_jump import hop_skip_jump
from abs_model.attacks.iterative import bim, mim
from abs_model.attacks.latent_descent import latent_descent
from abs_model.attacks.noise import gaussian_noise, salt_and_pepper
from abs_model.attacks.pgd import pgd
from abs_model.attacks.pointwise import pointwise
from abs_model.attacks.sparse_rs import sparse_rs
from abs_model.attacks.square import square
from abs_model.attacks.transfer import transfer
from abs_model.classifiers import ABSClassifier, Classifier


class Needs(enum.Enum):
    """What an attack needs of a classifier."""

    LOGITS = "logits"  # or no more than their argmax: any classifier will do
    GRADIENTS = "gradients"
    BINARY = "thresholded images"
    ABS = "an ABS model"


# The setting that limits how far from the clean images an attack looks, in each norm.
_EPSILON = dict.fromkeys(NORMS, "epsilon")


@dataclasses.dataclass(frozen=True)
class Entry:
    """An attack as evaluations name it.

    Attributes:
        title: For tables.
        function: The attack.
        norms: That it attacks in.
        needs: Of the classifier.
        fewest_classes: From the attack's settings, and whether it leads to given targets, how many
            classes the classifier must have.
        limits: By norm, the setting that limits how far it looks, where it has such a setting.
        newer: Settings that published ledgers lack. At their defaults, which are what these were
            made with, they are no part of a ledger's identity.
    """

    title: str
    function: Callable[..., AttackResult]
    norms: tuple[str, ...]
    needs: Needs
    fewest_classes: Callable[[Mapping[str, Any], bool], int] = lambda settings, targeted: 2
    limits: Mapping[str, str] = dataclasses.field(default_factory=lambda: _EPSILON)
    newer: tuple[str, ...] = ()

    def refusal(
        self, model: Classifier, settings: Mapping[str, Any], *, targeted: bool = False
    ) -> str | None:
        """Why a classifier can't be attacked with it and all its settings; None where it can."""
        if targeted and "targets" not in inspect.signature(self.function).parameters:
            return "cannot be targeted"
        if self.needs is Needs.GRADIENTS and not model.differentiable:
            return "requires gradients, and the model is a black box"
        if self.needs is Needs.BINARY and not getattr(model, "binary", False):
            return "requires a model on thresholded images"
        if self.needs is Needs.ABS and not isinstance(model, ABSClassifier):
            return "requires an ABS model"
        if model.num_classes < (fewest := self.fewest_classes(settings, targeted)):
            return f"requires {fewest} classes, and the model has {model.num_classes}"
        return None


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


def _fewest_classes_of_apgd(settings: Mapping[str, Any], targeted: bool) -> int:
    return fewest_classes(settings["loss"], targeted=targeted)


_DENSE = ("l2", "linf")

ATTACKS = {
    "apgd": Entry("APGD", apgd, _DENSE, Needs.GRADIENTS, _fewest_classes_of_apgd),
    "bim": Entry("BIM", bim, _DENSE, Needs.GRADIENTS),
    "boundary": Entry("Boundary", boundary, ("l2",), Needs.LOGITS),
    "carlini_wagner": Entry("Carlini-Wagner", carlini_wagner, ("l2",), Needs.GRADIENTS),
    "cutting_planes": Entry("Cutting planes", cutting_planes, NORMS, Needs.ABS),
    "deepfool": Entry("DeepFool", deepfool, _DENSE, Needs.GRADIENTS, newer=("num_classes",)),
    "fab": Entry("FAB", fab, _DENSE, Needs.GRADIENTS, newer=("num_classes",)),
    "fast_gradient": Entry("Fast gradient", fast_gradient, _DENSE, Needs.GRADIENTS),
    "flip_pixels": Entry(
        "Pixel flips", flip_pixels, NORMS, Needs.BINARY, limits={"l0": "max_flips"}
    ),
    "fmn": Entry("FMN", fmn, NORMS, Needs.GRADIENTS),
    "gaussian_noise": Entry("Gaussian noise", gaussian_noise, ("l2",), Needs.LOGITS),
    "greedy_pixels": Entry(
        "Greedy pixels", greedy_pixels, ("l0",), Needs.GRADIENTS, limits={"l0": "max_pixels"}
    ),
    "hop_skip_jump": Entry("HopSkipJump", hop_skip_jump, _DENSE, Needs.LOGITS),
    "latent_descent": Entry("Latent Descent", latent_descent, ("l2",), Needs.ABS),
    "mim": Entry("MIM", mim, _DENSE, Needs.GRADIENTS),
    "pgd": Entry("PGD", pgd, _DENSE, Needs.GRADIENTS),
    "pointwise": Entry("Pointwise", pointwise, ("l2", "l0"), Needs.LOGITS),
    "salt_and_pepper": Entry("Salt and pepper", salt_and_pepper, ("l0",), Needs.LOGITS),
    "sparse_rs": Entry("Sparse-RS", sparse_rs, ("l0",), Needs.LOGITS, limits={"l0": "num_pixels"}),
    "square": Entry("Square", square, _DENSE, Needs.LOGITS),
    "transfer": Entry("Transfer", transfer, _DENSE, Needs.LOGITS),
}
