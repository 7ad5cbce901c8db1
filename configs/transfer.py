"""The network that transfer attacks start from: the CNN baseline with other features.

python train.py --config=configs/transfer.py --workdir=runs/transfer

full: 20 epochs, not run to its end yet.

Another data set is another entry: --config.dataset.name=fashion_mnist.
"""

import ml_collections

from configs import cnn


def get_config(variant: str = "full") -> ml_collections.ConfigDict:
    """The configuration of a variant of configs/cnn.py, "full" or "tiny"."""
    config = cnn.get_config(variant)
    config.update({"seed": 1, "model": {"features": (32, 32, 64)}})
    return config
