"""The L2 attack of Carlini and Wagner: a search for the weight at which Adam just gets across.

Carlini and Wagner, "Towards evaluating the robustness of neural networks", IEEE Symposium on
Security and Privacy 2017 (https://arxiv.org/abs/1608.04644), Sections V and VI.A.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from abs_model._runtime.checks import check_count, check_number
from abs_model._runtime.pytrees import register_dataclass
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.checks import check_epsilon
from abs_model.attacks._core.losses import margins
from abs_model.attacks._core.norms import choose, dual_norms, lengths, max_distance, per_image
from abs_model.attacks._core.query import GradientAnswer, Query
from abs_model.attacks._core.result import AttackResult
from abs_model.attacks._core.run import Progress, run
from abs_model.attacks.registry import Access, Queries, register
from abs_model.models.classifier import Classifier

_NORMS = ("l2",)
# Black and white would be infinite in tanh space; the factor of the authors' code and Foolbox.
_INSIDE = 0.999999
# A descent ends for an image whose loss did not fall by this part in a tenth of the steps, but at
# least this many steps, since Adam goes back and forth.
_PROGRESS = 1e-4
_PATIENCE = 10
_ADAM = optax.scale_by_adam()


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Constants:
    """The search for the constant c; all are float32 (n,).

    Attributes:
        current: To try next.
        failed: The largest that failed.
        succeeded: The smallest that succeeded; infinity if none did.
    """

    current: jax.Array
    failed: jax.Array
    succeeded: jax.Array

    @classmethod
    def start(cls, count: int, initial: float) -> "_Constants":
        return cls(jnp.full(count, initial), jnp.zeros(count), jnp.full(count, jnp.inf))

    @jax.jit
    def next(self, found: jax.Array) -> "_Constants":
        """After a descent with the current constants that succeeded where `found`, (n,)."""
        failed = jnp.where(found, self.failed, self.current)
        succeeded = jnp.where(found, self.current, self.succeeded)
        middle = (failed + succeeded) / 2
        following = jnp.where(jnp.isinf(succeeded), 10 * self.current, middle)
        return _Constants(following, failed, succeeded)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Descent:
    """One run of Adam on |x - x_0|^2 + weight max(0, threshold - margin(x)) of each image.

    Attributes:
        weights: c / s, (n,).
        thresholds: confidence * s, (n,).
        points: In tanh space: x = (tanh(points) + 1) / 2.
        adam: Adam's moments.
        active: bool (n,): which images still move.
        lowest: float32 (n,): the smallest loss so far.
        checked: float32 (n,): `lowest` when progress was last looked at.
        found: bool (n,): whether an adversarial image of the demanded confidence came up.
    """

    weights: jax.Array
    thresholds: jax.Array
    points: jax.Array
    adam: optax.OptState
    active: jax.Array
    lowest: jax.Array
    checked: jax.Array
    found: jax.Array


@register(
    title="Carlini-Wagner",
    norms=_NORMS,
    access=Access.GRADIENTS,
    source="Carlini and Wagner 2017",
    smoke={"num_searches": 2, "num_steps": 5},
    most_queries=lambda settings, norm, model: Queries(
        gradients=1 + settings["num_searches"] * settings["num_steps"]
    ),
)
def carlini_wagner(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    num_searches: int = 9,
    num_steps: int = 10_000,
    step_size: float = 0.01,
    confidence: float = 0.0,
    initial_constant: float = 1.0,
    targets: Any = None,
    progress: Progress | None = None,
) -> AttackResult:
    """Looks for the closest adversarial images in L2 with the attack of Carlini and Wagner.

    Adam minimizes over w

        |x - x_0|^2 + c max(0, confidence - margin(x) / s),    x = (tanh(w) + 1) / 2

    from the original x_0, so that x stays in [0, 1]. The constant c is searched for each image:
    it grows tenfold until an adversarial image is found, and then the interval between failure and
    success is halved. All adversarial images on the way count.

    This departs from the paper in s, which is 1 there. Then c is in units of squared distance per
    unit of the logits, and the initial constant fits logits of one scale only. Here s is the length
    of the margin's gradient at the original, but at least |margin| over the distance to the
    farthest image in [0, 1]. So margin / s is the distance to the boundary to first order, and
    scaled logits give the same result.

    An image's descent ends when a tenth of the steps (at least 10) has not lowered its smallest
    loss by 0.01%.

    Queries the classifier at most `1 + num_searches * num_steps` times, each time with gradient.

    Args:
        model, images, labels, targets, progress: As for every attack; see `abs_model.attacks`.
        key: A `jax.random.key`, or one for each image, (N,). Nothing here is random.
        num_searches: Constants to try; 9 as in the authors' code and Foolbox.
        num_steps: Most steps of Adam for each; 10,000 as in the paper and Foolbox.
        step_size: Of Adam, in tanh space; above 0. 0.01 as in the paper and Foolbox. From black or
            white, a pixel has about 6 to go before it is visibly gray, so `num_steps * step_size`
            should be above that for MNIST.
        confidence: By how much margin / s has to exceed 0, so in units of distance; at least 0, at
            most the distance of black and white. Where no image does, there is no success, and the
            closest image that fools at all is returned, which `verify` finds adversarial. A clean
            error is a success at distance 0 all the same.
        initial_constant: The first c, in units of distance; above 0. To first order it takes twice
            the distance to the boundary. (0.001 in the paper, where it has another unit.)

    Returns:
        Per image the closest adversarial one of that confidence; where there is none, without
        success, the closest of any; where there is none either, that of the highest margin.

    Raises:
        ValueError: An argument is invalid.
    """
    num_searches = check_count("num_searches", num_searches)
    num_steps = check_count("num_steps", num_steps)
    step_size = check_number("step_size", step_size, minimum=0.0, exclusive=True)
    confidence = check_epsilon(confidence, "l2", model.image_shape, name="confidence")
    initial_constant = check_number(
        "initial_constant", initial_constant, minimum=0.0, exclusive=True
    )
    interval = max(_PATIENCE, math.ceil(num_steps / 10))

    def attack(query: Query, batch: Batch) -> None:
        original = query.gradients(batch.images)
        clean_errors = query.best.success
        scale = _scale(batch, original)
        query.require(confidence * scale)
        constants = _Constants.start(len(batch.images), initial_constant)
        for _ in range(num_searches):
            answer = original
            descent = _begin(
                batch.images, constants.current / scale, confidence * scale, clean_errors
            )
            for step in range(num_steps):
                descent, images = _move(batch, descent, answer, step_size)
                answer = query.gradients(images, near=answer)
                descent = _judge(batch, descent, answer)
                if (step + 1) % interval == 0:
                    descent = _check(descent)
                    if not bool(descent.active.any()):
                        break
            query.settle()
            constants = constants.next(descent.found & query.best.success)

    return run(
        attack, model, images, labels, key, norm="l2", norms=_NORMS, verify_regularly=False,
        targets=targets, progress=progress,
    )  # fmt: skip


@jax.jit
def _scale(batch: Batch, original: GradientAnswer) -> jax.Array:
    """What one unit of distance changes the margin by, about, (n,); above 0."""
    at_least = jnp.abs(margins(original.logits, batch)) / max_distance(batch.images, "l2")
    scale = jnp.maximum(dual_norms(original.gradients, "l2"), at_least)
    return jnp.where(scale > 0, scale, 1.0)


@jax.jit
def _begin(
    images: jax.Array, weights: jax.Array, thresholds: jax.Array, done: jax.Array
) -> _Descent:
    points = jnp.arctanh(_INSIDE * (2 * images - 1))
    infinite = jnp.full(len(images), jnp.inf)
    return _Descent(
        weights=weights,
        thresholds=thresholds,
        points=points,
        adam=_ADAM.init(points),
        active=~done,
        lowest=infinite,
        checked=infinite,
        found=jnp.zeros(len(images), bool),
    )


@jax.jit
def _move(
    batch: Batch, descent: _Descent, answer: GradientAnswer, step_size: jax.Array
) -> tuple[_Descent, jax.Array]:
    """A step of Adam, from the margin's gradients and the logits at the images."""
    images = answer.images
    short = margins(answer.logits, batch) < descent.thresholds
    pull = jnp.where(short, descent.weights, 0.0)
    slopes = 2 * (images - batch.images) - per_image(pull) * answer.gradients
    slopes = slopes * (1 - jnp.tanh(descent.points) ** 2) / 2
    changes, adam = _ADAM.update(slopes, descent.adam)
    points = choose(descent.active, descent.points - step_size * changes, descent.points)
    moved = choose(descent.active, (jnp.tanh(points) + 1) / 2, images)
    return dataclasses.replace(descent, points=points, adam=adam), moved


@jax.jit
def _judge(batch: Batch, descent: _Descent, answer: GradientAnswer) -> _Descent:
    """Notes the losses of the images, and where they have the confidence."""
    reached = margins(answer.logits, batch)
    squares = lengths(answer.images - batch.images, "l2") ** 2
    loss = squares + descent.weights * jnp.maximum(0.0, descent.thresholds - reached)
    enough = batch.is_adversarial(answer.logits) & (reached >= descent.thresholds)
    return dataclasses.replace(
        descent,
        lowest=jnp.minimum(descent.lowest, loss),
        found=descent.found | (enough & descent.active),
    )


@jax.jit
def _check(descent: _Descent) -> _Descent:
    """Leaves images alone whose smallest loss hardly fell since the last check."""
    fell = descent.lowest < (1 - _PROGRESS) * descent.checked
    return dataclasses.replace(descent, active=descent.active & fell, checked=descent.lowest)
