"""The boundary attack: a random walk along the decision boundary that comes closer to the original.

Brendel, Rauber, Bethge, "Decision-Based Adversarial Attacks: Reliable Attacks Against Black-Box
Machine Learning Models", ICLR 2018 (https://arxiv.org/abs/1712.04248). From an adversarial image at
distance d of the original, each step draws a Gaussian direction, takes its part orthogonal to the
direction of the original, moves along it by `spherical_step * d` on the sphere of radius d around
the original, and then by `source_step * d` towards the original. What is still adversarial is the
next image. Both step sizes follow the shares of adversarial images: where moves on the sphere alone
often fool, the boundary is flat there, and steps may grow.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from abs_model._runtime.checks import check_count, check_number
from abs_model.attacks import best as bests
from abs_model.attacks.base import AttackResult, choose, distances, lengths, per_image
from abs_model.attacks.batch import Batch
from abs_model.attacks.best import Best
from abs_model.attacks.line_search import approach, between
from abs_model.attacks.oracle import Oracle, State
from abs_model.attacks.running import Progress, run
from abs_model.attacks.starting import make_starts, starting_images
from abs_model.classifiers import Classifier

_NUM_BISECTIONS = 10
# Every so many steps the question is about a move on the sphere alone.
_PROBE_EVERY = 5
# Answers after which a step size is adapted, and the shares of adversarial ones that leave it.
_NUM_PROBES, _PROBE_RANGE = 5, (0.2, 0.5)
_NUM_MOVES, _MOVE_RANGE = 10, (0.1, 0.25)
# Larger steps would end at the original itself.
_LARGEST_STEP = 0.5
_TINY = 1e-12  # keeps quotients of distances finite
# Steps after which to look whether all images are done, which waits for the classifier, and
# whether warm-started answers hold.
_CHECK_EVERY = 50


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
    starts: Any = None,
    targets: Any = None,
    progress: Progress | None = None,
) -> AttackResult:
    """Attacks a classifier with the boundary attack, which sees only decisions; in L2.

    Step sizes are adapted for each image by itself, and sooner than in Foolbox, whose defaults
    these are, but for its 25,000 steps. Every step asks once, every fifth about the move on the
    sphere alone. After 5 answers to that, both step sizes are adapted (by whether less than 20% or
    more than 50% fool), and after 10 answers about whole steps the move towards the original (10%
    and 25%). Foolbox asks twice in every tenth step, and waits for 100 and 30 answers of these.

    Queries the classifier at most `num_steps + 25` times, and for the images to begin at as often
    as `abs_model.attacks.starting.starting_images` says. 10 bisections follow the start, and 10 the
    last step. A classifier with warm-started answers (ABS) is asked from scratch after every 50
    steps, whose walk is taken back where the answer is another.

    Args:
        model: The classifier.
        images: Float32 (N, height, width, channels) in [0, 1].
        labels: True labels, integers (N,).
        key: A `jax.random.key`, or one for each image, (N,).
        num_steps: Steps of the walk.
        spherical_step: First length of a move on the sphere, as a share of the distance; above 0.
        source_step: First length of a move towards the original, as a share of the distance;
            above 0.
        source_step_convergence: An image is done when its `source_step` falls below this; at least
            0.
        step_adaptation: Factor by which step sizes grow or shrink; above 1.
        starts: Float32 (M, height, width, channels) in [0, 1]: images to begin at, such as training
            images; each attacked image begins at the closest one that is adversarial for it. Noise
            and grays by default.
        targets: Integers (N,): classes to lead to; any other than the label by default. Noise is
            rarely of a given class, so that they call for `starts`.
        progress: Called with the number of queries per image of the current batch so far.

    Returns:
        Per image the closest adversarial one; where no image to begin at was found, that of the
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
    pool = make_starts(starts, model.image_shape)

    def attack(oracle: Oracle, batch: Batch) -> Best:
        best = bests.first(batch, batch.images, oracle.logits(batch.images)[0], "l2")
        best = starting_images(oracle, batch, pool, best, "l2")
        _, best, state = approach(oracle, batch, best.images, best, "l2", _NUM_BISECTIONS)
        walk = confirmed = _begin(best, state, spherical_step, source_step)
        candidates = _propose(batch, walk, 0)
        for step in range(num_steps):
            logits, following = oracle.logits(candidates, walk.state)
            walk, candidates = _advance(
                batch, walk, candidates, logits, following, step, source_step_convergence,
                step_adaptation,
            )  # fmt: skip
            if step % _CHECK_EVERY == _CHECK_EVERY - 1 or step == num_steps - 1:
                if oracle.warm:
                    walk = _confirm(batch, confirmed, walk, *oracle.logits(walk.best.images))
                    confirmed, candidates = walk, _propose(batch, walk, step + 1)
                if bool(walk.done.all()):
                    break
        last = walk.best
        return approach(oracle, batch, last.images, last, "l2", _NUM_BISECTIONS)[1]

    return run(
        attack, model, images, labels, key, norm="l2", norms=("l2",), targets=targets,
        progress=progress,
    )  # fmt: skip


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Walk:
    """Where each image is, and what is known about the boundary there.

    Attributes:
        best: The adversarial images that the walk has come to.
        state: The classifier's, at these images.
        spherical_steps: Lengths of the moves on the sphere, as shares of the distance, (n,).
        source_steps: Lengths of the moves towards the original, likewise.
        probes: Answers about moves on the sphere since `spherical_steps` changed, (n,): how many,
            and how many adversarial, (2, n).
        moves: Likewise about whole steps.
        done: Whether the image stays where it is, bool (n,).
    """

    best: Best
    state: State
    spherical_steps: jax.Array
    source_steps: jax.Array
    probes: jax.Array
    moves: jax.Array
    done: jax.Array


@jax.jit
def _begin(best: Best, state: State, spherical_step: float, source_step: float) -> _Walk:
    none = jnp.zeros((2, len(best.success)))
    # Where there is nothing to walk from, or nothing to gain.
    done = ~best.success | (best.distances == 0)
    spherical_steps = jnp.full(done.shape, spherical_step)
    return _Walk(best, state, spherical_steps, jnp.full(done.shape, source_step), none, none, done)


def _is_probe(step: jax.Array | int) -> jax.Array:
    return jnp.asarray(step % _PROBE_EVERY == _PROBE_EVERY - 1)


@jax.jit
def _advance(
    batch: Batch,
    walk: _Walk,
    candidates: jax.Array,
    logits: jax.Array,
    following: State,
    step: int,
    convergence: float,
    adaptation: float,
) -> tuple[_Walk, jax.Array]:
    """Moves where the candidates are adversarial and closer, and draws the next ones."""
    new = bests.first(batch, candidates, logits, "l2")
    # On the sphere, too, clipping to [0, 1] can bring a candidate closer.
    accepted = new.success & (new.distances < walk.best.distances) & ~walk.done
    walk = dataclasses.replace(
        walk,
        best=choose(accepted, new, walk.best),
        state=choose(accepted, following, walk.state),
    )
    walk = _adapt(walk, new.success, _is_probe(step), adaptation)
    walk = dataclasses.replace(walk, done=walk.done | (walk.source_steps < convergence))
    return walk, _candidates(batch, walk, step + 1)


@jax.jit
def _confirm(batch: Batch, confirmed: _Walk, walk: _Walk, logits: jax.Array, state: State) -> _Walk:
    """The walk where its images, of which these are answers from scratch, are adversarial.

    Elsewhere it goes back to where it was confirmed, with the present step sizes.
    """
    holds = batch.fooled(logits) | ~walk.best.success
    return dataclasses.replace(
        walk,
        best=choose(holds, walk.best, confirmed.best),
        state=choose(holds, state, confirmed.state),
    )


def _adapt(walk: _Walk, fooled: jax.Array, is_probe: jax.Array, factor: float) -> _Walk:
    """Counts an answer, and changes the step sizes after enough of them."""
    answer = jnp.stack([jnp.ones_like(walk.source_steps), fooled.astype(jnp.float32)])
    probes, scale = _judge(walk.probes + answer * is_probe, _NUM_PROBES, _PROBE_RANGE, factor)
    moves, own_scale = _judge(walk.moves + answer * ~is_probe, _NUM_MOVES, _MOVE_RANGE, factor)
    return dataclasses.replace(
        walk,
        spherical_steps=walk.spherical_steps * scale,
        source_steps=jnp.minimum(walk.source_steps * scale * own_scale, _LARGEST_STEP),
        probes=probes,
        moves=moves,
    )


def _judge(
    answers: jax.Array, enough: int, kept: tuple[float, float], factor: float
) -> tuple[jax.Array, jax.Array]:
    """The answers that still count, and by what to scale the step size, (n,)."""
    count, fooled = answers
    share = fooled / jnp.maximum(count, 1)
    scale = jnp.where(share > kept[1], factor, jnp.where(share < kept[0], 1 / factor, 1.0))
    full = count >= enough
    return jnp.where(full, 0.0, answers), jnp.where(full, scale, 1.0)


def _candidates(batch: Batch, walk: _Walk, step: jax.Array | int) -> jax.Array:
    """A move on the sphere from each image, and in most steps one towards the original."""
    # All pixels in a row, because XLA's loops over four axes take three times as long (CPU).
    originals, images = (x.reshape(len(x), 1, 1, -1) for x in (batch.images, walk.best.images))
    keys = jax.vmap(jax.random.fold_in, (0, None))(batch.keys, step)
    noise = jax.vmap(lambda key: jax.random.normal(key, originals.shape[1:]))(keys)
    back = originals - images
    distance = walk.best.distances
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
    moved = jnp.clip(between(originals, on_sphere, share, "l2"), 0.0, 1.0)
    return moved.reshape(batch.images.shape)


_propose = jax.jit(_candidates)
