"""Training on images with a shortcut: a faint pattern that gives the class away.

python train.py --config=configs/shortcut.py:abs --workdir=runs/shortcut/abs_0.1
python train.py --config=configs/shortcut.py:cnn --config.dataset.shortcut_amplitude=0.3 \\
    --workdir=runs/shortcut/cnn_0.3

Variants: "abs", "cnn" and "madry", short trainings of what configs/abs.py, cnn.py and madry.py
train. Every training and validation image has the pattern of its class (`abs_model.data.shortcuts`)
at `dataset.shortcut_amplitude`; test images have none. `scripts/train_shortcuts.sh` trains all
three at three amplitudes, and `scripts/figures.py shortcut` compares them.

At the amplitude 0.1, on the first 1,000 test images without patterns: abs 95.6%, 9 minutes on 2 CPU
cores (Intel Xeon); cnn 57.8%, 3 minutes; madry 97.7%, 9 minutes.
"""

import ml_collections

from abs_model._runtime.configuration import choose_variant
from configs import abs as abs_config
from configs import cnn, madry


def get_config(variant: str = "abs") -> ml_collections.ConfigDict:
    """The configuration of a variant: "abs", "cnn", "madry", or "tiny" (for the tests)."""
    config = choose_variant(variant, _VARIANTS)()
    config.dataset.shortcut_amplitude = 0.1
    return config


def _cnn() -> ml_collections.ConfigDict:
    config = cnn.get_config()
    config.train.epochs = 3
    return config


def _madry() -> ml_collections.ConfigDict:
    config = madry.get_config("cpu")
    config.train.epochs = 2
    config.train.steps_per_epoch = 600
    config.train.final_attack.epochs = 0
    return config


_VARIANTS = {
    "abs": lambda: abs_config.get_config("quick"),
    "cnn": _cnn,
    "madry": _madry,
    "tiny": lambda: cnn.get_config("tiny"),
}
