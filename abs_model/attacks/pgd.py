"""Projected gradient descent (PGD): steepest ascent of the loss within a ball around the image.

Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018
(https://arxiv.org/abs/1706.06083). Each step is

    x <- project(x + step_size * direction(gradient of the loss at x))

with the gradient's sign for L-infinity and the normalized gradient for L2. `ascend` repeats it
inside a traced program (adversarial training), `pgd` from Python (evaluation: it also keeps the
closest adversarial image).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from abs_model._runtime.checks import check_bool, check_count
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.checks import check_epsilon, check_norm
from abs_model.attacks._core.keys import image_keys, split_keys
from abs_model.attacks._core.losses import log_odds
from abs_model.attacks._core.norms import random_start as draw_start
from abs_model.attacks._core.query import Query
from abs_model.attacks._core.result import AttackResult
from abs_model.attacks._core.run import Progress, run
from abs_model.attacks._core.steps import take_step
from abs_model.attacks.registry import Access, Queries, register
from abs_model.models.classifier import Classifier

LogitsFunction = Callable[[jax.Array], jax.Array]
_NORMS = ("l2", "linf")


@register(
    title="PGD",
    norms=_NORMS,
    access=Access.GRADIENTS,
    source="Madry et al. 2018",
    smoke={"num_restarts": 1, "num_steps": 5},
    most_queries=lambda settings, norm, model: Queries(
        logits=1 + settings["num_restarts"],
        gradients=settings["num_restarts"] * settings["num_steps"],
    ),
)
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
    targets: Any = None,
    progress: Progress | None = None,
) -> AttackResult:
    """Attacks a classifier with PGD on the margin of the logits.

    Looks at the original image and at every iterate of every restart. Queries the classifier
    `1 + num_restarts * (num_steps + 1)` times, `num_restarts * num_steps` times with gradient.

    Args:
        model, images, labels, targets, progress: As for every attack; see `abs_model.attacks`.
        key: A `jax.random.key`, or one for each image, (N,): of the random starts.
        norm: "l2" or "linf".
        epsilon: Largest distance in that norm, for pixels in [0, 1]: from 0 to that of black and
            white, 1 in L-infinity.
        step_size: Length of a step in the same unit; above 0, at most that of black and white.
        num_steps: Steps from each start.
        num_restarts: Starts to try.
        random_start: Whether to start from a uniformly drawn point of the ball; else from the
            original image, and `num_restarts` must be 1.

    Returns:
        Per image the closest adversarial one; where there is none, that of the highest margin.

    Raises:
        ValueError: An argument is invalid.
    """
    check_norm(norm, _NORMS)
    epsilon = check_epsilon(epsilon, norm, model.image_shape)
    step_size = check_epsilon(step_size, norm, model.image_shape, name="step_size", exclusive=True)
    num_steps = check_count("num_steps", num_steps)
    num_restarts = check_count("num_restarts", num_restarts)
    check_bool("random_start", random_start)
    if not random_start and num_restarts > 1:
        raise ValueError(
            f"num_restarts must be 1 without random_start, got {num_restarts}: all would be equal"
        )
    step = functools.partial(take_step, epsilon=epsilon, step_size=step_size, norm=norm)

    def attack(query: Query, batch: Batch) -> None:
        original = query.logits(batch.images)
        for restart in range(num_restarts):
            answer, images = original, batch.images
            if random_start:
                images = draw_start(split_keys(batch, restart), images, epsilon, norm)
            for _ in range(num_steps):
                answer = query.gradients(images, near=answer)
                images = step(images, answer.gradients, batch.images)
            query.finish(images)

    return run(
        attack, model, images, labels, key, norm=norm, norms=_NORMS, epsilon=epsilon,
        targets=targets, progress=progress,
    )  # fmt: skip


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
    """The last iterate of PGD on the log-odds, as a pure function for larger programs.

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
    batch = Batch(images, labels, image_keys(key, len(images)), targeted=False)
    start = draw_start(batch.keys, images, epsilon, norm) if random_start else images

    def body(_: jax.Array, iterates: jax.Array) -> jax.Array:
        gradients = jax.grad(lambda x: log_odds(logits_function(x), batch).sum())(iterates)
        return take_step(
            iterates, gradients, images, epsilon=epsilon, step_size=step_size, norm=norm
        )

    return lax.fori_loop(0, num_steps, body, start)
