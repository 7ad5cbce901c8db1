"""Latent Descent: the paper's attack on ABS, which follows other classes' explanations.

Schott, Rauber, Bethge and Brendel, "Towards the first adversarially robust neural network model on
MNIST", ICLR 2019 (https://arxiv.org/abs/1805.09190), section 4.
"""

from typing import Any

import jax
import jax.numpy as jnp

from abs_model._runtime.checks import check_count, check_number
from abs_model.attacks._abs.explanations import check_abs
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.norms import choose, take_class
from abs_model.attacks._core.query import Answer, Query
from abs_model.attacks._core.result import AttackResult
from abs_model.attacks._core.run import Progress, run
from abs_model.attacks._search.line_search import bisect_to_boundary, most_bisection_queries
from abs_model.attacks.registry import Access, Queries, register
from abs_model.models.classifier import Classifier

_NORMS = ("l2",)


@register(
    title="Latent Descent",
    norms=_NORMS,
    access=Access.ABS,
    source="Schott et al. 2019",
    smoke={"num_steps": 10, "step_size": 0.1},
    most_queries=lambda settings, norm, model: Queries(
        logits=1 + settings["num_steps"] + most_bisection_queries(settings["num_bisections"])
    ),
)
def latent_descent(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    num_steps: int = 300,
    step_size: float = 0.01,
    num_bisections: int = 10,
    progress: Progress | None = None,
) -> AttackResult:
    """Attacks an ABS model along the reconstructions of the class that comes second.

    With G the best reconstruction of x_t by the best class other than the label,

        x_{t+1} = x_t + step_size (G - x_t)

    until x_t is adversarial. The straight way from the original to that x_t is then bisected.

    Makes at most `3 + num_steps + num_bisections` queries, one more at the end, and one more after
    each step that seems to have made images of the batch adversarial, two where that is rejected;
    stops when all are adversarial.

    Args:
        images, labels, progress: As for every attack; see `abs_model.attacks`.
        model: An ABS or Binary ABS model.
        key: A `jax.random.key`, or one for each image, (N,). Nothing here is random.
        num_steps: Most steps.
        step_size: Part of the way to the reconstruction that each step goes; above 0, at most 1.
        num_bisections: Each halves what is left of the way.

    Returns:
        Per image the closest adversarial one; where there is none, that of the highest margin.

    Raises:
        ValueError: An argument is invalid; the model is no ABS model.
    """
    check_abs(model, "latent_descent")
    num_steps = check_count("num_steps", num_steps)
    num_bisections = check_count("num_bisections", num_bisections)
    step_size = check_number("step_size", step_size, minimum=0.0, maximum=1.0, exclusive=True)

    def attack(query: Query, batch: Batch) -> None:
        answer = query.logits(batch.images)
        for _ in range(num_steps):
            if query.all_succeeded():
                break
            images = _step(batch, answer, query.best.success, step_size)
            answer = query.verify(query.logits(images, near=answer))
        bisect_to_boundary(query, query.best.images, num_bisections)

    return run(
        attack,
        model,
        images,
        labels,
        key,
        norm="l2",
        norms=_NORMS,
        verify_regularly=False,
        progress=progress,
    )


@jax.jit
def _step(batch: Batch, answer: Answer, done: jax.Array, step_size: jax.Array) -> jax.Array:
    """A step towards the best other class's reconstruction; images stay where they are done."""
    images, logits = answer.images, answer.logits
    is_label = jax.nn.one_hot(batch.classes, logits.shape[1], dtype=bool)
    others = jnp.where(is_label, -jnp.inf, logits).argmax(1)
    change = take_class(answer.state.reconstructions, others) - images
    return choose(done, images, jnp.clip(images + step_size * change, 0.0, 1.0))
