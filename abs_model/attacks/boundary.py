"""The boundary attack: a random walk along the decision boundary that comes closer to the original.

Brendel, Rauber, Bethge, "Decision-Based Adversarial Attacks: Reliable Attacks Against Black-Box
Machine Learning Models", ICLR 2018 (https://arxiv.org/abs/1712.04248). From an adversarial image at
distance d of the original, each step draws a Gaussian direction, takes its part orthogonal to the
direction of the original, moves along it by `spherical_step * d` on the sphere of radius d around
the original, and then by `source_step * d` towards the original. What is still adversarial is the
next image. Both step sizes follow the shares of adversarial images: where moves on the sphere alone
are often adversarial, the boundary is flat there, and steps may grow.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from abs_model._runtime.checks import check_count, check_number
from abs_model._runtime.pytrees import register_dataclass
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.keys import split_keys
from abs_model.attacks._core.norms import choose, distances, lengths, per_image
from abs_model.attacks._core.query import Answer, Query
from abs_model.attacks._core.result import AttackResult
from abs_model.attacks._core.run import Progress, run
from abs_model.attacks._search.line_search import (
    bisect_to_boundary,
    interpolate,
    most_bisection_queries,
)
from abs_model.attacks._search.starting_points import (
    most_starting_queries,
    read_starting_points,
    search_starting_points,
)
from abs_model.attacks.registry import Access, Queries, register
from abs_model.models.classifier import Classifier

_NORMS = ("l2",)
_NUM_BISECTIONS = 10
# Every so many steps the query is about a move on the sphere alone.
_PROBE_EVERY = 5
# Queries after which a step size is adapted, and the shares of adversarial ones that leave it.
_NUM_PROBES, _PROBE_RANGE = 5, (0.2, 0.5)
_NUM_MOVES, _MOVE_RANGE = 10, (0.1, 0.25)
# Larger steps would end at the original itself.
_LARGEST_STEP = 0.5
_TINY = 1e-12  # keeps quotients of distances finite
# Steps after which to look whether all images are done, which waits for the classifier, and to
# verify warm decisions.
_CHECK_EVERY = 50


def _most_queries(settings: Mapping[str, Any], norm: str, model: Classifier) -> Queries:
    start = most_starting_queries(settings["starting_points"])
    bisections = 2 * most_bisection_queries(_NUM_BISECTIONS)
    return Queries(logits=2 + start + settings["num_steps"] + bisections)


@register(
    title="Boundary",
    norms=_NORMS,
    access=Access.DECISIONS,
    source="Brendel et al. 2018",
    smoke={"num_steps": 10},
    resources=("starting_points",),
    most_queries=_most_queries,
)
def boundary(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    num_steps: int = 5000,
    spherical_step: float = 0.01,
    source_step: float = 0.01,
    source_step_convergence: float = 1e-7,
    step_adaptation: float = 1.5,
    starting_points: Any = None,
    targets: Any = None,
    progress: Progress | None = None,
) -> AttackResult:
    """Attacks a classifier with the boundary attack, which sees only decisions; in L2.

    Step sizes are adapted for each image by itself, and sooner than in Foolbox, whose defaults
    these are, but for its 25,000 steps. Each step is one query; every fifth is about the move on
    the sphere alone. After 5 such queries both step sizes are adapted (by whether less than 20% or
    more than 50% are adversarial), and after 10 queries of whole steps the move towards the
    original (10% and 25%). Foolbox makes two queries in every tenth step, and waits for 100 and 30.

    Makes at most `num_steps + 26` queries, and those that find a starting point: 1 with
    `starting_points`, at most 43 without. 10 bisections follow the starting point, and 10 the last
    step. The decisions of a warm-started classifier (ABS) are verified by a cold query after every
    50 steps: the walk goes back where it is no longer adversarial.

    Args:
        model, images, labels, key, progress: As for every attack; see `abs_model.attacks`.
        num_steps: Steps of the walk.
        spherical_step: First length of a move on the sphere, as a share of the distance; above 0.
        source_step: First length of a move towards the original, as a share of the distance;
            above 0.
        source_step_convergence: An image is done when its `source_step` falls below this; at least
            0.
        step_adaptation: Factor by which step sizes grow or shrink; above 1.
        starting_points: Float32 (M, height, width, channels) in [0, 1]: images to start from, such
            as training images; each attacked image starts from the closest one that is adversarial
            for it. Noise and grays by default.
        targets: Target classes, integers (N,); by default any class but the label. Noise is rarely
            of a given class, so that they call for `starting_points`.

    Returns:
        Per image the closest adversarial one; where no starting point was found, that of the
        highest margin.

    Raises:
        ValueError: An argument is invalid.
    """
    num_steps = check_count("num_steps", num_steps)
    spherical_step = check_number("spherical_step", spherical_step, minimum=0.0, exclusive=True)
    source_step = check_number("source_step", source_step, minimum=0.0, exclusive=True)
    source_step_convergence = check_number(
        "source_step_convergence", source_step_convergence, minimum=0.0
    )
    step_adaptation = check_number("step_adaptation", step_adaptation, minimum=1.0, exclusive=True)
    points = read_starting_points(starting_points, model.image_shape)

    def attack(query: Query, batch: Batch) -> None:
        query.logits(batch.images)
        search_starting_points(query, points)
        start = bisect_to_boundary(query, query.best.images, _NUM_BISECTIONS)
        walk = verified = _begin(batch, start, spherical_step, source_step)
        candidates = _propose(batch, walk, 0)
        for step in range(num_steps):
            # Not recorded, because warm decisions may be wrong: what the walk comes to counts.
            answer = query.logits(candidates, near=walk.here, record=False)
            walk, candidates = _advance(
                batch, walk, answer, step, source_step_convergence, step_adaptation
            )
            if step % _CHECK_EVERY == _CHECK_EVERY - 1 or step == num_steps - 1:
                if query.warm:
                    walk = _take_back(batch, verified, walk, query.logits(walk.here.images))
                    verified, candidates = walk, _propose(batch, walk, step + 1)
                if bool(walk.done.all()):
                    break
        query.logits(walk.here.images)
        bisect_to_boundary(query, walk.here.images, _NUM_BISECTIONS)

    return run(
        attack, model, images, labels, key, norm="l2", norms=_NORMS, targets=targets,
        progress=progress,
    )  # fmt: skip


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Walk:
    """Where each image is, and what is known about the boundary there.

    Attributes:
        here: The answer about the images that the walk has come to.
        distances: From the originals to these images, (n,).
        success: Whether the image is adversarial, bool (n,); it has not moved where it is not.
        spherical_steps: Lengths of the moves on the sphere, as shares of the distance, (n,).
        source_steps: Lengths of the moves towards the original, likewise.
        probes: Moves on the sphere since `spherical_steps` changed: how many, and how many were
            adversarial, (2, n).
        moves: Likewise whole steps.
        done: Whether the image stays where it is, bool (n,).
    """

    here: Answer
    distances: jax.Array
    success: jax.Array
    spherical_steps: jax.Array
    source_steps: jax.Array
    probes: jax.Array
    moves: jax.Array
    done: jax.Array


@jax.jit
def _begin(batch: Batch, start: Answer, spherical_step: float, source_step: float) -> _Walk:
    success = batch.is_adversarial(start.logits)
    away = distances(start.images, batch.images, "l2")
    none = jnp.zeros((2, len(success)))
    # Where there is nothing to walk from, or nothing to gain.
    done = ~success | (away == 0)
    spherical_steps = jnp.full(done.shape, spherical_step)
    source_steps = jnp.full(done.shape, source_step)
    return _Walk(start, away, success, spherical_steps, source_steps, none, none, done)


def _is_probe(step: jax.Array | int) -> jax.Array:
    return jnp.asarray(step % _PROBE_EVERY == _PROBE_EVERY - 1)


@jax.jit
def _advance(
    batch: Batch, walk: _Walk, answer: Answer, step: int, convergence: float, adaptation: float
) -> tuple[_Walk, jax.Array]:
    """Moves where the candidates are adversarial and closer, and draws the next ones."""
    adversarial = batch.is_adversarial(answer.logits)
    away = distances(answer.images, batch.images, "l2")
    # On the sphere, too, clipping to [0, 1] can bring a candidate closer.
    accepted = adversarial & (away < walk.distances) & ~walk.done
    walk = dataclasses.replace(
        walk,
        here=choose(accepted, answer, walk.here),
        distances=jnp.where(accepted, away, walk.distances),
    )
    walk = _adapt(walk, adversarial, _is_probe(step), adaptation)
    walk = dataclasses.replace(walk, done=walk.done | (walk.source_steps < convergence))
    return walk, _candidates(batch, walk, step + 1)


@jax.jit
def _take_back(batch: Batch, verified: _Walk, walk: _Walk, answer: Answer) -> _Walk:
    """The walk where its images are adversarial by this cold answer.

    Elsewhere it goes back to where it was verified, with the present step sizes.
    """
    holds = batch.is_adversarial(answer.logits) | ~walk.success
    return dataclasses.replace(
        walk,
        here=choose(holds, answer, verified.here),
        distances=jnp.where(holds, walk.distances, verified.distances),
    )


def _adapt(walk: _Walk, adversarial: jax.Array, is_probe: jax.Array, factor: float) -> _Walk:
    """Counts a query, and changes the step sizes after enough of them."""
    one = jnp.stack([jnp.ones_like(walk.source_steps), adversarial.astype(jnp.float32)])
    probes, scale = _judge(walk.probes + one * is_probe, _NUM_PROBES, _PROBE_RANGE, factor)
    moves, own_scale = _judge(walk.moves + one * ~is_probe, _NUM_MOVES, _MOVE_RANGE, factor)
    return dataclasses.replace(
        walk,
        spherical_steps=walk.spherical_steps * scale,
        source_steps=jnp.minimum(walk.source_steps * scale * own_scale, _LARGEST_STEP),
        probes=probes,
        moves=moves,
    )


def _judge(
    queries: jax.Array, enough: int, kept: tuple[float, float], factor: float
) -> tuple[jax.Array, jax.Array]:
    """The queries that still count, and by what to scale the step size, (n,)."""
    count, adversarial = queries
    share = adversarial / jnp.maximum(count, 1)
    scale = jnp.where(share > kept[1], factor, jnp.where(share < kept[0], 1 / factor, 1.0))
    full = count >= enough
    return jnp.where(full, 0.0, queries), jnp.where(full, scale, 1.0)


def _candidates(batch: Batch, walk: _Walk, step: jax.Array | int) -> jax.Array:
    """A move on the sphere from each image, and in most steps one towards the original."""
    # All pixels in a row, because XLA's loops over four axes take three times as long (CPU).
    originals, images = (x.reshape(len(x), 1, 1, -1) for x in (batch.images, walk.here.images))
    keys = split_keys(batch, step)
    noise = jax.vmap(lambda key: jax.random.normal(key, originals.shape[1:]))(keys)
    back = originals - images
    distance = walk.distances
    direction = back / per_image(jnp.maximum(distance, _TINY))
    along = noise - per_image(jnp.sum(noise * direction, (1, 2, 3))) * direction
    along = along * per_image(walk.spherical_steps * distance / lengths(along, "l2"))
    # By Pythagoras, this ends on the sphere again.
    shrunk = (along - back) / per_image(jnp.sqrt(1 + walk.spherical_steps**2))
    on_sphere = jnp.clip(originals + shrunk, 0.0, 1.0)
    # Clipping has come closer already by some of the move.
    remaining = distances(on_sphere, originals, "l2")
    target = jnp.minimum(remaining, (1 - walk.source_steps) * distance)
    share = jnp.where(_is_probe(step), 1.0, target / jnp.maximum(remaining, _TINY))
    moved = jnp.clip(interpolate(originals, on_sphere, share, "l2"), 0.0, 1.0)
    return moved.reshape(batch.images.shape)


_propose = jax.jit(_candidates)
