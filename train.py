"""Trains a model: python train.py --config=configs/abs.py --workdir=runs/abs

A configuration is a file with variants, `configs/abs.py:quick`, and any of its values can be set:
`--config.train.epochs=5`; None stands for no value. Started again with the same command, training
goes on from the last checkpoint. In a sweep, {run_id} in --workdir gives each trial its own.
Several processes train together with --cluster, or --coordinator, --num_processes, --process_id.
"""

import sys

from absl import flags, logging

from abs_model._runtime.command_line import define_config, define_path, run_main
from abs_model._runtime.configuration import check, one_of
from abs_model._runtime.processes import define_process_flags, joined
from abs_model._runtime.wandb_log import with_run_id
from abs_model.models.architectures import NETWORKS
from abs_model.training.abs import train_and_evaluate as train_abs
from abs_model.training.fine_tuning import train_and_evaluate as fine_tune_abs
from abs_model.training.network import train_and_evaluate as train_network

_CONFIG = define_config()
_WORKDIR = define_path("workdir", None, "Directory of the run; made when missing.")
_WANDB = flags.DEFINE_enum(
    "wandb",
    "auto",
    ["auto", "online", "offline", "off"],
    "Weights & Biases; auto is online where you are logged in, offline otherwise.",
)
flags.mark_flag_as_required("workdir")

define_process_flags()

_TRAINERS = {"abs": train_abs} | dict.fromkeys(NETWORKS, train_network)


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    with joined():
        _train()


def _train() -> None:
    config = _CONFIG.value
    check(config, {"model.name": one_of(*_TRAINERS)})
    # Only configurations of fine-tuning name a pretrained model.
    train = fine_tune_abs if "pretrained" in config else _TRAINERS[config.model.name]
    workdir = with_run_id(_WORKDIR.value)
    if not train(config, workdir, _WANDB.value):
        print("Stopped and saved; the same command goes on from here.", file=sys.stderr)
        return
    print(f"Trained: {workdir}", file=sys.stderr)


if __name__ == "__main__":
    run_main(main)
