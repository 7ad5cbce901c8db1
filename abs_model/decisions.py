"""When a classifier gets an image wrong: by a margin of the logits that rounding cannot undo.

The same image in a batch of another size, or on another machine, has slightly different logits,
because sums are added up in another order. An image on the decision boundary is then of one class
here and of another there. So an image counts as misclassified only if its margin, the largest other
logit minus that of its label, is above

    RELATIVE_ROUNDING * max |logit| + logit_tolerance

where `logit_tolerance` (`Classifier.logit_tolerance`) is 0 for networks, and for ABS what the
search for latents leaves open. Attacks look for twice that (`ATTACK_FACTOR`), so that what they
report is still misclassified wherever it is verified. Logits with a NaN are no decision for any
class, hence no misclassification.

Over 891 published adversarial images of the CNN, Binary CNN and Madry network, the margin differs
by at most 1e-6 max |logit| between batches of 1, 7, 64, 100 and 256 images. Over 297 of ABS it
differs by at most 3e-4 max |logit|, or 0.015 nats.
"""

import jax
import jax.numpy as jnp
import numpy as np

RELATIVE_ROUNDING = 5e-6
ATTACK_FACTOR = 2.0
NO_DECISION = -1


def uncertainty(logits: jax.Array, logit_tolerance: float | jax.Array = 0.0) -> jax.Array:
    """The margin up to which a decision may differ between batches and machines, float32 (N,).

    Args:
        logits: (N, classes); infinite ones have no say.
        logit_tolerance: See the module; a number or (N,).
    """
    sizes = jnp.where(jnp.isfinite(logits), jnp.abs(logits), 0.0)
    return RELATIVE_ROUNDING * sizes.max(axis=1) + logit_tolerance


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
        The label or the class of the largest logit; `NO_DECISION` where a logit is NaN.
    """
    margin = margins(logits, labels)
    decided = np.where(margin > uncertain, np.asarray(logits).argmax(axis=1), labels)
    return np.where(np.isnan(margin), NO_DECISION, decided).astype(np.int32)
