"""The network of Madry et al. (ICLR 2018) on MNIST, trained on L2 PGD images.

python train.py --config=configs/madry_l2.py --workdir=runs/madry_l2
python train.py --config=configs/madry_l2.py:cpu --workdir=runs/madry_l2

full: as configs/madry.py, with 40 steps of L2 PGD at 1.5. It takes a GPU, and has not been run yet.
cpu: a cheap recipe, not run to its end yet: single steps from a random start with one cycle of a
higher rate, the last epochs with several steps.

The same network trained plainly is configs/madry.py:plain. Another data set is another entry:
--config.dataset.name=fashion_mnist.
"""

import ml_collections

from abs_model.training.configuration import choose_variant


def get_config(variant: str = "full") -> ml_collections.ConfigDict:
    """The configuration of a variant: "full", "cpu" or "tiny" (seconds, for the tests)."""
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
                "final_attack": {"epochs": 0, "step_size": 0.1, "num_steps": 40},
            },
            "validation": {"num_attacked": 500, "batch_size": 100, "attack": _attack()},
            "checkpoint": {"every_epochs": 1, "keep": 2},
        }
    )


def _attack() -> dict[str, object]:
    return {
        "norm": "l2",
        "epsilon": 1.5,
        "step_size": 0.1,
        "num_steps": 40,
        "random_start": True,
    }


_VARIANTS = {
    "full": {},
    "cpu": {
        "train": {
            "epochs": 20,
            "learning_rate": 2e-3,
            "schedule": "one_cycle",
            "attack": {"step_size": 1.5, "num_steps": 1},
            "attack_warmup_steps": 1100,
            "final_attack": {"epochs": 8, "step_size": 0.4, "num_steps": 8},
        }
    },
    "tiny": {
        "dataset": {"validation_size": 100},
        "train": {
            "epochs": 2,
            "steps_per_epoch": 4,
            "batch_size": 20,
            "learning_rate": 1e-3,
            "steps_per_dispatch": 3,
            "attack": {"step_size": 0.5, "num_steps": 2},
        },
        "validation": {
            "num_attacked": 20,
            "batch_size": 20,
            "attack": {"step_size": 0.5, "num_steps": 2},
        },
    },
}
