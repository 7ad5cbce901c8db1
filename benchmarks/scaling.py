"""Measures what `docs/scaling.md` rests on: python benchmarks/scaling.py [--json PATH]

Three tables. Programs: FLOP by formula and as XLA counts them, and how fast they run here, in turns
with a matrix product. Attacks: the queries and times of a published table, beside the most queries
that are declared. Accelerators: how long `configs/table1.py` would take there (`accelerators.py`).
"""

import argparse
import collections
import dataclasses
import functools
import json
import math
import pathlib
import statistics
import tarfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import abs_model
from abs_model._runtime.atomic_files import as_path, write_json
from abs_model._runtime.command_line import argument_parser, output_file, positive, run_main
from abs_model._runtime.errors import UserError
from abs_model._runtime.provenance import environment, git_commit
from abs_model.attacks import estimate_gradients
from abs_model.evaluation.run.suite import read_suite
from abs_model.inference.solvers import QuasiNewton, bfgs
from abs_model.inference.solvers.quasi_newton import SURROGATE_STEPS
from abs_model.models.abs import ABSClassifier
from abs_model.models.classifier import Classifier
from abs_model.models.vae import VAE, derive_shape, elbo_terms
from benchmarks.accelerators import Cost, ModelCosts, count_kernels, device_table, predict
from benchmarks.costs import (
    GRADIENT,
    TRAINING,
    Search,
    cnn_flop,
    decoder_flop,
    encoder_flop,
    madry_flop,
)
from benchmarks.inference_speed import mean_evaluations
from benchmarks.speed import training_steps
from benchmarks.timing import median_ratio, time_in_turns
from configs import table1

_SHAPE = (28, 28, 1)
_CLASSES = 10
_FEATURES = (20, 70, 256)  # of the shipped CNN
_COUNTED = 10  # images of the networks' programs that XLA's FLOP are counted of
_COLUMNS = 24  # latent vectors that a CPU decodes at once
_PRODUCT = 2048
_TRAINING_BATCH, _TRAINING_STEPS = 64, 8
_MOVE = 0.1  # L2, of the images between warm-started searches
_TITLES = {"cnn": "CNN", "madry": "Madry", "abs": "ABS"}
_FLOP = {"cnn": cnn_flop(_SHAPE, _FEATURES, _CLASSES), "madry": madry_flop(_SHAPE, _CLASSES)}
_REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Program:
    """What is timed.

    Attributes:
        flop: By formula, of one unit; None without a formula.
        unit: What the costs are of, such as an image.
        units: How many a run takes.
        run: Runs it and waits.
        counted: Compiles it for XLA's counts, and of how many units; None where it has loops.
    """

    flop: float | None
    unit: str
    units: int
    run: Callable[[], object]
    counted: tuple[Callable[[], Any], int] | None = None


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argument_parser(__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--turns", type=positive, default=7, help="how often each is timed")
    parser.add_argument(
        "--results", type=as_path, default=_REPOSITORY / "results/table1", help="a published table"
    )
    parser.add_argument("--json", type=output_file, help="also write the figures to this file")
    return parser.parse_args(argv[1:])


def main(options: argparse.Namespace) -> None:
    """Measures, and prints the tables as Markdown."""
    models = {name: abs_model.load(name, batch_size=100) for name in _TITLES}
    attacks = measure_attacks(models, options.results)  # first, because it checks the folder
    search = count_search(models["abs"])
    measured = measure_programs(make_programs(models, search), options.turns)
    costs = {name: network_costs(name, models[name], measured) for name in ("cnn", "madry")}
    costs["abs"] = search_costs(models["abs"], search, measured)
    predicted = predict(models, costs)
    tables = program_table(measured), attack_table(attacks), device_table(predicted, _TITLES)
    print("\n\n".join(tables))
    if options.json:
        about = {"benchmark": "scaling", "commit": git_commit()} | environment()
        found = {"programs": measured, "attacks": attacks}
        found["queries"] = {name: dataclasses.asdict(cost) for name, cost in costs.items()}
        write_json(options.json, about | found | {"devices": predicted})


def count_search(model: Classifier) -> Search:
    """What a search of a class costs on clean images, by the mean number of evaluations."""
    assert isinstance(model, ABSClassifier) and isinstance(model.solver, QuasiNewton)
    settings, surrogate = model.solver.settings, model.solver.surrogate
    starts, minima = settings.num_starts, settings.num_minima
    first, second = SURROGATE_STEPS
    return Search(
        pixels=math.prod(_SHAPE),
        latents=model.solver.decoder.latent_size,
        samples=model.solver.latents.shape[1],
        widths=tuple(kernel.shape[1] for kernel in surrogate.kernels),
        surrogate_steps=starts * first + minima * second,
        evaluations=mean_evaluations(model, _images(100)),
        decoder=decoder_flop(derive_shape(_SHAPE)),
    )


def make_programs(models: dict[str, Classifier], search: Search) -> dict[str, Program]:
    """The programs by name; what is compared with their times is a matrix product."""
    shape = derive_shape(_SHAPE)
    matrix = jnp.ones((_PRODUCT, _PRODUCT))
    multiply = jax.jit(jnp.matmul)
    found = {
        "Matrix product": Program(
            2 * _PRODUCT**3, "product", 1, lambda: jax.block_until_ready(multiply(matrix, matrix))
        )
    }
    steps = training_steps(_TRAINING_BATCH, _TRAINING_STEPS)
    found["ABS, training step"] = Program(
        TRAINING * (encoder_flop(shape) + decoder_flop(shape)),
        "image",
        _TRAINING_BATCH * _TRAINING_STEPS * _CLASSES,
        lambda: steps(_TRAINING_STEPS),
        (_compiled_training, _TRAINING_BATCH),
    )
    solver = models["abs"].solver  # type: ignore[attr-defined]
    decoder = jax.tree.map(lambda leaf: leaf[0], solver.decoder)
    latents = jax.random.normal(jax.random.key(0), (search.latents, _COLUMNS))
    decode = jax.jit(_decode)
    found["ABS, decoder and gradient"] = Program(
        GRADIENT * search.decoder,
        "latent vector",
        _COLUMNS,
        lambda: jax.block_until_ready(decode(decoder, latents)),
        (lambda: decode.lower(decoder, latents).compile(), _COLUMNS),
    )
    images = _images(100)
    found |= _searches(models["abs"], images, search)
    for name, flop in _FLOP.items():
        for kind, factor in (("logits", 1), ("gradient", GRADIENT)):
            found[f"{_TITLES[name]}, {kind}"] = Program(
                factor * flop,
                "image",
                len(images),
                functools.partial(_wait, _NETWORK_PROGRAMS[kind], models[name], images),
                (functools.partial(_compiled_query, kind, models[name]), _COUNTED),
            )
    return found


def _searches(model: Any, images: np.ndarray, search: Search) -> dict[str, Program]:
    """Programs that search explanations: cold, warm-started, and for a prediction."""
    found = model.infer(images)
    step = np.float32(_MOVE / images[0].size ** 0.5)
    moved = np.where(images < 0.5, images + step, images - step)
    required = np.argsort(np.asarray(found.energies), axis=1) < 2
    total = _CLASSES * sum(search.flop().values())
    return {
        "ABS, search of every class": Program(
            total, "image", len(images), lambda: jax.block_until_ready(model.infer(images))
        ),
        "ABS, warm-started search": Program(
            None,
            "image",
            len(images),
            lambda: jax.block_until_ready(model.infer(moved, start=found, required=required)),
        ),
        "ABS, prediction": Program(None, "image", len(images), lambda: model.predict(images)),
    }


def measure_programs(programs: dict[str, Program], turns: int) -> dict[str, dict[str, Any]]:
    """FLOP and bytes of a unit, units/s, and GFLOP/s by the formula."""
    rates = time_in_turns({name: (one.run, one.units) for name, one in programs.items()}, turns)
    of_product = [2 * _PRODUCT**3 * rate for rate in rates["Matrix product"]]
    found: dict[str, dict[str, Any]] = {}
    for name, program in programs.items():
        one = found[name] = {
            "unit": program.unit,
            "flop": program.flop,
            "units_per_second": statistics.median(rates[name]),
        }
        if program.flop is not None:
            achieved = [program.flop * rate for rate in rates[name]]
            one["share_of_product"] = median_ratio(achieved, of_product)
        if program.counted is not None:
            compile_it, units = program.counted
            cost = compile_it().cost_analysis()
            one["xla_flop"] = cost["flops"] / units
            one["xla_bytes"] = cost["bytes accessed"] / units
    return found


def measure_attacks(
    models: dict[str, Classifier], results: pathlib.Path
) -> dict[str, dict[str, Any]]:
    """By attack and model: the most queries declared, the mean of the table, and their time.

    Raises:
        UserError: There is no published table in the folder.
    """
    table, ledger = results / "results.json", results / "workdir.tar.xz"
    if not (table.is_file() and ledger.is_file()):
        raise UserError(
            f"--results must be a folder with results.json and workdir.tar.xz, as"
            f" scripts/publish_results.py writes it, got {results}"
        )
    rows = json.loads(table.read_text())["rows"]
    counted = {(row["attack"], row["model"]): row["num_queries"] for row in rows if row["attack"]}
    seconds: collections.Counter[tuple[str, str]] = collections.Counter()
    images: collections.Counter[tuple[str, str]] = collections.Counter()
    with tarfile.open(ledger) as archive:
        lines = archive.extractfile("timings.jsonl")
        assert lines is not None
        for line in lines:
            batch = json.loads(line)
            key = batch["attack"], batch["model"]
            seconds[key] += batch["seconds"]
            images[key] += batch["num_images"]
    found: dict[str, dict[str, Any]] = {}
    for spec in read_suite(table1.get_config("cpu")):
        for name, model in models.items():
            key = spec.name, name
            most = spec.most_queries(model)
            if key in counted and seconds[key] and most is not None:
                found.setdefault(spec.name, {})[name] = {
                    "most_queries": most.evaluations(
                        estimate_gradients(model) if spec.estimate_gradients else model
                    ),
                    "queries": counted[key],
                    "milliseconds_per_query": 1e3 * seconds[key] / images[key] / counted[key],
                }
    return found


def network_costs(name: str, model: Classifier, measured: dict[str, dict[str, Any]]) -> ModelCosts:
    """Of a network: FLOP by formula, bytes and kernels of the CPU's programs."""
    costs = {}
    for kind in _NETWORK_PROGRAMS:
        program = measured[f"{_TITLES[name]}, {kind}"]
        kernels = count_kernels(_compiled_query(kind, model))
        costs[kind] = Cost(program["flop"], program["xla_bytes"], kernels)
    return ModelCosts(**costs)


def search_costs(
    model: Classifier, search: Search, measured: dict[str, dict[str, Any]]
) -> ModelCosts:
    """Of ABS, with or without gradient: a search of every class.

    On an accelerator every step decodes for all images, until the slowest one is done; assumed are
    as many steps as a candidate may take. Of the bytes, only those of the decoder count.
    """
    assert isinstance(model, ABSClassifier) and isinstance(model.solver, QuasiNewton)
    solver = model.solver
    steps = solver.settings.max_evaluations
    slowest = dataclasses.replace(search, evaluations=steps)
    moved = _CLASSES * steps * measured["ABS, decoder and gradient"]["xla_bytes"]
    latents = jnp.zeros((_CLASSES, search.latents, _COUNTED))

    def kernels(network: Any, outputs: int) -> int:
        targets = jnp.zeros((_CLASSES, outputs, _COUNTED))
        step = jax.jit(jax.vmap(functools.partial(_step, solver.settings.max_norm)))
        return count_kernels(step.lower(network, latents, targets).compile())

    started = sum(SURROGATE_STEPS) * kernels(solver.surrogate, search.widths[-1])
    started += steps * kernels(solver.decoder, search.pixels)
    cost = Cost(_CLASSES * sum(slowest.flop().values()), moved, started)
    return ModelCosts(cost, cost)


def _step(max_norm: float, network: Any, latents: jax.Array, targets: jax.Array) -> Any:
    """The first BFGS step of one class."""
    return bfgs.step(network, targets, bfgs.initial_iterate(latents), max_norm)


def program_table(measured: dict[str, dict[str, Any]]) -> str:
    """Markdown of `measure_programs`."""
    lines = [
        "| Program | Unit | MFLOP by formula | by XLA | MB by XLA | Units/s | Share of a product |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, one in measured.items():
        numbers = (one["flop"], one.get("xla_flop"), one.get("xla_bytes"))
        shown = ["" if n is None else f"{n / 1e6:,.3g}" for n in numbers]
        share = f"{one['share_of_product']:.2f}" if "share_of_product" in one else ""
        cells = [name, one["unit"], *shown, f"{one['units_per_second']:,.0f}", share]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def attack_table(attacks: dict[str, dict[str, Any]]) -> str:
    """Markdown of `measure_attacks`: queries, the most that are declared, milliseconds for each."""
    titles = [f"{title}: queries | most | ms" for title in _TITLES.values()]
    lines = [f"| Attack | {' | '.join(titles)} |", f"| --- |{' ---: |' * 9}"]
    for attack, row in attacks.items():
        cells = []
        for name in _TITLES:
            one = row.get(name)
            cells += (
                ["", "", ""]
                if one is None
                else [
                    f"{one['queries']:,.0f}",
                    f"{one['most_queries']:,.0f}",
                    f"{one['milliseconds_per_query']:.2f}",
                ]
            )
        lines.append(f"| `{attack}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _images(count: int) -> np.ndarray:
    """Validation images, which nothing is tuned on test images by."""
    return abs_model.load_dataset("mnist").validation.images[:count].astype(np.float32) / 255


def _wait(run: Callable[..., object], *arguments: Any) -> None:
    jax.block_until_ready(run(*arguments))


def _compiled_query(kind: str, model: Classifier) -> Any:
    return _NETWORK_PROGRAMS[kind].lower(model, _images(_COUNTED)).compile()


def _logits(model: Classifier, images: jax.Array) -> jax.Array:
    return model.batch_logits(images)


def _gradient(model: Classifier, images: jax.Array) -> jax.Array:
    return jax.grad(lambda images: model.batch_logits(images)[:, 0].sum())(images)


_NETWORK_PROGRAMS: dict[str, Any] = {"logits": jax.jit(_logits), "gradient": jax.jit(_gradient)}


def _decode(decoder: Any, latents: jax.Array) -> Any:
    return jax.value_and_grad(lambda z: jnp.sum((decoder(z) - 0.5) ** 2))(latents)


def _compiled_training() -> Any:
    """The gradient of one class's negative ELBO, by its weights."""
    vae = VAE(derive_shape(_SHAPE), nnx.Rngs(0))
    graphdef, *parts = nnx.split(vae, nnx.Param, ...)
    parameters, others = parts

    def loss(parameters: Any, images: jax.Array) -> jax.Array:
        merged = nnx.merge(graphdef, parameters, others, copy=True)
        errors, divergences = elbo_terms(merged, images, jax.random.key(0), training=True)
        return jnp.mean(errors + divergences)

    images = jnp.zeros((_TRAINING_BATCH, *_SHAPE))
    return jax.jit(jax.grad(loss)).lower(parameters, images).compile()


if __name__ == "__main__":
    run_main(main, parse)
