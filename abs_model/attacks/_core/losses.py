"""What gradient attacks ascend: from logits (n, classes) and a batch to losses (n,).

All lead away from the label of an untargeted attack, and to the target of a targeted one.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from abs_model.attacks._core.batch import Batch

Loss = Callable[[jax.Array, Batch], jax.Array]


def margins(logits: jax.Array, batch: Batch) -> jax.Array:
    """The largest other logit minus the class's, less what rounding can undo, (n,).

    Above 0 is adversarial beyond doubt (`Batch.required_margins`). Logits with a NaN give minus
    infinity.

    The loss of Carlini and Wagner (2017). Unlike cross-entropy and `log_odds` it does not depend on
    the scale of the logits: those of ABS differ by hundredths, at which a softmax is nearly uniform
    and its gradient pushes towards all other classes at once instead of the nearest. For a target,
    its logit minus the largest other.
    """
    own, others = _split(logits, batch)
    ahead = batch.signed(others.max(axis=1) - own)
    found = ahead - jax.lax.stop_gradient(batch.required_margins(logits))
    return jnp.where(jnp.isnan(found), -jnp.inf, found)


def log_odds(logits: jax.Array, batch: Batch) -> jax.Array:
    """The log-odds against the class, (n,): what adversarial training ascends.

    This is m = logsumexp(other logits) - logit of the class. The cross-entropy is
    log(1 + exp(m)), so its gradient points where that of m points, and steps of a set length
    see no difference. But where the classifier is sure, the gradient of the cross-entropy vanishes
    in float32 (beyond some 17 nats the label's part of it is rounded away), and that of m doesn't:
    confidence is no protection.
    """
    own, others = _split(logits, batch)
    return batch.signed(jax.nn.logsumexp(others, axis=1) - own)


def _split(logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The class's logit (n,), and all logits with minus infinity in its place (n, classes)."""
    is_class = jnp.arange(logits.shape[1]) == batch.classes[:, None]
    return jnp.where(is_class, logits, 0.0).sum(1), jnp.where(is_class, -jnp.inf, logits)
