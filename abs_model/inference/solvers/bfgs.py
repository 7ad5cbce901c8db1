"""Damped BFGS for many small problems at once, with latents in a ball.

N problems side by side, min E(z) = ||x - G(z)||^2 + ||z||^2 / 2 or another cost of G(z) and z:
latents (latent, N), one column each, and an inverse Hessian for every column (Nocedal & Wright
2006, chapter 6; damping as in procedure 18.2). Where the minimum lies on the ball's sphere,
gradients and directions are tangential, so that BFGS learns the curvature along the sphere.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from abs_model._runtime.pytrees import register_dataclass
from abs_model.inference.solvers.norm_ball import constraint_active, project, tangential

PyTree = Any
# From G(z) (outputs, N), targets with leaves (..., N) and z (latent, N): the costs, (N,).
Cost = Callable[[jax.Array, PyTree, jax.Array], jax.Array]

_CURVATURE = 10.0  # of the energies, in nats per squared latent unit, before anything is known
_RADIUS = 1.5  # of the first step's trust region


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Iterate:
    """N points and what is known of the energy there.

    Attributes:
        latents: (latent, N).
        energies: (N,), or other costs; infinite where nothing has been evaluated yet.
        gradients: (latent, N); tangential where `held`.
        held: Whether the point is on the sphere and descent would leave the ball, (N,).
        inverse_hessians: (latent, latent, N).
        radii: Of the trust region, (N,).
    """

    latents: jax.Array
    energies: jax.Array
    gradients: jax.Array
    held: jax.Array
    inverse_hessians: jax.Array
    radii: jax.Array


def initial_iterate(latents: jax.Array, inverse_hessians: jax.Array | None = None) -> Iterate:
    """Points (latent, N) before the first step, which only evaluates them."""
    size, count = latents.shape
    if inverse_hessians is None:
        identity = jnp.eye(size)[:, :, None] / _CURVATURE
        inverse_hessians = jnp.broadcast_to(identity, (size, size, count))
    return Iterate(
        latents,
        jnp.full(count, jnp.inf),
        jnp.zeros_like(latents),
        jnp.zeros(count, bool),
        inverse_hessians,
        jnp.full(count, _RADIUS),
    )


def energies(outputs: jax.Array, targets: jax.Array, latents: jax.Array) -> jax.Array:
    """||x - G(z)||^2 + ||z||^2 / 2, in nats, (N,)."""
    return jnp.sum((outputs - targets) ** 2, axis=0) + 0.5 * jnp.sum(latents**2, axis=0)


def step(
    decode: Callable[[jax.Array], jax.Array],
    targets: PyTree,
    now: Iterate,
    max_norm: float,
    cost: Cost = energies,
) -> tuple[Iterate, jax.Array]:
    """One evaluation of every problem; points move only where that lowers the energy.

    Args:
        decode: G, from latents (latent, N) to (outputs, N).
        targets: What `cost` compares with G: x, (outputs, N), for energies.
        now: The points.
        max_norm: Radius of the ball.
        cost: What is minimized, on the scale of energies.

    Returns:
        The points after the step, and G where it was evaluated, (outputs, N): that of the points
        whose energy fell.
    """
    direction = _direction(now)
    lengths = jnp.sqrt(jnp.sum(direction**2, axis=0))
    scales = jnp.minimum(1, now.radii / jnp.maximum(lengths, 1e-9))
    latents = project(now.latents + scales * direction, max_norm)
    costs, gradients, outputs = _evaluate(decode, targets, latents, cost)
    held = constraint_active(latents, gradients, max_norm)
    gradients = jnp.where(held, tangential(latents, gradients), gradients)
    updated = _update(
        now.inverse_hessians,
        latents - now.latents,
        gradients - now.gradients,
        -scales * now.gradients,
    )
    # Before the first evaluation there is no gradient to compare with.
    inverse_hessians = jnp.where(jnp.isfinite(now.energies), updated, now.inverse_hessians)
    slopes = jnp.sum(now.gradients * direction, axis=0)
    predicted = -scales * (1 - 0.5 * scales) * slopes
    ratios = (now.energies - costs) / jnp.maximum(predicted, 1e-9)
    radii = jnp.where((ratios > 0.75) & (scales < 1), 2 * now.radii, now.radii)
    radii = jnp.where(ratios < 0.1, 0.35 * scales * lengths, radii)
    better = costs < now.energies
    after = Iterate(
        jnp.where(better, latents, now.latents),
        jnp.where(better, costs, now.energies),
        jnp.where(better, gradients, now.gradients),
        jnp.where(better, held, now.held),
        inverse_hessians,
        radii,
    )
    return after, outputs


def predicted_decrease(now: Iterate) -> tuple[jax.Array, jax.Array]:
    """By how much a full step lowers the energy in the quadratic model, in nats, (N,); and where
    it leads, (latent, N)."""
    direction = _direction(now)
    return -0.5 * jnp.sum(now.gradients * direction, axis=0), now.latents + direction


def inverse_of_definite(matrices: jax.Array) -> jax.Array:
    """The inverses of symmetric positive definite matrices, (latent, latent, N).

    By Gauss-Jordan elimination, which needs no pivots for these. For `jnp.linalg.inv`, JAX 0.10.2
    imports SciPy on CPU: 15 MiB, and 0.1 seconds before the first search.
    """
    indices = jnp.arange(len(matrices))
    in_row, in_column = indices[:, None, None], indices[None, :, None]

    def eliminate(pivot: jax.Array, now: jax.Array) -> jax.Array:
        row = jnp.where(indices[:, None] == pivot, 1.0, now[pivot]) / now[pivot, pivot]
        others = jnp.where(in_column == pivot, 0.0, now) - now[:, pivot, None] * row
        return jnp.where(in_row == pivot, row, others)

    return lax.fori_loop(0, len(matrices), eliminate, matrices)


def _direction(now: Iterate) -> jax.Array:
    """Minus inverse Hessian times gradient; where held, the quadratic model's minimum on the
    tangent plane."""
    newton = _multiply(now.inverse_hessians, now.gradients)
    normal = _multiply(now.inverse_hessians, now.latents)
    outward = jnp.sum(now.latents * newton, axis=0)
    multiplier = outward / jnp.maximum(jnp.sum(now.latents * normal, axis=0), 1e-12)
    return -jnp.where(now.held, newton - multiplier * normal, newton)


def _evaluate(
    decode: Callable[[jax.Array], jax.Array], targets: PyTree, latents: jax.Array, cost: Cost
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Costs, their gradients, and G."""

    def total(z: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        outputs = decode(z)
        costs = cost(outputs, targets, z)
        return jnp.sum(costs), (costs, outputs)

    gradients, (costs, outputs) = jax.grad(total, has_aux=True)(latents)
    return costs, gradients, outputs


def _update(
    inverse: jax.Array, moved: jax.Array, bent: jax.Array, model_bent: jax.Array
) -> jax.Array:
    """The BFGS update of the inverse Hessians.

    Args:
        inverse: (latent, latent, N).
        moved: The steps taken.
        bent: How gradients changed over them.
        model_bent: How they would have changed in the quadratic model.
    """
    model = jnp.sum(moved * model_bent, axis=0)
    actual = jnp.sum(moved * bent, axis=0)
    # Powell's damping keeps the matrix positive definite where the curvature is negative.
    share = jnp.where(actual >= 0.2 * model, 1, 0.8 * model / jnp.maximum(model - actual, 1e-20))
    bent = share * bent + (1 - share) * model_bent
    curvature = jnp.sum(moved * bent, axis=0)
    lengths = jnp.sqrt(jnp.sum(moved**2, axis=0) * jnp.sum(bent**2, axis=0))
    usable = curvature > jnp.maximum(1e-6 * lengths, 1e-12)
    inverse_curvature = 1 / jnp.where(usable, curvature, 1)
    image = _multiply(inverse, bent)
    factor = (1 + jnp.sum(bent * image, axis=0) * inverse_curvature) * inverse_curvature
    cross = image[:, None] * moved[None]
    updated = (
        inverse
        + factor * moved[:, None] * moved[None]
        - inverse_curvature * (cross + cross.swapaxes(0, 1))
    )
    return jnp.where(usable, updated, inverse)


def _multiply(matrices: jax.Array, vectors: jax.Array) -> jax.Array:
    """(latent, latent, N) times (latent, N)."""
    return jnp.sum(matrices * vectors[None], axis=1)
