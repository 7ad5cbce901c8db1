"""Gradients and logits of random models: means over several evaluations.

Athalye, Carlini, Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML 2018
(https://arxiv.org/abs/1802.00420): expectation over transformation (EOT). An attack that follows
the gradient of one draw of a random model follows noise; the mean over draws is the gradient of the
expected logits.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from abs_model._runtime.checks import check_count
from abs_model._runtime.pytrees import register_dataclass
from abs_model.models.classifier import Classifier
from abs_model.models.randomness import is_random

PyTree = Any


def average_logits(model: Classifier, num_samples: int) -> "AveragedLogits":
    """The classifier whose logits and gradients are means over evaluations of a random model.

    Args:
        model: Any classifier, a black box too; see `randomness` for whether it is random.
        num_samples: How often it is evaluated for each answer, at least 1. The standard deviation
            of a mean is that of one evaluation over the square root of this.

    Raises:
        ValueError: `num_samples` is not as described; or the model draws once for all samples, as
            one does whose callback is not given the images.
    """
    check_count("num_samples", num_samples)
    averaged = AveragedLogits(
        name=f"{model.name}, mean of {num_samples}",
        image_shape=model.image_shape,
        num_classes=model.num_classes,
        batch_size=model.batch_size,
        binary=model.binary,
        model=model,
        num_samples=int(num_samples),
    )
    _check_draws(averaged)
    return averaged


def _check_draws(averaged: "AveragedLogits") -> None:
    noise = np.random.default_rng(0).uniform(size=(2, *averaged.image_shape)).astype(np.float32)
    first, second = np.asarray(_two_draws(averaged, noise))
    if np.array_equal(first, second, equal_nan=True) and is_random(averaged.model, noise):
        raise ValueError(
            f"model {averaged.model.name!r} is random, but draws once for all samples of an"
            " answer: a compiler evaluates a callback that is not given the images only once; give"
            " jax.pure_callback the images as an argument"
        )


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class AveragedLogits(Classifier):
    """A classifier with the mean logits of another.

    Every answer is cold: the state of a random model is that of another draw.

    Attributes:
        model: The other.
        num_samples: How often it is evaluated.
    """

    model: Classifier
    num_samples: int = dataclasses.field(metadata={"static": True})

    @property
    def differentiable(self) -> bool:
        return self.model.differentiable

    @property
    def fingerprint_arrays(self) -> PyTree:
        return self.model.fingerprint_arrays

    @property
    def logit_tolerance(self) -> float | jax.Array:
        return self.model.logit_tolerance

    @property
    def evaluations_per_query(self) -> int:
        return self.num_samples * self.model.evaluations_per_query

    @property
    def evaluations_per_gradient(self) -> int:
        return self.num_samples * self.model.evaluations_per_gradient

    def batch_logits(self, images: jax.Array) -> jax.Array:
        def add(total: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
            return total + self.draw(images, number), None

        start = jnp.zeros((len(images), self.num_classes), jnp.float32)
        total, _ = lax.scan(add, start, jnp.arange(1.0, self.num_samples + 1))
        return total / self.num_samples

    def draw(self, images: jax.Array, number: jax.Array) -> jax.Array:
        """One evaluation of the model, (n, classes), which differs from those of other numbers.

        Compilers take one of several equal evaluations for all. As far as a compiler can know,
        these differ: it does not know that no image has values above 1.
        """
        never = jnp.any(images > 2)
        return self.model.batch_logits(images + jnp.where(never, number, 0.0))

    def logits_to_confidences(self, logits: jax.Array) -> jax.Array:
        return self.model.logits_to_confidences(logits)


@jax.jit
def _two_draws(averaged: AveragedLogits, images: jax.Array) -> jax.Array:
    return lax.map(lambda number: averaged.draw(images, number), jnp.arange(1.0, 3.0))
