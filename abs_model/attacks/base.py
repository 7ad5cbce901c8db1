"""What attacks share: their result, and the geometry of the norms they are bounded in.

Images are float32 (N, height, width, channels) in [0, 1]; distances are in the same unit, over all
pixels and channels of an image: "l2" is the Euclidean distance, "linf" the largest change of any
value. All functions are pure and can be traced.
"""

import dataclasses
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NORMS = ("l2", "linf")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttackResult:
    """What an attack found for each image.

    Attributes:
        images: float32 (N, height, width, channels) in [0, 1]: the adversarial images; where the
            attack failed, the image that came closest to fooling the classifier.
        success: bool (N,): whether the classifier gets `images` wrong.
        distances: float32 (N,): from the original images to `images`, in the norm of the attack.
            0 where the original was wrong already.
    """

    images: jax.Array
    success: jax.Array
    distances: jax.Array


def distances(first: jax.Array, second: jax.Array, norm: str) -> jax.Array:
    """The distance of each pair of images, float32 (N,).

    Args:
        first: Images (N, height, width, channels).
        second: Images of the same shape.
        norm: "l2" or "linf".

    Raises:
        ValueError: `norm` is none of these.
    """
    return _lengths(first - second, norm)


def project(
    images: jax.Array, centres: jax.Array, epsilon: float | jax.Array, norm: str
) -> jax.Array:
    """Moves images into [0, 1] and to within `epsilon` of their centres.

    In L-infinity this is the nearest such image. In L2 it is the nearest point of the ball, clipped
    to [0, 1]; clipping comes no farther from the centre, which lies in [0, 1] itself, so that both
    bounds hold.

    Args:
        images: (N, height, width, channels), any values.
        centres: Same shape, in [0, 1].
        epsilon: Radius, at least 0.
        norm: "l2" or "linf".

    Returns:
        Images of the same shape, within `epsilon` up to float rounding; finite input stays finite.

    Raises:
        ValueError: `norm` is neither.
    """
    check_norm(norm)
    change = images - centres
    if norm == "linf":
        change = jnp.clip(change, -epsilon, epsilon)
    else:
        length = _lengths(change, norm)
        scale = jnp.where(length > epsilon, epsilon / jnp.where(length > 0, length, 1.0), 1.0)
        change = change * _per_image(scale)
    return jnp.clip(centres + change, 0.0, 1.0)


def random_start(
    key: jax.Array, images: jax.Array, epsilon: float | jax.Array, norm: str, first_index: int = 0
) -> jax.Array:
    """Draws a point uniformly from the ball around each image, clipped to [0, 1].

    The draw for an image depends on `key` and on the image's index alone, so that attacking a data
    set in parts gives what attacking it at once gives.

    Args:
        key: A `jax.random.key`.
        images: (N, height, width, channels) in [0, 1].
        epsilon: Radius, at least 0.
        norm: "l2" or "linf".
        first_index: The index of `images[0]`.

    Raises:
        ValueError: `norm` is neither.
    """
    check_norm(norm)
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(
        first_index + jnp.arange(images.shape[0])
    )
    shape = images.shape[1:]

    def draw_linf(key: jax.Array) -> jax.Array:
        return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)

    def draw_l2(key: jax.Array) -> jax.Array:
        direction_key, radius_key = jax.random.split(key)
        direction = jax.random.normal(direction_key, shape)
        # The volume within radius r grows as r^d, so its d-th root turns uniform into uniform.
        radius = jax.random.uniform(radius_key) ** (1.0 / math.prod(shape))
        return radius * direction / jnp.linalg.norm(direction)

    noise = jax.vmap(draw_linf if norm == "linf" else draw_l2)(keys)
    return project(images + epsilon * noise, images, epsilon, norm)


def ascent_direction(gradients: jax.Array, norm: str) -> jax.Array:
    """The change of length 1 in `norm` that follows each gradient most steeply.

    The sign of the gradient for "linf" and the normalised gradient for "l2"; zero where the
    gradient is zero.

    Raises:
        ValueError: `norm` is neither.
    """
    check_norm(norm)
    if norm == "linf":
        return jnp.sign(gradients)
    # Scaled to a largest entry of 1 first: squares of tiny gradients would underflow to zero.
    largest = _lengths(gradients, "linf")
    scaled = gradients / _per_image(jnp.where(largest > 0, largest, 1.0))
    return scaled / _per_image(jnp.maximum(_lengths(scaled, "l2"), 1.0))


def check_norm(norm: str) -> None:
    """Raises ValueError unless `norm` is one of NORMS."""
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")


def check_number(name: str, value: Any, *, minimum: float, exclusive: bool = False) -> None:
    """Raises ValueError unless `value` is a finite number of at least (or above) `minimum`."""
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    enough = operator.gt if exclusive else operator.ge
    if number and math.isfinite(value) and enough(value, minimum):
        return
    bound = "above" if exclusive else "of at least"
    raise ValueError(f"{name} must be a finite number {bound} {minimum}, got {value!r}")


def check_count(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


def check_labels(labels: Any, num_images: int, num_classes: int) -> jax.Array:
    """Labels as int32 (N,), after checking that they are one class for each image.

    Raises:
        ValueError: They are not; the message says what was expected and what came.
    """
    array = np.asarray(labels)
    if array.shape != (num_images,) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"labels must be integers of shape ({num_images},), one for each image, got"
            f" {array.dtype} of shape {array.shape}"
        )
    if array.min() < 0 or array.max() >= num_classes:
        raise ValueError(
            f"labels must lie in 0 to {num_classes - 1}, got {array.min()} to {array.max()}"
        )
    return jnp.asarray(array, jnp.int32)


def _lengths(changes: jax.Array, norm: str) -> jax.Array:
    """The norm of each change, (N,)."""
    check_norm(norm)
    flat = changes.reshape(changes.shape[0], -1)
    return jnp.abs(flat).max(1) if norm == "linf" else jnp.sqrt(jnp.sum(flat * flat, 1))


def _per_image(values: jax.Array) -> jax.Array:
    """(N,) as (N, 1, 1, 1), to go with images."""
    return values[:, None, None, None]
