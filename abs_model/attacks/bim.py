"""The basic iterative method, with the smallest epsilon at which it succeeds.

Kurakin, Goodfellow and Bengio, "Adversarial Examples in the Physical World", ICLR workshop 2017
(https://arxiv.org/abs/1607.02533). From the original image,

    x <- project(x + step_size * direction(gradient of the loss at x))
"""

import functools
from typing import Any

import jax

from abs_model._runtime.checks import check_count
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.norms import per_image
from abs_model.attacks._core.query import GradientAnswer, Query
from abs_model.attacks._core.result import AttackResult
from abs_model.attacks._core.run import Progress, run
from abs_model.attacks._core.steps import take_step
from abs_model.attacks._search.smallest_epsilon import most_search_queries, search_smallest_epsilon
from abs_model.attacks.registry import Access, register
from abs_model.models.classifier import Classifier

_NORMS = ("l2", "linf")


@register(
    title="BIM",
    norms=_NORMS,
    access=Access.GRADIENTS,
    source="Kurakin et al. 2017",
    smoke={"num_searches": 2},
    most_queries=most_search_queries,
)
def bim(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    norm: str,
    num_steps: int = 10,
    num_searches: int = 20,
    targets: Any = None,
    progress: Progress | None = None,
) -> AttackResult:
    """Attacks with the basic iterative method at the smallest epsilon that succeeds.

    The first epsilon is 0.3 for L-infinity and 0.3 sqrt(pixels) for L2 (a root mean square of 0.3);
    while it fails it grows by half, then the interval between the largest that fails and the
    distance of the closest adversarial image found is halved. Steps are epsilon / 6 long. These are
    the settings of Foolbox 1.x, where 20 searches come after the growth, and the interval ends at
    the smallest epsilon that succeeds; here the 20 include the growth. Fewer than 6 steps are
    epsilon / num_steps long, so that they can reach epsilon. Every iterate counts. Queries the
    classifier `1 + num_searches * num_steps` times, of these
    `1 + num_searches * (num_steps - 1)` times with gradient: that of the original image serves
    every search.

    The loss is the margin of the logits, whose gradient leads to the nearest class at any scale of
    the logits. Nothing is random.

    Args:
        model, images, labels, targets, progress: As for every attack; see `abs_model.attacks`.
        key: A `jax.random.key`, or one for each image, (N,); not used.
        norm: "l2" or "linf".
        num_steps: Steps within each epsilon.
        num_searches: Epsilons to try.

    Returns:
        Per image the closest adversarial one; where there is none, that of the highest margin.

    Raises:
        ValueError: An argument is invalid.
    """
    num_steps = check_count("num_steps", num_steps)
    num_searches = check_count("num_searches", num_searches)

    step = functools.partial(_step, relative_step=max(1 / 6, 1 / num_steps), norm=norm)

    def attack(query: Query, batch: Batch) -> None:
        original = query.gradients(batch.images)

        def ascend(epsilons: jax.Array) -> jax.Array:
            answer = original
            for _ in range(num_steps - 1):
                answer = query.gradients(step(answer, batch, epsilons), near=answer)
            return step(answer, batch, epsilons)

        search_smallest_epsilon(query, ascend, num_searches=num_searches)

    return run(
        attack, model, images, labels, key, norm=norm, norms=_NORMS, targets=targets,
        progress=progress,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames="norm")
def _step(
    answer: GradientAnswer, batch: Batch, epsilons: jax.Array, *, relative_step: float, norm: str
) -> jax.Array:
    step_size = per_image(relative_step * epsilons)
    return take_step(
        answer.images, answer.gradients, batch.images, epsilon=epsilons, step_size=step_size,
        norm=norm,
    )  # fmt: skip
