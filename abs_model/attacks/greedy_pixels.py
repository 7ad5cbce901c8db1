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
from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.query import Query
from abs_model.attacks._core.result import AttackResult
from abs_model.attacks._core.run import Progress, run
from abs_model.attacks._search.edit_space import EditSpace
from abs_model.attacks._search.greedy import most_greedy_queries, search_greedily
from abs_model.attacks.registry import Access, register
from abs_model.models.classifier import Classifier

_NORMS = ("l0",)


@register(
    title="Greedy pixels",
    norms=_NORMS,
    access=Access.GRADIENTS,
    source="this project",
    smoke={"max_pixels": 5},
    most_queries=lambda settings, norm, model: most_greedy_queries(
        norm, settings["max_pixels"], settings["num_candidates"], settings["num_rounds"]
    ),
    limits={"l0": "max_pixels"},
)
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
        model, images, labels, progress: As for every attack; see `abs_model.attacks`.
        key: A `jax.random.key`, or one for each image, (N,): of the halves undone, and of the
            choice where there is no gradient.
        max_pixels: Most pixels to change.
        num_candidates: How many pixels are tried in each step.
        num_rounds: The search is repeated from the best found with a random half of its changes
            undone.

    Returns:
        Per image the adversarial one of fewest pixels; where there is none, that of the highest
        margin.

    Raises:
        ValueError: An argument is invalid, or the model is a black box.
    """
    max_pixels = check_count("max_pixels", max_pixels)
    num_candidates = check_count("num_candidates", num_candidates)
    num_rounds = check_count("num_rounds", num_rounds)

    def attack(query: Query, batch: Batch) -> None:
        query.logits(batch.images)
        search_greedily(
            query, EditSpace("l0"), num_steps=max_pixels, num_candidates=num_candidates,
            num_rounds=num_rounds,
        )  # fmt: skip

    return run(
        attack,
        model,
        images,
        labels,
        key,
        norm="l0",
        norms=_NORMS,
        verify_regularly=False,
        progress=progress,
    )
