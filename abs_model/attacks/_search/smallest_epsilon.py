"""The smallest epsilon at which an iterative fast gradient method succeeds.

The method (`bim`, `mim`) takes few and long steps within a ball of a given epsilon. The smallest
epsilon that succeeds is searched for each image, as in Foolbox 1.x.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from abs_model._runtime.pytrees import register_dataclass
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.best_so_far import BestSoFar
from abs_model.attacks._core.checks import longest_distance
from abs_model.attacks._core.query import Query
from abs_model.attacks.registry import Queries
from abs_model.models.classifier import Classifier

# The first epsilon, relative to the longest change in the norm.
_FIRST = 0.3
_GROWTH = 1.5  # of an epsilon that fails, as in Foolbox 1.x


def search_smallest_epsilon(
    query: Query, ascend: Callable[[jax.Array], jax.Array], *, num_searches: int
) -> None:
    """Runs the method at one epsilon after the other.

    Args:
        query: The session.
        ascend: The method: from epsilons (n,) to its last iterates, (n, height, width, channels).
        num_searches: Epsilons to try.
    """
    longest = longest_distance(query.norm, query.model.image_shape)
    search = _begin(query.batch, _FIRST * longest)
    for _ in range(num_searches):
        before = query.best
        query.finish(ascend(search.epsilons))
        search = _narrow(search, before, query.best, longest)


def most_search_queries(settings: Mapping[str, Any], norm: str, model: Classifier) -> Queries:
    """Of a method whose gradient at the original serves every search; see `AttackInfo`."""
    searches = settings["num_searches"]
    return Queries(logits=searches, gradients=1 + searches * (settings["num_steps"] - 1))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Search:
    """State of the search for the smallest epsilon that succeeds.

    Attributes:
        epsilons: The next to try, (n,).
        low: The largest that has failed, (n,).
        high: The distance of the closest adversarial image, (n,); while there is none, infinity.
    """

    epsilons: jax.Array
    low: jax.Array
    high: jax.Array


@jax.jit
def _begin(batch: Batch, epsilon: float) -> _Search:
    low = jnp.zeros(len(batch.classes))
    return _Search(jnp.full_like(low, epsilon), low, jnp.full_like(low, jnp.inf))


@jax.jit
def _narrow(search: _Search, before: BestSoFar, best: BestSoFar, longest: float) -> _Search:
    """What is left to search after an attempt, by the best before it and after it."""
    # Each epsilon is below the best distance.
    succeeded = best.success & (~before.success | (best.distances < before.distances))
    low = jnp.where(succeeded, search.low, search.epsilons)
    high = jnp.where(succeeded, best.distances, search.high)
    # A larger epsilon, whose steps are longer, can find a closer image than a smaller that failed.
    low = jnp.where(low < high, low, 0.0)
    grown = jnp.minimum(_GROWTH * low, longest)
    return _Search(jnp.where(jnp.isinf(high), grown, (low + high) / 2), low, high)
