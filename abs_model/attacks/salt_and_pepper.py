"""Salt-and-pepper noise, in L0; sees only decisions.

As the SaltAndPepperNoiseAttack of Foolbox 1 (Rauber et al., "Foolbox: A Python toolbox to benchmark
the robustness of machine learning models", 2017, https://arxiv.org/abs/1707.04131), with which
Schott et al. (2019) attack ABS. That raises the share of the pixels in small steps until the noise
fools. Here pixels stay changed while their share grows, so that the step in which the noise first
fools can be bisected, and several draws are tried.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from abs_model._runtime.checks import check_count
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.best_so_far import BestSoFar
from abs_model.attacks._core.keys import split_keys
from abs_model.attacks._core.norms import choose
from abs_model.attacks._core.query import Answer, Query
from abs_model.attacks._core.result import AttackResult
from abs_model.attacks._core.run import Progress, run
from abs_model.attacks._search.salt_and_pepper_noise import (
    Noise,
    change_pixels,
    draw_noise,
    most_noise_queries,
    search_salt_and_pepper,
)
from abs_model.attacks.registry import Access, Queries, register
from abs_model.models.classifier import Classifier

_NORMS = ("l0",)


def _most_queries(settings: Mapping[str, Any], norm: str, model: Classifier) -> Queries:
    num_epsilons = settings["num_epsilons"]
    first = most_noise_queries((1, *model.image_shape), num_epsilons)
    return Queries(logits=1 + first + (settings["num_restarts"] - 1) * num_epsilons)


@register(
    title="Salt and pepper",
    norms=_NORMS,
    access=Access.DECISIONS,
    source="Schott et al. 2019",
    smoke={"num_restarts": 1, "num_epsilons": 5},
    most_queries=_most_queries,
)
def salt_and_pepper(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    num_restarts: int = 10,
    num_epsilons: int = 100,
    progress: Progress | None = None,
) -> AttackResult:
    """Sets pixels to black or white, as few as fool the classifier; in L0.

    Pixels come in random order, each with a color drawn once, the same in all channels; those that
    have it already are left out. The first restart raises their share from 0 to 1 in `num_epsilons`
    equal steps, and bisects the step that first fools down to the pixel. The others, of
    `num_epsilons` queries each, look for fewer: they query one pixel less than found so far,
    of the same draw if that was just adversarial, otherwise of a new one. (Where nothing was
    adversarial yet, they raise the share again, with a new draw in each step as in Foolbox 1, whose
    defaults these are.) Makes at most
    `1 + num_restarts * num_epsilons + ceil(log2(height * width / num_epsilons))` queries: with
    the defaults, 1,004 on MNIST.

    Args:
        model, images, labels, progress: As for every attack; see `abs_model.attacks`.
        key: A `jax.random.key`, or one for each image, (N,): of the noise.
        num_restarts: Times that `num_epsilons` queries are made.
        num_epsilons: Steps of the share of pixels.

    Returns:
        Per image the adversarial one of the fewest changed pixels; where there is none, that of the
        highest margin.

    Raises:
        ValueError: An argument is invalid.
    """
    num_restarts = check_count("num_restarts", num_restarts)
    num_epsilons = check_count("num_epsilons", num_epsilons)

    def attack(query: Query, batch: Batch) -> None:
        query.logits(batch.images)
        search_salt_and_pepper(query, split_keys(batch, 0), num_epsilons)
        noise, candidates = _redraw(batch, query.best, 0, num_epsilons)
        for number in range(1, (num_restarts - 1) * num_epsilons + 1):
            answer = query.decisions(candidates)
            noise, candidates = _lessen(batch, noise, answer, query.best, number, num_epsilons)

    return run(attack, model, images, labels, key, norm="l0", norms=_NORMS, progress=progress)


@jax.jit
def _redraw(
    batch: Batch, best: BestSoFar, number: int, num_epsilons: int
) -> tuple[Noise, jax.Array]:
    """New noise, and images with a pixel less of it than has been found to fool.

    Args:
        batch: The originals.
        best: What has been found, in L0.
        number: The query's number, from 0.
        num_epsilons: Steps of the share where nothing has been found.
    """
    keys = split_keys(batch, number + 1)
    noise = draw_noise(keys, batch.images)
    rising = jnp.round((number % num_epsilons + 1) / num_epsilons * noise.counts)
    counts = jnp.where(best.success, best.distances - 1, rising)
    return noise, change_pixels(batch.images, noise, counts)


@jax.jit
def _lessen(
    batch: Batch,
    noise: Noise,
    answer: Answer,
    best: BestSoFar,
    number: int,
    num_epsilons: int,
) -> tuple[Noise, jax.Array]:
    """Keeps adversarial noise, and takes away a pixel of it; elsewhere draws other noise."""
    less = change_pixels(batch.images, noise, best.distances - 1)
    redrawn = _redraw(batch, best, number, num_epsilons)
    return choose(batch.is_adversarial(answer.logits), (noise, less), redrawn)
