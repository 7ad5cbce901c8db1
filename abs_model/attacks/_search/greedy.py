"""Greedy search for few edits that make an image adversarial, one at a time, led by gradients.

In each step the Jacobian of the logits gives, to first order, what every change gains towards each
of the other classes, at most nine of the largest logits. The nearest class is the one that changes
of the least total cost lead to. True scores pick among the changes of the highest gain per cost
towards it. In the end, changes that have turned out unnecessary are undone.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from abs_model._runtime.pytrees import register_dataclass
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.best_so_far import BestSoFar
from abs_model.attacks._core.keys import split_keys
from abs_model.attacks._core.losses import margins
from abs_model.attacks._core.norms import choose, distances, take_class
from abs_model.attacks._core.query import Answer, JacobianAnswer, Query
from abs_model.attacks._search.backward_elimination import eliminate
from abs_model.attacks._search.edit_space import EditSpace
from abs_model.attacks.registry import Queries

# How many changes towards each class are looked at when the classes are compared.
_TOP_K = 64
# The label and the others that are looked at.
_NUM_CLASSES = 10


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Pick:
    """The best of the candidates that a step has looked at.

    Attributes:
        forms: (n, height, width, channels).
        answer: About the images of these forms.
        scores: What the step gains, (n,).
        adversarial: Whether any candidate was adversarial, bool (n,).
    """

    forms: jax.Array
    answer: Answer
    scores: jax.Array
    adversarial: jax.Array


def search_greedily(
    query: Query, space: EditSpace, *, num_steps: int, num_candidates: int, num_rounds: int
) -> None:
    """Edits a unit of each image in each step until it is adversarial, in several rounds.

    The first round starts from the originals, the others from the best found with a random half of
    the edits undone, and choose less strictly by gains; they leave out images that aren't
    adversarial.

    Queries at most as often as `most_greedy_queries` says, but for the originals.

    Args:
        query: The session; not targeted, and the originals have been queried.
        space: What is edited.
        num_steps: Most units to edit; no more than there are.
        num_candidates: How many are tried in each step; no more than there are.
        num_rounds: Of the search.
    """
    batch = query.batch
    most = space.units(batch.images).shape[1]
    num_steps, num_candidates = min(num_steps, most), min(num_candidates, most)
    for number in range(num_rounds):
        forms, done = _start(batch, query.best, number * (num_steps + 1), number == 0, space=space)
        near: Answer | None = None
        for step in range(1, num_steps + 1):
            if bool(done.all()):
                break
            here = query.jacobian(_images(batch, forms, space), near=near, num_classes=_NUM_CLASSES)
            candidates, costs = _propose(
                batch, forms, here, done, number * (num_steps + 1) + step, number > 0,
                space=space, count=num_candidates,
            )  # fmt: skip
            pick = _first_pick(forms, here, done)
            for candidate, cost in zip(candidates, costs, strict=True):
                answer = query.logits(_images(batch, candidate, space), near=here)
                pick = _compare(batch, pick, candidate, cost, here.logits, answer)
            forms, near = pick.forms, query.verify(pick.answer)
            adversarial = jnp.where(
                query.rejected, batch.is_adversarial(near.logits), pick.adversarial
            )
            done = _done(batch, forms, adversarial, query.best, space)
        query.settle()
        eliminate(query, space)
        query.settle()


def most_greedy_queries(norm: str, num_steps: int, num_candidates: int, num_rounds: int) -> Queries:
    """Those of an attack that queries the originals and searches; see `search_greedily`."""
    steps = num_rounds * num_steps
    # In the end of a round each edit is looked at once more. In L0 there are at most `num_steps`,
    # or the image is no closer than before; in L2 those of earlier rounds may be among them.
    rounds = range(1, num_rounds + 1) if norm == "l2" else [1] * num_rounds
    undone = num_steps * sum(rounds)
    return Queries(
        logits=1 + steps * num_candidates + undone, gradients=num_rounds, jacobians=steps
    )


@functools.partial(jax.jit, static_argnames=("first", "space"))
def _start(
    batch: Batch, best: BestSoFar, number: int, first: bool, *, space: EditSpace
) -> tuple[jax.Array, jax.Array]:
    """The forms that a round starts from, and the images it leaves out, bool (n,)."""
    originals, forms = space.forms(batch.images), space.forms(best.images)
    if first:
        return originals, best.success
    shape = space.units(forms).shape[1:]
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, shape=shape))(split_keys(batch, number))
    half_undone = jnp.where(space.spread(kept, forms.shape[1:]), forms, originals)
    done = ~best.success | (best.distances == 0)
    return choose(done, forms, half_undone), done


@functools.partial(jax.jit, static_argnames="space")
def _done(
    batch: Batch, forms: jax.Array, adversarial: jax.Array, best: BestSoFar, space: EditSpace
) -> jax.Array:
    """Images that are adversarial, or that can't come closer than the best any more, bool (n,)."""
    reached = distances(space.images(forms, batch.images), batch.images, space.norm)
    return adversarial | (best.success & (reached >= best.distances))


@functools.partial(jax.jit, static_argnames="space")
def _images(batch: Batch, forms: jax.Array, space: EditSpace) -> jax.Array:
    return space.images(forms, batch.images)


@functools.partial(jax.jit, static_argnames=("space", "count"))
def _propose(
    batch: Batch,
    forms: jax.Array,
    here: JacobianAnswer,
    done: jax.Array,
    step: int,
    noisy: bool,
    *,
    space: EditSpace,
    count: int,
) -> tuple[jax.Array, jax.Array]:
    """Forms with one more edit, (count, n, height, width, channels), and its cost, (count, n).

    Forms that are `done` are left as they are.

    With `noisy`, gains are weighed with random numbers from 0 to 1, so that rounds differ.
    """
    jacobian = here.jacobian
    shape = forms.shape[1:]
    rows = jnp.arange(len(forms))
    is_label = jacobian.classes == batch.classes[:, None]
    slopes = jacobian.gradients - take_class(jacobian.gradients, is_label.argmax(1))[:, None]
    gains = space.units(jnp.maximum(slopes * (1 - forms[:, None]), -slopes * forms[:, None]))
    costs = space.costs(batch.images)
    free = ~space.changed(forms, space.forms(batch.images))
    gains = jnp.where(free[:, None], gains, 0.0)
    logits = jnp.take_along_axis(here.logits, jacobian.classes, axis=1)
    which = _nearest_class(is_label, logits, gains, costs)
    slope, gain = slopes[rows, which], gains[rows, which]
    # Where there is no gain to be seen, farthest from where it was, and anywhere.
    blind = space.spread(gain, shape) <= 0
    ends = jnp.where(blind, forms < 0.5, slope > 0).astype(forms.dtype)
    ends = jnp.where(~blind & (slope == 0), forms, ends)
    ratios = gain / costs
    largest = ratios.max(1, keepdims=True)
    noise = jax.vmap(lambda key: jax.random.uniform(key, ratios.shape[1:]))(split_keys(batch, step))
    weights = jnp.where(noisy, noise, 1.0)
    ratios = weights * ratios / jnp.where(largest > 0, largest, 1.0) + 1e-6 * noise
    places = jax.lax.top_k(jnp.where(free, ratios, -1.0), count)[1].T
    chosen = jax.nn.one_hot(places, ratios.shape[1], dtype=bool) & ~done[:, None]
    return jnp.where(space.spread(chosen, shape), ends, forms), costs[rows, places]


def _nearest_class(
    is_label: jax.Array, logits: jax.Array, gains: jax.Array, costs: jax.Array
) -> jax.Array:
    """The class whose logit changes overtake the label's at the least cost, to first order, (n,).

    Args:
        is_label: Which class is the label, bool (n, classes); one of each image.
        logits: (n, classes).
        gains: Of each unit on the way to each class, (n, classes, units), at least 0.
        costs: (n, units).
    """
    own = take_class(logits, is_label.argmax(1))[:, None]
    deficits = own - logits
    costs = jnp.broadcast_to(costs[:, None], gains.shape)
    places = jax.lax.top_k(gains / costs, min(_TOP_K, gains.shape[2]))[1]
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
    return jnp.where(is_label, jnp.inf, needed).argmin(1)


@jax.jit
def _first_pick(forms: jax.Array, here: Answer, adversarial: jax.Array) -> _Pick:
    scores = jnp.full(len(forms), -jnp.inf)
    return _Pick(forms, here.plain(), scores, adversarial)


@jax.jit
def _compare(
    batch: Batch,
    pick: _Pick,
    forms: jax.Array,
    costs: jax.Array,
    before: jax.Array,
    answer: Answer,
) -> _Pick:
    """The better of the pick and another candidate.

    Args:
        batch: The originals.
        pick: The better of the candidates so far.
        forms: The candidate's.
        costs: Cost of the edit that leads there, (n,).
        before: The logits without it, (n, classes).
        answer: About the candidate's images.
    """
    gains = margins(answer.logits, batch) - margins(before, batch)
    scores = jnp.where(gains > 0, gains / costs, gains * costs)
    adversarial = pick.adversarial | batch.is_adversarial(answer.logits)
    better = choose(scores > pick.scores, _Pick(forms, answer, scores, adversarial), pick)
    return dataclasses.replace(better, adversarial=adversarial)
