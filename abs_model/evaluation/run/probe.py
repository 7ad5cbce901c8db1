"""A quick look at each model before its attacks: useful gradients? one answer for each image?

PGD from the clean images themselves, at growing L-infinity epsilons. Within epsilon 1 lies every
image, so that an attack whose gradients are of use fools the model on all of them; accuracy that is
left there says that gradients are masked (Carlini et al., "On Evaluating Adversarial Robustness",
2019, section 4.3.2; Athalye et al., "Obfuscated Gradients", ICML 2018, section 3.1). A random start
would hide that: noise alone fools most models.

    ledger/MODEL/clean/FINGERPRINT/probe.json    what was found
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from abs_model._runtime.atomic_files import write_json
from abs_model._runtime.errors import UserError
from abs_model.attacks.pgd import pgd
from abs_model.evaluation.run.verification import verify
from abs_model.models.classifier import Classifier
from abs_model.models.decisions import margins
from abs_model.models.randomness import depends_on_batch, is_random

FILE = "probe.json"
EPSILONS = (0.1, 0.3, 1.0)
NUM_STEPS = 20
# Of epsilon: twice the way to the farthest corner.
_RELATIVE_STEP = 0.1


class ProbeError(UserError):
    """A probe's file can't be read or written."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """What was found about a model.

    Attributes:
        num_images: That it was looked at with.
        random: Whether two answers to the same images differ.
        depends_on_batch: Whether answers to an image differ with the other images of its batch.
        num_undecided: Clean images with a logit that is NaN, or whose label ties with another.
        thresholds: Whether it sees thresholded images, so that its gradients are passed straight
            through.
        accuracies: Share of the images that PGD leaves right at each of `EPSILONS`, from 0 to 1;
            none for a model without gradients. Undecided images are errors, as in all results.
    """

    num_images: int
    random: bool
    depends_on_batch: bool
    num_undecided: int
    thresholds: bool
    accuracies: tuple[float, ...]

    @property
    def summary(self) -> str:
        """E.g. "accuracy under PGD 100% at 0.1, 3% at 0.3, 0% at 1"."""
        if not self.accuracies:
            return "no gradients"
        pairs = zip(EPSILONS, self.accuracies, strict=True)
        left = ", ".join(f"{accuracy:.0%} at {epsilon:g}" for epsilon, accuracy in pairs)
        return f"accuracy under PGD {left}"


def probe(model: Classifier, images: np.ndarray, labels: np.ndarray) -> Probe:
    """Looks at a model with the first images, as many as it takes at a time.

    Args:
        model: The classifier.
        images: Float32 (N, height, width, channels) in [0, 1].
        labels: Integers (N,).
    """
    count = min(len(images), model.batch_size)
    # Of the size of a batch of attacks, whose compiled programs serve then.
    rows = np.resize(np.arange(count), model.batch_size)
    images, labels = images[rows], labels[rows]
    margin = margins(np.asarray(model.logits(images)), labels)
    undecided = np.isnan(margin) | (margin == 0)
    left = _left(model, images, labels) if model.differentiable else []
    return Probe(
        num_images=count,
        random=is_random(model, images),
        depends_on_batch=depends_on_batch(model, images),
        num_undecided=int(undecided[:count].sum()),
        thresholds=model.binary,
        accuracies=tuple(float((each & ~undecided)[:count].mean()) for each in left),
    )


def _left(model: Classifier, images: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """For each epsilon, the images that PGD finds no adversarial example for, bool (N,)."""
    left = []
    for epsilon in EPSILONS:
        found = pgd(
            model,
            images,
            labels,
            jax.random.key(0),
            norm="linf",
            epsilon=epsilon,
            step_size=_RELATIVE_STEP * epsilon,
            num_steps=NUM_STEPS,
            random_start=False,
        )
        adversarial = np.asarray(found.images)
        checked = verify(model, images, labels, adversarial, norm="linf", epsilon=epsilon)
        left.append(~checked.verified)
    return left


def read_probe(folder: pathlib.Path) -> Probe | None:
    """The probe in the folder of a model's clean ledger; None without one of this version.

    Raises:
        ProbeError: The file is damaged.
    """
    path = folder / FILE
    try:
        content: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
        if "depends_on_batch" not in content:  # of an older version: the model is probed again
            return None
        return Probe(**{**content, "accuracies": tuple(content["accuracies"])})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProbeError(
            f"can't read {path}: {error}; remove it, and evaluate.py probes the model again"
        ) from error


def write_probe(folder: pathlib.Path, found: Probe) -> None:
    """Writes a probe into the folder of a model's clean ledger, atomically.

    Raises:
        ProbeError: The disk does not allow it.
    """
    try:
        write_json(folder / FILE, dataclasses.asdict(found))
    except OSError as error:
        raise ProbeError(
            f"can't write {folder / FILE}: {error}; run the same command again"
        ) from error
