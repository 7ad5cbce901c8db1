"""What every attack does before and after its own work: checks, keys, batches, confirmation."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abs_model._runtime.precision import single_precision
from abs_model.attacks.base import AttackResult, distances, fold_in, image_keys, snap
from abs_model.attacks.batch import Batch
from abs_model.attacks.best import Best
from abs_model.attacks.checks import check_labels, check_norm
from abs_model.attacks.confirmation import settle
from abs_model.attacks.oracle import Oracle
from abs_model.classifiers import Classifier
from abs_model.images import check_images

Progress = Callable[[int], None]


@single_precision
def run(
    attack: Callable[[Oracle, Batch], Best],
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    norm: str,
    norms: tuple[str, ...],
    epsilon: float | None = None,
    targets: Any = None,
    progress: Progress | None = None,
) -> AttackResult:
    """Runs an attack on all images, in batches of at most `model.batch_size`.

    What a warm-started classifier (ABS) said on the way is confirmed from scratch, at the end at
    the latest (`abs_model.attacks.confirmation`). So attacks ask such a classifier more often than
    they say: up to 10 times more at the end, once or, where claims fail, up to 10 times more after
    each restart, ascent or search, and once more after every 40 queries or, where a find ends the
    search for an image, after each that seems to have found something.

    For a model on thresholded images (with a true attribute `binary`), changes that it does not see
    are taken back in the end (`snap`). Which image is the closest is decided before that, because
    searches go by how far images are, seen or not; `flip_pixels` is the attack that counts only
    what is seen.

    Args:
        attack: The attack of one batch, on the classifier as the oracle answers for it.
        model: The classifier.
        images: Float32 (N, height, width, channels) in [0, 1].
        labels: True labels, integers (N,).
        key: A `jax.random.key`, or one for each image, (N,): all that is random about an image
            comes from its key, whatever batch it is in.
        norm: Of the distances.
        norms: Those that the attack knows.
        epsilon: Where the attack keeps within one, the largest distance.
        targets: Target classes, integers (N,); by default any class but the label.
        progress: Called with the number of queries per image of the current batch so far.

    Returns:
        Per image the closest adversarial one; where there is none, that of the highest margin.

    Raises:
        ValueError: An argument is invalid.
    """
    check_norm(norm, norms)
    images = check_images(images, model.image_shape)
    classes = check_labels(labels, len(images), model.num_classes)
    if targets is not None:
        goals = check_labels(targets, len(images), model.num_classes, name="targets")
        if bool((goals == classes).any()):
            raise ValueError("targets must differ from labels: the true class is no target")
        classes = goals
    keys = image_keys(key, len(images))
    model, rows = _split(model, len(images))
    parts = []
    for row in rows:
        batch = _batch(
            images, classes, keys, row, model.logit_tolerance, targeted=targets is not None
        )
        oracle = Oracle(model, progress)
        found = settle(oracle, batch, attack(oracle, batch), norm, epsilon)
        if getattr(model, "binary", False):
            found = _snap(batch, found, norm)
        parts.append(_result(oracle, found))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[: len(images)], *parts)


def split_keys(batch: Batch, number: int) -> jax.Array:
    """A key for each image of the batch, (n,), that differs from those of other numbers."""
    return fold_in(batch.keys, jnp.full(batch.keys.shape, number))


def _split(model: Classifier, count: int) -> tuple[Classifier, list[np.ndarray]]:
    """The images of each batch by number, and the model with that batch size.

    As few and as equal batches as can be, since padding (repeating the last image) costs as much as
    images.
    """
    num_batches = -(-count // model.batch_size)
    size = -(-count // num_batches)
    rows = np.minimum(np.arange(num_batches * size), count - 1)
    return model.with_batch_size(size), list(rows.reshape(num_batches, size))


@functools.partial(jax.jit, static_argnames="targeted")
def _batch(
    images: jax.Array,
    classes: jax.Array,
    keys: jax.Array,
    rows: np.ndarray,
    logit_tolerance: float | jax.Array,
    *,
    targeted: bool,
) -> Batch:
    return Batch(images[rows], classes[rows], keys[rows], targeted, logit_tolerance)


@functools.partial(jax.jit, static_argnames="norm")
def _snap(batch: Batch, found: Best, norm: str) -> Best:
    images = snap(found.images, batch.images)
    return dataclasses.replace(
        found, images=images, distances=distances(images, batch.images, norm)
    )


def _result(oracle: Oracle, best: Best) -> AttackResult:
    counts = (
        jnp.broadcast_to(jnp.asarray(count, jnp.int32), best.success.shape)
        for count in (
            oracle.num_queries,
            oracle.num_gradients,
            oracle.num_zero_gradients,
            oracle.num_nonfinite_gradients,
        )
    )
    return AttackResult(best.images, best.success, best.distances, *counts)
