"""The pointwise attack: take back as much of the noise as the decision allows, value by value.

Schott, Rauber, Bethge, Brendel, "Towards the first adversarially robust neural network model on
MNIST", ICLR 2019 (https://arxiv.org/abs/1805.09190), section 5. From an adversarial image, as a
rule the original with salt-and-pepper noise, pixels are set back to the original in random order as
long as the image stays adversarial, until no single one can be. For L2, values that cannot be set
back then move towards the original, one by one, as far as a bisection finds possible.
"""

from typing import Any

import jax

from abs_model._runtime.checks import check_count
from abs_model.attacks import best as bests
from abs_model.attacks.base import AttackResult, choose
from abs_model.attacks.batch import Batch
from abs_model.attacks.best import Best
from abs_model.attacks.checks import check_norm
from abs_model.attacks.noise import salt_and_pepper_queries, search_salt_and_pepper
from abs_model.attacks.oracle import Oracle
from abs_model.attacks.resetting import reset_values
from abs_model.attacks.running import Progress, run, split_keys
from abs_model.attacks.starting import make_starts, max_questions, starting_images
from abs_model.classifiers import Classifier

_NUM_EPSILONS = 20  # of the salt-and-pepper noise


def pointwise(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    norm: str,
    num_restarts: int = 10,
    max_queries: int | None = None,
    starts: Any = None,
    targets: Any = None,
    progress: Progress | None = None,
) -> AttackResult:
    """Attacks a classifier with the pointwise attack, which sees only decisions.

    Each restart begins at the least salt-and-pepper noise of a draw of its own that fools, found in
    20 steps and a bisection; the first restart, if `starts` are given, at one of these. (Without
    `starts`, an image that no such noise fools begins where other attacks do,
    `abs_model.attacks.starting`.) Then it sets values back (`abs_model.attacks.resetting`): first
    blocks, for speed, then single ones, until in a round through all that are still changed not one
    can be set back. So the result of each restart is minimal: with any single change taken back it
    is not adversarial any more. For "l2" values also move towards the original, until none can move
    by a hundredth of its change.

    Queries the classifier once about the originals and in each restart about 26 times for the
    noise, and then as often as it takes: for "l0" at least once for each pixel that stays changed,
    as a rule one or two times the number of pixels that the noise had changed, and for "l2" some
    ten times the number of values that stay changed on top of that. Images go through their
    restarts each at its own pace; a batch waits for the one that takes longest.

    Args:
        model: The classifier.
        images: Float32 (N, height, width, channels) in [0, 1].
        labels: True labels, integers (N,).
        key: A `jax.random.key`, or one for each image, (N,): of noise and orders.
        norm: "l0" or "l2". For "l0" a pixel is set back in all channels.
        num_restarts: Draws of noise to start from. The paper has 10.
        max_queries: Most queries per image. A restart that is cut short need not be minimal,
            and restarts that were not reached leave the noise as it was. No limit by default.
        starts: Float32 (M, height, width, channels) in [0, 1]: images to begin at, such as training
            images; the first restart begins at the closest one that is adversarial.
        targets: Target classes, integers (N,); by default any class but the label. As noise
            hardly ever leads to one of them, give `starts` of these classes.
        progress: Called with the number of queries per image of the current batch so far.

    Returns:
        Per image the closest adversarial one; where no image to begin at was found, that of the
        highest margin.

    Raises:
        ValueError: An argument isn't as described, or `max_queries` is too few for the noise.
    """
    check_norm(norm, ("l2", "l0"))
    num_restarts = check_count("num_restarts", num_restarts)
    pool = make_starts(starts, model.image_shape)
    for_start = 1 + num_restarts * salt_and_pepper_queries((1, *model.image_shape), _NUM_EPSILONS)
    if pool is None:
        for_start += max_questions(None)
    limit = _questions_for_resetting(max_queries, for_start, num_restarts)

    def attack(oracle: Oracle, batch: Batch) -> Best:
        best = bests.first(batch, batch.images, oracle.logits(batch.images)[0], norm)
        # Nothing is closer than an original that is wrong already.
        wrong = best.success
        beginnings = []
        if pool is not None:
            best = starting_images(oracle, batch, pool, best, norm)
            beginnings.append(best.images)
        for restart in range(len(beginnings), num_restarts):
            noisy, best = search_salt_and_pepper(
                oracle, batch, split_keys(batch, 2 * restart), best, norm, _NUM_EPSILONS
            )
            beginnings.append(choose(wrong, batch.images, noisy))
        if pool is None and not bool(best.success.all()):
            found = best.success
            others = starting_images(oracle, batch, None, best, norm)
            # What has noise to begin at must gain nothing by the others' having none.
            best = choose(found, best, others)
            beginnings[0] = choose(found, beginnings[0], best.images)
        keys = [split_keys(batch, 2 * restart + 1) for restart in range(num_restarts)]
        return reset_values(oracle, batch, beginnings, keys, best, norm, limit)

    return run(
        attack, model, images, labels, key, norm=norm, norms=("l2", "l0"), targets=targets,
        progress=progress,
    )  # fmt: skip


def _questions_for_resetting(
    max_queries: int | None, for_start: int, num_restarts: int
) -> int | None:
    """How many questions setting back values may take, by the most that starting can take."""
    if max_queries is None:
        return None
    max_queries = check_count("max_queries", max_queries)
    if max_queries < for_start + num_restarts:
        raise ValueError(
            f"max_queries must be at least {for_start + num_restarts} for {num_restarts} restarts,"
            f" got {max_queries}"
        )
    return max_queries - for_start
