"""The fast gradient method: one gradient, followed as far as it takes.

FGSM for L-infinity: Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial
Examples", ICLR 2015 (https://arxiv.org/abs/1412.6572); FGM is the same with the normalized gradient
for L2. All candidates lie on the line

    x(epsilon) = clip(x + epsilon * direction(gradient of the loss at x), 0, 1).

Foolbox 1.x looks at 1,000 epsilons, evenly spaced, and takes the first that fools. A coarse scan
and a bisection find it as precisely with a few dozen queries.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from abs_model._runtime.checks import check_count
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.checks import longest_distance
from abs_model.attacks._core.norms import ascent_direction, per_image
from abs_model.attacks._core.query import Query
from abs_model.attacks._core.result import AttackResult
from abs_model.attacks._core.run import Progress, run
from abs_model.attacks._search.line_search import search_line
from abs_model.attacks.registry import Access, Queries, register
from abs_model.models.classifier import Classifier

_NORMS = ("l2", "linf")
# Of the scan, relative to the longest step: the first of Foolbox's 1,000 epsilons.
_SHORTEST = 1e-3


@register(
    title="Fast gradient",
    norms=_NORMS,
    access=Access.GRADIENTS,
    source="Goodfellow et al. 2015",
    smoke={"num_epsilons": 5},
    most_queries=lambda settings, norm, model: Queries(
        logits=settings["num_epsilons"] + settings["num_bisections"], gradients=1
    ),
)
def fast_gradient(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    norm: str,
    num_epsilons: int = 40,
    num_bisections: int = 10,
    targets: Any = None,
    progress: Progress | None = None,
) -> AttackResult:
    """Searches the direction of the gradient for the closest adversarial image.

    Scans `num_epsilons` step sizes that grow geometrically, from a thousandth of the longest that
    makes sense to that: 1 for L-infinity, the diagonal of the box, sqrt(pixels), for L2. Then
    bisects between the first that fools and the one before. What it finds is therefore the first
    crossing of the boundary, unless the line leaves again what it entered within a single interval
    of the scan. Queries the classifier at most `1 + num_epsilons + num_bisections` times, once with
    gradient; less where all images of a batch are done sooner.

    The loss is the margin of the logits, whose gradient leads to the nearest class at any scale of
    the logits. Nothing is random.

    Args:
        model, images, labels, targets, progress: As for every attack; see `abs_model.attacks`.
        key: A `jax.random.key`, or one for each image, (N,); not used.
        norm: "l2" (FGM) or "linf" (FGSM).
        num_epsilons: Step sizes of the scan.
        num_bisections: Each halves the interval that the scan has found.

    Returns:
        Per image the closest adversarial one; where there is none, that of the highest margin.

    Raises:
        ValueError: An argument is invalid.
    """
    num_epsilons = check_count("num_epsilons", num_epsilons)
    num_bisections = check_count("num_bisections", num_bisections)
    longest = longest_distance(norm, model.image_shape)

    def attack(query: Query, batch: Batch) -> None:
        gradients = query.gradients(batch.images).gradients
        path = functools.partial(_along, batch.images, gradients, longest, norm=norm)
        search_line(query, path, num_levels=num_epsilons, num_bisections=num_bisections)

    return run(
        attack, model, images, labels, key, norm=norm, norms=_NORMS, targets=targets,
        progress=progress,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames="norm")
def _along(
    originals: jax.Array, gradients: jax.Array, longest: float, fractions: jax.Array, norm: str
) -> jax.Array:
    """Images at fractions (n,) of the scan, at whose end the step is the longest."""
    steps = longest * _SHORTEST ** (1 - fractions)
    return jnp.clip(originals + per_image(steps) * ascent_direction(gradients, norm), 0.0, 1.0)
