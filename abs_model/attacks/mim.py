"""The momentum iterative method, with the smallest epsilon at which it succeeds.

Dong et al., "Boosting Adversarial Attacks with Momentum", CVPR 2018
(https://arxiv.org/abs/1710.06081). It is the basic iterative method along the direction of

    m <- decay * m + gradient / mean of |gradient|
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from abs_model._runtime.checks import check_count, check_number
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
    title="MIM",
    norms=_NORMS,
    access=Access.GRADIENTS,
    source="Dong et al. 2018",
    smoke={"num_searches": 2},
    most_queries=most_search_queries,
)
def mim(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    norm: str,
    decay: float = 1.0,
    num_steps: int = 10,
    num_searches: int = 20,
    targets: Any = None,
    progress: Progress | None = None,
) -> AttackResult:
    """Attacks with the momentum iterative method at the smallest epsilon that succeeds.

    All is as in `bim` but that gradients add up, and that steps are epsilon / 5 long, fewer than 5
    of them epsilon / num_steps.

    Args:
        model, images, labels, targets, progress: As for every attack; see `abs_model.attacks`.
        key: A `jax.random.key`, or one for each image, (N,); not used.
        norm: "l2" or "linf".
        decay: Of the sum of gradients with each step, at least 0; 1 in the paper.
        num_steps: Steps within each epsilon.
        num_searches: Epsilons to try.

    Returns:
        Per image the closest adversarial one; where there is none, that of the highest margin.

    Raises:
        ValueError: An argument is invalid.
    """
    decay = check_number("decay", decay, minimum=0.0)
    num_steps = check_count("num_steps", num_steps)
    num_searches = check_count("num_searches", num_searches)

    step = functools.partial(_step, decay=decay, relative_step=max(1 / 5, 1 / num_steps), norm=norm)

    def attack(query: Query, batch: Batch) -> None:
        original = query.gradients(batch.images)

        def ascend(epsilons: jax.Array) -> jax.Array:
            answer, momenta = original, jnp.zeros_like(batch.images)
            for _ in range(num_steps - 1):
                images, momenta = step(answer, momenta, batch, epsilons)
                answer = query.gradients(images, near=answer)
            return step(answer, momenta, batch, epsilons)[0]

        search_smallest_epsilon(query, ascend, num_searches=num_searches)

    return run(
        attack, model, images, labels, key, norm=norm, norms=_NORMS, targets=targets,
        progress=progress,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames="norm")
def _step(
    answer: GradientAnswer,
    momenta: jax.Array,
    batch: Batch,
    epsilons: jax.Array,
    *,
    decay: float,
    relative_step: float,
    norm: str,
) -> tuple[jax.Array, jax.Array]:
    """The next iterates, and the sums of gradients that led there."""
    sizes = jnp.abs(answer.gradients).mean((1, 2, 3))
    momenta = decay * momenta + answer.gradients / per_image(jnp.where(sizes > 0, sizes, 1.0))
    step_size = per_image(relative_step * epsilons)
    moved = take_step(
        answer.images, momenta, batch.images, epsilon=epsilons, step_size=step_size, norm=norm
    )
    return moved, momenta
