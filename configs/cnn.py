"""The paper's CNN baseline on MNIST, trained plainly (Schott et al., ICLR 2019).

python train.py --config=configs/cnn.py --workdir=runs/cnn

Thresholded images make it the Binary CNN: abs_model.load("runs/cnn", binary=True).

full: 20 epochs on a schedule of our own. 99.1% of the test images, 98.7% with thresholded images;
10 minutes on 2 CPU cores (AMD EPYC). Shipped as "cnn" and "binary_cnn".

Another data set is another entry: --config.dataset.name=fashion_mnist.
"""

import ml_collections

from abs_model._runtime.configuration import choose_variant


def get_config(variant: str = "full") -> ml_collections.ConfigDict:
    """The configuration of a variant: "full" or "tiny" (seconds, for the tests)."""
    config = _full()
    config.update(choose_variant(variant, _VARIANTS))
    return config


def _full() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "dataset": {
                "name": "mnist",
                "data_dir": ml_collections.config_dict.placeholder(str),
                "validation_size": 5000,
                "module": "",
                # True: classes without training images are left out, and the others renumbered.
                "drop_empty_classes": ml_collections.config_dict.placeholder(bool),
            },
            "model": {"name": "cnn", "features": (20, 70, 256)},
            "train": {
                "epochs": 20,
                # None: as many as the training images fill.
                "steps_per_epoch": ml_collections.config_dict.placeholder(int),
                "batch_size": 100,
                "learning_rate": 2e-3,
                "schedule": "one_cycle",
                "steps_per_dispatch": 50,
                # No steps: plain training.
                "attack": _attack(0),
                "attack_warmup_steps": 0,
                "final_attack": {"epochs": 0, "step_size": 0.01, "num_steps": 40},
            },
            "validation": {
                "num_attacked": 200,
                "batch_size": 100,
                "attack": _attack(40),
                # What a sweep goes by: "accuracy" or "robust_accuracy"; None: the best
                # checkpoint's metric.
                "objective": ml_collections.config_dict.placeholder(str),
            },
            "checkpoint": {"every_epochs": 1, "keep": 2},
        }
    )


def _attack(num_steps: int) -> dict[str, object]:
    return {
        "norm": "linf",
        "epsilon": 0.3,
        "step_size": 0.01,
        "num_steps": num_steps,
        "random_start": True,
    }


_VARIANTS = {
    "full": {},
    "tiny": {
        "dataset": {"validation_size": 100},
        "train": {
            "epochs": 2,
            "steps_per_epoch": 4,
            "batch_size": 20,
            "steps_per_dispatch": 3,
        },
        "validation": {"num_attacked": 20, "batch_size": 20, "attack": {"num_steps": 2}},
    },
}
