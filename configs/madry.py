import ml_collections

from abs_model.training.configuration import choose_variant


def get_config(variant: str = "full") -> ml_collections.ConfigDict:
    """The configuration of a variant: "full", "quick" or "tiny"."""
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
                "batch_size": 50,
                "learning_rate": 1e-4,
                "schedule": "constant",
                "steps_per_dispatch": 100,
                "attack": {
                    "norm": "linf",
                    "epsilon": 0.3,
                    "step_size": 0.01,
                    "num_steps": 40,
                    "random_start": True,
                },
            },
            "validation": {
                "num_attacked": 500,
                "batch_size": 100,
                "attack": {
                    "norm": "linf",
                    "epsilon": 0.3,
                    "step_size": 0.01,
                    "num_steps": 40,
                    "random_start": True,
                },
            },
            "checkpoint": {"every_epochs": 1, "keep": 2},
        }
    )


_VARIANTS = {
    "full": {},
    "quick": {
        "train": {
            "epochs": 1,
            "learning_rate": 2e-3,
            "schedule": "one_cycle",
            "attack": {"step_size": 0.375, "num_steps": 1},
        },
        "validation": {"num_attacked": 200},
    },
    "tiny": {
        "train": {
            "epochs": 1,
            "batch_size": 20,
            "steps_per_dispatch": 3,
            "attack": {"num_steps": 2, "step_size": 0.2},
        },
        "validation": {"num_attacked": 20, "attack": {"num_steps": 2, "step_size": 0.2}},
    },
}
