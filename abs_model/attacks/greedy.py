"""Greedy search for few changes that fool a classifier, one at a time, led by gradients.

A space says what is changed, and at what cost. In each step the Jacobian of the logits gives, to
first order, what every change gains towards every other class; true scores pick among the changes
of the highest gain per cost. What has turned out unnecessary is taken back at the end.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from abs_model.attacks import best as bests
from abs_model.attacks.base import choose
from abs_model.attacks.batch import Batch
from abs_model.attacks.best import Best
from abs_model.attacks.losses import margins
from abs_model.attacks.oracle import Oracle, State
from abs_model.attacks.running import split_keys

# How many changes towards each class are looked at when the classes are compared.
_HORIZON = 64


@dataclasses.dataclass(frozen=True)
class Space:
    """What is changed, and what it costs: here the colour of pixels, each at a cost of 1.

    The search goes through forms, which have values in [0, 1]; here they are the images. Changes
    lead to 0 or to 1. All methods are pure.

    Attributes:
        norm: "l0": whole pixels are changed, in whichever channels. Else single values are.
    """

    norm: str

    def forms(self, images: jax.Array) -> jax.Array:
        """The forms of images."""
        return images

    def images(self, forms: jax.Array, originals: jax.Array) -> jax.Array:
        """The images closest to the originals that have these forms."""
        del originals
        return forms

    def costs(self, originals: jax.Array) -> jax.Array:
        """Of changing each unit, above 0, (n, units)."""
        return jnp.ones_like(self.units(originals))

    def units(self, values: jax.Array) -> jax.Array:
        """Values (..., height, width, channels), summed for each unit: (..., units)."""
        if self.norm == "l0":
            values = values.sum(-1, keepdims=True)
        return values.reshape(*values.shape[:-3], -1)

    def spread(self, units: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Units (..., units), each for all its values: goes with images (..., *shape)."""
        channels = 1 if self.norm == "l0" else shape[2]
        return units.reshape(*units.shape[:-1], *shape[:2], channels)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Pick:
    """The best of the candidates looked at in a step: form, score (n,), state."""

    forms: jax.Array
    scores: jax.Array
    state: State


def search(
    oracle: Oracle, batch: Batch, best: Best, space: Space, num_steps: int, num_candidates: int
) -> Best:
    """Changes a unit of each image in each step, until all are fooled.

    Asks `num_steps * (1 + num_candidates)` times at most, `num_steps` times with gradient, and in
    the end once with gradient and once for every change.

    Args:
        oracle: The classifier.
        batch: The originals; not targeted.
        best: What has been found, at least the originals.
        space: Of the changes.
        num_steps: Most units to change.
        num_candidates: How many are tried in each step.
    """
    forms, state = _forms(batch, space), None
    for step in range(num_steps):
        done = best.success
        if bool(done.all()):
            break
        jacobian, logits, state = oracle.jacobian(_images(batch, forms, space), state)
        candidates, costs = _propose(
            batch, forms, jacobian, logits, step, space=space, count=num_candidates
        )
        pick = _Pick(forms, jnp.full(len(forms), -jnp.inf), state)
        before = margins(logits, batch)
        for index in range(num_candidates):
            images = _images(batch, candidates[index], space)
            answer = oracle.logits(images, state)
            pick, best = _compare(
                batch, pick, candidates[index], costs[index], images, *answer, before, best, done,
                space=space,
            )  # fmt: skip
        forms, state = pick.forms, pick.state
    return eliminate(oracle, batch, best, space)


def eliminate(oracle: Oracle, batch: Batch, best: Best, space: Space) -> Best:
    """Takes back changes that success doesn't need, one after the other.

    Begins with those whose undoing loses least, to first order, per cost. Asks once with gradient
    and as often as the image with most changes has them.

    Args:
        oracle: The classifier.
        batch: The originals.
        best: What has been found; only images that are fooled change.
        space: Of the changes.
    """
    gradients, _, state = oracle.gradients(best.images, batch)
    ranks = _order(batch, best, gradients, space=space)
    for rank in range(int(ranks.max()) + 1):
        images = _undo(batch, best.images, ranks, rank)
        logits, new_state = oracle.logits(images, state)
        best, state = _improve(batch, best, images, logits, state, new_state, space=space)
    return best


@functools.partial(jax.jit, static_argnames="space")
def _forms(batch: Batch, space: Space) -> jax.Array:
    return space.forms(batch.images)


@functools.partial(jax.jit, static_argnames="space")
def _images(batch: Batch, forms: jax.Array, space: Space) -> jax.Array:
    return space.images(forms, batch.images)


@functools.partial(jax.jit, static_argnames=("space", "count"))
def _propose(
    batch: Batch,
    forms: jax.Array,
    jacobian: jax.Array,
    logits: jax.Array,
    step: int,
    *,
    space: Space,
    count: int,
) -> tuple[jax.Array, jax.Array]:
    """Forms with one more change, (count, n, height, width, channels), and its cost, (count, n)."""
    shape = forms.shape[1:]
    rows = jnp.arange(len(forms))
    slopes = jacobian - jacobian[rows, batch.classes][:, None]
    gains = space.units(jnp.maximum(slopes * (1 - forms[:, None]), -slopes * forms[:, None]))
    costs = space.costs(batch.images)
    free = ~_changed(forms, space.forms(batch.images), space)
    gains = jnp.where(free[:, None], gains, 0.0)
    which = _nearest_class(batch, logits, gains, costs)
    slope, gain = slopes[rows, which], gains[rows, which]
    # Where there is no gain to be seen, farthest from where it was, and anywhere.
    blind = space.spread(gain, shape) <= 0
    ends = jnp.where(blind | (slope == 0), forms < 0.5, slope > 0).astype(forms.dtype)
    ends = jnp.where(~blind & (slope == 0), forms, ends)
    ratios = gain / costs
    largest = ratios.max(1, keepdims=True)
    noise = jax.vmap(lambda key: jax.random.uniform(key, ratios.shape[1:]))(split_keys(batch, step))
    ratios = ratios / jnp.where(largest > 0, largest, 1.0) + 1e-6 * noise
    places = jax.lax.top_k(jnp.where(free, ratios, -1.0), count)[1].T
    chosen = jax.nn.one_hot(places, ratios.shape[1], dtype=bool)
    return jnp.where(space.spread(chosen, shape), ends, forms), costs[rows, places]


def _changed(forms: jax.Array, originals: jax.Array, space: Space) -> jax.Array:
    """Which units have changed, bool (n, units)."""
    return space.units((forms != originals).astype(jnp.float32)) > 0


def _nearest_class(
    batch: Batch, logits: jax.Array, gains: jax.Array, costs: jax.Array
) -> jax.Array:
    """The class whose logit changes overtake the label's at the least cost, to first order, (n,).

    Args:
        batch: The originals.
        logits: (n, classes).
        gains: Of each unit on the way to each class, (n, classes, units), at least 0.
        costs: (n, units).
    """
    own = logits[jnp.arange(len(logits)), batch.classes][:, None]
    deficits = own - logits
    costs = jnp.broadcast_to(costs[:, None], gains.shape)
    places = jax.lax.top_k(gains / costs, min(_HORIZON, gains.shape[2]))[1]
    gains, costs = (jnp.take_along_axis(x, places, axis=2) for x in (gains, costs))
    gained, spent = jnp.cumsum(gains, axis=2), jnp.cumsum(costs, axis=2)
    # What is lacking at the end is taken to cost as much, in proportion, as what has been gained.
    total = gained[..., -1]
    beyond = jnp.where(
        total > 0, spent[..., -1] * deficits / jnp.where(total > 0, total, 1.0), jnp.inf
    )
    enough = gained >= deficits[..., None]
    last = enough.argmax(2)[..., None]
    gain, cost, gained, spent = (
        jnp.take_along_axis(x, last, axis=2)[..., 0] for x in (gains, costs, gained, spent)
    )
    within = spent - cost * (gained - deficits) / jnp.where(gain > 0, gain, 1.0)
    needed = jnp.where(enough.any(2), within, beyond)
    label = jnp.arange(logits.shape[1]) == batch.classes[:, None]
    return jnp.where(label, jnp.inf, needed).argmin(1)


@functools.partial(jax.jit, static_argnames="space")
def _compare(
    batch: Batch,
    pick: _Pick,
    forms: jax.Array,
    costs: jax.Array,
    images: jax.Array,
    logits: jax.Array,
    state: State,
    before: jax.Array,
    best: Best,
    done: jax.Array,
    *,
    space: Space,
) -> tuple[_Pick, Best]:
    """The better of the pick and another candidate, and the best found."""
    gains = margins(logits, batch) - before
    scores = jnp.where(gains > 0, gains / costs, gains * costs)
    found = bests.update(best, batch, images, logits, space.norm)
    return (
        choose(scores > pick.scores, _Pick(forms, scores, state), pick),
        choose(done, best, found),
    )


@functools.partial(jax.jit, static_argnames="space")
def _order(batch: Batch, best: Best, gradients: jax.Array, *, space: Space) -> jax.Array:
    """Number of each value's unit in the order of undoing; -1 where there is nothing to undo."""
    originals, forms = space.forms(batch.images), space.forms(best.images)
    losses = space.units(gradients * (forms - originals)) / space.costs(batch.images)
    changed = _changed(forms, originals, space) & best.success[:, None]
    ranks = jnp.argsort(jnp.argsort(jnp.where(changed, losses, jnp.inf), axis=1), axis=1)
    return space.spread(jnp.where(changed, ranks, -1), forms.shape[1:])


@jax.jit
def _undo(batch: Batch, images: jax.Array, ranks: jax.Array, rank: int) -> jax.Array:
    return jnp.where(ranks == rank, batch.images, images)


@functools.partial(jax.jit, static_argnames="space")
def _improve(
    batch: Batch,
    best: Best,
    images: jax.Array,
    logits: jax.Array,
    state: State,
    new_state: State,
    *,
    space: Space,
) -> tuple[Best, State]:
    found = bests.update(best, batch, images, logits, space.norm)
    closer = found.distances < best.distances
    return found, choose(closer, new_state, state)
