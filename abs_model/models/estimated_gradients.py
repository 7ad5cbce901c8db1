"""Gradients from scores alone, so that gradient attacks can be made on any classifier.

Schott et al. 2019 (https://arxiv.org/abs/1805.09190) repeat every gradient attack with gradients
that are estimated coordinate by coordinate ("GE"), in case the classifier's own mislead.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from abs_model._runtime.checks import check_number
from abs_model._runtime.pytrees import register_dataclass
from abs_model.models.classifier import Classifier

PyTree = Any
# How many images are queried at a time; more are no faster.
_CHUNK = 100
_STEP = 0.1
_BINARY_STEP = 0.6


def estimate_gradients(model: Classifier, *, step: float | None = None) -> "EstimatedGradients":
    """The same classifier with gradients estimated by finite differences of its logits.

    The derivative by a value x of the image is (logits at x' - logits) / (x' - x), where x' lies
    `step` from x, towards the farther end of [0, 1] (and at it, where it is closer). Foolbox 1.x
    takes central differences. On MNIST, most of whose pixels are at an end of the range already,
    they cost twice as much for next to nothing: at the default step the cosine to the CNN's exact
    gradient is 0.998 this way and 0.999 that way.

    A model on thresholded images answers only where a difference leads across the threshold.
    Towards the farther end is towards 0.5, so that none is missed: pixels less than `step` from it
    are seen, and all of them with a step above 0.5. (Against the CNN on thresholded images, FGSM
    with steps of 0.1 fools 3 of 10 images, with steps of 0.6 all of them, and at smaller distances
    than with the gradient passed straight through the threshold.)

    Args:
        model: Any classifier, a black box too.
        step: Length of the differences, from 0.001, below which rounding of the logits shows, to 1.
            By default 0.1, as in the code of Schott et al., and 0.6 for a model that says that it
            thresholds images by an attribute `binary`.

    Raises:
        ValueError: `step` isn't as described.
    """
    if step is None:
        step = _BINARY_STEP if model.binary else _STEP
    step = check_number("step", step, minimum=0.001, maximum=1.0)
    return EstimatedGradients(
        name=f"{model.name}, GE",
        image_shape=model.image_shape,
        num_classes=model.num_classes,
        batch_size=model.batch_size,
        binary=model.binary,
        model=model,
        step=step,
    )


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class EstimatedGradients(Classifier):
    """A classifier with the logits of another, and estimates of their gradients.

    For a classifier whose `warm_logits` gains something from its state (ABS), the differences
    follow from the state of the image itself. Logits that are mere bounds then have the gradient 0:
    all but the two largest and the required ones.

    Attributes:
        model: The other.
        step: See `estimate_gradients`.
    """

    model: Classifier
    step: float = dataclasses.field(metadata={"static": True})

    @property
    def fingerprint_arrays(self) -> PyTree:
        return self.model.fingerprint_arrays

    @property
    def logit_tolerance(self) -> float | jax.Array:
        return self.model.logit_tolerance

    @property
    def evaluations_per_query(self) -> int:
        return self.model.evaluations_per_query

    @property
    def evaluations_per_gradient(self) -> int:
        """How often `model` is evaluated for the logits and the gradients of an image."""
        height, width, channels = self.image_shape
        return (1 + height * width * channels) * self.model.evaluations_per_query

    def batch_logits(self, images: jax.Array) -> jax.Array:
        return self.cold_logits(images)[0]

    def cold_logits(self, images: jax.Array) -> tuple[jax.Array, PyTree]:
        # Of a cold query, all logits are exact, and all gradients follow.
        return _answer(self, images, None, jnp.ones((len(images), self.num_classes), bool))

    def warm_logits(
        self, images: jax.Array, state: PyTree, required: jax.Array | None = None
    ) -> tuple[jax.Array, PyTree]:
        return _answer(self, images, state, required)

    def logits_to_confidences(self, logits: jax.Array) -> jax.Array:
        return self.model.logits_to_confidences(logits)


@jax.custom_vjp
def _answer(
    estimated: EstimatedGradients, images: jax.Array, state: PyTree, required: jax.Array | None
) -> tuple[jax.Array, PyTree]:
    model = estimated.model
    if state is None:
        return model.cold_logits(images)
    return model.warm_logits(images, state, required)


def _forward(
    estimated: EstimatedGradients, images: jax.Array, state: PyTree, required: jax.Array | None
) -> tuple[tuple[jax.Array, PyTree], jax.Array]:
    # The derivatives of all logits at once: an attack that requests them one by one, such as
    # by `Query.jacobian`, pays for one set of differences.
    logits, following = _answer(estimated, images, state, required)
    exact = logits >= jax.lax.top_k(logits, 2)[0][:, 1:]
    if required is not None:
        exact |= required
    derivatives = _derivatives(estimated, images, logits, following, exact)
    if jax.tree.leaves(following):
        derivatives = jnp.where(exact[..., None], derivatives, 0.0)
    return (logits, following), derivatives.reshape(*logits.shape, *images.shape[1:])


def _backward(
    derivatives: jax.Array, cotangents: tuple[jax.Array, PyTree]
) -> tuple[None, jax.Array, None, None]:
    # Traced when JAX differentiates, where no context for the precision of products holds any more.
    product = jnp.einsum(
        "nk,nkhwc->nhwc", cotangents[0], derivatives, precision=jax.lax.Precision.HIGHEST
    )
    return None, product, None, None


_answer.defvjp(_forward, _backward)


def _derivatives(
    estimated: EstimatedGradients,
    images: jax.Array,
    logits: jax.Array,
    state: PyTree,
    required: jax.Array,
) -> jax.Array:
    """Derivatives of all logits by all values, (n, classes, values); exact where required."""
    flat = images.reshape(len(images), -1)
    values = flat.shape[1]
    count = min(max(1, _CHUNK // len(images)), values)  # coordinates at a time
    states, all_required = jax.tree.map(
        lambda leaf: jnp.concatenate([leaf] * count), (state, required)
    )

    def probe(coordinates: jax.Array) -> jax.Array:
        before = flat[:, coordinates]  # (n, count)
        signs = jnp.where(before > 0.5, -1.0, 1.0)
        after = jnp.clip(before + signs * estimated.step, 0.0, 1.0)
        moved = jax.vmap(lambda at, new: flat.at[:, at].set(new), in_axes=(0, 1))(
            coordinates, after
        )
        found, _ = estimated.model.warm_logits(
            moved.reshape(-1, *images.shape[1:]), states, all_required
        )
        changes = found.reshape(count, *logits.shape) - logits
        return changes / (after - before).T[..., None]

    # The last chunk repeats the last coordinate.
    rows = jnp.minimum(jnp.arange(-(-values // count) * count), values - 1)
    found = jax.lax.map(probe, rows.reshape(-1, count))
    return found.reshape(-1, *logits.shape)[:values].transpose(1, 2, 0)
