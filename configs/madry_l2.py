"""The network of Madry et al. (ICLR 2018) on MNIST, trained on L2 PGD images.

python train.py --config=configs/madry_l2.py --workdir=runs/madry_l2
python train.py --config=configs/madry_l2.py:cpu --workdir=runs/madry_l2

full: as configs/madry.py, with 40 steps of L2 PGD at 1.5. It takes a GPU, and has not been run yet.
cpu: the cheap recipe of configs/madry.py:cpu. 99.4% of the test images; 40-step L2 PGD at 1.5
leaves 88.4% of the first 1,000. 48 minutes on 2 CPU cores (AMD EPYC), with other work beside it.
Shipped as "madry_l2".

The same network trained plainly is configs/madry.py:plain. Another data set is another entry:
--config.dataset.name=fashion_mnist.
"""

import ml_collections

from abs_model._runtime.configuration import choose_variant
from configs import madry


def get_config(variant: str = "full") -> ml_collections.ConfigDict:
    """The configuration of a variant: "full", "cpu" or "tiny" (seconds, for the tests)."""
    changes = choose_variant(variant, _VARIANTS)
    config = madry.get_config(variant)
    config.update(_L2)
    config.update(changes)
    return config


_ATTACK = {"norm": "l2", "epsilon": 1.5, "step_size": 0.1}
_L2 = {
    "train": {"attack": _ATTACK, "final_attack": {"step_size": 0.1}},
    "validation": {"attack": _ATTACK},
}
# What else differs from the variants of configs/madry.py.
_VARIANTS = {
    "full": {},
    "cpu": {"train": {"attack": {"step_size": 0.6}, "final_attack": {"step_size": 0.4}}},
    "tiny": {
        "train": {"attack": {"step_size": 0.5}},
        "validation": {"attack": {"step_size": 0.5}},
    },
}
