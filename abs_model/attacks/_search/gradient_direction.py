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

from abs_model._runtime.pytrees import register_dataclass
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.norms import ascent_direction, lengths, per_image
from abs_model.attacks._core.query import Answer, Query


def estimate_direction(
    query: Query, here: Answer, delta: jax.Array, keys: jax.Array, size: int
) -> jax.Array:
    """Estimates the direction in which the margin grows; `size` queries.

    Random changes are uniform on the sphere for L2, and come from a cube for L-infinity.

    Args:
        query: The session.
        here: The answer about images (n, height, width, channels) on the boundary.
        delta: How far from them to query, in L2 for either norm, (n,).
        keys: A key for each image, (n,).
        size: Number of queries.

    Returns:
        Changes (n, ...) of length 1 in the norm.
    """
    points, norm = here.images, query.norm
    sums = _Sums(jnp.zeros_like(points), jnp.zeros_like(points), jnp.zeros(len(points)))
    candidates = _first_perturbation(points, delta, keys, norm)
    # In L-infinity many pixels of a point on the boundary lie at the threshold of such a model, so
    # that a small change of the point is a large one of what the model sees.
    is_near = norm != "linf" or not query.model.binary
    for number in range(size):
        # Not recorded, because a warm decision may be wrong; what the direction leads to counts.
        answer = (
            query.logits(candidates, near=here, record=False)
            if is_near
            else query.decisions(candidates, record=False)
        )
        sums, candidates = _add(query.batch, points, delta, keys, sums, answer, number, norm)
    return _direction(sums, size, norm)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Sums:
    """Sums over the perturbed points of a step.

    Attributes:
        signed: Of the changes, with the sign of the answers, (n, height, width, channels).
        plain: Of the changes.
        signs: Sum of the signs, 1 for adversarial and -1 otherwise, (n,).
    """

    signed: jax.Array
    plain: jax.Array
    signs: jax.Array


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
def _add(
    batch: Batch,
    points: jax.Array,
    delta: jax.Array,
    keys: jax.Array,
    sums: _Sums,
    answer: Answer,
    number: int,
    norm: str,
) -> tuple[_Sums, jax.Array]:
    """Adds an answer to the sums, and draws the next points."""
    sign = jnp.where(batch.is_adversarial(answer.logits), 1.0, -1.0)
    change = (answer.images - points) / per_image(delta)
    sums = _Sums(sums.signed + per_image(sign) * change, sums.plain + change, sums.signs + sign)
    return sums, _perturb(points, delta, keys, number + 1, norm)


@functools.partial(jax.jit, static_argnames="norm")
def _direction(sums: _Sums, size: int, norm: str) -> jax.Array:
    mean = sums.signs / size
    # Where all answers are the same, their mean would leave nothing.
    baseline = jnp.where(jnp.abs(mean) == 1, 0.0, mean)
    return ascent_direction(sums.signed - per_image(baseline) * sums.plain, norm)
