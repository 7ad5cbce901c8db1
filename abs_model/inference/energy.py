"""Analysis by synthesis: how well can each class's decoder explain an image?

The energy of class c is E_c(x) = min over z of ||x - G_c(z)||^2 + ||z||^2 / 2, in nats (Schott et
al. 2019, eq. 4 with the posterior's variance fixed to 1). `inference.solvers` finds the minimum.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from abs_model._runtime.pytrees import register_dataclass
from abs_model._runtime.vectorize import map_classes
from abs_model.inference.solvers import Solution, Solver

PyTree = Any

_ROUNDING = 1e-5  # relative, of norms in float32


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Inference:
    """What inference finds for N images and C classes.

    Attributes:
        images: What was explained, (N, height, width, channels).
        energies: In nats, (N, C); lower bounds where not `searched`.
        latents: Where each class explains the image best, (N, C, latent); where not `searched`, an
            earlier image's.
        reconstructions: The explanations G_c(z), (N, C, height, width, channels).
        searched: Whether latents were searched for this very image, (N, C).
        solver_state: What the solver remembers for `refine`: arrays (N, C, ...), or nothing.
    """

    images: jax.Array
    energies: jax.Array
    latents: jax.Array
    reconstructions: jax.Array
    searched: jax.Array
    solver_state: PyTree


def infer(solver: Solver, images: jax.Array) -> Inference:
    """Searches, for every image and class, the latents that explain the image best.

    Energies are differentiable with respect to the images: at the optimum dE_c/dx =
    2 (x - G_c(z*)), because z* is a minimum (envelope theorem); the search is not differentiated.

    Args:
        solver: Of all classes, from `abs_model.inference.solvers.make_solver`.
        images: float32 (N, height, width, channels) in [0, 1].
    """
    pixels = solver.decoder.to_pixels(lax.stop_gradient(images))

    found = lax.stop_gradient(map_classes(lambda solve: solve(pixels), solver))
    latents, reconstructions = _images_first(solver, found)
    energies = _energies(images, latents, reconstructions)
    searched = jnp.ones(energies.shape, bool)
    solver_state = jax.tree.map(_image_axis_first, found.solver_state)
    return Inference(images, energies, latents, reconstructions, searched, solver_state)


def refine(
    solver: Solver,
    images: jax.Array,
    start: Inference,
    required: jax.Array,
    class_weights: jax.Array,
) -> Inference:
    """Inference of images that have moved a little, from the latents found before.

    Classes that cannot have overtaken the required ones are not searched. sqrt(E_c) is the distance
    from (x, 0) to the nearest (G_c(z), z / sqrt(2)) and so moves at most as far as the image does
    (the certificate's Lipschitz bound): max(0, sqrt(E_c) - ||x - x'||)^2 bounds the energy from
    below, as far as the energy known before is the global minimum. A class is left out where that,
    weighted, is above every required class's weighted energy at its old latents, which bounds its
    energy from above. Bounds of bounds are bounds, so that `start` may come from `refine` itself.

    Args:
        solver: Of all classes.
        images: float32 (N, height, width, channels) in [0, 1].
        start: What was found for the images before they moved.
        required: Whether the class is required, (N, C); at least one in each row.
        class_weights: Factors of the energies, (C,).
    """
    fixed = lax.stop_gradient(images)
    moved = jnp.sqrt(jnp.sum((fixed - start.images) ** 2, axis=(1, 2, 3)))[:, None]
    # With a margin, because rounding must not make bounds tighter than the truth.
    roots = jnp.sqrt(start.energies) * (1 - _ROUNDING) - moved * (1 + _ROUNDING)
    bounds = lax.stop_gradient(jnp.maximum(0, roots) ** 2)
    before = _energies(fixed, start.latents, start.reconstructions)
    highest = jnp.max(jnp.where(required, before * class_weights, -jnp.inf), axis=1, keepdims=True)
    searched = lax.stop_gradient(required | (bounds * class_weights <= highest))
    pixels = solver.decoder.to_pixels(fixed)

    def refine_class(
        solve: Solver, latents: jax.Array, solver_state: PyTree, searched: jax.Array
    ) -> Solution:
        return solve.refine(pixels, latents, solver_state, searched)

    latents, solver_state = jax.tree.map(_image_axis_last, (start.latents, start.solver_state))
    found = lax.stop_gradient(map_classes(refine_class, solver, latents, solver_state, searched.T))
    latents, reconstructions = _images_first(solver, found)
    # Never above the start, on which the choice of classes rests: Adam may end there.
    better = (searched & (_energies(fixed, latents, reconstructions) < before))[:, :, None]
    latents = jnp.where(better, latents, start.latents)
    reconstructions = jnp.where(better[..., None, None], reconstructions, start.reconstructions)
    energies = jnp.where(searched, _energies(images, latents, reconstructions), bounds)
    solver_state = jax.tree.map(
        lambda new, old: jnp.where(
            searched.reshape(*searched.shape, *(1,) * (new.ndim - 2)), new, old
        ),
        jax.tree.map(_image_axis_first, found.solver_state),
        start.solver_state,
    )
    return Inference(images, energies, latents, reconstructions, searched, solver_state)


def _images_first(solver: Solver, found: Solution) -> tuple[jax.Array, jax.Array]:
    """All classes' latents and reconstructions as `Inference` holds them."""
    reconstructions = jax.vmap(solver.decoder.to_images)(found.decoded)
    return _image_axis_first(found.latents), reconstructions.swapaxes(0, 1)


def _image_axis_first(array: jax.Array) -> jax.Array:
    """Moves the axis of images to the front: (C, ..., N) to (N, C, ...)."""
    return jnp.moveaxis(array, -1, 0)


def _image_axis_last(array: jax.Array) -> jax.Array:
    """(N, C, ...) as solvers take it, (C, ..., N)."""
    return jnp.moveaxis(array, 0, -1)


def _energies(images: jax.Array, latents: jax.Array, reconstructions: jax.Array) -> jax.Array:
    """Energies of given latents, (N, C)."""
    squared_errors = jnp.sum((images[:, None] - reconstructions) ** 2, axis=(2, 3, 4))
    return squared_errors + 0.5 * jnp.sum(latents**2, axis=2)
