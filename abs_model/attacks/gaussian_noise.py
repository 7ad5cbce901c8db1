"""Gaussian noise: the simplest attack that sees only decisions.

As the AdditiveGaussianNoiseAttack of Foolbox 1 (Rauber et al., "Foolbox: A Python toolbox to
benchmark the robustness of machine learning models", 2017, https://arxiv.org/abs/1707.04131), with
which Schott et al. (2019) attack ABS. That raises the strength of the noise in small steps until it
fools. Here the noise keeps its direction while its strength grows, so that the step in which it
first fools can be bisected, and several draws are tried.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from abs_model._runtime.checks import check_count
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.keys import split_keys
from abs_model.attacks._core.norms import per_image
from abs_model.attacks._core.query import Query
from abs_model.attacks._core.result import AttackResult
from abs_model.attacks._core.run import Progress, run
from abs_model.attacks._search.line_search import search_line
from abs_model.attacks.registry import Access, Queries, register
from abs_model.models.classifier import Classifier

_NORMS = ("l2",)
_NUM_BISECTIONS = 10


@register(
    title="Gaussian noise",
    norms=_NORMS,
    access=Access.DECISIONS,
    source="Schott et al. 2019",
    smoke={"num_directions": 1, "num_epsilons": 4},
    most_queries=lambda settings, norm, model: Queries(
        logits=1 + settings["num_directions"] * (settings["num_epsilons"] + _NUM_BISECTIONS)
    ),
)
def gaussian_noise(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    num_directions: int = 10,
    num_epsilons: int = 100,
    progress: Progress | None = None,
) -> AttackResult:
    """Adds Gaussian noise, clipped to [0, 1], until it fools the classifier; in L2.

    The standard deviation grows from 0 to 1, which covers Foolbox's range (to 1 / sqrt(3)), in
    `num_epsilons` equal steps; 10 bisections follow in the step that first fools. Queries the
    classifier at most `1 + num_directions * (num_epsilons + 10)` times: with the defaults, 1,101
    times, as many as the 1,000 steps of Foolbox 1's single direction.

    Args:
        model, images, labels, progress: As for every attack; see `abs_model.attacks`.
        key: A `jax.random.key`, or one for each image, (N,): of the noise.
        num_directions: Draws of noise to try.
        num_epsilons: Steps of the standard deviation for each of them.

    Returns:
        Per image the closest adversarial one; where there is none, that of the highest margin.

    Raises:
        ValueError: An argument is invalid.
    """
    num_directions = check_count("num_directions", num_directions)
    num_epsilons = check_count("num_epsilons", num_epsilons)

    def attack(query: Query, batch: Batch) -> None:
        query.logits(batch.images)
        for number in range(num_directions):
            noise = _draw(split_keys(batch, number), batch.images)
            path = functools.partial(_add, batch.images, noise)
            search_line(query, path, num_levels=num_epsilons, num_bisections=_NUM_BISECTIONS)

    return run(attack, model, images, labels, key, norm="l2", norms=_NORMS, progress=progress)


@jax.jit
def _draw(keys: jax.Array, like: jax.Array) -> jax.Array:
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:]))(keys)


@jax.jit
def _add(images: jax.Array, noise: jax.Array, fractions: jax.Array) -> jax.Array:
    return jnp.clip(images + per_image(fractions) * noise, 0.0, 1.0)
