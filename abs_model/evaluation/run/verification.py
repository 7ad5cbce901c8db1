"""Checks what an attack reports, with none of the attack's own code.

An image counts as adversarial when it is an image (finite, in [0, 1]), lies within epsilon of the
clean one by a distance measured again in float64, and the model, queried from a cold start and in
batches of another size than the attack's, misclassifies it beyond doubt (`models.decisions`).
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from abs_model._runtime.checks import check_count
from abs_model._runtime.precision import single_precision
from abs_model.attacks._core.checks import check_epsilon, check_labels
from abs_model.models import decisions
from abs_model.models.checks import validate_images
from abs_model.models.classifier import Classifier

# Attacks project in float32, whose rounding may leave an image this far beyond epsilon.
RELATIVE_ROUNDING = 1e-5
ABSOLUTE_ROUNDING = 1e-6

REASONS = ("out_of_bounds", "beyond_epsilon", "no_decision", "within_rounding", "not_adversarial")
NOT_CLASSIFIED = decisions.NO_DECISION
# Of a random model's mean margin: with this many samples, noise alone exceeds them in 0.4% of
# images (Student's t distribution).
_STANDARD_ERRORS = 3.0
_FEWEST_SAMPLES = 20


@dataclasses.dataclass(frozen=True)
class Verification:
    """What is true of each of N images, whether or not an attack reported it.

    Attributes:
        in_bounds: bool (N,): all pixels are finite and in [0, 1].
        distances: float64 (N,): distance to the clean image; NaN or infinite where a pixel is.
        within_epsilon: bool (N,): the distance is at most epsilon, up to float32 rounding.
        predictions: int32 (N,): the model's classes; `NOT_CLASSIFIED` for what is out of bounds,
            and so no image that a model owes an answer for, and where a logit is NaN.
        margins: float64 (N,): by how much the largest other logit is above the label's, or a
            target's logit above the largest other; NaN where there is no prediction.
        uncertain: float64 (N,): the margin that rounding, or the search for latents, may undo.
        adversarial: bool (N,): the margin is above that.
    """

    in_bounds: np.ndarray
    distances: np.ndarray
    within_epsilon: np.ndarray
    predictions: np.ndarray
    margins: np.ndarray
    uncertain: np.ndarray
    adversarial: np.ndarray

    @property
    def verified(self) -> np.ndarray:
        """bool (N,): an adversarial image within bounds and within epsilon."""
        return self.in_bounds & self.within_epsilon & self.adversarial

    @property
    def adversarial_distances(self) -> np.ndarray:
        """float64 (N,): distance where verified, infinity elsewhere."""
        return np.where(self.verified, self.distances, np.inf)

    def reasons(self, row: int) -> tuple[str, ...]:
        """Why the image in a row can't count as adversarial, of `REASONS`; empty if it can."""
        undecided = self.in_bounds[row] and self.predictions[row] == NOT_CLASSIFIED
        fails = (
            not self.in_bounds[row],
            not self.within_epsilon[row],
            undecided,
            0 < self.margins[row] <= self.uncertain[row],
            self.margins[row] <= 0,
        )
        return tuple(reason for reason, failed in zip(REASONS, fails, strict=True) if failed)


@single_precision
def verify(
    model: Classifier,
    clean: np.ndarray,
    labels: np.ndarray,
    adversarial: np.ndarray,
    *,
    norm: str,
    epsilon: float = math.inf,
    targets: np.ndarray | None = None,
    num_samples: int = 1,
) -> Verification:
    """Checks the images of an attack against their clean images and the model.

    Args:
        model: The classifier.
        clean: Images, float32 (N, height, width, channels) in [0, 1].
        labels: Their classes, integers (N,).
        adversarial: Images as `clean`, but with any values. What is judged is their float32 form,
            which is what a model sees.
        norm: "l2", "linf" or "l0".
        epsilon: The largest distance allowed: for L2 and L-infinity in units of the pixel range,
            for L0 in pixels; infinite, or at most the distance of black and white. An image without
            a finite distance is never within it.
        targets: Integers (N,): the classes that count as success; by default any but the label.
        num_samples: For a model whose answers are random: how many to average the logits over, at
            least 20. The mean margin must then be above three standard errors, too.

    Raises:
        ValueError: An argument is not as described; the message says what came.
    """
    clean, classes, adversarial = check_arguments(model, clean, labels, adversarial, targets)
    check_count("num_samples", num_samples)
    if 1 < num_samples < _FEWEST_SAMPLES:
        raise ValueError(
            f"num_samples must be 1 or at least {_FEWEST_SAMPLES}, got {num_samples}: fewer samples"
            " say too little about the mean"
        )
    if not (isinstance(epsilon, float) and epsilon == math.inf):
        epsilon = check_epsilon(epsilon, norm, model.image_shape)
    # False for NaN too.
    in_bounds = np.all((adversarial >= 0) & (adversarial <= 1), axis=(1, 2, 3))
    distances = measure_distances(clean, adversarial, norm)
    limit = epsilon * (1 + RELATIVE_ROUNDING) + ABSOLUTE_ROUNDING
    predictions = np.full(len(clean), NOT_CLASSIFIED, np.int32)
    margins, uncertain = np.full((2, len(clean)), np.nan)
    if in_bounds.any():
        predictions[in_bounds], margins[in_bounds], uncertain[in_bounds] = _answer(
            model,
            adversarial[in_bounds],
            classes[in_bounds],
            targeted=targets is not None,
            num_samples=num_samples,
            num_attacked=len(clean),
        )
    return Verification(
        in_bounds=in_bounds,
        distances=distances,
        within_epsilon=np.isfinite(distances) & (distances <= limit),
        predictions=predictions,
        margins=margins,
        uncertain=uncertain,
        adversarial=margins > uncertain,
    )


def check_arguments(
    model: Classifier, clean: Any, labels: Any, adversarial: Any, targets: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clean images, the classes to lead away from or to, and adversarial images, once checked.

    Raises:
        ValueError: An argument is not as `verify` describes it.
    """
    clean = np.asarray(validate_images(clean, model.image_shape))
    classes = np.asarray(check_labels(labels, len(clean), model.num_classes))
    if targets is not None:
        goals = np.asarray(check_labels(targets, len(clean), model.num_classes, name="targets"))
        if (goals == classes).any():
            raise ValueError("targets must differ from labels: the true class is no target")
        classes = goals
    adversarial = np.asarray(adversarial)
    if not jnp.issubdtype(adversarial.dtype, jnp.floating):
        raise ValueError(
            f"adversarial must be float32, got {adversarial.dtype}; divide by 255 what holds pixels"
            " from 0 to 255"
        )
    adversarial = adversarial.astype(np.float32)
    if adversarial.shape != clean.shape:
        raise ValueError(
            f"adversarial must have the shape of clean, {clean.shape}, got {adversarial.shape}"
        )
    return clean, classes, adversarial


def verification_batch_size(model: Classifier, num_images: int) -> int:
    """A batch size at which no attack on so many images queries the model.

    Kernels add up in another order then, as they do on another machine.
    """
    # Attacks split images into batches as equal as can be (`attacks._core.run`).
    attacked = -(-num_images // -(-num_images // model.batch_size))
    size = model.batch_size // 2 + 1
    while size in (attacked, model.batch_size):
        size += 1
    return size


def cold_logits(
    model: Classifier, images: np.ndarray, num_attacked: int | None = None
) -> np.ndarray:
    """The logits that verification goes by, float32 (N, classes); see `verification_batch_size`.

    Args:
        model: The classifier.
        images: Float32 (N, height, width, channels) in [0, 1].
        num_attacked: Images that were attacked together, by default N.
    """
    size = verification_batch_size(model, len(images) if num_attacked is None else num_attacked)
    return np.asarray(model.with_batch_size(size).logits(images))


def cold_decisions(model: Classifier, images: np.ndarray) -> np.ndarray:
    """The same as far as logits decide (`Classifier.decision_logits`), float32 (N, classes)."""
    size = verification_batch_size(model, len(images))
    return np.asarray(model.with_batch_size(size).decision_logits(images))


def uncertain_margins(model: Classifier, logits: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The margin up to which the model's decision is in doubt, float64 (N,)."""
    tolerance = float(model.logit_tolerance)
    found = decisions.uncertainty(jnp.asarray(logits), jnp.asarray(classes), tolerance)
    return np.asarray(found, np.float64)


def judge(
    model: Classifier, logits: np.ndarray, classes: np.ndarray, *, targeted: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """What logits (N, classes) say about success.

    Returns:
        Predictions, int32 (N,), `NOT_CLASSIFIED` where a logit is NaN; and margins, float64 (N,):
        of the largest other logit above that of the class or, `targeted`, of the class above it.
    """
    margins = decisions.margins(logits, classes)
    predictions = np.where(np.isnan(margins), NOT_CLASSIFIED, np.asarray(logits).argmax(axis=1))
    return predictions.astype(np.int32), -margins if targeted else margins


def is_adversarial(
    model: Classifier, images: np.ndarray, classes: np.ndarray, targeted: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Whether images are misclassified beyond doubt, bool (n,), and their classes, int32 (n,).

    Args:
        model: The classifier, with the batch size to query it in.
        images: float32 (n, height, width, channels) in [0, 1].
        classes: Integers (n,): the labels or, `targeted`, the classes that count as success.
        targeted: What the classes are.
    """
    logits = np.asarray(model.logits(images))
    predictions, margins = judge(model, logits, classes, targeted=targeted)
    return margins > uncertain_margins(model, logits, classes), predictions


def _answer(
    model: Classifier,
    images: np.ndarray,
    classes: np.ndarray,
    *,
    targeted: bool,
    num_samples: int,
    num_attacked: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions; margins as `judge` has them; and how far these are in doubt; (n,) each."""
    drawn = [cold_logits(model, images, num_attacked) for _ in range(num_samples)]
    samples = np.stack(drawn).astype(np.float64)
    logits = samples.mean(axis=0)
    predictions, margins = judge(model, logits, classes, targeted=targeted)
    uncertain = uncertain_margins(model, logits, classes)
    if num_samples > 1:
        each = np.stack([decisions.margins(sample, classes) for sample in samples])
        uncertain += _STANDARD_ERRORS * each.std(axis=0, ddof=1) / math.sqrt(num_samples)
    return predictions, margins, uncertain


def measure_distances(clean: np.ndarray, adversarial: np.ndarray, norm: str) -> np.ndarray:
    """Distances in float64, (N,); not finite where a value is not.

    Args:
        clean: Images, float32 (N, height, width, channels).
        adversarial: As `clean`.
        norm: "l2", "linf" or "l0"; see `abs_model.attacks._core.norms`.

    Raises:
        ValueError: The norm is none of these.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(adversarial.astype(np.float64) - clean.astype(np.float64))
        if norm == "l0":
            pixels = np.sum(np.any(difference != 0, axis=3), axis=(1, 2)).astype(np.float64)
            return np.where(np.isfinite(difference).all((1, 2, 3)), pixels, np.nan)
        difference = difference.reshape(len(clean), -1)
        if norm == "l2":
            return np.sqrt(np.sum(difference**2, axis=1))
        if norm == "linf":
            return np.max(difference, axis=1)
    raise ValueError(f"norm must be 'l2', 'linf' or 'l0', got {norm!r}")
