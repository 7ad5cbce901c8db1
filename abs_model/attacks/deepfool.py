"""DeepFool: steps to the nearest of the linearized decision boundaries.

Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool: a simple and accurate method to fool deep neural
networks", CVPR 2016 (https://arxiv.org/abs/1511.04599), Algorithm 2.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from abs_model._runtime.checks import check_count, check_number
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.norms import (
    ascent_direction,
    choose,
    dual_norms,
    max_distance,
    per_image,
)
from abs_model.attacks._core.query import JacobianAnswer, Query
from abs_model.attacks._core.result import AttackResult
from abs_model.attacks._core.run import Progress, run
from abs_model.attacks._search.linearized_boundary import nearest_boundaries
from abs_model.attacks.registry import Access, Queries, register
from abs_model.models.classifier import Classifier

_NORMS = ("l2", "linf")
# A shorter step may be lost in rounding, and one of length 0 (logits that tie) never ends.
_SHORTEST_STEP = 1e-4


@register(
    title="DeepFool",
    norms=_NORMS,
    access=Access.GRADIENTS,
    source="Moosavi-Dezfooli et al. 2016",
    smoke={"num_steps": 5},
    most_queries=lambda settings, norm, model: Queries(jacobians=1 + settings["num_steps"]),
    newer=("num_classes",),
)
def deepfool(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    norm: str,
    num_steps: int = 100,
    overshoot: float = 0.02,
    num_classes: int = 10,
    progress: Progress | None = None,
) -> AttackResult:
    """Looks for close adversarial images with DeepFool.

    At x_i, each other class k has the linearized boundary f_k - f_label = 0. The step r_i leads
    to the nearest of these, and the next iterate is

        x_{i+1} = clip(x_0 + (1 + overshoot) (r_0 + ... + r_i))

    Images stop where they fool the classifier. Steps are of at least 1e-4.

    Queries the classifier at most `num_steps + 1` times, each time for the gradients of up to
    `num_classes` logits; stops when all images of the batch are done.

    Args:
        model, images, labels, progress: As for every attack; see `abs_model.attacks`.
        key: A `jax.random.key`, or one for each image, (N,). Nothing here is random.
        norm: "l2" or "linf".
        num_steps: Most steps. More than the 50 of Foolbox and the authors' code cost nothing where
            images are done sooner.
        overshoot: How far beyond the boundary to go, as a part of the whole way; at least 0. 0.02
            as in the paper.
        num_classes: Classes whose gradients are taken, at least 2: in each step the label and those
            of the largest other logits. 10 as in the authors' code and Foolbox, which choose them
            once, at the original. Time and memory grow with it.

    Returns:
        Per image the first adversarial iterate; where there is none, that of the highest margin.

    Raises:
        ValueError: An argument is invalid.
    """
    num_steps = check_count("num_steps", num_steps)
    overshoot = check_number("overshoot", overshoot, minimum=0.0)
    num_classes = check_count("num_classes", num_classes, minimum=2)

    def attack(query: Query, batch: Batch) -> None:
        answer = query.jacobian(batch.images, num_classes=num_classes)
        total = jnp.zeros_like(batch.images)
        for _ in range(num_steps):
            if query.all_succeeded():
                break
            images, total = _step(batch, answer, total, query.best.success, overshoot, norm=norm)
            answer = query.jacobian(images, near=answer, num_classes=num_classes)
            answer = query.verify(answer)

    return run(
        attack,
        model,
        images,
        labels,
        key,
        norm=norm,
        norms=_NORMS,
        verify_regularly=False,
        progress=progress,
    )


@functools.partial(jax.jit, static_argnames="norm")
def _step(
    batch: Batch,
    answer: JacobianAnswer,
    total: jax.Array,
    done: jax.Array,
    overshoot: jax.Array,
    *,
    norm: str,
) -> tuple[jax.Array, jax.Array]:
    """The next iterates, and the sums of their steps."""
    planes = nearest_boundaries(answer.jacobian, answer.logits, batch, norm=norm)
    steepness = dual_norms(planes.normals, norm)
    away = jnp.abs(planes.values) / jnp.where(steepness > 0, steepness, 1.0)
    # Linearised far from any boundary, it may seem to be far outside of the range of images.
    away = jnp.clip(away, _SHORTEST_STEP, max_distance(batch.images, norm))
    new = total + per_image(away) * ascent_direction(planes.normals, norm)
    moved = jnp.clip(batch.images + (1 + overshoot) * new, 0.0, 1.0)
    return choose(done, (answer.images, total), (moved, new))
