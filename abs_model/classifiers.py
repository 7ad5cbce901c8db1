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

from abs_model._runtime.precision import single_precision
from abs_model.images import check_images
from abs_model.inference import Inference, infer, refine
from abs_model.solvers import Solver

PyTree = Any


_STATIC = {"static": True}  # dataclass metadata: a setting, not a weight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
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

    def __repr__(self) -> str:
        # Weights fill a terminal.
        settings = (field.name for field in dataclasses.fields(Classifier))
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in settings)
        return f"{type(self).__name__}({shown})"

    @abc.abstractmethod
    def batch_logits(self, images: jax.Array) -> jax.Array:
        """Logits (n, classes) of images that have been checked; pure and differentiable."""

    @property
    def differentiable(self) -> bool:
        """Whether logits have gradients; a black box has none."""
        return True

    @property
    def logit_tolerance(self) -> float | jax.Array:
        """By how much a margin of logits may be off besides rounding (`abs_model.decisions`)."""
        return 0.0

    @property
    def evaluations_per_query(self) -> int:
        """How often it is evaluated for the logits of an image."""
        return 1

    @property
    def evaluations_per_gradient(self) -> int:
        """How often it is evaluated for the logits and a gradient of an image."""
        return 1

    @property
    def given(self) -> PyTree:
        """The arrays that it was made of, the same on every machine; no settings among them."""
        return jax.tree.leaves(self)

    def batch_begin(self, images: jax.Array) -> tuple[jax.Array, PyTree]:
        """Logits of images that have been checked, and the state that `batch_follow` goes on from.

        The state's leaves have a leading axis of n; a classifier that gains nothing from one has no
        leaves.
        """
        return self.batch_logits(images), ()

    def batch_follow(
        self, images: jax.Array, state: PyTree, asked: jax.Array | None = None
    ) -> tuple[jax.Array, PyTree]:
        """Logits of images that have moved a little since `state`, and the state there; pure.

        The two largest logits and those asked for are exact, with their gradients, as far as those
        of the state were; others may be upper bounds below the second largest, without gradient.

        Args:
            images: (n, height, width, channels).
            state: From `batch_begin` or `batch_follow` of the images before they moved.
            asked: Further classes asked for, bool (n, classes).
        """
        del state, asked
        return self.batch_begin(images)

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

    @single_precision
    def _in_batches(
        self, function: Callable[..., PyTree], images: jax.Array | np.ndarray, *others: PyTree
    ) -> PyTree:
        """`function` of all images, in padded batches of `batch_size`.

        Args:
            function: Called with the classifier and a batch of the images and of `others`.
            images: (N, height, width, channels).
            *others: Pytrees whose leaves have a leading axis of N.
        """
        arrays = (check_images(images, self.image_shape), *others)
        outputs = []
        for first in range(0, len(images), self.batch_size):
            size = min(self.batch_size, len(images) - first)
            # Repeating the last image keeps what is padded valid.
            rows = np.minimum(np.arange(first, first + self.batch_size), first + size - 1)
            output = function(self, *jax.tree.map(lambda leaf, i=rows: leaf[i], arrays))
            outputs.append(jax.tree.map(lambda x, n=size: x[:n], output))
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class NetworkClassifier(Classifier):
    """A feed-forward network: a Flax module from images to logits.

    Attributes:
        state: The module's parameters and other variables.
        graphdef: Its structure, from `nnx.split`.
        binary: Whether images are thresholded first (the paper's Binary CNN); the gradient passes
            the threshold straight through.
    """

    state: PyTree
    graphdef: nnx.GraphDef = dataclasses.field(metadata=_STATIC)
    binary: bool = dataclasses.field(metadata=_STATIC)

    def batch_logits(self, images: jax.Array) -> jax.Array:
        seen = straight_through_threshold(images) if self.binary else images
        return nnx.merge(self.graphdef, self.state)(seen)

    def logits_to_confidences(self, logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class ABSClassifier(Classifier):
    """Analysis by synthesis (Schott et al. 2019): the class whose VAE explains the image best.

    logit_c = -w_c E_c(x) / pixels, with the energies of `abs_model.inference`. Binary ABS
    thresholds the image at 0.5 first; its gradient passes the threshold straight through. At
    converged latents the gradient of the logits is exact.

    Attributes:
        solver: Searches the latents; holds all classes' decoders.
        class_weights: Factors w_c of the energies, (classes,); see `abs_model.calibration`. The
            paper has ones but for Binary ABS.
        eta: Added to each class's score; makes the model unsure far from the data.
        alpha: Scale of the logits in the confidences.
        binary: Whether images are thresholded.
    """

    solver: Solver
    class_weights: jax.Array
    eta: jax.Array
    alpha: float = dataclasses.field(metadata=_STATIC)
    binary: bool = dataclasses.field(metadata=_STATIC)

    @property
    def given(self) -> PyTree:
        return self.class_weights, self.eta, self.solver.given

    @property
    def logit_tolerance(self) -> jax.Array:
        # Either of the two energies may be above its minimum by as much as the search leaves.
        tolerance = 2 * self.solver.settings.tolerance
        return tolerance * jnp.max(self.class_weights) / np.prod(self.image_shape)

    def batch_inference(self, images: jax.Array) -> Inference:
        """Inference of images that have been checked; pure, energies are differentiable."""
        return infer(self.solver, self._seen(images))

    def batch_refinement(self, images: jax.Array, start: Inference, asked: jax.Array) -> Inference:
        """`refine` of images that have been checked; pure, energies are differentiable."""
        return refine(self.solver, self._seen(images), start, asked, self.class_weights)

    def _seen(self, images: jax.Array) -> jax.Array:
        """The images that the decoders explain."""
        return straight_through_threshold(images) if self.binary else images

    def weighted_energies(self, inference: Inference) -> jax.Array:
        """The energies that decide, w_c E_c in nats, (N, classes)."""
        return self.class_weights * inference.energies

    def batch_logits(self, images: jax.Array) -> jax.Array:
        return self.batch_begin(images)[0]

    def batch_begin(self, images: jax.Array) -> tuple[jax.Array, Inference]:
        inference = self.batch_inference(images)
        return self.inferred_logits(inference), inference

    def batch_follow(
        self, images: jax.Array, state: Inference, asked: jax.Array | None = None
    ) -> tuple[jax.Array, Inference]:
        # Asked for the classes that were ahead, the search takes up all that may have overtaken.
        _, leaders = jax.lax.top_k(-self.weighted_energies(state), 2)
        wanted = jax.nn.one_hot(leaders, self.num_classes, dtype=bool).any(axis=1)
        wanted = wanted if asked is None else wanted | asked
        inference = self.batch_refinement(images, state, wanted)
        return self.inferred_logits(inference), inference

    def inferred_logits(self, inference: Inference) -> jax.Array:
        """The logits of images that have been inferred, (N, classes)."""
        return -self.weighted_energies(inference) / np.prod(self.image_shape)

    def logits_to_confidences(self, logits: jax.Array) -> jax.Array:
        """p(c|x) = (exp(alpha l_c) + eta) / sum over k of (exp(alpha l_k) + eta)."""
        # In logarithms: far from the data every exp(alpha l) underflows.
        return jax.nn.softmax(jnp.logaddexp(self.alpha * logits, jnp.log(self.eta)))

    def infer(
        self,
        images: jax.Array | np.ndarray,
        start: Inference | None = None,
        asked: jax.Array | np.ndarray | None = None,
    ) -> Inference:
        """Energies in nats (unweighted), latents and reconstructions per class.

        Args:
            images: As for `logits`.
            start: What this model found for the same images before they moved a little; the search
                goes on from there.
            asked: Only with `start`: whether the caller asks about the class, bool (N, classes).
                Other classes are searched only where they may have overtaken one of these, and
                their energies are lower bounds elsewhere (`Inference.searched`), as far as those in
                `start` are global minima. All by default.

        Raises:
            ValueError: `start` or `asked` do not fit the images, or `asked` comes without `start`
                or has a row without a class.
        """
        if start is None:
            if asked is not None:
                raise ValueError("asked needs start: without one, every class is searched")
            return self._in_batches(_jitted_inference, images)
        if not isinstance(start, Inference):
            raise ValueError(
                f"start must be what this model's infer returned, got {type(start).__name__}"
            )
        expected = (len(check_images(images, self.image_shape)), self.num_classes)
        asked = np.ones(expected, bool) if asked is None else np.asarray(asked)
        if asked.shape != expected or asked.dtype != bool:
            raise ValueError(f"asked must be bool {expected}, got {asked.dtype} {asked.shape}")
        if not asked.any(axis=1).all():
            raise ValueError("asked must have at least one class for each image")
        if start.energies.shape != expected:
            raise ValueError(f"start must have energies {expected}, got {start.energies.shape}")
        if start.images.shape[1:] != self.image_shape:
            raise ValueError(
                f"start must be of images {self.image_shape}, got {start.images.shape[1:]}; give "
                "what this model's infer returned"
            )
        return self._in_batches(_jitted_refinement, images, start, asked)


def threshold(images: Any) -> Any:
    """The images of Binary ABS and Binary CNN: 1 where a pixel is above 0.5, else 0."""
    return (images > 0.5).astype(images.dtype)


def straight_through_threshold(images: jax.Array) -> jax.Array:
    """`threshold`, with the gradient of the identity."""
    return images + jax.lax.stop_gradient(threshold(images) - images)


@jax.jit
def _jitted_logits(classifier: Classifier, images: jax.Array) -> jax.Array:
    return classifier.batch_logits(images)


@jax.jit
def _jitted_inference(classifier: ABSClassifier, images: jax.Array) -> Inference:
    return classifier.batch_inference(images)


@jax.jit
def _jitted_refinement(
    classifier: ABSClassifier, images: jax.Array, start: Inference, asked: jax.Array
) -> Inference:
    return classifier.batch_refinement(images, start, asked)
