"""PGD at the paper's thresholds, a first look at a model: L2 1.5 and L-infinity 0.3.

    python evaluate.py --config=configs/pgd.py --models=abs,madry --workdir=runs/pgd

20 images, 40 steps, one random start: no statement about robustness (`configs/table1.py` makes
one), but a matter of a minute. `--config.num_images=1000` and the steps and restarts of
`--config.attacks.pgd_l2.settings` make it slower and stronger. A row with "targets" besides, such
as "next_class", is a targeted attack; `abs_model.evaluation.run.suite` describes it.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The configuration."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.num_clean = 1000
    config.num_images = 20
    config.batch_size = 20
    config.certify = False
    config.attacks = {
        f"pgd_{norm}": {
            "attack": "pgd",
            "norm": norm,
            "group": "stronger",
            "settings": {
                "epsilon": epsilon,
                # A walk of all steps can cross the ball, from wherever in it it starts.
                "step_size": epsilon / 16,
                "num_steps": 40,
                "num_restarts": 1,
            },
        }
        for norm, epsilon in (("l2", 1.5), ("linf", 0.3))
    }
    return config
