"""Cutting planes: the attack made for ABS, which knows the shape of its decision boundaries.

The margin of another class over the label is a difference p(x) - q(x) of convex functions, of which
the latents at any point give the value and the gradient; see `planes`. Both are linearised wherever
the classifier is asked:

- Where p's linearisation is above q, x is adversarial. To look for the closest such x, and to
  linearise anew there, is the concave-convex procedure, each of whose iterates is better than the
  last (Yuille and Rangarajan, "The concave-convex procedure", Neural Computation 15(4), 2003).
- Of q the linearisations are collected, and the closest image at which p's is above all of them is
  next: the cutting-plane method for what is now a convex problem (Kelley, "The cutting-plane method
  for solving convex programs", Journal of the SIAM 8(4), 1960). Explanations of the label that take
  over on the way are planes like others.

Each pair of linearisations makes a half-space of images; `halfspaces` finds the closest image in
all of them, in each norm. For Binary ABS the change is one of thresholded values.
"""

import dataclasses
import functools
from typing import Any, Self

import jax
import jax.numpy as jnp

from abs_model._runtime.checks import check_count
from abs_model.attacks import best as bests
from abs_model.attacks.base import AttackResult, distances, snap
from abs_model.attacks.base import random_start as draw_start
from abs_model.attacks.batch import Batch
from abs_model.attacks.best import Best
from abs_model.attacks.checks import NORMS
from abs_model.attacks.explanations import asking, check_abs
from abs_model.attacks.halfspaces import (
    Cost,
    Flips,
    Halfspaces,
    LargestChange,
    SquaredLength,
    smallest_changes,
)
from abs_model.attacks.line_search import between, search_line
from abs_model.attacks.oracle import Oracle
from abs_model.attacks.planes import Planes, linearise
from abs_model.attacks.running import Progress, run, split_keys
from abs_model.classifiers import ABSClassifier, Classifier, threshold
from abs_model.inference import Inference

_NUM_PLANES = 8
_NUM_SCOUTING_STEPS = 4
# What is found between questions from scratch rests on explanations near the last one, and is not
# relied upon.
_FROM_SCRATCH_EVERY = 4
# How far beyond the linearised boundary to aim, as a part of the way there: first, and at least
# after a failure.
_OVERSHOOT = 1e-3
_LEAST_OVERSHOOT = 1e-4
# Of the way to what was found, and how often it is halved.
_LAST_PART, _NUM_BISECTIONS = 4e-3, 6
# How far questions lie beyond the images, as a part of the way since the last ones, because that is
# where images will be. (A question from scratch is about the image itself.)
_MOMENTUM = 0.5
# L-infinity: weight of the squared L2 norm at the first and at the last step. A small one lets the
# largest change alone decide, but then many images are as good, and the iterates jump.
_FIRST_L2_PART, _LAST_L2_PART = 1e-3, 1e-5
# Binary ABS: the smallest price of a flip, as a part of the largest. In L-infinity prices grow with
# this power of the change, so that the largest one decides, up to the best distance so far.
_LEAST_PRICE = 1e-4
_POWER = 16
_WHITE = 0.5  # how far it is to flip white or black
_LEAST_LEVEL = 1e-3


def cutting_planes(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    norm: str,
    num_classes: int = 3,
    num_steps: int = 32,
    num_restarts: int = 1,
    progress: Progress | None = None,
) -> AttackResult:
    """Looks for the closest adversarial images of an ABS model.

    Goes for one class after the other: `num_steps` times the closest image behind the planes so far
    is asked about, and what explains it adds a plane. Each fourth question, and the last, is asked
    from scratch; only what these find counts. The planes lie a little behind the boundary: half as
    far after a success, twice as far after a failure. Which classes to go for is found out in 4
    steps towards each: those whose images are closest then.

    All this begins with what explains the original. A restart begins with what explains an image
    of noise around it.

    In L2 and L-infinity the last part of the way to what was found is bisected in 7 queries,
    except for Binary ABS, which has nothing between its changes.

    Queries the classifier `1 + 4 * (classes - 1) + num_classes * num_steps` times, and for each
    restart `1 + num_classes * num_steps` times, not counting the bisection. Gradients are not asked
    for, because the latents that it answers with tell them.

    Args:
        model: An ABS or Binary ABS model.
        images: Float32 (N, height, width, channels) in [0, 1].
        labels: True labels, integers (N,).
        key: A `jax.random.key`, or one for each image, (N,): of the restarts.
        norm: "l2", "linf" or "l0".
        num_classes: How many other classes to go for; if there are fewer, all.
        num_steps: Queries on the way to each.
        num_restarts: How often to go for them again; 0 or more.
        progress: Called with the number of queries per image of the current batch so far.

    Returns:
        Per image the closest adversarial one; where there is none, that of the highest margin.

    Raises:
        ValueError: An argument isn't as described; the model is no ABS model.
    """
    check_abs(model, "cutting_planes")
    bisects = norm != "l0" and not getattr(model, "binary", False)
    num_classes = check_count("num_classes", num_classes)
    num_steps = check_count("num_steps", num_steps)
    num_restarts = check_count("num_restarts", num_restarts, minimum=0)

    def attack(oracle: Oracle, batch: Batch) -> Best:
        logits, state = oracle.logits(batch.images)
        best = bests.first(batch, batch.images, logits, norm)
        nearest = _nearest_classes(oracle, batch, state, norm)[:num_classes]
        for restart in range(num_restarts + 1):
            if restart > 0:
                _, state = oracle.logits(_draw(split_keys(batch, restart), batch.images))
            for classes in nearest:
                best = _approach(oracle, batch, classes, state, best, norm, num_steps)
        return _close_in(oracle, batch, best, norm) if bisects else best

    return run(attack, model, images, labels, key, norm=norm, norms=NORMS, progress=progress)


def _nearest_classes(oracle: Oracle, batch: Batch, state: Inference, norm: str) -> list[jax.Array]:
    """Each image's other classes, (n,) each, those first to which a few steps lead soonest."""
    number = oracle.model.num_classes
    away = []
    for rank in range(1, number):
        classes = (batch.classes + rank) % number
        levels = jnp.full(len(classes), _WHITE)
        walk = _Walk.start(batch, classes, state, levels, overshoot=0.0)
        for _ in range(_NUM_SCOUTING_STEPS):
            walk = walk.next(oracle.model, batch, _FIRST_L2_PART, norm)
            walk = walk.follow(oracle, batch)
        away.append(distances(walk.images, batch.images, norm))
    order = jnp.argsort(jnp.stack(away, axis=1), axis=1)
    return list(((batch.classes[:, None] + 1 + order) % number).T)


def _approach(
    oracle: Oracle,
    batch: Batch,
    classes: jax.Array,
    state: Inference,
    best: Best,
    norm: str,
    num_steps: int,
) -> Best:
    """Goes for one class of each image, (n,), beginning with the explanations of the state."""
    levels = jnp.where(best.success, best.distances, _WHITE)
    walk = _Walk.start(batch, classes, state, levels, _OVERSHOOT)
    for step in range(1, num_steps + 1):
        l2_part = _FIRST_L2_PART * (_LAST_L2_PART / _FIRST_L2_PART) ** (step / num_steps)
        walk = walk.next(oracle.model, batch, l2_part, norm)
        if step % _FROM_SCRATCH_EVERY and step < num_steps:
            walk = walk.follow(oracle, batch)
        else:
            walk, best = walk.judge(oracle, batch, best, norm)
    return best


def _close_in(oracle: Oracle, batch: Batch, best: Best, norm: str) -> Best:
    """Bisects the last part of the way from the originals, by which the planes may overshoot."""

    def way(shares: jax.Array) -> jax.Array:
        return between(batch.images, best.images, 1.0 - _LAST_PART * (1.0 - shares), norm)

    return search_line(
        oracle, batch, way, best, norm, num_levels=1, num_bisections=_NUM_BISECTIONS
    )[1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Walk:
    """Where the way towards one class is.

    Attributes:
        images: The closest behind the planes so far, (n, height, width, channels).
        previous: Those before.
        classes: Where it leads, int32 (n,).
        state: State of the last query.
        planes: Below the f of the label.
        overshoot: How far behind the boundary the planes lie, as a part of the way there, (n,).
        levels: Binary ABS in L-infinity: the distance to get below, (n,).
    """

    images: jax.Array
    previous: jax.Array
    classes: jax.Array
    state: Inference
    planes: Planes
    overshoot: jax.Array
    levels: jax.Array

    @classmethod
    def start(
        cls,
        batch: Batch,
        classes: jax.Array,
        state: Inference,
        levels: jax.Array,
        overshoot: float,
    ) -> Self:
        planes = Planes.none(batch.images, _NUM_PLANES)
        overshoots = jnp.full(len(classes), overshoot)
        return cls(batch.images, batch.images, classes, state, planes, overshoots, levels)

    @functools.partial(jax.jit, static_argnames="norm")
    def next(self, model: ABSClassifier, batch: Batch, l2_part: jax.Array, norm: str) -> Self:
        """At the closest images behind the planes, with that of the state among them."""
        planes = self.planes.add(*linearise(model, self.state, batch.classes))
        gradients, offsets = linearise(model, self.state, self.classes)
        flat = batch.images.reshape(len(batch.images), -1)
        seen = threshold(flat) if model.binary else flat
        exists = jnp.isfinite(planes.offsets)
        normals = jnp.where(exists[:, :, None], gradients[:, None] - planes.gradients, 0.0)
        margins = jnp.einsum("nkv,nv->nk", normals, seen) + offsets[:, None] - planes.offsets
        needs = jnp.where(exists, -margins + self.overshoot[:, None] * jnp.abs(margins), -1.0)
        changes, multipliers = smallest_changes(
            _cost(seen, flat, l2_part, self.levels, norm, model.binary),
            Halfspaces(normals, needs, planes.multipliers),
        )
        images = jnp.clip(seen + changes, 0.0, 1.0).reshape(batch.images.shape)
        return dataclasses.replace(
            self,
            images=snap(images, batch.images) if model.binary else images,
            previous=self.images,
            planes=dataclasses.replace(planes, multipliers=multipliers),
        )

    def follow(self, oracle: Oracle, batch: Batch) -> Self:
        """Asks a little beyond the images, going on from the state."""
        ahead = _beyond(self.images, self.previous)
        _, state = oracle.logits(ahead, asking(self.state, batch.classes, self.classes))
        return dataclasses.replace(self, state=state)

    def judge(self, oracle: Oracle, batch: Batch, best: Best, norm: str) -> tuple[Self, Best]:
        """Asks about the images from scratch."""
        logits, state = oracle.logits(self.images)
        best = bests.update(best, batch, self.images, logits, norm, confirmed=True)
        walk = dataclasses.replace(
            self,
            state=state,
            overshoot=_adapt(self.overshoot, batch.fooled(logits)),
            levels=jnp.where(best.success, best.distances, self.levels),
        )
        return walk, best


@jax.jit
def _beyond(images: jax.Array, previous: jax.Array) -> jax.Array:
    return jnp.clip(images + _MOMENTUM * (images - previous), 0.0, 1.0)


@jax.jit
def _adapt(overshoot: jax.Array, fooled: jax.Array) -> jax.Array:
    return jnp.where(fooled, overshoot / 2, jnp.maximum(2 * overshoot, _LEAST_OVERSHOOT))


def _cost(
    seen: jax.Array,
    originals: jax.Array,
    l2_part: jax.Array,
    levels: jax.Array,
    norm: str,
    binary: bool,
) -> Cost:
    """What changes of what the decoders see cost in distance from the originals; both flat."""
    if norm == "l0":
        return Flips(seen, jnp.ones_like(seen))
    if not binary:
        return SquaredLength(seen) if norm == "l2" else LargestChange(seen, l2_part)
    size = jnp.abs(originals - 0.5)
    if norm == "l2":
        prices = (size / _WHITE) ** 2
    else:
        prices = (size / jnp.maximum(levels, _LEAST_LEVEL)[:, None]) ** _POWER
    return Flips(seen, jnp.clip(prices, _LEAST_PRICE, 1.0))


_draw = jax.jit(functools.partial(draw_start, epsilon=1.0, norm="linf"))
