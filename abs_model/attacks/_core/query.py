"""The query session: the classifier as an attack sees it.

It counts queries, warm-starts them, keeps the best image found, and verifies by cold queries what
warm-started ones have found. An attack keeps its algorithm.

Attacks loop in Python: their own arithmetic is small and compiled by itself, and the classifier's
programs, which take long to compile, serve them all.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from abs_model._runtime.mesh import over_devices
from abs_model._runtime.pytrees import register_dataclass
from abs_model._runtime.vectorize import map_classes
from abs_model.attacks._core import best_so_far
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.best_so_far import BestSoFar
from abs_model.attacks._core.cold_check import search_beyond
from abs_model.attacks._core.losses import Loss, margins
from abs_model.attacks._core.norms import choose
from abs_model.models.classifier import Classifier, jitted_cold_logits

State = Any

# Recorded warm queries in a row after which the best images so far are verified.
_VERIFY_EVERY = 40


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Jacobian:
    """Gradients of several logits of each image.

    Attributes:
        gradients: (n, k, height, width, channels).
        classes: int32 (n, k): whose logits these are of.
    """

    gradients: jax.Array
    classes: jax.Array


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Answer:
    """What the classifier says of images; `norms.choose` picks between two answers of a kind.

    Attributes:
        images: The images queried, (n, height, width, channels).
        logits: (n, classes). Of a warm query, logits below the second largest may be upper bounds.
        state: The classifier's, from which queries of images nearby start; after a regular
            verification, that of the best images.
    """

    images: jax.Array
    logits: jax.Array
    state: State

    def plain(self) -> "Answer":
        """The same as an answer of `Query.logits`."""
        return Answer(self.images, self.logits, self.state)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class GradientAnswer(Answer):
    """An answer with the gradients of a loss, shaped like the images."""

    gradients: jax.Array


@register_dataclass
@dataclasses.dataclass(frozen=True)
class JacobianAnswer(Answer):
    """An answer with the gradients of logits."""

    jacobian: Jacobian


AnyAnswer = TypeVar("AnyAnswer", bound=Answer)


class Query:
    """Queries of a classifier about versions of a batch of images.

    A query is cold, or warm-started from an earlier answer about nearby images (`near`). Warm
    queries are faster for ABS, whose latent search starts from the earlier latents; for a network
    they are the same. Each queried image counts for `best` unless `record=False`. When an image is
    finished, the attack queries it unchanged until the others are, so that no result depends on
    the rest of the batch.

    What warm queries and those for decisions find is verified by cold ones for all logits:

    - after 40 recorded warm queries in a row, for the images that still move, if
      `verify_regularly`; the next query then starts from the state of the verified images;
    - when the attack calls `verify`, `finish` or `settle`;
    - at the end, by `settle`.

    A classifier with neither needs none of this, and gets no additional queries but the one of
    `finish`.

    Attributes:
        model: The classifier.
        batch: The originals.
        norm: Norm of the distances.
        best: The best images so far.
        warm: Whether the classifier's answers have states to start from.
        just_verified: Whether `best` was verified after the last query.
        rejected: Images whose example the last `verify` has rejected, bool (n,).
        num_queries: Evaluations of the model so far, for each image of the batch.
        num_gradients: Those with gradient among them.
    """

    best: BestSoFar
    _verified: BestSoFar

    def __init__(
        self,
        model: Classifier,
        batch: Batch,
        norm: str,
        *,
        epsilon: float | None = None,
        verify_regularly: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Starts a session.

        Args:
            model: The classifier.
            batch: The originals.
            norm: Norm of the distances.
            epsilon: Where the attack stays within one, the largest distance.
            verify_regularly: Whether `best` is verified after 40 recorded warm queries in a row.
                An attack that verifies or settles by itself does without.
            progress: Called with the number of queries so far.
        """
        self.model = model
        self.batch = batch
        self.norm = norm
        self.warm = False
        self.just_verified = False
        self.rejected = jnp.zeros(len(batch.images), bool)
        self.num_queries = 0
        self.num_gradients = 0
        none = jnp.zeros(len(batch.images), jnp.int32)
        self._flaws = _Flaws(none, none)
        self._epsilon = epsilon
        self._verify_regularly = verify_regularly
        self._progress = progress
        self._thresholds: jax.Array | float = 0.0
        self._num_warm = 0

    def logits(
        self,
        images: jax.Array,
        near: Answer | None = None,
        *,
        classes: jax.Array | None = None,
        record: bool = True,
    ) -> Answer:
        """Queries the logits of images.

        Args:
            images: (n, height, width, channels).
            near: An earlier answer about images nearby, to start from. By default the query is a
                cold one.
            classes: Classes (n,) whose logits a warm query must not replace by bounds.
            record: Whether the images count for `best`.
        """
        answer = self._query_logits(images, near, classes)
        return self._take(answer, near) if record else answer

    def decisions(self, images: jax.Array, *, record: bool = True) -> Answer:
        """Queries what the classifier decides of images, cold.

        For searches that go by decisions: logits tell whether an image is adversarial, and are
        bounds otherwise, which ABS finds several times as fast. No query can start from the answer.
        The first query of a session is for all logits.

        Args:
            images: (n, height, width, channels).
            record: As for `logits`.
        """
        if not self.model.races or not hasattr(self, "best"):
            return self.logits(images, record=record)
        self._count()
        answer = Answer(images, self.model.batch_decision_logits(images), ())
        if record:
            # Another query verifies what counts in the end.
            self._record(answer, verified=False)
        return answer

    def gradients(
        self,
        images: jax.Array,
        near: Answer | None = None,
        *,
        loss: Loss = margins,
        goal: Batch | None = None,
        record: bool = True,
    ) -> GradientAnswer:
        """Queries logits and the gradients of a loss, by default the margin.

        Args:
            images: (n, height, width, channels).
            near: As for `logits`.
            loss: See `losses`.
            goal: The batch with the classes that the loss is of; by default the batch itself.
            record: As for `logits`.

        Raises:
            ValueError: The model is a black box.
        """
        self._count(gradient=True)
        goal = self.batch if goal is None else goal
        gradients, logits, state, self._flaws = _gradients(
            self.model, images, goal, _state(near), self._flaws, loss
        )
        answer = GradientAnswer(images, logits, state, gradients)
        return self._take(answer, near) if record else answer

    def jacobian(
        self,
        images: jax.Array,
        near: Answer | None = None,
        *,
        num_classes: int | None = None,
        record: bool = True,
    ) -> JacobianAnswer:
        """Queries logits and their gradients.

        All logits are exact, which makes it more expensive than `gradients` for a warm-started
        classifier.

        Args:
            images: (n, height, width, channels).
            near: As for `logits`.
            num_classes: At least 2: gradients are then of the logit of the batch's class and of
                the largest others only. Time and memory grow with it. All, by default.
            record: As for `logits`.

        Raises:
            ValueError: The model is a black box.
        """
        answer = self._query_jacobian(images, near, num_classes)
        return self._take(answer, near) if record else answer

    @property
    def num_zero_gradients(self) -> jax.Array:
        """How many gradients of each image were zero, int32 (n,)."""
        return self._flaws.zero

    @property
    def num_nonfinite_gradients(self) -> jax.Array:
        """How many gradients of each image had entries that were not finite, int32 (n,).

        These entries are zero in what attacks get, so that they go by the others.
        """
        return self._flaws.nonfinite

    def all_succeeded(self) -> bool:
        """Whether all images are adversarial, and verified to be."""
        return bool(self.best.done.all())

    def require(self, thresholds: jax.Array) -> None:
        """From now on, success takes a margin of at least these thresholds, (n,)."""
        self._thresholds = thresholds

    def verify(self, answer: AnyAnswer) -> AnyAnswer:
        """Verifies new adversarial examples at once, for an attack that stops at the first.

        Args:
            answer: The last one, of `logits` or of `jacobian`.

        Returns:
            The same, and where a new example is rejected, what a cold query says of its images.
        """
        if not self._needs_verification:
            return answer
        new = self.best.success & ~self.best.verified
        self.rejected = jnp.zeros_like(new)
        if not bool(new.any()):
            return answer
        cold = self._check(new)
        arguments = (self.batch, cold.images, cold.logits, self.norm, self._thresholds)
        self.rejected = new & ~best_so_far.score(*arguments, True).success
        if not bool(self.rejected.any()):
            return answer
        again: Answer
        if isinstance(answer, JacobianAnswer):
            num_classes = answer.jacobian.classes.shape[1]
            again = self._query_jacobian(answer.images, None, num_classes)
        else:
            again = self._query_logits(answer.images)
        self._record(again, verified=True, where=self.rejected)
        return choose(self.rejected, again, answer)

    def finish(self, images: jax.Array) -> None:
        """Ends a run of the attack: verifies `best`, and queries the last images cold.

        So these count even where a closer image only seems adversarial.
        """
        if not self._all_verified():
            self._check()
        self.logits(images)

    def settle(self) -> None:
        """Ends a run of the attack: verifies `best`; where it is rejected, searches farther out."""
        self._num_warm = 0
        if self._all_verified():
            return
        found = search_beyond(
            lambda images: self._query_logits(images).logits, self.batch, self.best, self.norm,
            self._thresholds, self._epsilon, self.model.binary,
        )  # fmt: skip
        self.best = self._verified = best_so_far.closer(self._verified, found)

    @property
    def _needs_verification(self) -> bool:
        """Whether some queries may find adversarial what is not."""
        return self.warm or self.model.races

    def _all_verified(self) -> bool:
        # Without other queries there is nothing to look at, which would wait for the classifier.
        return not self._needs_verification or bool(self.best.verified.all())

    def _query_logits(
        self, images: jax.Array, near: Answer | None = None, classes: jax.Array | None = None
    ) -> Answer:
        self._count()
        state = _state(near)
        if state is None:
            return Answer(images, *jitted_cold_logits(self.model, images))
        return Answer(images, *_warm_logits(self.model, images, state, classes))

    def _query_jacobian(
        self, images: jax.Array, near: Answer | None, num_classes: int | None
    ) -> JacobianAnswer:
        self._count(gradient=True)
        labels = None if num_classes is None else self.batch.classes
        count = min(num_classes or self.model.num_classes, self.model.num_classes)
        jacobian, logits, state, self._flaws = _jacobian(
            self.model, images, _state(near), self._flaws, labels, count
        )
        return JacobianAnswer(images, logits, state, jacobian)

    def _take(self, answer: AnyAnswer, near: Answer | None) -> AnyAnswer:
        """Records an answer; the same, from whose state the next query is to start."""
        self.warm = bool(jax.tree.leaves(answer.state))
        self.just_verified = False
        if near is None or not self.warm:
            self._record(answer, verified=True)
            self._num_warm = 0
            return answer
        # Images that have not moved since they were recorded say nothing new.
        moved = _differ(answer.images, near.images)
        self._record(answer, verified=False, where=moved)
        self._num_warm += 1
        if self._num_warm < _VERIFY_EVERY or not self._verify_regularly:
            return answer
        self._num_warm = 0
        self.just_verified = True
        state = self._check(moved).state
        return dataclasses.replace(answer, state=choose(moved, state, answer.state))

    def _record(self, answer: Answer, *, verified: bool, where: jax.Array | None = None) -> None:
        arguments = (self.batch, answer.images, answer.logits, self.norm, self._thresholds)
        if not hasattr(self, "best"):
            self.best = self._verified = best_so_far.score(*arguments, verified)
            return
        self.best = best_so_far.update(self.best, *arguments, where, verified)
        if verified and self._needs_verification:
            self._verified = best_so_far.update(self._verified, *arguments, where, verified)

    def _check(self, where: jax.Array | None = None) -> Answer:
        """Verifies `best` for these images, bool (n,), or for all; the answer about it."""
        answer = self._query_logits(self.best.images)
        self._record(answer, verified=True, where=where)
        best = self._verified
        self.best = best if where is None else choose(where, best, self.best)
        return answer

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


def _state(near: Answer | None) -> State:
    """None without leaves, too: the programs of cold queries then serve all."""
    return None if near is None or not jax.tree.leaves(near.state) else near.state


@jax.jit
def _differ(images: jax.Array, others: jax.Array) -> jax.Array:
    """Which images differ from the others, bool (n,)."""
    return jnp.any(images != others, axis=(1, 2, 3))


def _answer(
    model: Classifier, images: jax.Array, state: State, required: jax.Array | None = None
) -> tuple[jax.Array, State]:
    if state is None:
        return model.cold_logits(images)
    return model.warm_logits(images, state, required)


@jax.jit
def _warm_logits(
    model: Classifier, images: jax.Array, state: State, classes: jax.Array | None
) -> tuple[jax.Array, State]:
    def query(
        model: Classifier, images: jax.Array, state: State, classes: jax.Array | None
    ) -> tuple[jax.Array, State]:
        hot = None if classes is None else jax.nn.one_hot(classes, model.num_classes, dtype=bool)
        return model.warm_logits(images, state, hot)

    return over_devices(query, model, images, state, classes)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Flaws:
    """How many gradients of each image were zero, or not finite, int32 (n,)."""

    zero: jax.Array
    nonfinite: jax.Array


def _usable(gradients: jax.Array, flaws: _Flaws) -> tuple[jax.Array, _Flaws]:
    """Gradients (n, ...) with zero for what is not finite; their flaws are added to earlier ones.

    Part of the gradients' program: a program of its own would take longer to start than to run.
    """
    finite = jnp.isfinite(gradients)
    axes = tuple(range(1, gradients.ndim))
    usable = jnp.where(finite, gradients, 0.0)
    zero, nonfinite = ~(usable != 0).any(axes), ~finite.all(axes)
    return usable, _Flaws(flaws.zero + (zero & ~nonfinite), flaws.nonfinite + nonfinite)


@functools.partial(jax.jit, static_argnames="loss")
def _gradients(
    model: Classifier, images: jax.Array, batch: Batch, state: State, flaws: _Flaws, loss: Loss
) -> tuple[jax.Array, jax.Array, State, _Flaws]:
    def query(
        model: Classifier, images: jax.Array, batch: Batch, state: State, flaws: _Flaws
    ) -> tuple[jax.Array, jax.Array, State, _Flaws]:
        # A margin is of the class and the largest other; other losses may be of all.
        required = jax.nn.one_hot(batch.classes, model.num_classes, dtype=bool)
        required |= loss is not margins

        def total(images: jax.Array) -> tuple[jax.Array, tuple[jax.Array, State]]:
            logits, following = _answer(model, images, state, required)
            return loss(logits, batch).sum(), (logits, following)

        gradients, (logits, following) = jax.grad(total, has_aux=True)(images)
        gradients, flaws = _usable(gradients, flaws)
        return gradients, logits, following, flaws

    return over_devices(query, model, images, batch, state, flaws)


@functools.partial(jax.jit, static_argnames="count")
def _jacobian(
    model: Classifier,
    images: jax.Array,
    state: State,
    flaws: _Flaws,
    labels: jax.Array | None,
    count: int,
) -> tuple[Jacobian, jax.Array, State, _Flaws]:
    def query(
        model: Classifier,
        images: jax.Array,
        state: State,
        flaws: _Flaws,
        labels: jax.Array | None,
    ) -> tuple[Jacobian, jax.Array, State, _Flaws]:
        required = jnp.ones((len(images), model.num_classes), bool)
        logits, pull_back, following = jax.vjp(
            lambda images: _answer(model, images, state, required), images, has_aux=True
        )

        def gradient_of(which: jax.Array) -> jax.Array:
            return pull_back(jax.nn.one_hot(which, model.num_classes, dtype=logits.dtype))[0]

        classes = _leading(logits, labels, count)
        every = map_classes(gradient_of, classes.T).transpose(1, 0, 2, 3, 4)
        gradients, flaws = _usable(every, flaws)
        return Jacobian(gradients, classes), logits, following, flaws

    return over_devices(query, model, images, state, flaws, labels)


def _leading(logits: jax.Array, labels: jax.Array | None, count: int) -> jax.Array:
    """The labels and the classes of the largest other logits, in order of class, (n, count)."""
    every = jnp.arange(logits.shape[1])
    if labels is None or count == logits.shape[1]:
        return jnp.broadcast_to(every, logits.shape)
    others = jnp.where(every == labels[:, None], -jnp.inf, logits)
    leading = jax.lax.top_k(others, count - 1)[1]
    return jnp.sort(jnp.concatenate([labels[:, None], leading], axis=1), axis=1)
