"""Classifiers: one interface for whoever attacks, evaluates or uses a model.

A classifier is a frozen dataclass and a JAX pytree: weights are leaves, settings are static. So it
goes through `jax.jit` as an ordinary argument.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from abs_model.images import check_images
from abs_model.inference import Generators, Inference, SearchSettings, infer

PyTree = Any


_STATIC = {"static": True}  # dataclass metadata: a setting, not a weight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier(abc.ABC):
    """Maps images, float32 (N, height, width, channels) in [0, 1], to scores of classes.

    Any N: images are split into batches of `batch_size` and the last one is padded, so a new N does
    not compile again. Every method raises ValueError for images of another shape, dtype or range.

    Attributes:
        name: For tables and messages.
        image_shape: (height, width, channels).
        num_classes: Number of classes.
        batch_size: How many images one call of the compiled function takes.
    """

    name: str = dataclasses.field(metadata=_STATIC)
    image_shape: tuple[int, int, int] = dataclasses.field(metadata=_STATIC)
    num_classes: int = dataclasses.field(metadata=_STATIC)
    batch_size: int = dataclasses.field(metadata=_STATIC)

    @abc.abstractmethod
    def batch_logits(self, images: jax.Array) -> jax.Array:
        """Logits (n, classes) of images that have been checked; pure and differentiable."""

    @abc.abstractmethod
    def logits_to_confidences(self, logits: jax.Array) -> jax.Array:
        """Probabilities of the classes, (N, classes), from logits (N, classes)."""

    def logits(self, images: jax.Array | np.ndarray) -> jax.Array:
        """Logits, float32 (N, classes); differentiable with respect to the images."""
        return self._in_batches(_jitted_logits, images)

    def predict(self, images: jax.Array | np.ndarray) -> np.ndarray:
        """Predicted classes, int32 (N,)."""
        return np.asarray(jnp.argmax(self.logits(images), axis=1), np.int32)

    def confidences(self, images: jax.Array | np.ndarray) -> np.ndarray:
        """Probabilities of the classes, float32 (N, classes)."""
        return np.asarray(self.logits_to_confidences(self.logits(images)))

    def with_batch_size(self, batch_size: int) -> Self:
        """The same classifier with another `batch_size`."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        return dataclasses.replace(self, batch_size=batch_size)

    def _in_batches(
        self, function: Callable[[Self, jax.Array], PyTree], images: jax.Array | np.ndarray
    ) -> PyTree:
        """`function` of all images, in padded batches of `batch_size`."""
        checked = check_images(images, self.image_shape)
        outputs = []
        for first in range(0, checked.shape[0], self.batch_size):
            batch = checked[first : first + self.batch_size]
            missing = self.batch_size - batch.shape[0]
            padded = jnp.pad(batch, ((0, missing), (0, 0), (0, 0), (0, 0)))
            output = function(self, padded)
            outputs.append(jax.tree.map(lambda x, n=batch.shape[0]: x[:n], output))
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkClassifier(Classifier):
    """A feed-forward network: a Flax module from images to logits.

    Attributes:
        state: The module's parameters and other variables.
        graphdef: Its structure, from `nnx.split`.
    """

    state: PyTree
    graphdef: nnx.GraphDef = dataclasses.field(metadata=_STATIC)

    def batch_logits(self, images: jax.Array) -> jax.Array:
        return nnx.merge(self.graphdef, self.state)(images)

    def logits_to_confidences(self, logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ABSClassifier(Classifier):
    """Analysis by synthesis (Schott et al. 2019): the class whose VAE explains the image best.

    logit_c = -w_c E_c(x) / pixels, with the energies of `abs_model.inference`. Binary ABS
    thresholds the image at 0.5 first; its gradient passes the threshold straight through. At
    converged latents the gradient of the logits is exact.

    Attributes:
        generators: The VAEs and their decoded prior samples.
        class_weights: Factors w_c of the energies, (classes,); ones except for Binary ABS.
        eta: Added to each class's score; makes the model unsure far from the data.
        alpha: Scale of the logits in the confidences.
        search: How latents are searched.
        binary: Whether images are thresholded.
    """

    generators: Generators
    class_weights: jax.Array
    eta: jax.Array
    alpha: float = dataclasses.field(metadata=_STATIC)
    search: SearchSettings = dataclasses.field(metadata=_STATIC)
    binary: bool = dataclasses.field(metadata=_STATIC)

    def batch_inference(self, images: jax.Array) -> Inference:
        """Inference of images that have been checked; pure, energies are differentiable."""
        if self.binary:
            images = images + jax.lax.stop_gradient(threshold(images) - images)
        return infer(self.generators, images, self.search)

    def batch_logits(self, images: jax.Array) -> jax.Array:
        energies = self.batch_inference(images).energies
        return -self.class_weights * energies / np.prod(self.image_shape)

    def logits_to_confidences(self, logits: jax.Array) -> jax.Array:
        """p(c|x) = (exp(alpha l_c) + eta) / sum over k of (exp(alpha l_k) + eta)."""
        # In logarithms: far from the data every exp(alpha l) underflows.
        return jax.nn.softmax(jnp.logaddexp(self.alpha * logits, jnp.log(self.eta)))

    def infer(self, images: jax.Array | np.ndarray) -> Inference:
        """Energies in nats (unweighted), latents and reconstructions per class."""
        return self._in_batches(_jitted_inference, images)


def threshold(images: Any) -> Any:
    """Binary ABS's images: 1 where a pixel is above 0.5, else 0."""
    return (images > 0.5).astype(images.dtype)


@jax.jit
def _jitted_logits(classifier: Classifier, images: jax.Array) -> jax.Array:
    return classifier.batch_logits(images)


@jax.jit
def _jitted_inference(classifier: ABSClassifier, images: jax.Array) -> Inference:
    return classifier.batch_inference(images)
