"""The margin of ABS as a difference of convex functions, and linear functions that bound it.

ABS explains what it sees, x, by a class's latents z at the energy w (||x - G(z)||^2 + ||z||^2 / 2)
and decides for the class of the best explanation. With W the largest of the weights w,

    f(x) = W ||x||^2 - min over z of w (||x - G(z)||^2 + ||z||^2 / 2)

is a maximum of convex functions of x, hence convex; so the margin of one class over another is a
difference of convex functions. The latents at any x tell f and its gradient there, and f lies above
its linearizations. All functions are pure and can be traced.
"""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp

from abs_model._runtime.pytrees import register_dataclass
from abs_model.attacks._core.norms import take_class
from abs_model.inference.energy import Inference
from abs_model.models.abs import ABSClassifier


@register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearBounds:
    """Linear functions <gradients, x> + offsets, of each of n images K, below an f.

    Attributes:
        gradients: (n, K, values).
        offsets: (n, K); minus infinity where there is none yet.
        multipliers: (n, K), at least 0: how much each held the last image back.
    """

    gradients: jax.Array
    offsets: jax.Array
    multipliers: jax.Array

    @classmethod
    def none(cls, images: jax.Array, number: int) -> Self:
        """Room for a number of functions for each image."""
        count = len(images)
        return cls(
            jnp.zeros((count, number, images[0].size)),
            jnp.full((count, number), -jnp.inf),
            jnp.zeros((count, number)),
        )

    def add(self, gradients: jax.Array, offsets: jax.Array) -> Self:
        """With a function (n, values), (n,) in place of the one that matters least."""
        least = jnp.argmin(jnp.where(jnp.isinf(self.offsets), -1.0, self.multipliers), axis=1)
        here = jnp.arange(self.offsets.shape[1]) == least[:, None]
        return dataclasses.replace(
            self,
            gradients=jnp.where(here[:, :, None], gradients[:, None], self.gradients),
            offsets=jnp.where(here, offsets[:, None], self.offsets),
            multipliers=jnp.where(here, 0.0, self.multipliers),
        )


def linearize(
    model: ABSClassifier, state: Inference, classes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The classes' f, linearized at the images of the state.

    Args:
        model: ABS or Binary ABS.
        state: Of an answer in which these classes were searched.
        classes: int32 (n,).

    Returns:
        Gradients (n, values) and offsets (n,). For Binary ABS f is a maximum of linear functions,
        because the squared norm of zeros and ones is their sum.
    """
    count = len(classes)
    seen = state.images.reshape(count, -1)
    reconstructions = take_class(state.reconstructions, classes).reshape(count, -1)
    latents = take_class(state.latents, classes)
    weights = model.class_weights[classes][:, None]
    rest = model.class_weights.max() - weights
    fixed = weights * (_squared(reconstructions) + 0.5 * _squared(latents))
    # The gradient of rest * ||x||^2, and what the tangent is less than it at 0.
    slopes = jnp.where(model.binary, 1.0, 2 * seen)
    offsets = jnp.where(model.binary, 0.0, _squared(seen))
    return 2 * weights * reconstructions + rest * slopes, -(fixed + rest * offsets)[:, 0]


def _squared(vectors: jax.Array) -> jax.Array:
    return jnp.sum(vectors**2, axis=1, keepdims=True)
