"""Cutting planes: the attack made for ABS, which knows the shape of its decision boundaries.

ABS explains an image x by a class's latents z at the energy w (||x - G(z)||^2 + ||z||^2 / 2) and
decides for the class of the best explanation. With W the largest of the weights w,

    W ||x||^2 - min over z of w (||x - G(z)||^2 + ||z||^2 / 2)

is a maximum of convex functions of x, hence convex. So the margin of another class over the label
is a difference p(x) - q(x) of convex functions, of which the latents at any point give the value
and the gradient. p, linearised at an iterate, bounds p from below, and every linearisation of q
bounds q from below:

- p's tells how far to go, at least: where it is above q, x is adversarial. This is the
  concave-convex procedure, each of whose iterates is better than the last (Yuille and Rangarajan,
  "The concave-convex procedure", Neural Computation 15(4), 2003).
- q's are collected, and the closest image at which p's is above all of them is next: the
  cutting-plane method for what is now a convex problem (Kelley, "The cutting-plane method for
  solving convex programs", Journal of the SIAM 8(4), 1960). Explanations of the label that take
  over on the way are cuts like others.

Each pair of linearisations makes a half-space of images; `halfspaces` finds the closest image in
all of them. For Binary ABS, of whose thresholded images the squared norm is linear, p and q are
maxima of linear functions, and the change is one of flips.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from abs_model.attacks import best as bests
from abs_model.attacks.base import NORMS, AttackResult, check_count, distances
from abs_model.attacks.batch import Batch
from abs_model.attacks.best import Best
from abs_model.attacks.binary import snap
from abs_model.attacks.explanations import asking, check_abs, of_class
from abs_model.attacks.halfspaces import (
    Cost,
    Flips,
    Halfspaces,
    LargestChange,
    SquaredLength,
    smallest_changes,
)
from abs_model.attacks.oracle import Oracle
from abs_model.attacks.running import Progress, run
from abs_model.classifiers import ABSClassifier, Classifier, threshold
from abs_model.inference import Inference

_NUM_CUTS = 8
# What is found between questions from scratch rests on explanations near the last one, and is not
# relied upon.
_FROM_SCRATCH_EVERY = 4
_NUM_SCOUTING_STEPS = 4
# How far beyond the linearised boundary to aim, as a part of the way there: first, and at least
# after a failure.
_OVERSHOOT = 1e-3
_SMALLEST_OVERSHOOT = 1e-4
# Binary ABS. In L2, the smallest price as a part of that of flipping black or white. In L-infinity
# prices grow with this power of the change, so that the largest one decides.
_SMALLEST_PRICE = 1e-3
_POWER = 16


def cutting_planes(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    norm: str,
    num_classes: int = 3,
    num_steps: int = 24,
    num_restarts: int = 1,
    progress: Progress | None = None,
) -> AttackResult:
    """Looks for the closest adversarial images of an ABS model.

    Goes for one class after the other, each time from the original: `num_steps` times the closest
    image behind the planes so far is asked about, and what explains it adds a plane. Each fourth
    question, and the last, is asked from scratch; only what these find counts. The planes lie a
    little behind the boundary: half as far after a success, twice as far after a failure. Which
    classes to go for is found out in 4 steps towards each: those whose images are closest then.

    Asks the classifier `1 + 4 * (classes - 1) + num_classes * num_steps` times. Gradients are not
    asked for, because the latents that it answers with tell them.

    Args:
        model: An ABS or Binary ABS model.
        images: Float32 (N, height, width, channels) in [0, 1].
        labels: Integers (N,): the classes to lead away from.
        key: A `jax.random.key`, or one for each image, (N,). Nothing here is random.
        norm: "l2", "linf" or "l0".
        num_classes: How many other classes to go for; if there are fewer, all.
        num_steps: Questions about each.
        progress: Called with the number of questions asked about each image of a batch so far.

    Returns:
        Per image the closest adversarial one; where there is none, that of the highest margin.

    Raises:
        ValueError: An argument isn't as described; the model is no ABS model.
    """
    check_abs(model, "cutting_planes")
    check_count("num_classes", num_classes)
    check_count("num_steps", num_steps)

    def attack(oracle: Oracle, batch: Batch) -> Best:
        logits, state = oracle.logits(batch.images)
        best = bests.first(batch, batch.images, logits, norm)
        nearest = _nearest_classes(oracle, batch, state, norm)[:num_classes]
        for restart in range(num_restarts + 1):
            if restart > 0:
                _, state = oracle.logits(_draw(split_keys(batch, restart), batch.images))
            for classes in nearest:
                best = _approach(oracle, batch, classes, state, best, norm, num_steps)
        return best

    return run(attack, model, images, labels, key, norm=norm, norms=NORMS, progress=progress)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Cuts:
    """Linear functions <gradients, x> + offsets below q, of each image K.

    Attributes:
        gradients: (n, K, values).
        offsets: (n, K); minus infinity where there is none yet.
        multipliers: (n, K): how much each held the last image back.
    """

    gradients: jax.Array
    offsets: jax.Array
    multipliers: jax.Array

    @classmethod
    def none(cls, images: jax.Array, number: int) -> "_Cuts":
        count = len(images)
        return cls(
            jnp.zeros((count, number, images[0].size)),
            jnp.full((count, number), -jnp.inf),
            jnp.zeros((count, number)),
        )

    def add(self, gradients: jax.Array, offsets: jax.Array) -> "_Cuts":
        """With a function (n, values), (n,) in place of the one that matters least."""
        least = jnp.argmin(jnp.where(jnp.isinf(self.offsets), -1.0, self.multipliers), axis=1)
        here = jnp.arange(self.offsets.shape[1]) == least[:, None]
        return _Cuts(
            jnp.where(here[:, :, None], gradients[:, None], self.gradients),
            jnp.where(here, offsets[:, None], self.offsets),
            jnp.where(here, 0.0, self.multipliers),
        )


def _nearest_classes(oracle: Oracle, batch: Batch, state: Inference, norm: str) -> list[jax.Array]:
    """Each image's other classes, (n,) each, those first of which it finds close images soonest.

    Asks about all of them.
    """
    number = oracle.model.num_classes
    away = []
    for rank in range(1, number):
        classes = (batch.classes + rank) % number
        cuts, there = _Cuts.none(batch.images, _NUM_CUTS), state
        overshoot = jnp.zeros(len(classes))
        for _ in range(_NUM_SCOUTING_STEPS):
            images, cuts = _next_images(oracle.model, batch, classes, there, cuts, overshoot, norm)
            _, there = oracle.logits(images, asking(there, batch.classes, classes))
        away.append(distances(images, batch.images, norm))
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
    """Goes for one class of each image, (n,), from the originals, which have this state."""
    cuts = _Cuts.none(batch.images, _NUM_CUTS)
    overshoot = jnp.full(len(classes), _OVERSHOOT)
    for step in range(1, num_steps + 1):
        images, cuts = _next_images(oracle.model, batch, classes, state, cuts, overshoot, norm)
        if step % _FROM_SCRATCH_EVERY and step < num_steps:
            _, state = oracle.logits(images, asking(state, batch.classes, classes))
        else:
            logits, state = oracle.logits(images)
            best = bests.update(best, batch, images, logits, norm)
            overshoot = _adapt(overshoot, batch.fooled(logits))
    return best


@functools.partial(jax.jit, static_argnames="norm")
def _next_images(
    model: ABSClassifier,
    batch: Batch,
    classes: jax.Array,
    state: Inference,
    cuts: _Cuts,
    overshoot: jax.Array,
    norm: str,
) -> tuple[jax.Array, _Cuts]:
    """The images to ask about next, and the cuts with that of the state."""
    cuts = cuts.add(*_linearise(model, state, batch.classes))
    gradients, offsets = _linearise(model, state, classes)
    seen = _seen(model, batch.images)
    there = jnp.isfinite(cuts.offsets)
    normals = jnp.where(there[:, :, None], gradients[:, None] - cuts.gradients, 0.0)
    at_originals = jnp.einsum("nkv,nv->nk", normals, seen) + offsets[:, None] - cuts.offsets
    needs = jnp.where(there, -at_originals, -1.0)
    needs = needs + overshoot[:, None] * jnp.abs(needs)
    cost = _cost(model, batch.images, norm)
    changes, multipliers = smallest_changes(cost, Halfspaces(normals, needs, cuts.multipliers))
    images = (seen + changes).reshape(batch.images.shape)
    images = snap(images, batch.images) if model.binary else jnp.clip(images, 0.0, 1.0)
    return images, dataclasses.replace(cuts, multipliers=multipliers)


def _linearise(
    model: ABSClassifier, state: Inference, classes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """W ||x||^2 minus the classes' weighted energy, linearised: gradients (n, values), offsets
    (n,).

    Exact in its value and gradient at the state's images, and below the function elsewhere.
    """
    count = len(classes)
    seen = state.images.reshape(count, -1)
    reconstructions = of_class(state.reconstructions, classes).reshape(count, -1)
    latents = of_class(state.latents, classes)
    weights = model.class_weights[classes][:, None]
    rest = model.class_weights.max() - weights
    fixed = weights * (
        jnp.sum(reconstructions**2, axis=1, keepdims=True)
        + 0.5 * jnp.sum(latents**2, axis=1, keepdims=True)
    )
    gradients = 2 * weights * reconstructions
    if model.binary:  # the squared norm of zeros and ones is their sum
        return gradients + rest, -fixed[:, 0]
    squared = jnp.sum(seen**2, axis=1, keepdims=True)
    return gradients + 2 * rest * seen, -(fixed + rest * squared)[:, 0]


def _cost(model: ABSClassifier, originals: jax.Array, norm: str) -> Cost:
    flat = originals.reshape(len(originals), -1)
    if not model.binary:
        if norm == "l2":
            return SquaredLength(flat)
        return LargestChange(flat) if norm == "linf" else Flips(flat, jnp.ones_like(flat))
    size = 2 * jnp.abs(flat - 0.5)
    if norm == "l2":
        prices = jnp.maximum(size**2, _SMALLEST_PRICE)
    else:
        prices = jnp.maximum(size**_POWER, 1e-6) if norm == "linf" else jnp.ones_like(flat)
    return Flips(threshold(flat), prices)


def _seen(model: ABSClassifier, images: jax.Array) -> jax.Array:
    """What the decoders explain, flat: (n, values)."""
    flat = images.reshape(len(images), -1)
    return threshold(flat) if model.binary else flat


@jax.jit
def _adapt(overshoot: jax.Array, fooled: jax.Array) -> jax.Array:
    return jnp.where(fooled, overshoot / 2, jnp.maximum(2 * overshoot, _SMALLEST_OVERSHOOT))
