"""Evaluates trained models: `python evaluate.py --models=abs,madry,mine=runs/mine`."""

import dataclasses
import os
import sys

import rich.console
from absl import flags, logging

from abs_model.evaluation import Settings, evaluate, load_models, parse_models, to_rich
from abs_model.training.configuration import run_main

_DEFAULT = Settings()
_MODELS = flags.DEFINE_list(
    "models",
    None,
    "Names of pretrained models and workdirs of training runs, [NAME=]PATH[,[NAME=]PATH...]; a PATH"
    " alone is named by its folder, PATH:binary is evaluated on thresholded images (Binary ABS,"
    " Binary CNN).",
    required=True,
)
_WORKDIR = flags.DEFINE_string("workdir", "runs/eval", "Directory of the results.")
_NUM_CLEAN = flags.DEFINE_integer(
    "num_clean", _DEFAULT.num_clean, "Test images for clean accuracy.", lower_bound=1
)
_NUM_ATTACKED = flags.DEFINE_integer(
    "num_attacked", _DEFAULT.num_attacked, "Test images that are attacked.", lower_bound=1
)
_NUM_STEPS = flags.DEFINE_integer(
    "num_steps", _DEFAULT.num_steps, "Steps of each PGD attack.", lower_bound=1
)
_NUM_RESTARTS = flags.DEFINE_integer(
    "num_restarts", _DEFAULT.num_restarts, "Random restarts of each PGD attack.", lower_bound=1
)
_NORM = flags.DEFINE_multi_enum(
    "norm", _DEFAULT.norms, _DEFAULT.norms, "Norm to attack in; give the flag again for another."
)
_SEED = flags.DEFINE_integer(
    "seed", _DEFAULT.seed, "Seed of the random starts.", lower_bound=0, upper_bound=2**32 - 1
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Images a model takes at a time; default: each model's own.", lower_bound=1
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of TFDS; default: the first that a model's training names."
)


def main(argv: list[str]) -> None:
    """Evaluates, and prints the table."""
    logging.set_verbosity(logging.WARNING)
    specs = parse_models(_MODELS.value)
    models, dataset = load_models(specs, data_dir=_DATA_DIR.value, batch_size=_BATCH_SIZE.value)
    settings = Settings(
        num_clean=_NUM_CLEAN.value,
        num_attacked=_NUM_ATTACKED.value,
        num_steps=_NUM_STEPS.value,
        num_restarts=_NUM_RESTARTS.value,
        seed=_SEED.value,
        norms=tuple(dict.fromkeys(_NORM.value)),
    )
    about = {
        "dataset": {"name": dataset.name, "image_shape": list(dataset.image_shape)},
        "models": [dataclasses.asdict(spec) for spec in specs],
        "batch_sizes": {name: model.batch_size for name, model in models.items()},
    }
    rows = evaluate(models, dataset.test, settings, _WORKDIR.value, about=about)
    # A pipe has no width of its own, and 80 columns would break every cell in two.
    console = rich.console.Console(width=None if sys.stdout.isatty() else 120)
    console.print(to_rich(rows))
    print(f"Results, adversarial images and pictures: {os.path.join(_WORKDIR.value, '')}")


if __name__ == "__main__":
    run_main(main)
