"""DeepFool: steps to the nearest of the linearised decision boundaries.

Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool: a simple and accurate method to fool deep neural
networks", CVPR 2016 (https://arxiv.org/abs/1511.04599), Algorithm 2.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from abs_model._runtime.checks import check_count, check_number
from abs_model.attacks import best as bests
from abs_model.attacks.base import AttackResult, ascent_direction, choose, per_image
from abs_model.attacks.batch import Batch
from abs_model.attacks.best import Best
from abs_model.attacks.confirmation import Confirmations
from abs_model.attacks.geometry import dual_lengths, farthest, nearest_boundaries
from abs_model.attacks.oracle import Jacobian, Oracle
from abs_model.attacks.running import Progress, run
from abs_model.classifiers import Classifier

# A shorter step may be lost in rounding, and one of length 0 (logits that tie) never ends.
_SHORTEST_STEP = 1e-4


def deepfool(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    norm: str,
    num_steps: int = 100,
    overshoot: float = 0.02,
    num_classes: int = 10,
    progress: Progress | None = None,
) -> AttackResult:
    """Looks for close adversarial images with DeepFool.

    At x_i, each other class k has the linearised boundary f_k - f_label = 0. The step r_i leads
    to the nearest of these, and the next iterate is

        x_{i+1} = clip(x_0 + (1 + overshoot) (r_0 + ... + r_i))

    Images stop where they fool the classifier. Steps are of at least 1e-4.

    Queries the classifier at most `num_steps + 1` times, each time for the gradients of up to
    `num_classes` logits; stops when all images of the batch are done.

    Args:
        model: The classifier.
        images: Float32 (N, height, width, channels) in [0, 1].
        labels: True labels, integers (N,).
        key: A `jax.random.key`, or one for each image, (N,). Nothing here is random.
        norm: "l2" or "linf".
        num_steps: Most steps. More than the 50 of Foolbox and the authors' code cost nothing where
            images are done sooner.
        overshoot: How far beyond the boundary to go, as a part of the whole way; at least 0. 0.02
            as in the paper.
        num_classes: Classes whose gradients are taken, at least 2: in each step the label and those
            of the largest other logits. 10 as in the authors' code and Foolbox, which choose them
            once, at the original. Time and memory grow with it.
        progress: Called with the number of queries per image of the current batch so far.

    Returns:
        Per image the first adversarial iterate; where there is none, that of the highest margin.

    Raises:
        ValueError: An argument is invalid.
    """
    num_steps = check_count("num_steps", num_steps)
    overshoot = check_number("overshoot", overshoot, minimum=0.0)
    num_classes = check_count("num_classes", num_classes, minimum=2)

    def attack(oracle: Oracle, batch: Batch) -> Best:
        iterates, total = batch.images, jnp.zeros_like(batch.images)
        leading = batch.classes, num_classes
        jacobian, logits, state = oracle.jacobian(iterates, leading=leading)
        best = bests.first(batch, iterates, logits, norm)
        confirmations = Confirmations(oracle, batch, best, norm)
        for _ in range(num_steps):
            if bool(best.success.all()):
                break
            iterates, total = _step(
                batch, iterates, total, jacobian, logits, best.success, overshoot,
                norm=norm,
            )  # fmt: skip
            jacobian, logits, state = oracle.jacobian(iterates, state, leading=leading)
            best = bests.update(best, batch, iterates, logits, norm)
            best, refuted = confirmations.refute(best)
            if refuted is not None:
                answer = oracle.jacobian(iterates, leading=leading)
                jacobian, logits, state = choose(refuted, answer, (jacobian, logits, state))
        return best

    return run(
        attack, model, images, labels, key, norm=norm, norms=("l2", "linf"), progress=progress
    )


@functools.partial(jax.jit, static_argnames="norm")
def _step(
    batch: Batch,
    iterates: jax.Array,
    total: jax.Array,
    jacobian: Jacobian,
    logits: jax.Array,
    done: jax.Array,
    overshoot: jax.Array,
    *,
    norm: str,
) -> tuple[jax.Array, jax.Array]:
    """The next iterates, and the sums of their steps."""
    planes = nearest_boundaries(jacobian, logits, batch, norm=norm)
    steepness = dual_lengths(planes.normals, norm)
    away = jnp.abs(planes.values) / jnp.where(steepness > 0, steepness, 1.0)
    # Linearised far from any boundary, it may seem to be far outside of the range of images.
    away = jnp.clip(away, _SHORTEST_STEP, farthest(batch.images, norm))
    new = total + per_image(away) * ascent_direction(planes.normals, norm)
    moved = jnp.clip(batch.images + (1 + overshoot) * new, 0.0, 1.0)
    return choose(done, (iterates, total), (moved, new))
