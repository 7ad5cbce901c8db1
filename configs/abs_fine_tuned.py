"""Fine-tuning of a trained ABS model, which makes its classes easier to tell apart.

python train.py --config=configs/abs.py:long --config.train.max_shift=0.5 \\
    --config.train.max_rotation=5.0 --workdir=runs/abs_augmented
python train.py --config=configs/abs_fine_tuned.py --config.pretrained=runs/abs_augmented \\
    --workdir=runs/abs_fine_tuned

The decoders learn from training images that are misclassified, or classified correctly by a small
gap, and from shifted and rotated copies of them. Each class's own images are shifted and rotated,
too. `abs_model/training/fine_tuning_task.py` has the loss.

full: 99.2% of the validation images, Binary ABS 99.1% (98.8% and 98.8% before fine-tuning); 99.0%
of the test images for both. 20 minutes on 2 CPU cores (AMD EPYC), 4 of them for hard images and 8
for surrogates and calibration. Shipped as "abs" and "binary_abs".
tiny: for the tests.
"""

import ml_collections

from abs_model._runtime.configuration import choose_variant
from configs import abs as abs_config


def get_config(variant: str = "full") -> ml_collections.ConfigDict:
    """The configuration of a variant, "full" or "tiny" (for the tests)."""
    changes = choose_variant(variant, _VARIANTS)
    config = _with_fine_tuning(abs_config.get_config(variant))
    config.update(changes)
    return config


def _with_fine_tuning(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A configuration of configs/abs.py, with training and validation replaced by fine-tuning's."""
    # The workdir of a finished training, or the name of a shipped model.
    config.pretrained = ml_collections.config_dict.placeholder(str)
    config.train = ml_collections.ConfigDict(
        {
            "epochs": 10,
            "steps_per_epoch": 100,
            # Of a class's own images, and of pairs of a hard image and the class, in a step.
            "batch_size_per_class": 64,
            "pairs_per_class": 64,
            "learning_rate": 2e-4,
            # Of the cross-entropy, relative to the reconstruction error. More lowers the certified
            # radius (docs/training.md).
            "cross_entropy_weight": 30.0,
            # An image is hard when the energy of another class is less than this above that of its
            # own, in nats.
            "max_gap": 6.0,
            # Shifted and rotated copies of each hard image.
            "copies": 4,
            # Largest random shift in pixels and rotation in degrees, of these copies and of a
            # class's own images in the reconstruction error.
            "max_shift": 0.5,
            "max_rotation": 5.0,
            # True: trains on the validation images, too; their metrics are then no test.
            "include_validation": ml_collections.config_dict.placeholder(bool),
            "steps_per_dispatch": 10,
        }
    )
    config.validation = ml_collections.ConfigDict(
        {
            "abs_images": 1000,
            "image_columns": 10,
            # What a sweep goes by: "cross_entropy" (None, too) or "abs_accuracy".
            "objective": ml_collections.config_dict.placeholder(str),
        }
    )
    # The cross-entropy has balanced the classes, on the very images that weights are fitted to.
    config.calibration.fit_abs_class_weights = False
    config.checkpoint.every_epochs = 1
    return config


_VARIANTS = {
    "full": {},
    "tiny": {
        "train": {
            "epochs": 2,
            "steps_per_epoch": 3,
            "batch_size_per_class": 4,
            "pairs_per_class": 4,
            "copies": 1,
            "steps_per_dispatch": 2,
        },
        "validation": {"abs_images": 20, "image_columns": 4},
    },
}
