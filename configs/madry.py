"""The Madry baseline on MNIST: a CNN trained on PGD images (Madry et al., ICLR 2018).

python train.py --config=configs/madry.py --workdir=runs/madry
python train.py --config=configs/madry.py:cpu --workdir=runs/madry_cpu
python train.py --config=configs/madry.py:plain --workdir=runs/plain

full: the paper's schedule: 91 epochs of 1,100 steps (100,100), each on 50 images attacked with 40
steps of L-infinity PGD at 0.3, Adam at a constant 1e-4. It takes a GPU, and has not been run yet.
cpu: a cheap recipe: 5 steps from a random start with one cycle of a higher rate, the last 5 of 10
epochs with 8 steps. 98.9% of the test images; 40-step PGD at 0.3 leaves 93.1% of the first 1,000.
38 minutes on 2 CPU cores (AMD EPYC), with other work beside it. Shipped as "madry". (The single
steps of Wong et al., ICLR 2020, are cheaper still but fail here: with a step size of 0.375, eight
epochs leave 0 to 3% of 500 validation images under 40 steps, and yet over 90% of the training
images under the training attack.)
plain: the same network without attacks, 10 epochs with one cycle in 12 minutes. 99.3% of the test
images. Shipped as "plain".

Another data set is another entry: --config.dataset.name=fashion_mnist.
"""

import ml_collections

from abs_model._runtime.configuration import choose_variant


def get_config(variant: str = "full") -> ml_collections.ConfigDict:
    """The configuration of a variant: "full", "cpu", "plain" or "tiny" (for the tests)."""
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
            "model": {"name": "madry"},
            "train": {
                "epochs": 91,
                # None: as many as the training images fill.
                "steps_per_epoch": ml_collections.config_dict.placeholder(int),
                "batch_size": 50,
                "learning_rate": 1e-4,
                "schedule": "constant",
                "steps_per_dispatch": 10,
                "attack": _attack(),
                "attack_warmup_steps": 0,
                # The attack of the last epochs, if any.
                "final_attack": {"epochs": 0, "step_size": 0.01, "num_steps": 40},
            },
            "validation": {
                "num_attacked": 500,
                "batch_size": 100,
                "attack": _attack(),
                # What a sweep goes by: "accuracy" or "robust_accuracy"; None: the best
                # checkpoint's metric.
                "objective": ml_collections.config_dict.placeholder(str),
            },
            "checkpoint": {"every_epochs": 1, "keep": 2},
        }
    )


def _attack() -> dict[str, object]:
    return {
        "norm": "linf",
        "epsilon": 0.3,
        "step_size": 0.01,
        "num_steps": 40,
        "random_start": True,
    }


_VARIANTS = {
    "full": {},
    "cpu": {
        "train": {
            "epochs": 10,
            "learning_rate": 2e-3,
            "schedule": "one_cycle",
            "attack": {"step_size": 0.12, "num_steps": 5},
            "attack_warmup_steps": 550,
            "final_attack": {"epochs": 5, "step_size": 0.075, "num_steps": 8},
        }
    },
    "plain": {
        "train": {
            "epochs": 10,
            "learning_rate": 1e-3,
            "schedule": "one_cycle",
            "attack": {"num_steps": 0},
        },
    },
    "tiny": {
        "dataset": {"validation_size": 100},
        "train": {
            "epochs": 2,
            "steps_per_epoch": 4,
            "batch_size": 20,
            "learning_rate": 1e-3,
            "steps_per_dispatch": 3,
            "attack": {"step_size": 0.2, "num_steps": 2},
        },
        "validation": {
            "num_attacked": 20,
            "batch_size": 20,
            "attack": {"step_size": 0.2, "num_steps": 2},
        },
    },
}
