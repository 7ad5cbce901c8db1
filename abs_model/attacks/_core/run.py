"""What every attack does before and after its own work: checks, keys, batches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abs_model._runtime.precision import single_precision
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.checks import check_labels, check_norm
from abs_model.attacks._core.keys import image_keys
from abs_model.attacks._core.norms import distances, snap
from abs_model.attacks._core.query import Query
from abs_model.attacks._core.result import AttackResult
from abs_model.models.checks import check_images
from abs_model.models.classifier import Classifier

Progress = Callable[[int], None]


@single_precision
def run(
    attack: Callable[[Query, Batch], None],
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    norm: str,
    norms: tuple[str, ...],
    epsilon: float | None = None,
    verify_regularly: bool = True,
    targets: Any = None,
    progress: Progress | None = None,
) -> AttackResult:
    """Runs an attack on all images, in batches of at most `model.batch_size`.

    For a model on thresholded images (`model.binary`), changes that the model does not see are
    undone at the end (`snap`). Which image is the closest is decided before that, because
    searches go by how far images are, seen or not; `flip_pixels` is the attack that counts only
    what is seen.

    Args:
        attack: The attack of one batch, which queries the classifier through the session; what
            that has found in the end (`Query.best`) is the result.
        model: The classifier.
        images: Float32 (N, height, width, channels) in [0, 1].
        labels: True labels, integers (N,).
        key: A `jax.random.key`, or one for each image, (N,): all that is random about an image
            comes from its key, whatever batch it is in.
        norm: Norm of the distances.
        norms: Those that the attack knows.
        epsilon: Where the attack stays within one, the largest distance.
        verify_regularly: See `Query`; an attack that settles after each short search can do
            without.
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
        batch = Batch(
            images[row], classes[row], keys[row], targets is not None, model.logit_tolerance
        )
        query = Query(
            model, batch, norm, epsilon=epsilon, verify_regularly=verify_regularly,
            progress=progress,
        )  # fmt: skip
        attack(query, batch)
        query.settle()
        parts.append(_result(query))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[: len(images)], *parts)


def _split(model: Classifier, count: int) -> tuple[Classifier, list[np.ndarray]]:
    """The images of each batch by number, and the model with that batch size.

    As few and as equal batches as can be, since padding (repeating the last image) costs as much as
    images.
    """
    num_batches = -(-count // model.batch_size)
    size = -(-count // num_batches)
    rows = np.minimum(np.arange(num_batches * size), count - 1)
    return model.with_batch_size(size), list(rows.reshape(num_batches, size))


def _result(query: Query) -> AttackResult:
    best = query.best
    images, away = best.images, best.distances
    if query.model.binary:
        images = snap(images, query.batch.images)
        away = distances(images, query.batch.images, query.norm)
    counts = (
        jnp.broadcast_to(jnp.asarray(count, jnp.int32), best.success.shape)
        for count in (
            query.num_queries,
            query.num_gradients,
            query.num_zero_gradients,
            query.num_nonfinite_gradients,
        )
    )
    return AttackResult(images, best.success, away, *counts)
