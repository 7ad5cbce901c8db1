"""The pointwise attack: take back as much of the noise as the decision allows, value by value.

Schott, Rauber, Bethge, Brendel, "Towards the first adversarially robust neural network model on
MNIST", ICLR 2019 (https://arxiv.org/abs/1805.09190), section 5. From an adversarial image, as a
rule the original with salt-and-pepper noise, pixels are set back to the original in random order as
long as the image stays adversarial, until no single one can be. For L2, values that cannot be set
back then move towards the original, one by one, as far as a bisection finds possible.
"""

import math
from typing import Any

import jax

from abs_model._runtime.checks import check_count
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.checks import check_norm
from abs_model.attacks._core.keys import split_keys
from abs_model.attacks._core.norms import choose
from abs_model.attacks._core.query import Query
from abs_model.attacks._core.result import AttackResult
from abs_model.attacks._core.run import Progress, run
from abs_model.attacks._search.coordinate_reset import reset_coordinates
from abs_model.attacks._search.salt_and_pepper_noise import (
    most_noise_queries,
    search_salt_and_pepper,
)
from abs_model.attacks._search.starting_points import (
    most_starting_queries,
    read_starting_points,
    search_starting_points,
)
from abs_model.attacks.registry import Access, Queries, register
from abs_model.models.classifier import Classifier

_NORMS = ("l2", "l0")
_NUM_EPSILONS = 20  # of the salt-and-pepper noise


@register(
    title="Pointwise",
    norms=_NORMS,
    access=Access.DECISIONS,
    source="Schott et al. 2019",
    smoke={"num_restarts": 1, "max_queries": 30},
    resources=("starting_points",),
    most_queries=lambda settings, norm, model: Queries(logits=settings["max_queries"] or math.inf),
)
def pointwise(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    norm: str,
    num_restarts: int = 10,
    max_queries: int | None = None,
    starting_points: Any = None,
    targets: Any = None,
    progress: Progress | None = None,
) -> AttackResult:
    """Attacks a classifier with the pointwise attack, which sees only decisions.

    Each restart starts from the least salt-and-pepper noise of its own draw that is adversarial,
    found in 20 steps and a bisection; the first restart, given `starting_points`, from one of
    these. (Without them, an image that no such noise fools starts from grays, uniform noise or
    blends of it.) Then values are set back: first blocks, for speed, then single ones, until in a
    round through all that are still changed not one can be set back. So the result of each restart
    is minimal: with any single change taken back it is not adversarial any more. For "l2" values
    also move towards the original, until none can move by a hundredth of its change.

    Makes one query of the originals, about 26 in each restart for the noise, and then as many as it
    takes: for "l0" at least one for each pixel that stays changed, as a rule one or two times the
    number of pixels that the noise had changed, and for "l2" on top of that some ten times the
    number of values that stay changed. Images go through their restarts each at its own pace; a
    batch waits for the one that takes longest.

    Args:
        model, images, labels, progress: As for every attack; see `abs_model.attacks`.
        key: A `jax.random.key`, or one for each image, (N,): of noise and orders.
        norm: "l0" or "l2". For "l0" a pixel is set back in all channels.
        num_restarts: Draws of noise to start from. The paper has 10.
        max_queries: Most queries per image. A restart that is cut short need not be minimal,
            and restarts that were not reached leave the noise as it was. No limit by default.
        starting_points: Float32 (M, height, width, channels) in [0, 1]: images to start from, such
            as training images; the first restart starts from the closest adversarial one.
        targets: Target classes, integers (N,); by default any class but the label. As noise
            hardly ever leads to one of them, give `starting_points` of these classes.

    Returns:
        Per image the closest adversarial one; where no starting point was found, that of the
        highest margin.

    Raises:
        ValueError: An argument is invalid, or `max_queries` is too few for the noise.
    """
    check_norm(norm, _NORMS)
    num_restarts = check_count("num_restarts", num_restarts)
    points = read_starting_points(starting_points, model.image_shape)
    for_start = 1 + num_restarts * most_noise_queries((1, *model.image_shape), _NUM_EPSILONS)
    if points is None:
        for_start += most_starting_queries(None)
    limit = _queries_for_resetting(max_queries, for_start, num_restarts)

    def attack(query: Query, batch: Batch) -> None:
        query.logits(batch.images)
        # Nothing is closer than an original that is wrong already.
        wrong = query.best.success
        starts = []
        if points is not None:
            search_starting_points(query, points)
            starts.append(query.best.images)
        for restart in range(len(starts), num_restarts):
            noisy = search_salt_and_pepper(query, split_keys(batch, 2 * restart), _NUM_EPSILONS)
            starts.append(choose(wrong, batch.images, noisy))
        if points is None and not bool(query.best.success.all()):
            # What has noise to start from must gain nothing by the others' having none.
            found = query.best.success
            search_starting_points(query, None, idle=found)
            starts[0] = choose(found, starts[0], query.best.images)
        keys = [split_keys(batch, 2 * restart + 1) for restart in range(num_restarts)]
        reset_coordinates(query, starts, keys, limit)

    return run(
        attack, model, images, labels, key, norm=norm, norms=_NORMS, targets=targets,
        progress=progress,
    )  # fmt: skip


def _queries_for_resetting(
    max_queries: int | None, for_start: int, num_restarts: int
) -> int | None:
    """Most queries for setting values back, by the most that starting can take."""
    if max_queries is None:
        return None
    max_queries = check_count("max_queries", max_queries)
    if max_queries < for_start + num_restarts:
        raise ValueError(
            f"max_queries must be at least {for_start + num_restarts} for {num_restarts} restarts,"
            f" got {max_queries}"
        )
    return max_queries - for_start
