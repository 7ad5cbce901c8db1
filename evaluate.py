"""Evaluates models: `python evaluate.py --config=configs/table1.py:cpu --models=abs,madry`."""

import dataclasses
import sys

import jax
import rich.console
from absl import flags, logging

from abs_model._runtime.command_line import define_config, define_path, run_main
from abs_model._runtime.configuration import boolean, check_all, positive_int, section, seed
from abs_model._runtime.errors import UserError
from abs_model._runtime.processes import (
    define_process_flags,
    is_primary,
    joined,
    wait_for_all,
)
from abs_model._runtime.wandb_log import MODES, open_tracker
from abs_model.evaluation import (
    RESUME_HINT,
    UNSHARDED,
    Settings,
    Shard,
    check_any_applicable,
    check_applicable,
    choose_attacks,
    collect,
    evaluate,
    export_evaluation,
    load_models,
    parse_models,
    parse_shard,
    read_suite,
    show,
    to_rich,
)

_CONFIG = define_config()
_MODELS = flags.DEFINE_list(
    "models",
    None,
    "Names of pretrained models and workdirs of training runs, [NAME=]PATH[,[NAME=]PATH...]; a PATH"
    " alone is named by its folder, PATH:binary is evaluated on thresholded images (Binary ABS,"
    " Binary CNN); NAME=package.module:function is a user-defined model.",
    required=True,
)
_ATTACKS = flags.DEFINE_list(
    "attacks",
    ["all"],
    "Names of the configuration's attacks, or all; NAME=package.module:function[:NORM] is a"
    " user-defined attack.",
)
_WORKDIR = define_path("workdir", "runs/eval", "Directory of ledger, tables and pictures.")
_SHARD = flags.DEFINE_string(
    "shard",
    "1/1",
    "i/n: this process's share of the work; a last call without it makes tables and pictures.",
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of TFDS; default: the first that a model's training names."
)
_WANDB = flags.DEFINE_enum("wandb", "auto", MODES, "Weights & Biases, for tables and pictures.")
_EXPORT = flags.DEFINE_bool(
    "export",
    False,
    "Instead of attacking, write the adversarial images that --workdir holds of these models and"
    " attacks to WORKDIR/export: 8-bit PNG, and arrays.",
)


define_process_flags()


def main(argv: list[str]) -> None:
    """Evaluates, and prints the tables."""
    with joined():
        _evaluate()


def _evaluate() -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    config = _CONFIG.value
    check_all(
        config,
        {
            "seed": seed,
            "num_clean": positive_int,
            "num_images": positive_int,
            "batch_size": positive_int,
            # Configurations from before there was the key lack it.
            "certify": dataclasses.replace(boolean, required=False),
            "attacks": section,
        },
    )
    shard = parse_shard(_SHARD.value)
    together = jax.process_count() > 1
    if together:
        if shard != UNSHARDED:
            raise UserError("--shard is for processes that are not joined; leave it out")
        shard = Shard(jax.process_index() + 1, jax.process_count())
    specs = parse_models(_MODELS.value)
    known = read_suite(config)
    suite = choose_attacks(known, _ATTACKS.value)
    models, dataset = load_models(specs, data_dir=_DATA_DIR.value)
    if named := [entry for entry in _ATTACKS.value if entry != "all"]:
        check_applicable(choose_attacks(known, named), models)
    check_any_applicable(suite, models)
    workdir = _WORKDIR.value
    if _EXPORT.value:
        names = {spec.name for spec in suite}
        print("\n".join(export_evaluation(workdir, collect(workdir), models, dataset, names)))
        return
    settings = Settings(
        config.num_clean,
        config.num_images,
        config.batch_size,
        config.seed,
        certify=config.get("certify", False),
    )
    about = {
        "dataset": {"name": dataset.name, "image_shape": list(dataset.image_shape)},
        "models_from": [dataclasses.asdict(spec) for spec in specs],
        "attacks_left_out": [spec.name for spec in known if spec not in suite],
    }
    results = evaluate(models, dataset, suite, settings, workdir, shard=shard, about=about)
    if together:
        wait_for_all("evaluated")
        if not is_primary():
            return
        results = collect(workdir)
    elif shard != UNSHARDED:
        # Tables of all shards at once would be written over each other, each with parts missing.
        print(f"This share is done. The same command without --shard makes the tables: {workdir}/")
        return
    try:
        tracker = open_tracker(workdir, config, _WANDB.value)
    except OSError as error:
        raise UserError(f"can't write to --workdir={workdir}: {error}. {RESUME_HINT}") from error
    tables = show(workdir, results, models, dataset, tracker)
    # A pipe has no width of its own, and 80 columns would break every cell in two.
    console = rich.console.Console(width=None if sys.stdout.isatty() else 160)
    console.print(to_rich(tables))
    print(f"Tables, pictures and adversarial images: {workdir}/")


if __name__ == "__main__":
    run_main(main)
