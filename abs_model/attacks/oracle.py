"""The classifier as an attack asks it: compiled once for all attacks, counted, and warm-started.

Attacks loop in Python: their own arithmetic is small and compiled by itself, and the classifier's
programs, which take long to compile, serve them all.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from abs_model.attacks.batch import Batch
from abs_model.attacks.losses import Loss, margins
from abs_model.classifiers import Classifier
from abs_model.mapping import map_classes

State = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Jacobian:
    """Gradients of several logits of each image.

    Attributes:
        gradients: (n, k, height, width, channels).
        classes: int32 (n, k): whose logits these are of.
    """

    gradients: jax.Array
    classes: jax.Array


class Oracle:
    """Answers an attack's questions about a batch of images, and counts them.

    Each answer comes with a state. Whoever gives it back with images that have moved a little is
    answered faster: ABS goes on from the latents it had found (`Classifier.batch_follow`). Without
    a state, the answer is from a cold start. `choose` of `abs_model.attacks.base` picks
    between states for each image.

    Attributes:
        model: The classifier.
        num_queries: Evaluations of the model so far, for each image of the batch.
        num_gradients: Those with gradient among them.
        num_zero_gradients: How many gradients of each image were zero, int32 (n,), or 0.
        num_nonfinite_gradients: How many had entries that were not finite, int32 (n,), or 0. These
            entries are zero in what attacks get, so that they go by the others.
        warm: Whether answers have come with states that are of use.
    """

    def __init__(self, model: Classifier, progress: Callable[[int], None] | None = None) -> None:
        self.model = model
        self.num_queries = 0
        self.num_gradients = 0
        self.num_zero_gradients: int | jax.Array = 0
        self.num_nonfinite_gradients: int | jax.Array = 0
        self.warm = False
        self._progress = progress

    def logits(
        self, images: jax.Array, state: State = None, classes: jax.Array | None = None
    ) -> tuple[jax.Array, State]:
        """Logits (n, classes), and the state there.

        With a state, logits behind the second largest may be upper bounds, but for those of
        `classes` (n,), if given.
        """
        self._count()
        logits, following = _logits(self.model, images, state, classes)
        self.warm = bool(jax.tree.leaves(following))
        return logits, following

    def gradients(
        self, images: jax.Array, batch: Batch, state: State = None, loss: Loss = margins
    ) -> tuple[jax.Array, jax.Array, State]:
        """The gradients of the losses, shaped like the images; logits (n, classes); the state."""
        self._count(gradient=True)
        gradients, logits, following, flaws = _gradients(self.model, images, batch, state, loss)
        self._count_flaws(flaws)
        self.warm = bool(jax.tree.leaves(following))
        return gradients, logits, following

    def jacobian(
        self,
        images: jax.Array,
        state: State = None,
        *,
        leading: tuple[jax.Array, int] | None = None,
    ) -> tuple[Jacobian, jax.Array, State]:
        """The gradients of the logits; logits (n, classes); the state.

        All logits are exact, which makes it more expensive than `gradients` for a warm-started
        classifier.

        Args:
            images: (n, height, width, channels).
            state: Of an answer nearby.
            leading: Labels (n,) and a number of classes, at least 2: gradients are then of the
                label's logit and of the largest others only. Time and memory grow with them.
        """
        self._count(gradient=True)
        labels, count = (None, self.model.num_classes) if leading is None else leading
        count = min(count, self.model.num_classes)
        jacobian, logits, following, flaws = _jacobian(self.model, images, state, labels, count)
        self._count_flaws(flaws)
        self.warm = bool(jax.tree.leaves(following))
        return jacobian, logits, following

    def _count(self, gradient: bool = False) -> None:
        if gradient and not self.model.differentiable:
            raise ValueError(
                f"model {self.model.name!r} is a black box, which has no gradients; attack it with"
                " one that needs none, or give its gradients by estimate_gradients"
            )
        self.num_queries += (
            self.model.evaluations_per_gradient if gradient else self.model.evaluations_per_query
        )
        self.num_gradients += gradient
        if self._progress is not None:
            self._progress(self.num_queries)

    def _count_flaws(self, flaws: "_Flaws") -> None:
        self.num_zero_gradients += flaws.zero
        self.num_nonfinite_gradients += flaws.nonfinite


def _answer(
    model: Classifier, images: jax.Array, state: State, asked: jax.Array | None = None
) -> tuple[jax.Array, State]:
    if state is None:
        return model.batch_begin(images)
    return model.batch_follow(images, state, asked)


@jax.jit
def _logits(
    model: Classifier, images: jax.Array, state: State, classes: jax.Array | None
) -> tuple[jax.Array, State]:
    asked = None if classes is None else jax.nn.one_hot(classes, model.num_classes, dtype=bool)
    return _answer(model, images, state, asked)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Flaws:
    """Which images have a gradient that is zero, or not finite, int32 (n,): 0 or 1."""

    zero: jax.Array
    nonfinite: jax.Array


def _usable(gradients: jax.Array) -> tuple[jax.Array, _Flaws]:
    """Gradients (n, ...) with zero for what is not finite, and what was wrong with them."""
    finite = jnp.isfinite(gradients)
    axes = tuple(range(1, gradients.ndim))
    usable = jnp.where(finite, gradients, 0.0)
    zero, nonfinite = ~(usable != 0).any(axes), ~finite.all(axes)
    return usable, _Flaws((zero & ~nonfinite).astype(jnp.int32), nonfinite.astype(jnp.int32))


@functools.partial(jax.jit, static_argnames="loss")
def _gradients(
    model: Classifier, images: jax.Array, batch: Batch, state: State, loss: Loss
) -> tuple[jax.Array, jax.Array, State, _Flaws]:
    # A margin is of the class and the largest other; other losses may be of all.
    asked = jax.nn.one_hot(batch.classes, model.num_classes, dtype=bool) | (loss is not margins)

    def total(images: jax.Array) -> tuple[jax.Array, tuple[jax.Array, State]]:
        logits, following = _answer(model, images, state, asked)
        return loss(logits, batch).sum(), (logits, following)

    gradients, (logits, following) = jax.grad(total, has_aux=True)(images)
    gradients, flaws = _usable(gradients)
    return gradients, logits, following, flaws


@functools.partial(jax.jit, static_argnames="count")
def _jacobian(
    model: Classifier, images: jax.Array, state: State, labels: jax.Array | None, count: int
) -> tuple[Jacobian, jax.Array, State, _Flaws]:
    asked = jnp.ones((len(images), model.num_classes), bool)
    logits, pull_back, following = jax.vjp(
        lambda images: _answer(model, images, state, asked), images, has_aux=True
    )

    def of_class(which: jax.Array) -> jax.Array:
        return pull_back(jax.nn.one_hot(which, model.num_classes, dtype=logits.dtype))[0]

    classes = _leading(logits, labels, count)
    gradients, flaws = _usable(map_classes(of_class, classes.T).transpose(1, 0, 2, 3, 4))
    return Jacobian(gradients, classes), logits, following, flaws


def _leading(logits: jax.Array, labels: jax.Array | None, count: int) -> jax.Array:
    """The labels and the classes of the largest other logits, in order of class, (n, count)."""
    every = jnp.arange(logits.shape[1])
    if labels is None or count == logits.shape[1]:
        return jnp.broadcast_to(every, logits.shape)
    others = jnp.where(every == labels[:, None], -jnp.inf, logits)
    leading = jax.lax.top_k(others, count - 1)[1]
    return jnp.sort(jnp.concatenate([labels[:, None], leading], axis=1), axis=1)
