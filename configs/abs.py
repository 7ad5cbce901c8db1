"""ABS on MNIST: ten class-conditional VAEs (Schott et al., ICLR 2019).

python train.py --config=configs/abs.py --workdir=runs/abs
python train.py --config=configs/abs.py:long --workdir=runs/abs_long
python train.py --config=configs/abs.py:quick --workdir=runs/abs_quick

full: the paper's annealing of beta over 50 epochs, then 20 in which the rate decays. Validation
ELBO -22.3 nats; 32 minutes on 2 CPU cores (AMD EPYC), without surrogates and calibration.
long: 120 epochs, of which 12 anneal beta and the last 60 decay the rate. Validation ELBO -22.0
nats; 98.8% of the test images, Binary ABS 98.6%. 64 minutes on the same machine, partly with other
work beside it, 5 of surrogates and 2 of calibration. With train.max_shift 0.5 and
train.max_rotation 5.0 it is what the shipped ABS was fine-tuned from (configs/abs_fine_tuned.py).
quick: 95.8% of the first 1,000 test images. 3 epochs, surrogates and calibration in 4 minutes
on the same machine.
tiny: for the tests; a minute and a half on the same machine.

Another data set is another entry: --config.dataset.name=fashion_mnist.
"""

import ml_collections

from abs_model._runtime.configuration import choose_variant
from abs_model.inference.solvers import default_settings, default_surrogate_settings


def get_config(variant: str = "full") -> ml_collections.ConfigDict:
    """The configuration of a variant: "full", "long", "quick" or "tiny" (for the tests)."""
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
            "model": {
                "name": "abs",
                "latent_size": 8,
                "encoder_features": (32, 32, 64),
                "decoder_features": (32, 16, 16),
            },
            "train": {
                "epochs": 70,
                "batch_size_per_class": 64,
                "learning_rate": 2e-3,
                "decay_fraction": 20 / 70,
                "beta_start": 10.0,
                # The first 50 epochs anneal beta, the last 20 decay the rate.
                "beta_fraction": 50 / 70,
                # Variance of a pixel given the latents, in training; None: 1/2, as in inference.
                "likelihood_variance": ml_collections.config_dict.placeholder(float),
                # Augmentation: largest random shift in pixels and rotation in degrees; None: none.
                "max_shift": ml_collections.config_dict.placeholder(float),
                "max_rotation": ml_collections.config_dict.placeholder(float),
                # True: trains on the validation images, too; their metrics are then no test.
                "include_validation": ml_collections.config_dict.placeholder(bool),
                "steps_per_dispatch": 17,
            },
            "validation": {
                "elbo_images": 1000,
                "abs_images": 500,
                "abs_every_epochs": 20,
                "image_columns": 10,
                # Images attacked by a short PGD whenever ABS accuracy is measured; None: none.
                "num_attacked": ml_collections.config_dict.placeholder(int),
                # What a sweep goes by: "elbo" (None, too), "abs_accuracy" or "robust_accuracy".
                "objective": ml_collections.config_dict.placeholder(str),
            },
            "inference": {
                # Or "adam", as in the paper. Settings: of all solvers, see `inference/solvers`.
                "solver": "quasi_newton",
                **default_settings(),
            },
            "surrogate": default_surrogate_settings(),
            "calibration": {
                "num_images": 6000,
                # Class weights for ABS too; the paper has them for Binary ABS only.
                "fit_abs_class_weights": True,
                "alpha": 440.0,
                "median_confidence": 0.9,
            },
            "checkpoint": {"every_epochs": 2, "keep": 2},
        }
    )


_VARIANTS = {
    "full": {},
    "long": {
        "train": {
            "epochs": 120,
            "beta_fraction": 0.1,
            "decay_fraction": 0.5,
            "learning_rate": 3e-3,
        },
        "validation": {"abs_every_epochs": 30},
    },
    "quick": {
        "train": {
            "epochs": 3,
            "beta_fraction": 0.2,
            "decay_fraction": 0.5,
            "learning_rate": 3e-3,
        },
        "validation": {"abs_images": 200, "abs_every_epochs": 3},
        "surrogate": {"num_steps": 500},
        "calibration": {"num_images": 500},
    },
    "tiny": {
        "dataset": {"validation_size": 100},
        "train": {
            "epochs": 2,
            "batch_size_per_class": 10,
            "steps_per_dispatch": 3,
        },
        "validation": {
            "elbo_images": 50,
            "abs_images": 20,
            "abs_every_epochs": 2,
            "image_columns": 4,
        },
        "inference": {"solver": "adam", "num_prior_samples": 100, "num_steps": 5},
        "surrogate": {
            "components": 16,
            "widths": (16,),
            "num_samples": 200,
            "num_steps": 20,
            "batch_size": 50,
        },
        "calibration": {"num_images": 20, "median_confidence": 0.5},
        "checkpoint": {"every_epochs": 1},
    },
}
