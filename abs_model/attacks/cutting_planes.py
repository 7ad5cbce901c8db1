"""Cutting planes: the attack made for ABS, which knows the shape of its decision boundaries.

The margin of another class over the label is a difference p(x) - q(x) of convex functions, of which
the latents at any point give the value and the gradient; see `margin_bounds`. Both are linearized
wherever the classifier is queried:

- Where p's linearization is above q, x is adversarial. To look for the closest such x, and to
  linearize again there, is the concave-convex procedure, each of whose iterates is better than the
  last (Yuille and Rangarajan, "The concave-convex procedure", Neural Computation 15(4), 2003).
- Of q the linearizations are collected, and the closest image at which p's is above all of them is
  next: the cutting-plane method for what is now a convex problem (Kelley, "The cutting-plane method
  for solving convex programs", Journal of the SIAM 8(4), 1960). Explanations of the label that take
  over on the way are bounds like others.

Each pair of linearizations makes a half-space of images; `halfspace_projection` finds the closest
image in all of them, in each norm. For Binary ABS the change is one of thresholded values.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp

from abs_model._runtime.checks import check_count
from abs_model._runtime.pytrees import register_dataclass
from abs_model.attacks._abs.explanations import check_abs, restrict_to_classes
from abs_model.attacks._abs.halfspace_projection import (
    Cost,
    Flips,
    Halfspaces,
    LargestChange,
    SquaredLength,
    smallest_changes,
)
from abs_model.attacks._abs.margin_bounds import LinearBounds, linearize
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.checks import NORMS
from abs_model.attacks._core.keys import split_keys
from abs_model.attacks._core.norms import distances, random_start, snap
from abs_model.attacks._core.query import Answer, Query
from abs_model.attacks._core.result import AttackResult
from abs_model.attacks._core.run import Progress, run
from abs_model.attacks._search.line_search import interpolate, search_line
from abs_model.attacks.registry import Access, Queries, register
from abs_model.models.abs import ABSClassifier
from abs_model.models.classifier import Classifier, threshold

_NUM_PLANES = 8
_NUM_SCOUTING_STEPS = 4
# What warm queries find in between rests on explanations near the last one, and does not count.
_COLD_EVERY = 4
# How far beyond the linearized boundary to aim, as a part of the way there: first, and at least
# after a failure.
_OVERSHOOT = 1e-3
_LEAST_OVERSHOOT = 1e-4
# Of the way to what was found, and how often it is halved.
_LAST_PART, _NUM_BISECTIONS = 4e-3, 6
# Extrapolation factor: warm queries lie this part of the last step ahead of the images, because
# that is where the next images will be. (Cold queries are about the images themselves.)
_MOMENTUM = 0.5
# L-infinity: weight of the squared L2 norm at the first and at the last step. A small one lets the
# largest change alone decide, but then many images are as good, and the iterates jump.
_FIRST_L2_PART, _LAST_L2_PART = 1e-3, 1e-5
# Binary ABS: the smallest price of a flip, as a part of the largest. In L-infinity prices grow with
# this power of the change, so that the largest one decides, up to the best distance so far.
_LEAST_PRICE = 1e-4
_POWER = 16
_HALF_RANGE = 0.5  # how far it is to flip white or black
_LEAST_LEVEL = 1e-3


def _most_queries(settings: Mapping[str, Any], norm: str, model: Classifier) -> Queries:
    others = model.num_classes - 1
    runs = settings["num_restarts"] + 1
    steps = min(settings["num_classes"], others) * settings["num_steps"]
    bisections = 1 + _NUM_BISECTIONS if _bisects(norm, model) else 0
    return Queries(logits=_NUM_SCOUTING_STEPS * others + runs * (1 + steps) + bisections)


def _bisects(norm: str, model: Classifier) -> bool:
    """Whether changes can be halved: those of counted or thresholded pixels cannot."""
    return norm != "l0" and not model.binary


@register(
    title="Cutting planes",
    norms=NORMS,
    access=Access.ABS,
    source="this project",
    smoke={"num_classes": 1, "num_steps": 8, "num_restarts": 0},
    most_queries=_most_queries,
)
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

    1. Rank the other classes by 4 steps towards each: those whose images are closest come first.
    2. For each of the first `num_classes`, `num_steps` times: find the closest image in all
       half-spaces so far, query it, and add the half-space that its explanation gives. Every fourth
       query, and the last, is cold, and only what these find counts. The half-spaces lie a little
       behind the boundary: half as far after a success, twice as far after a failure.
    3. In L2 and L-infinity, bisect the last part of the line to what was found in 7 queries; not
       for Binary ABS, which has nothing between its changes.

    Step 2 starts from the explanation of the original, and in restarts from that of an image of
    noise around it.

    Makes `1 + 4 * (classes - 1) + num_classes * num_steps` queries, and for each restart
    `1 + num_classes * num_steps`, not counting the bisection. None is for gradients, because the
    latents tell them.

    Args:
        images, labels, progress: As for every attack; see `abs_model.attacks`.
        model: An ABS or Binary ABS model.
        key: A `jax.random.key`, or one for each image, (N,): of the restarts.
        norm: "l2", "linf" or "l0".
        num_classes: How many other classes to approach; if there are fewer, all.
        num_steps: Queries on the way to each.
        num_restarts: How often to approach them again; 0 or more.

    Returns:
        Per image the closest adversarial one; where there is none, that of the highest margin.

    Raises:
        ValueError: An argument is invalid; the model is no ABS model.
    """
    check_abs(model, "cutting_planes")
    num_classes = check_count("num_classes", num_classes)
    num_steps = check_count("num_steps", num_steps)
    num_restarts = check_count("num_restarts", num_restarts, minimum=0)

    def attack(query: Query, batch: Batch) -> None:
        answer = query.logits(batch.images)
        nearest = _nearest_classes(query, answer)[:num_classes]
        for restart in range(num_restarts + 1):
            if restart > 0:
                answer = query.logits(
                    random_start(split_keys(batch, restart), batch.images, 1.0, "linf")
                )
            for classes in nearest:
                _approach(query, classes, answer, num_steps)
        if _bisects(norm, model):
            _bisect_last_part(query)

    return run(attack, model, images, labels, key, norm=norm, norms=NORMS, progress=progress)


def _nearest_classes(query: Query, answer: Answer) -> list[jax.Array]:
    """Each image's other classes, (n,) each, those first to which a few steps lead soonest."""
    batch, number = query.batch, query.model.num_classes
    away = []
    for rank in range(1, number):
        classes = (batch.classes + rank) % number
        levels = jnp.full(len(classes), _HALF_RANGE)
        walk = _Walk.start(batch, classes, answer, levels, overshoot=0.0)
        for _ in range(_NUM_SCOUTING_STEPS):
            walk = walk.proceed(query, _FIRST_L2_PART).follow(query)
        away.append(distances(walk.images, batch.images, query.norm))
    order = jnp.argsort(jnp.stack(away, axis=1), axis=1)
    return list(((batch.classes[:, None] + 1 + order) % number).T)


def _approach(query: Query, classes: jax.Array, answer: Answer, num_steps: int) -> None:
    """Approaches one class of each image, (n,), from the explanations of the answer."""
    best = query.best
    levels = jnp.where(best.success, best.distances, _HALF_RANGE)
    walk = _Walk.start(query.batch, classes, answer, levels, _OVERSHOOT)
    for step in range(1, num_steps + 1):
        l2_part = _FIRST_L2_PART * (_LAST_L2_PART / _FIRST_L2_PART) ** (step / num_steps)
        walk = walk.proceed(query, l2_part)
        cold = step % _COLD_EVERY == 0 or step == num_steps
        walk = walk.judge(query) if cold else walk.follow(query)


def _bisect_last_part(query: Query) -> None:
    """Bisects the last part of the lines, by which the half-spaces may overshoot."""
    originals, far = query.batch.images, query.best.images

    def path(fractions: jax.Array) -> jax.Array:
        return interpolate(originals, far, 1.0 - _LAST_PART * (1.0 - fractions), query.norm)

    search_line(query, path, num_levels=1, num_bisections=_NUM_BISECTIONS)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Walk:
    """Where the way towards one class is.

    Attributes:
        images: The closest in the half-spaces so far, (n, height, width, channels).
        previous: Those before.
        classes: Where it leads, int32 (n,).
        answer: Of the last query.
        bounds: Of the f of the label, from below.
        overshoot: How far behind the boundary the half-spaces lie, as a part of the way, (n,).
        levels: Binary ABS in L-infinity: the distance to get below, (n,).
    """

    images: jax.Array
    previous: jax.Array
    classes: jax.Array
    answer: Answer
    bounds: LinearBounds
    overshoot: jax.Array
    levels: jax.Array

    @classmethod
    def start(
        cls,
        batch: Batch,
        classes: jax.Array,
        answer: Answer,
        levels: jax.Array,
        overshoot: float,
    ) -> Self:
        bounds = LinearBounds.none(batch.images, _NUM_PLANES)
        overshoots = jnp.full(len(classes), overshoot)
        return cls(batch.images, batch.images, classes, answer, bounds, overshoots, levels)

    def proceed(self, query: Query, l2_part: float) -> Self:
        """At the closest images in the half-spaces, with that of the answer among them."""
        model = query.model
        return self._next(model, query.batch, l2_part, query.norm, model.binary)

    @functools.partial(jax.jit, static_argnames=("norm", "binary"))
    def _next(
        self, model: ABSClassifier, batch: Batch, l2_part: jax.Array, norm: str, binary: bool
    ) -> Self:
        bounds = self.bounds.add(*linearize(model, self.answer.state, batch.classes))
        gradients, offsets = linearize(model, self.answer.state, self.classes)
        flat = batch.images.reshape(len(batch.images), -1)
        seen = threshold(flat) if binary else flat
        exists = jnp.isfinite(bounds.offsets)
        normals = jnp.where(exists[:, :, None], gradients[:, None] - bounds.gradients, 0.0)
        margins = jnp.einsum("nkv,nv->nk", normals, seen) + offsets[:, None] - bounds.offsets
        missing = -margins + self.overshoot[:, None] * jnp.abs(margins)
        changes, multipliers = smallest_changes(
            _cost(seen, flat, l2_part, self.levels, norm, binary),
            Halfspaces(normals, jnp.where(exists, missing, -1.0), bounds.multipliers),
        )
        images = jnp.clip(seen + changes, 0.0, 1.0).reshape(batch.images.shape)
        return dataclasses.replace(
            self,
            images=snap(images, batch.images) if binary else images,
            previous=self.images,
            bounds=dataclasses.replace(bounds, multipliers=multipliers),
        )

    def follow(self, query: Query) -> Self:
        """Queries a little beyond the images, warm-started, and for the two classes only."""
        near = restrict_to_classes(self.answer, query.batch.classes, self.classes)
        ahead = _beyond(self.images, self.previous)
        return dataclasses.replace(self, answer=query.logits(ahead, near=near, record=False))

    def judge(self, query: Query) -> Self:
        """Queries the images, cold."""
        answer = query.logits(self.images)
        best = query.best
        return dataclasses.replace(
            self,
            answer=answer,
            overshoot=_adapt(self.overshoot, query.batch.is_adversarial(answer.logits)),
            levels=jnp.where(best.success, best.distances, self.levels),
        )


@jax.jit
def _beyond(images: jax.Array, previous: jax.Array) -> jax.Array:
    return jnp.clip(images + _MOMENTUM * (images - previous), 0.0, 1.0)


@jax.jit
def _adapt(overshoot: jax.Array, adversarial: jax.Array) -> jax.Array:
    return jnp.where(adversarial, overshoot / 2, jnp.maximum(2 * overshoot, _LEAST_OVERSHOOT))


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
        prices = (size / _HALF_RANGE) ** 2
    else:
        prices = (size / jnp.maximum(levels, _LEAST_LEVEL)[:, None]) ** _POWER
    return Flips(seen, jnp.clip(prices, _LEAST_PRICE, 1.0))
