"""Auto-PGD (APGD): projected gradient ascent that sets its own step size.

Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
Parameter-free Attacks", ICML 2020 (https://arxiv.org/abs/2003.01690), algorithm 1. Steps have
momentum:

    z <- project(x + step_size * direction(gradient of the loss at x))
    x <- project(x + 0.75 * (z - x) + 0.25 * (x - x before))

They begin at twice epsilon. At checkpoints that come ever more often, the step size is halved and
the search continues from the best point so far, for each image whose loss has risen in fewer than
three quarters of the steps, or whose highest loss and step size are those of the checkpoint before.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from abs_model._runtime.checks import check_count
from abs_model._runtime.pytrees import register_dataclass
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.checks import check_epsilon, check_norm
from abs_model.attacks._core.keys import split_keys
from abs_model.attacks._core.losses import Loss, log_odds, margins
from abs_model.attacks._core.norms import ascent_direction, choose, per_image, project, random_start
from abs_model.attacks._core.query import Answer, GradientAnswer, Query
from abs_model.attacks._core.result import AttackResult
from abs_model.attacks._core.run import Progress, run
from abs_model.attacks.registry import Access, Queries, register
from abs_model.models.classifier import Classifier

_NORMS = ("l2", "linf")
_MOMENTUM = 0.25  # 1 - alpha in the paper
_ENOUGH_RISES = 0.75  # rho in the paper


def dlr(logits: jax.Array, batch: Batch) -> jax.Array:
    """The difference of logits ratio, (n,); neither shifting nor scaling the logits changes it.

    The margin, divided by the largest logit minus the third largest (the paper's eq. 6) or, for a
    target, minus the mean of the third and the fourth. For a target the paper (eq. 7) has the
    target's margin over the label instead of that over all other classes. They are the same for as
    long as the label is ahead, which is to say, until the classifier is fooled.
    """
    largest = jax.lax.top_k(logits, 4 if batch.targeted else 3)[0]
    spread = largest[:, 0] - largest[:, 2:].mean(1)
    # Of equal logits, whose spread is 0, the margin.
    return margins(logits, batch) / jnp.where(spread > 0, spread, 1.0)


LOSSES: dict[str, Loss] = {"ce": log_odds, "dlr": dlr, "targeted_dlr": dlr}


def min_num_classes(settings: Mapping[str, Any], targeted: bool) -> int:
    """How many classes a model must have: the DLR losses divide by the third largest logits."""
    if settings["loss"] == "ce":
        return 2
    return 4 if targeted or settings["loss"] == "targeted_dlr" else 3


def _most_queries(settings: Mapping[str, Any], norm: str, model: Classifier) -> Queries:
    ascents = settings["num_restarts"]
    if settings["loss"] == "targeted_dlr":
        ascents *= min(settings["num_targets"], model.num_classes - 1)
    return Queries(logits=1 + ascents, gradients=ascents * settings["num_steps"])


@register(
    title="APGD",
    norms=_NORMS,
    access=Access.GRADIENTS,
    source="Croce and Hein 2020",
    smoke={"num_restarts": 1, "num_steps": 5},
    min_num_classes=min_num_classes,
    most_queries=_most_queries,
)
def apgd(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    norm: str,
    epsilon: float,
    loss: str = "dlr",
    num_steps: int = 100,
    num_restarts: int = 1,
    num_targets: int = 9,
    targets: Any = None,
    progress: Progress | None = None,
) -> AttackResult:
    """Attacks a classifier with Auto-PGD.

    Looks at the original image and at every iterate of every ascent. Queries the classifier
    `1 + num_ascents * (num_steps + 1)` times, `num_ascents * num_steps` times with gradient, where
    `num_ascents` is `num_restarts`, for the loss "targeted_dlr" times the number of targets.

    Args:
        model, images, labels, progress: As for every attack; see `abs_model.attacks`.
        key: A `jax.random.key`, or one for each image, (N,): of the random starts.
        norm: "l2" or "linf".
        epsilon: Largest distance in that norm, for pixels in [0, 1]: from 0 to that of black and
            white, 1 in L-infinity.
        loss: "dlr", the difference of logits ratio, whatever the scale of the logits;
            "targeted_dlr", the same for each of several other classes in turn; or "ce", the
            cross-entropy, by way of the log-odds, which point in the same direction and don't
            vanish. The ensemble AutoAttack has "ce" and "targeted_dlr".
        num_steps: Steps of each ascent; 100 in the paper.
        num_restarts: Ascents, each from another uniformly drawn point of the ball.
        num_targets: Of "targeted_dlr": how many other classes to lead to, those of the highest
            logits at the original image; all of them if there are fewer. 9 in the paper.
        targets: Target classes, integers (N,); by default any class but the label. With them
            "targeted_dlr" is "dlr".

    Returns:
        Per image the closest adversarial one; where there is none, that of the highest margin.

    Raises:
        ValueError: An argument is invalid, or the model has too few classes for the loss:
            less than 3 for "dlr", or than 4 where that is for targets.
    """
    check_norm(norm, _NORMS)
    epsilon = check_epsilon(epsilon, norm, model.image_shape)
    num_steps = check_count("num_steps", num_steps)
    num_restarts = check_count("num_restarts", num_restarts)
    num_targets = check_count("num_targets", num_targets)
    in_turn = loss == "targeted_dlr" and targets is None
    _check_loss(loss, model.num_classes, targets is not None)
    num_targets = min(num_targets, model.num_classes - 1)

    def attack(query: Query, batch: Batch) -> None:
        original = query.logits(batch.images)
        goals = _goals(batch, original.logits, num_targets) if in_turn else [batch]
        for ascent in range(num_restarts * len(goals)):
            start = random_start(split_keys(batch, ascent), batch.images, epsilon, norm)
            goal = goals[ascent % len(goals)]
            _ascend(query, goal, original, start, LOSSES[loss], epsilon, num_steps)

    return run(
        attack, model, images, labels, key, norm=norm, norms=_NORMS, epsilon=epsilon,
        targets=targets, progress=progress,
    )  # fmt: skip


def _check_loss(loss: str, num_classes: int, targeted: bool) -> None:
    if not isinstance(loss, str) or loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    if num_classes < (fewest := min_num_classes({"loss": loss}, targeted)):
        raise ValueError(
            f"num_classes of the model must be at least {fewest} for the loss {loss!r}, got"
            f" {num_classes}; 'ce' will do with 2"
        )


def _goals(batch: Batch, logits: jax.Array, count: int) -> list[Batch]:
    """The batch with the other classes of the highest logits as targets, one after the other."""
    is_label = jnp.arange(logits.shape[1]) == batch.classes[:, None]
    _, targets = jax.lax.top_k(jnp.where(is_label, -jnp.inf, logits), count)
    return [dataclasses.replace(batch, classes=column, targeted=True) for column in targets.T]


def _ascend(
    query: Query,
    goal: Batch,
    original: Answer,
    start: jax.Array,
    loss: Loss,
    epsilon: float,
    num_steps: int,
) -> None:
    """One run of APGD towards `goal`; `original` is the answer about the originals."""
    gradients = functools.partial(query.gradients, loss=loss, goal=goal)
    path = _begin(goal, gradients(start, near=original), epsilon, loss)
    checkpoints = _checkpoints(num_steps)
    last_checkpoint = 0
    for step in range(1, num_steps):
        images = _step(path, query.batch, epsilon, 0.0 if step == 1 else _MOMENTUM, query.norm)
        answer = gradients(images, near=path.here.answer)
        path = _note(path, goal, answer, loss)
        if query.just_verified:
            # A rejected example would stay the top for good.
            path = _renew(path, goal, gradients(path.top.answer.images), loss)
        if step in checkpoints:
            path = _check(path, _ENOUGH_RISES * (step - last_checkpoint))
            last_checkpoint = step
    momentum = 0.0 if num_steps == 1 else _MOMENTUM
    query.finish(_step(path, query.batch, epsilon, momentum, query.norm))


def _checkpoints(num_steps: int) -> set[int]:
    """After which steps to look at the step size: ceil(p_j * num_steps) with p_1 = 0.22 and
    p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06).
    """
    # In whole hundredths, whose multiples floats miss.
    previous, current = 0, 22
    steps = set()
    while current < 100:
        steps.add(-(-current * num_steps // 100))
        previous, current = current, current + max(current - previous - 3, 6)
    return steps


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Point:
    """Images with their gradients, as the classifier answers, and losses (n,)."""

    answer: GradientAnswer
    losses: jax.Array


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Path:
    """How far an ascent has come.

    Attributes:
        here: The current iterates.
        before: Images of those before.
        top: The iterates of the highest losses.
        step_sizes: (n,).
        rises: How many steps since the last checkpoint have raised the loss, (n,).
        checked: The highest losses at the last checkpoint, (n,).
        halved: Whether the step size was halved there, bool (n,).
    """

    here: _Point
    before: jax.Array
    top: _Point
    step_sizes: jax.Array
    rises: jax.Array
    checked: jax.Array
    halved: jax.Array


@functools.partial(jax.jit, static_argnames="loss")
def _begin(goal: Batch, answer: GradientAnswer, epsilon: float, loss: Loss) -> _Path:
    here = _Point(answer, loss(answer.logits, goal))
    none = jnp.zeros(len(here.losses))
    return _Path(
        here, answer.images, here, none + 2 * epsilon, rises=none, checked=here.losses,
        halved=none > 0,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames="norm")
def _step(path: _Path, batch: Batch, epsilon: float, momentum: float, norm: str) -> jax.Array:
    here = path.here.answer
    steps = per_image(path.step_sizes) * ascent_direction(here.gradients, norm)
    ahead = project(here.images + steps, batch.images, epsilon, norm)
    change = (1 - momentum) * (ahead - here.images) + momentum * (here.images - path.before)
    return project(here.images + change, batch.images, epsilon, norm)


@functools.partial(jax.jit, static_argnames="loss")
def _note(path: _Path, goal: Batch, answer: GradientAnswer, loss: Loss) -> _Path:
    here = _Point(answer, loss(answer.logits, goal))
    return dataclasses.replace(
        path,
        here=here,
        before=path.here.answer.images,
        top=choose(here.losses > path.top.losses, here, path.top),
        rises=path.rises + (here.losses > path.here.losses),
    )


@functools.partial(jax.jit, static_argnames="loss")
def _renew(path: _Path, goal: Batch, answer: GradientAnswer, loss: Loss) -> _Path:
    """With a cold answer about the top."""
    top = _Point(answer, loss(answer.logits, goal))
    return dataclasses.replace(path, top=top, checked=jnp.minimum(path.checked, top.losses))


@jax.jit
def _check(path: _Path, enough_rises: float) -> _Path:
    """Halves step sizes where the ascent has stalled, and goes back to the top there."""
    stuck = ~path.halved & (path.top.losses <= path.checked)
    halved = stuck | (path.rises < enough_rises)
    return dataclasses.replace(
        path,
        here=choose(halved, path.top, path.here),
        step_sizes=jnp.where(halved, path.step_sizes / 2, path.step_sizes),
        rises=jnp.zeros_like(path.rises),
        checked=path.top.losses,
        halved=halved,
    )
