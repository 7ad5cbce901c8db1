"""Attacks: small changes of images that make a classifier wrong.

Every attack is a call of one form, `attack(model, images, labels, key, **settings)`, that returns
an `AttackResult`; `norm` is among the settings of those that know several. There are two families:

- the worst image within a distance, `epsilon`: `pgd`, `apgd`, `square`, or within a number of
  pixels: `sparse_rs`, unless it minimizes that;
- the closest adversarial image: all others.

What all have in common:

    model: The classifier.
    images: Float32 (N, height, width, channels) in [0, 1].
    labels: True labels, integers (N,).
    key: A `jax.random.key`, or one for each image, (N,): all that is random about an image comes
        from its key, so that no result depends on the batch or on the order of images.
    targets: Target classes, integers (N,); by default any class but the label.
    progress: Called with the number of queries per image of the current batch so far.

Per image the result has the closest adversarial example that was queried; where there is none, the
image of the highest margin. An invalid argument is a ValueError that names it.

Query counts in the docstrings are for classifiers without warm starts. ABS takes more: one query
after 40 warm ones in a row; one at the end of each restart, and up to nine more where an example is
rejected; and where an attack stops at its first example, one or two after each.

Each attack is a file of that name, whose body is the algorithm of its paper, and which declares
what it requires (`registry`). `_core` has what all use: the query session counts queries,
warm-starts them, and keeps and verifies the best images. `_search` has searches that several
attacks share, and `_abs` what only attacks on ABS use. `estimate_gradients` gives a classifier
without gradients estimated ones, `average_logits` a random one means. `ascend` is PGD as a pure
function, for adversarial training.
"""

from abs_model.attacks._core.batch import Batch
from abs_model.attacks._core.checks import NORMS
from abs_model.attacks._core.losses import log_odds, margins
from abs_model.attacks._core.norms import (
    ascent_direction,
    distances,
    project,
    random_start,
    snap,
)
from abs_model.attacks._core.query import Answer, Query
from abs_model.attacks._core.result import AttackResult
from abs_model.attacks._core.run import run
from abs_model.attacks.apgd import apgd
from abs_model.attacks.bim import bim
from abs_model.attacks.boundary import boundary
from abs_model.attacks.carlini_wagner import carlini_wagner
from abs_model.attacks.cutting_planes import cutting_planes
from abs_model.attacks.deepfool import deepfool
from abs_model.attacks.fab import fab
from abs_model.attacks.fast_gradient import fast_gradient
from abs_model.attacks.flip_pixels import flip_pixels
from abs_model.attacks.fmn import fmn
from abs_model.attacks.gaussian_noise import gaussian_noise
from abs_model.attacks.greedy_pixels import greedy_pixels
from abs_model.attacks.hop_skip_jump import hop_skip_jump
from abs_model.attacks.latent_descent import latent_descent
from abs_model.attacks.mim import mim
from abs_model.attacks.pgd import ascend, pgd
from abs_model.attacks.pointwise import pointwise
from abs_model.attacks.registry import ATTACKS, Access, AttackInfo, Queries, register
from abs_model.attacks.salt_and_pepper import salt_and_pepper
from abs_model.attacks.sparse_rs import sparse_rs
from abs_model.attacks.square import square
from abs_model.attacks.transfer import transfer
from abs_model.models.averaged_logits import average_logits
from abs_model.models.estimated_gradients import estimate_gradients

__all__ = [
    "ATTACKS",
    "NORMS",
    "Access",
    "Answer",
    "AttackInfo",
    "AttackResult",
    "Batch",
    "Queries",
    "Query",
    "apgd",
    "ascend",
    "ascent_direction",
    "average_logits",
    "bim",
    "boundary",
    "carlini_wagner",
    "cutting_planes",
    "deepfool",
    "distances",
    "estimate_gradients",
    "fab",
    "fast_gradient",
    "flip_pixels",
    "fmn",
    "gaussian_noise",
    "greedy_pixels",
    "hop_skip_jump",
    "latent_descent",
    "log_odds",
    "margins",
    "mim",
    "pgd",
    "pointwise",
    "project",
    "random_start",
    "register",
    "run",
    "salt_and_pepper",
    "snap",
    "sparse_rs",
    "square",
    "transfer",
]
