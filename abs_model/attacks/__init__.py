"""Attacks: small changes of images that make a classifier wrong.

Every attack is a call of one form, `attack(model, images, labels, key, **settings)`, that returns
an `AttackResult`; `norm` is among the settings of those that know several. There are two families:

- the worst image within a distance, `epsilon`: `pgd`, `apgd`, `square`, or within a number of
  pixels: `sparse_rs`, unless it minimizes that;
- the closest adversarial image: all others.

What they share is in `checks` (of arguments), `running` (batches), `oracle` (queries of the
classifier), `best` (what was found), `confirmation` (what of that holds) and `base` (norms);
`catalogue` has them by name, with what each needs of a classifier. `estimate_gradients` gives a
classifier without gradients estimated ones, `average_logits` a random one means. `ascend` is PGD as
a pure function, for adversarial training.
"""

from abs_model.attacks.apgd import apgd
from abs_model.attacks.averaging import average_logits
from abs_model.attacks.base import (
    AttackResult,
    ascent_direction,
    distances,
    project,
    random_start,
    snap,
)
from abs_model.attacks.batch import Batch
from abs_model.attacks.binary import flip_pixels
from abs_model.attacks.boundary import boundary
from abs_model.attacks.carlini_wagner import carlini_wagner
from abs_model.attacks.catalogue import ATTACKS
from abs_model.attacks.checks import NORMS
from abs_model.attacks.cutting_planes import cutting_planes
from abs_model.attacks.deepfool import deepfool
from abs_model.attacks.fab import fab
from abs_model.attacks.fast_gradient import fast_gradient
from abs_model.attacks.fmn import fmn
from abs_model.attacks.gradient_estimation import estimate_gradients
from abs_model.attacks.greedy_pixels import greedy_pixels
from abs_model.attacks.hop_skip_jump import hop_skip_jump
from abs_model.attacks.iterative import bim, mim
from abs_model.attacks.latent_descent import latent_descent
from abs_model.attacks.losses import log_odds, margins
from abs_model.attacks.noise import gaussian_noise, salt_and_pepper
from abs_model.attacks.pgd import ascend, pgd
from abs_model.attacks.pointwise import pointwise
from abs_model.attacks.sparse_rs import sparse_rs
from abs_model.attacks.square import square
from abs_model.attacks.transfer import transfer

__all__ = [
    "ATTACKS",
    "NORMS",
    "AttackResult",
    "Batch",
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
    "salt_and_pepper",
    "snap",
    "sparse_rs",
    "square",
    "transfer",
]
