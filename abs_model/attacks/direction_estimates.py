"""In which direction from the decision boundary images become more adversarial, from decisions.

Chen, Jordan, Wainwright, "HopSkipJumpAttack: A Query-Efficient Decision-Based Attack", IEEE
Symposium on Security and Privacy 2020 (https://arxiv.org/abs/1904.02144), section 3: the mean of
random changes, each with the sign of the answer that it brings. The mean answer is subtracted
first, which reduces the variance (eq. 16).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from abs_model.attacks.base import ascent_direction, lengths, per_image
from abs_model.attacks.batch import Batch
from abs_model.attacks.oracle import Oracle, State


def estimate_direction(
    oracle: Oracle,
    batch: Batch,
    points: jax.Array,
    delta: jax.Array,
    state: State,
    keys: jax.Array,
    size: int,
    norm: str,
) -> jax.Array:
    """Estimates the direction in which the margin grows; asks `size` times.

    Args:
        oracle: The classifier.
        batch: The originals.
        points: Images (n, height, width, channels) on the boundary.
        delta: How far from them to ask, in L2 for either norm, (n,).
        state: Of the points.
        keys: A key for each image, (n,).
        size: Number of queries.
        norm: "l2": random changes are uniform on the sphere; "linf": they come from a cube.

    Returns:
        Changes (n, ...) of length 1 in the norm.
    """
    tally = _Tally(jnp.zeros_like(points), jnp.zeros_like(points), jnp.zeros(len(points)))
    candidates = _first_perturbation(points, delta, keys, norm)
    for number in range(size):
        logits, _ = oracle.logits(candidates, state)
        tally, candidates = _count(
            batch, points, delta, keys, tally, candidates, logits, number, norm
        )
    return _direction(tally, size, norm)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Tally:
    """Sums over the perturbed points of a step.

    Attributes:
        signed: Of the changes, with the sign of the answers, (n, height, width, channels).
        plain: Of the changes.
        answers: Of the answers, 1 for adversarial ones and -1 for others, (n,).
    """

    signed: jax.Array
    plain: jax.Array
    answers: jax.Array


def _perturb(
    points: jax.Array, delta: jax.Array, keys: jax.Array, number: jax.Array | int, norm: str
) -> jax.Array:
    """Points moved by delta (in L2, for either norm), and clipped."""
    shape = points.shape[1:]

    def draw(key: jax.Array) -> jax.Array:
        key = jax.random.fold_in(key, number)
        if norm == "l2":
            return jax.random.normal(key, shape)
        return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)

    noise = jax.vmap(draw)(keys)
    return jnp.clip(points + noise * per_image(delta / lengths(noise, "l2")), 0.0, 1.0)


@functools.partial(jax.jit, static_argnames="norm")
def _first_perturbation(
    points: jax.Array, delta: jax.Array, keys: jax.Array, norm: str
) -> jax.Array:
    return _perturb(points, delta, keys, 0, norm)


@functools.partial(jax.jit, static_argnames="norm")
def _count(
    batch: Batch,
    points: jax.Array,
    delta: jax.Array,
    keys: jax.Array,
    tally: _Tally,
    candidates: jax.Array,
    logits: jax.Array,
    number: int,
    norm: str,
) -> tuple[_Tally, jax.Array]:
    """Adds an answer to the sums, and draws the next points."""
    answer = jnp.where(batch.fooled(logits), 1.0, -1.0)
    change = (candidates - points) / per_image(delta)
    tally = _Tally(
        tally.signed + per_image(answer) * change, tally.plain + change, tally.answers + answer
    )
    return tally, _perturb(points, delta, keys, number + 1, norm)


@functools.partial(jax.jit, static_argnames="norm")
def _direction(tally: _Tally, size: int, norm: str) -> jax.Array:
    mean = tally.answers / size
    # Where all answers are the same, their mean would leave nothing.
    baseline = jnp.where(jnp.abs(mean) == 1, 0.0, mean)
    return ascent_direction(tally.signed - per_image(baseline) * tally.plain, norm)
