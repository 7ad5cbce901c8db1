"""Greedy change of pixels, led by gradients: few pixels with white-box access; L0.

The idea is that of Papernot et al., "The limitations of deep learning in adversarial settings",
EuroS&P 2016 (https://arxiv.org/abs/1511.07528), without its targets and saliency maps: in each step
the pixel changes to 0 or 1, in each channel, whose change gains most to first order towards the
class that fewest pixels lead to. True scores pick among the best candidates, and at the end pixels
are reset that success doesn't need. On a linear classifier of two classes the result is exact.
"""

from typing import Any

import jax

from abs_model._runtime.checks import check_count
from abs_model.attacks import best as bests
from abs_model.attacks.base import AttackResult
from abs_model.attacks.batch import Batch
from abs_model.attacks.best import Best
from abs_model.attacks.changes import Space
from abs_model.attacks.greedy import search
from abs_model.attacks.oracle import Oracle
from abs_model.attacks.running import Progress, run
from abs_model.classifiers import Classifier


def greedy_pixels(
    model: Classifier,
    images: Any,
    labels: Any,
    key: jax.Array,
    *,
    max_pixels: int = 100,
    num_candidates: int = 5,
    num_rounds: int = 3,
    progress: Progress | None = None,
) -> AttackResult:
    """Attacks a classifier by changing one pixel after the other; minimal distance in L0.

    Queries the classifier at most `1 + num_rounds * (1 + max_pixels * (2 + num_candidates))` times,
    `num_rounds * (1 + max_pixels)` times with gradient (of up to ten logits).

    Args:
        model: The classifier.
        images: Float32 (N, height, width, channels) in [0, 1].
        labels: True labels, integers (N,).
        key: A `jax.random.key`, or one for each image, (N,): of the halves undone, and of the
            choice where there is no gradient.
        max_pixels: Most pixels to change.
        num_candidates: How many pixels are tried in each step.
        num_rounds: The search is repeated from the best found with a random half of its changes
            undone.
        progress: Called with the number of queries per image of the current batch so far.

    Returns:
        Per image the adversarial one of fewest pixels; where there is none, that of the highest
        margin.

    Raises:
        ValueError: An argument isn't as described, or the model is a black box.
    """
    max_pixels = check_count("max_pixels", max_pixels)
    num_candidates = check_count("num_candidates", num_candidates)
    num_rounds = check_count("num_rounds", num_rounds)

    def attack(oracle: Oracle, batch: Batch) -> Best:
        best = bests.first(batch, batch.images, oracle.logits(batch.images)[0], "l0")
        return search(
            oracle, batch, best, Space("l0"), num_steps=max_pixels, num_candidates=num_candidates,
            num_rounds=num_rounds,
        )  # fmt: skip

    return run(attack, model, images, labels, key, norm="l0", norms=("l0",), progress=progress)
