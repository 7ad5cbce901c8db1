"""Linear approximations of decision boundaries, and the shortest ways to them.

All functions are pure and can be traced. Shapes and units are those of `_core.norms`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from abs_model._runtime.pytrees import register_dataclass
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.checks import check_norm
from abs_model.attacks._core.norms import dual_norms, per_image, take_class
from abs_model.attacks._core.query import Jacobian

# A normal's entries below this part of its largest can't bring an image to a hyperplane.
_NEGLIGIBLE = 1e-12


@register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearizedBoundaries:
    """For each image x a hyperplane {z: value + <normal, z - x> = 0}: a boundary linearized at x.

    Attributes:
        values: float32 (n,): of the linearized function at x; negative on the side that is to be
            left.
        normals: float32 (n, height, width, channels): its gradient.
    """

    values: jax.Array
    normals: jax.Array


def nearest_boundaries(
    jacobian: Jacobian, logits: jax.Array, batch: Batch, *, norm: str
) -> LinearizedBoundaries:
    """For each image the nearest of the boundaries between its label and the other classes.

    The boundary to class k is where f_k - f_label, linearized at the image, is zero. Its distance
    is |f_k - f_label| over the dual norm of the gradient of f_k - f_label.

    Args:
        jacobian: Gradients of the label's logit and of those of the classes to look at.
        logits: (n, classes).
        batch: Of an untargeted attack.
        norm: "l2" or "linf", of the distances.

    Returns:
        Boundaries, where f_k is ahead of f_label by `Batch.required_margins`; normals are zero
        where no class has a gradient that differs from the label's.
    """
    is_label = jacobian.classes == batch.classes[:, None]
    values = jnp.take_along_axis(logits, jacobian.classes, axis=1)
    values = values - (take_class(logits, batch.classes) + batch.required_margins(logits))[:, None]
    normals = jacobian.gradients - take_class(jacobian.gradients, is_label.argmax(1))[:, None]
    steepness = dual_norms(normals, norm)
    possible = ~is_label & (steepness > 0)
    away = jnp.where(possible, jnp.abs(values) / jnp.where(possible, steepness, 1.0), jnp.inf)
    nearest = away.argmin(1)
    found = possible.any(1)
    return LinearizedBoundaries(
        jnp.where(found, take_class(values, nearest), 0.0),
        jnp.where(per_image(found), take_class(normals, nearest), 0.0),
    )


def project_in_box(images: jax.Array, planes: LinearizedBoundaries, norm: str) -> jax.Array:
    """The nearest points to the images that lie on their hyperplanes and in [0, 1].

    Such a point is clip(x + t v) with v the normal for "l2" and its sign for "linf", pointing to
    the hyperplane. Along t, the linear function climbs with a slope that falls wherever a pixel
    reaches the end of its range. So t is found exactly, by sorting where that happens. Croce and
    Hein (2020), Section 2.2.

    Args:
        images: (n, height, width, channels) in [0, 1].
        planes: Linearised at these images.
        norm: "l2" or "linf"; in L-infinity a nearest point is not the only one.

    Returns:
        Images in [0, 1]; where the hyperplane misses the box, the point of the box nearest to it
        in terms of the linear function.

    Raises:
        ValueError: `norm` is neither.
    """
    check_norm(norm, ("l2", "linf"))
    normals = planes.normals.reshape(len(images), -1)
    largest = jnp.abs(normals).max(1, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1.0)
    climb = jnp.where(planes.values > 0, -1.0, 1.0)[:, None] * normals / scale
    climb = jnp.where(jnp.abs(climb) > _NEGLIGIBLE, climb, 0.0)
    needed = jnp.abs(planes.values)[:, None] / scale
    steepness = jnp.abs(climb)
    way = jnp.sign(climb) if norm == "linf" else climb
    speed = jnp.abs(way)
    flat = images.reshape(normals.shape)
    room = jnp.where(climb > 0, 1.0 - flat, flat)
    stops = jnp.where(speed > 0, room / jnp.where(speed > 0, speed, 1.0), 0.0)
    time, reachable = _time_to_climb(stops, steepness * speed, steepness * room, needed)
    corner = jnp.where(climb > 0, 1.0, jnp.where(climb < 0, 0.0, flat))
    moved = jnp.where(reachable, jnp.clip(flat + time * way, 0.0, 1.0), corner)
    return moved.reshape(images.shape)


def _time_to_climb(
    stops: jax.Array, rates: jax.Array, gains: jax.Array, needed: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """When sum_i min(rate_i t, gain_i) = needed, (n, 1), and whether it ever is.

    Args:
        stops: When each term stops growing, gain / rate, (n, pixels).
        rates: (n, pixels), at least 0.
        gains: (n, pixels), at least 0.
        needed: (n, 1), at least 0.
    """
    order = jnp.argsort(stops, axis=1)
    stops, rates, gains = (jnp.take_along_axis(x, order, axis=1) for x in (stops, rates, gains))
    # Rates are summed from the end: the last ones, which decide the times, are small.
    growing = jnp.cumsum(rates[:, ::-1], axis=1)[:, ::-1]
    stopped = jnp.cumsum(gains, axis=1) - gains
    # Within the stretch that ends with stop i, the sum is stopped_i + growing_i t.
    reached = stopped + growing * stops
    reachable = needed <= stopped[:, -1:] + gains[:, -1:]
    stretch = jnp.argmax(reached >= needed, axis=1)[:, None]
    stretch = jnp.where(jnp.any(reached >= needed, axis=1, keepdims=True), stretch, -1)
    rate, before, latest = (
        jnp.take_along_axis(x, stretch % x.shape[1], axis=1) for x in (growing, stopped, stops)
    )
    time = (needed - before) / jnp.where(rate > 0, rate, 1.0)
    return jnp.where(rate > 0, jnp.minimum(time, latest), latest), reachable
