"""Transfer attack: directions that fool another classifier, followed as far as it takes.

Schott, Rauber, Bethge and Brendel, "Towards the first adversarially robust neural network model on
MNIST", ICLR 2019 (https://arxiv.org/abs/1805.09190): adversarial images of a substitute network are
crafted with the fast gradient method, BIM, DeepFool and MIM, and for each a line search finds how
far the perturbation must be scaled to fool the model. No gradient of the model is needed.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from abs_model._runtime.checks import check_count
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.checks import check_norm
from abs_model.attacks._core.norms import lengths, per_image
from abs_model.attacks._core.query import Query
from abs_model.attacks._core.result import AttackResult
from abs_model.attacks._core.run import Progress, run
from abs_model.attacks._search.line_search import search_line
from abs_model.attacks.bim import bim
from abs_model.attacks.deepfool import deepfool
from abs_model.attacks.fast_gradient import fast_gradient
from abs_model.attacks.mim import mim
from abs_model.attacks.registry import Access, Queries, register
from abs_model.models.classifier import Classifier

_NORMS = ("l2", "linf")
_CRAFTS = (fast_gradient, bim, deepfool, mim)
# Steps of a search grow from a constant size to a constant share at this share of the perturbation.
_LINEAR_RANGE = 0.1
# Values that change less than this share of the largest don't decide where a line ends.
_SMALL = 1e-3


@register(
    title="Transfer",
    norms=_NORMS,
    access=Access.DECISIONS,
    source="Schott et al. 2019",
    smoke={"num_scales": 3, "num_bisections": 2},
    resources=("surrogate",),
    most_queries=lambda settings, norm, model: Queries(
        logits=1 + len(_CRAFTS) * (settings["num_scales"] + settings["num_bisections"])
    ),
)
def transfer(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    norm: str,
    surrogate: Classifier,
    num_scales: int = 40,
    num_bisections: int = 10,
    progress: Progress | None = None,
) -> AttackResult:
    """Attacks a classifier along what `fast_gradient`, `bim`, `deepfool` and `mim` find on another.

    For an image x and its closest adversarial image x' of the surrogate, as each of the four finds
    it with its defaults, looks at clip(x + t (x' - x), 0, 1): at growing t up to where the box
    ends, beyond 1, and by bisection between the first that fools the model and the one before. The
    scan's steps grow in proportion to t + 0.1.

    Queries the model at most `1 + 4 * (num_scales + num_bisections)` times, never with gradient.
    Queries of the surrogate are not counted. Images that the surrogate gets wrong unchanged have
    no direction and are as good as not attacked.

    Args:
        images, labels: As for every attack; see `abs_model.attacks`.
        model: The classifier; may be a black box.
        key: A `jax.random.key`, or one for each image, (N,): handed on to the four.
        norm: "l2" or "linf".
        surrogate: A classifier with gradients, for the same images and classes.
        num_scales: Of each perturbation, that are looked at first.
        num_bisections: Each halves the interval that holds the first crossing.
        progress: Called with the number of queries of the model per image of the current batch
            so far.

    Returns:
        Per image the closest adversarial one; where there is none, that of the highest margin.

    Raises:
        ValueError: An argument is invalid.
    """
    check_norm(norm, _NORMS)
    num_scales = check_count("num_scales", num_scales)
    num_bisections = check_count("num_bisections", num_bisections)
    _check_surrogate(surrogate, model)

    def attack(query: Query, batch: Batch) -> None:
        query.logits(batch.images)
        for craft in _CRAFTS:
            crafted = craft(surrogate, batch.images, batch.classes, batch.keys, norm=norm).images
            path = functools.partial(_along, batch.images, crafted)
            search_line(query, path, num_levels=num_scales, num_bisections=num_bisections)

    return run(attack, model, images, labels, key, norm=norm, norms=_NORMS, progress=progress)


def _check_surrogate(surrogate: Any, model: Classifier) -> None:
    if not isinstance(surrogate, Classifier):
        raise ValueError(f"surrogate must be a Classifier, got {type(surrogate).__name__}")
    if not surrogate.differentiable:
        raise ValueError(f"surrogate must have gradients, and {surrogate.name!r} is a black box")
    theirs, ours = (
        (classifier.image_shape, classifier.num_classes) for classifier in (surrogate, model)
    )
    if theirs != ours:
        raise ValueError(
            f"surrogate must be for the images and classes of the model, {ours[0]} and {ours[1]};"
            f" {surrogate.name!r} is for {theirs[0]} and {theirs[1]}"
        )


@jax.jit
def _along(originals: jax.Array, crafted: jax.Array, fractions: jax.Array) -> jax.Array:
    """Images at fractions (n,) of the lines, which end where all values have reached 0 or 1."""
    changes = crafted - originals
    sizes = jnp.abs(changes)
    counts = sizes > _SMALL * per_image(lengths(changes, "linf"))
    room = jnp.where(changes > 0, 1 - originals, originals)
    ends = jnp.where(counts, room / jnp.where(counts, sizes, 1.0), 0.0).max((1, 2, 3))
    scales = _LINEAR_RANGE * ((1 + ends / _LINEAR_RANGE) ** fractions - 1)
    return jnp.clip(originals + per_image(scales) * changes, 0.0, 1.0)
