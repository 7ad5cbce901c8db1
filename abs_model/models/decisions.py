"""When a classifier gets an image wrong: by a margin of the logits that rounding cannot undo.

The same image in a batch of another size, or on another machine, has slightly different logits,
because sums are added up in another order. An image on the decision boundary is then of one class
here and of another there. So an image counts as misclassified only if its margin, the largest other
logit minus that of its label, is above

    RELATIVE_ROUNDING * max(|logit of the label|, |largest other logit|) + logit_tolerance

where `logit_tolerance` (`Classifier.logit_tolerance`) is 0 for networks, and for ABS what the
search for latents leaves open. Attacks look for twice that (`ATTACK_FACTOR`), so that what they
report is still misclassified wherever it is verified. Logits with a NaN are no decision for any
class, and neither is a tie: hence no misclassification, and no correct classification.

Over 891 published adversarial images of the CNN, Binary CNN and Madry network, the margin differs
by at most 1e-6 of the largest |logit| between batches of 1, 7, 64, 100 and 256 images. Over 297 of
ABS it differs by at most 3e-4 of that, or 0.015 nats. A model whose logits are small differences of
terms a hundred times as large rounds more than the margin allows for; `scripts/reverify.py` shows
whether any adversarial example depends on that.
"""

import jax
import jax.numpy as jnp
import numpy as np

RELATIVE_ROUNDING = 5e-6
ATTACK_FACTOR = 2.0
NO_DECISION = -1


def uncertainty(
    logits: jax.Array,
    classes: jax.Array,
    logit_tolerance: float | jax.Array = 0.0,
) -> jax.Array:
    """The margin up to which a decision may differ between batches and machines, float32 (N,).

    Logits far below the two that decide, such as -1e9 of masked classes, have no say.

    Args:
        logits: (N, classes).
        classes: Integers (N,): the labels or targets that margins are of.
        logit_tolerance: See the module; a number or (N,).
    """
    is_class = jnp.arange(logits.shape[1]) == classes[:, None]
    own = jnp.where(is_class, logits, -jnp.inf).max(axis=1)
    other = jnp.where(is_class, -jnp.inf, logits).max(axis=1)
    own, other = (jnp.where(jnp.isfinite(x), jnp.abs(x), 0.0) for x in (own, other))
    return RELATIVE_ROUNDING * jnp.maximum(own, other) + logit_tolerance


def margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The largest other logit minus the label's, float64 (N,); NaN where a logit is NaN.

    Args:
        logits: (N, classes).
        labels: Integers (N,).
    """
    others = np.array(logits, np.float64)
    rows = np.arange(len(others))
    own = others[rows, labels]
    undefined = np.isnan(others).any(axis=1)
    others[rows, labels] = -np.inf
    with np.errstate(invalid="ignore"):  # of two infinite logits
        return np.where(undefined, np.nan, others.max(axis=1) - own)


def decide(logits: np.ndarray, labels: np.ndarray, uncertain: np.ndarray) -> np.ndarray:
    """The classes that the logits decide for, int32 (N,), in favor of the labels where in doubt.

    Args:
        logits: (N, classes).
        labels: Integers (N,): what counts unless another class is ahead by more than `uncertain`.
        uncertain: Of the margins, (N,); see `uncertainty`.

    Returns:
        The label or the class of the largest logit; `NO_DECISION` where a logit is NaN, or the
        label's is exactly as large as another.
    """
    margin = margins(logits, labels)
    decided = np.where(margin > uncertain, np.asarray(logits).argmax(axis=1), labels)
    return np.where(np.isnan(margin) | (margin == 0), NO_DECISION, decided).astype(np.int32)
