"""Classifiers: one interface for whoever attacks, evaluates or uses a model.

A classifier is a frozen dataclass and, by `register_dataclass`, a JAX pytree: weights are leaves,
settings are static. So it goes through `jax.jit` as an ordinary argument, and classifiers that
differ only in weights, in name, or in whether they see thresholded images share compiled programs.
"""

import abc
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from abs_model._runtime.mesh import over_devices
from abs_model._runtime.precision import single_precision
from abs_model._runtime.pytrees import is_registered, register_dataclass
from abs_model.models.checks import validate_images

PyTree = Any


# Dataclass metadata: a setting, not a weight; what no program and no answer depends on.
STATIC = {"static": True}
LABEL = {"label": True, "identifies": False}


@register_dataclass
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
        binary: Whether the model sees of each value only whether it is above 0.5. A leaf: traced
            code must not branch on it; see `as_seen`.
    """

    name: str = dataclasses.field(metadata=LABEL)
    image_shape: tuple[int, int, int] = dataclasses.field(metadata=STATIC)
    num_classes: int = dataclasses.field(metadata=STATIC)
    batch_size: int = dataclasses.field(metadata=LABEL)
    binary: bool = False

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        del args, kwargs
        if not is_registered(cls):
            raise TypeError(
                f"{cls.__name__} is not registered: write @abs_model.register_dataclass above its"
                " @dataclasses.dataclass. (With jax.tree_util.register_dataclass, JAX may run the"
                " program of another class.)"
            )
        return super().__new__(cls)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "binary" in cls.__dict__ and "binary" not in inspect.get_annotations(cls):
            # Else the field's default, False, would hide it.
            raise TypeError(
                f"binary of {cls.__name__} must be a field: declare binary: bool = True"
            )

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
        """By how much a margin of logits may be off besides rounding (`models.decisions`)."""
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
    def fingerprint_arrays(self) -> PyTree:
        """The arrays that it was made of, for fingerprints: the same on every machine."""
        base = {field.name for field in dataclasses.fields(Classifier)}
        own = (field for field in dataclasses.fields(self) if field.name not in base)
        return [
            getattr(self, field.name)
            for field in own
            if field.metadata.get("identifies", True) and not field.metadata.get("static")
        ]

    def cold_logits(self, images: jax.Array) -> tuple[jax.Array, PyTree]:
        """Logits of images that have been checked, and the state that `warm_logits` starts from.

        The state's leaves have a leading axis of n; a classifier that gains nothing from one has no
        leaves.
        """
        return self.batch_logits(images), ()

    def warm_logits(
        self, images: jax.Array, state: PyTree, required: jax.Array | None = None
    ) -> tuple[jax.Array, PyTree]:
        """Logits of images that have moved a little since `state`, and the state there; pure.

        The two largest logits and the required ones are exact, with their gradients, as far as
        those of the state were; others may be upper bounds below the second largest, without
        gradient.

        Args:
            images: (n, height, width, channels).
            state: From `cold_logits` or `warm_logits` of the images before they moved.
            required: Further classes whose logits are required, bool (n, classes).
        """
        del state, required
        return self.cold_logits(images)

    @property
    def races(self) -> bool:
        """Whether `batch_decision_logits` is faster than `batch_logits`, with bounds for logits."""
        return False

    def batch_decision_logits(self, images: jax.Array) -> jax.Array:
        """Logits (n, classes) of images that have been checked, as far as they decide.

        It runs compiled programs, and is not to be traced. The largest logit is of the same class
        as that of `batch_logits`, and may be lower than there; others may be upper bounds. A margin
        beyond which a decision is certain (`models.decisions`) is on the same side of it.
        """
        return jitted_cold_logits(self, images)[0]

    @abc.abstractmethod
    def logits_to_confidences(self, logits: jax.Array) -> jax.Array:
        """Probabilities of the classes, (N, classes), from logits (N, classes)."""

    def logits(self, images: jax.Array | np.ndarray) -> jax.Array:
        """Logits, float32 (N, classes); differentiable with respect to the images."""
        return self._in_batches(lambda *batch: jitted_cold_logits(*batch)[0], images)

    def predict(self, images: jax.Array | np.ndarray) -> np.ndarray:
        """Predicted classes, int32 (N,)."""
        return np.argmax(self.decision_logits(images), axis=1).astype(np.int32)

    def decision_logits(self, images: jax.Array | np.ndarray) -> np.ndarray:
        """Logits, float32 (N, classes), as far as they decide; see `batch_decision_logits`."""
        return self._in_batches(
            lambda one, batch: np.array(one.batch_decision_logits(batch)), images
        )

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
            function: Called with the classifier and a batch of the images and of `others`; of
                JAX's arrays or NumPy's.
            images: (N, height, width, channels).
            *others: Pytrees whose leaves have a leading axis of N.
        """
        # NumPy takes rows without a program that has to be compiled.
        arrays = (validate_images(images, self.image_shape), *others)
        count, outputs = len(images), []
        for first in range(0, count, self.batch_size):
            size = min(self.batch_size, count - first)
            # Repeating the last image keeps what is padded valid.
            rows = np.minimum(np.arange(first, first + self.batch_size), first + size - 1)
            output = function(self, *jax.tree.map(lambda leaf, i=rows: leaf[i], arrays))
            if size < self.batch_size:
                output = jax.tree.map(lambda leaf, n=size: leaf[:n], output)
            outputs.append(output)
        if len(outputs) == 1:
            return outputs[0]
        return jax.tree.map(_concatenate, *outputs)


def _concatenate(*parts: Any) -> Any:
    return parts[0].__array_namespace__().concatenate(parts)


def threshold(images: Any) -> Any:
    """The images of Binary ABS and Binary CNN: 1 where a pixel is above 0.5, else 0."""
    return (images > 0.5).astype(images.dtype)


def as_seen(images: jax.Array, binary: bool | jax.Array) -> jax.Array:
    """What a model sees of images: thresholded if `binary`, with the gradient of the identity."""
    change = jax.lax.stop_gradient(threshold(images) - images)
    return images + jnp.where(binary, change, 0.0)


# One program for whoever queries a classifier, because it takes long to compile.
@jax.jit
def jitted_cold_logits(classifier: Classifier, images: jax.Array) -> tuple[jax.Array, PyTree]:
    """`Classifier.cold_logits`, compiled."""
    return over_devices(lambda model, images: model.cold_logits(images), classifier, images)
