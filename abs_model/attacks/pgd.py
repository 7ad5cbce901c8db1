"""Projected gradient descent (PGD): steepest ascent of the loss within a ball around the image.

Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018
(https://arxiv.org/abs/1706.06083). Each step is

    x <- project(x + step_size * direction(gradient of the loss at x))

with the gradient's sign for L-infinity and the normalised gradient for L2. `pgd_step` is that step;
`ascend` repeats it inside a traced program (adversarial training), `pgd` repeats it from Python
(evaluation: it also looks for the closest misclassified image, and shows its progress).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from abs_model.attacks.base import (
    AttackResult,
    ascent_direction,
    check_count,
    check_labels,
    check_norm,
    check_number,
    distances,
    project,
)
from abs_model.attacks.base import random_start as draw_start
from abs_model.classifiers import Classifier
from abs_model.images import check_images

LogitsFunction = Callable[[jax.Array], jax.Array]
LossFunction = Callable[[jax.Array, jax.Array], jax.Array]


def pgd(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    norm: str,
    epsilon: float,
    step_size: float,
    num_steps: int,
    num_restarts: int = 1,
    random_start: bool = True,
    first_index: int = 0,
    progress: Callable[[int], None] | None = None,
) -> AttackResult:
    """Attacks a classifier with PGD.

    Looks at the original image and at every iterate of every restart, and keeps the misclassified
    one that is closest to the original. Costs `1 + num_restarts * (num_steps + 1)` evaluations of
    the classifier, of which `num_restarts * num_steps` with gradient. Images are attacked in
    batches of at most `model.batch_size`.

    Args:
        model: The classifier.
        images: Float32 (N, height, width, channels) in [0, 1].
        labels: Integers (N,): the classes to lead away from.
        key: A `jax.random.key`, of the random starts. The start of an image depends on `key`, the
            restart and the image's index alone: not on how a data set is split into calls.
        norm: "l2" or "linf".
        epsilon: Largest distance in that norm; pixels are in [0, 1]. At least 0.
        step_size: Length of a step in the same unit; above 0.
        num_steps: Steps from each start.
        num_restarts: Starts to try.
        random_start: Whether to start from a uniformly drawn point of the ball; else from the
            original image, and `num_restarts` must be 1.
        first_index: The index of `images[0]` in the data set.
        progress: Called with the number of steps done, after each of the
            `num_restarts * num_steps`.

    Returns:
        Per image the closest misclassified image; where there is none, the one of the highest
        loss.

    Raises:
        ValueError: An argument isn't as described.
    """
    check_norm(norm)
    check_number("epsilon", epsilon, minimum=0.0)
    check_number("step_size", step_size, minimum=0.0, exclusive=True)
    check_count("num_steps", num_steps)
    check_count("num_restarts", num_restarts)
    if not random_start and num_restarts > 1:
        raise ValueError(
            f"num_restarts must be 1 without random_start, got {num_restarts}: all would be equal"
        )
    images = check_images(images, model.image_shape)
    labels = check_labels(labels, len(images), model.num_classes)
    model, batches = _split(model, images, labels)
    consider = functools.partial(_consider, model, norm=norm)
    take_step = functools.partial(
        _attack_step, model, epsilon=epsilon, step_size=step_size, norm=norm
    )
    best = [consider(batch[0], *batch, None) for batch in batches]
    for restart in range(num_restarts):
        iterates = [batch[0] for batch in batches]
        if random_start:
            restart_key = jax.random.fold_in(key, restart)
            firsts = range(first_index, first_index + len(images), model.batch_size)
            iterates = [
                _start(restart_key, originals, epsilon, norm, first)
                for originals, first in zip(iterates, firsts, strict=True)
            ]
        for step in range(num_steps):
            for i, batch in enumerate(batches):
                iterates[i], best[i] = take_step(iterates[i], *batch, best[i])
            if progress is not None:
                jax.block_until_ready(iterates)
                progress(restart * num_steps + step + 1)
        for i, batch in enumerate(batches):
            best[i] = consider(iterates[i], *batch, best[i])
    results = [result for result, _ in best]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts)[: len(images)], *results)


def ascend(
    logits_function: LogitsFunction,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    *,
    norm: str,
    epsilon: float | jax.Array,
    step_size: float | jax.Array,
    num_steps: int | jax.Array,
    random_start: bool = True,
) -> jax.Array:
    """The last iterate of PGD, as a pure function to be traced into a larger program.

    Args:
        logits_function: From images (N, height, width, channels) to logits (N, classes).
        images: Float32 (N, height, width, channels) in [0, 1].
        labels: Integers (N,).
        key: A `jax.random.key`, of the random start.
        norm: "l2" or "linf".
        epsilon: Largest distance in that norm.
        step_size: Length of a step.
        num_steps: Number of steps.
        random_start: Whether to start from a uniformly drawn point of the ball.

    Returns:
        Images in [0, 1] within `epsilon` of `images`.

    Raises:
        ValueError: `norm` is none of these.
    """
    start = draw_start(key, images, epsilon, norm) if random_start else images

    def body(_: jax.Array, iterates: jax.Array) -> jax.Array:
        return pgd_step(
            logits_function, iterates, images, labels, loss=log_odds, norm=norm, epsilon=epsilon,
            step_size=step_size,
        )[0]  # fmt: skip

    return lax.fori_loop(0, num_steps, body, start)


def pgd_step(
    logits_function: LogitsFunction,
    iterates: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    *,
    loss: LossFunction,
    norm: str,
    epsilon: float | jax.Array,
    step_size: float | jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """One step of PGD, with one evaluation of the classifier.

    Args:
        logits_function: From images (N, height, width, channels) to logits (N, classes).
        iterates: Where the attack stands, in [0, 1].
        images: The originals.
        labels: Integers (N,).
        loss: What to ascend: from logits (N, classes) and labels (N,) to losses (N,).
        norm: "l2" or "linf".
        epsilon: Largest distance in that norm.
        step_size: Length of a step.

    Returns:
        The next iterates, and the logits (N, classes) at the present ones.
    """

    def objective(iterates: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = logits_function(iterates)
        return loss(logits, labels).sum(), logits

    gradients, logits = jax.grad(objective, has_aux=True)(iterates)
    moved = iterates + step_size * ascent_direction(gradients, norm)
    return project(moved, images, epsilon, norm), logits


def log_odds(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The log-odds against the label, (N,): what adversarial training ascends.

    This is m = logsumexp(other logits) - logit of the label. The cross-entropy is
    log(1 + exp(m)), so its gradient points where that of m points, and steps of a set length
    see no difference. But where the classifier is sure, the gradient of the cross-entropy vanishes
    in float32 (beyond some 17 nats the label's part of it is rounded away), and that of m doesn't:
    confidence is no protection.

    Args:
        logits: (N, classes), at least two classes.
        labels: Integers (N,).
    """
    is_label = jnp.arange(logits.shape[1]) == labels[:, None]
    others = jax.nn.logsumexp(jnp.where(is_label, -jnp.inf, logits), axis=1)
    return others - jnp.where(is_label, logits, 0.0).sum(1)


def margins(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The largest other logit minus the label's, (N,): what evaluation ascends; above 0 is wrong.

    The loss of Carlini and Wagner (2017). Unlike cross-entropy and `log_odds` it does not depend on
    the scale of the logits: those of ABS differ by hundredths, at which a softmax is nearly uniform
    and its gradient pushes towards all other classes at once instead of the nearest.

    Args:
        logits: (N, classes), at least two classes.
        labels: Integers (N,).
    """
    is_label = jnp.arange(logits.shape[1]) == labels[:, None]
    others = jnp.where(is_label, -jnp.inf, logits).max(axis=1)
    return others - jnp.where(is_label, logits, 0.0).sum(1)


def _split(
    model: Classifier, images: jax.Array, labels: jax.Array
) -> tuple[Classifier, list[tuple[jax.Array, jax.Array]]]:
    """Batches of one size, no larger than the model's, and the model with that batch size.

    As few and as equal as can be, since padding (zeros, in the last batch) costs as much as images.
    """
    num_batches = -(-len(images) // model.batch_size)
    size = -(-len(images) // num_batches)
    missing = num_batches * size - len(images)
    images = jnp.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
    labels = jnp.pad(labels, (0, missing))
    firsts = range(0, len(images), size)
    batches = [(images[first : first + size], labels[first : first + size]) for first in firsts]
    return model.with_batch_size(size), batches


_start = jax.jit(draw_start, static_argnames="norm")

Best = tuple[AttackResult, jax.Array]  # with the loss at its images, (N,)


@functools.partial(jax.jit, static_argnames="norm")
def _attack_step(
    model: Classifier,
    iterates: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    best: Best,
    *,
    epsilon: float,
    step_size: float,
    norm: str,
) -> tuple[jax.Array, Best]:
    following, logits = pgd_step(
        model.logits,
        iterates,
        images,
        labels,
        loss=margins,
        norm=norm,
        epsilon=epsilon,
        step_size=step_size,
    )
    candidate = _result(iterates, images, labels, logits, norm)
    return following, _better(best, candidate)


@functools.partial(jax.jit, static_argnames="norm")
def _consider(
    model: Classifier,
    iterates: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    best: Best | None,
    *,
    norm: str,
) -> Best:
    """The better of `best` and the iterates themselves."""
    candidate = _result(iterates, images, labels, model.logits(iterates), norm)
    return candidate if best is None else _better(best, candidate)


def _result(
    iterates: jax.Array, images: jax.Array, labels: jax.Array, logits: jax.Array, norm: str
) -> Best:
    success = logits.argmax(1) != labels
    result = AttackResult(iterates, success, distances(iterates, images, norm))
    return result, margins(logits, labels)


def _better(best: Best, candidate: Best) -> Best:
    """Per image: success over failure, then the closer success, or the failure of higher loss."""
    (old, old_loss), (new, new_loss) = best, candidate
    better = jnp.where(
        new.success,
        ~old.success | (new.distances < old.distances),
        ~old.success & (new_loss > old_loss),
    )

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(better.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(choose, candidate, best)
