"""Measures what `docs/scaling.md` rests on: python benchmarks/scaling.py [--json PATH]

Three tables. Programs: FLOP by formula and as XLA counts them, and how fast they run here, in turns
with a matrix product. Attacks: the queries of a published table and their time, beside the formula.
Accelerators: how long the table would take there, by the FLOP, the bytes and the number of kernels.
"""

import argparse
import collections
import dataclasses
import functools
import json
import math
import pathlib
import re
import statistics
import tarfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import abs_model
from abs_model._runtime.atomic_files import write_json
from abs_model._runtime.command_line import argument_parser, output_file, positive, run_main
from abs_model._runtime.provenance import environment, git_commit
from abs_model.evaluation.run.suite import AttackSpec, read_suite
from abs_model.inference.solvers import QuasiNewton, bfgs
from abs_model.models.abs import ABSClassifier
from abs_model.models.classifier import Classifier
from abs_model.models.vae import VAE, derive_shape, elbo_terms
from benchmarks.costs import (
    GRADIENT,
    TRAINING,
    Search,
    cnn_flop,
    decoder_flop,
    encoder_flop,
    madry_flop,
    most_queries,
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
# A search's BFGS steps on the surrogate, and on the decoder as many as the slowest image may take.
_SURROGATE_STEPS, _DECODER_STEPS = 12, 25
# Instructions that start no kernel.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call"}
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (?:\([^=]*\)|\S+) ([\w\-]+)\(")


@dataclasses.dataclass(frozen=True)
class Device:
    """An accelerator, by its data sheet.

    Attributes:
        name: For tables.
        flop_rate: FLOP/s of matrix products of float32.
        byte_rate: Bytes/s of its memory.
        count: How many.
    """

    name: str
    flop_rate: float
    byte_rate: float
    count: int = 1


# TPUs multiply float32 in six passes of bfloat16.
_H100 = Device("H100 SXM", 67e12, 3.35e12)
DEVICES = (
    _H100,
    dataclasses.replace(_H100, name="8 H100 SXM", count=8),
    Device("TPU v5e-64", 197e12 / 6, 0.82e12, 64),
)
# What is reached of either rate; seconds for each kernel, and for each query in Python.
EFFICIENCY, PER_KERNEL, PER_QUERY = 0.5, 5e-6, 5e-4


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
        "--results", type=pathlib.Path, default="results/table1", help="a published table"
    )
    parser.add_argument("--json", type=output_file, help="also write the figures to this file")
    return parser.parse_args(argv[1:])


def main(options: argparse.Namespace) -> None:
    """Measures, and prints the tables as Markdown."""
    models = {name: abs_model.load(name, batch_size=100) for name in ("cnn", "madry", "abs")}
    search = count_search(models["abs"])
    measured = measure_programs(make_programs(models, search), options.turns)
    attacks = measure_attacks(models, options.results)
    kernels = count_kernels(models, search)
    predicted = predict(models, search, kernels, measured)
    print("\n\n".join((program_table(measured), attack_table(attacks), device_table(predicted))))
    if options.json:
        about = {"benchmark": "scaling", "commit": git_commit()} | environment()
        found = {"programs": measured, "attacks": attacks, "kernels": kernels}
        write_json(options.json, about | found | {"devices": predicted})


def count_search(model: Classifier) -> Search:
    """What a search of a class costs on clean images, by the mean number of evaluations."""
    assert isinstance(model, ABSClassifier) and isinstance(model.solver, QuasiNewton)
    settings, surrogate = model.solver.settings, model.solver.surrogate
    kernels = [one.shape[1] for one in surrogate.kernels]
    starts, minima = settings.num_starts, settings.num_minima
    return Search(
        pixels=math.prod(_SHAPE),
        latents=model.solver.decoder.latent_size,
        samples=model.solver.latents.shape[1],
        widths=tuple(kernels),
        surrogate_steps=(starts + minima) * _SURROGATE_STEPS // 2,
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
    for name, flop in (
        ("cnn", cnn_flop(_SHAPE, _FEATURES, _CLASSES)),
        ("madry", madry_flop(_SHAPE, _CLASSES)),
    ):
        for kind, function, factor in (
            ("logits", _logits, 1),
            ("gradient", _gradient, GRADIENT),
        ):
            run = jax.jit(function)
            found[f"{_title(name)}, {kind}"] = Program(
                factor * flop,
                "image",
                len(images),
                functools.partial(_wait, run, models[name], images),
                (functools.partial(_compile, run, models[name], images[:_COUNTED]), _COUNTED),
            )
    return found


def _searches(model: Any, images: np.ndarray, search: Search) -> dict[str, Program]:
    """The queries of ABS, with and without a start."""
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
    """By attack and model: the most queries by formula, the mean of the table, and their time."""
    rows = json.loads((results / "results.json").read_text())["rows"]
    counted = {(row["attack"], row["model"]): row["num_queries"] for row in rows if row["attack"]}
    seconds: collections.Counter[tuple[str, str]] = collections.Counter()
    images: collections.Counter[tuple[str, str]] = collections.Counter()
    with tarfile.open(results / "workdir.tar.xz") as archive:
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
            if key in counted and seconds[key]:
                found.setdefault(spec.name, {})[name] = {
                    "most_queries": queries(spec, model),
                    "queries": counted[key],
                    "milliseconds_per_query": 1e3 * seconds[key] / images[key] / counted[key],
                }
    return found


def queries(spec: AttackSpec, model: Classifier) -> float:
    """The most queries of an image that a row of the table makes of a model."""
    return most_queries(
        spec.reference,
        spec.norm,
        spec.settings_on(model),
        num_classes=model.num_classes,
        estimated=math.prod(model.image_shape) if spec.estimate_gradients else 0,
    )


def count_kernels(models: dict[str, Classifier], search: Search) -> dict[str, int]:
    """How many kernels follow each other in a query, by the CPU's optimized programs.

    For ABS those of one BFGS step of all classes at once on the decoder, and on the surrogate.
    """
    images = _images(_COUNTED)
    found = {
        name: _kernels(_compile(jax.jit(_gradient), models[name], images))
        for name in ("cnn", "madry")
    }
    solver = models["abs"].solver  # type: ignore[attr-defined]
    latents = jnp.zeros((_CLASSES, search.latents, _COUNTED))
    for name, network, outputs in (
        ("step on the decoder", solver.decoder, search.pixels),
        ("step on the surrogate", solver.surrogate, search.widths[-1]),
    ):
        targets = jnp.zeros((_CLASSES, outputs, _COUNTED))

        def step(network: Any, latents: jax.Array, targets: jax.Array) -> Any:
            def one(network: Any, latents: jax.Array, targets: jax.Array) -> Any:
                now = bfgs.initial_iterate(latents)
                return bfgs.step(network, targets, now, solver.settings.max_norm)

            return jax.vmap(one)(network, latents, targets)

        found[name] = _kernels(jax.jit(step).lower(network, latents, targets).compile())
    return found


def predict(
    models: dict[str, Classifier],
    search: Search,
    kernels: dict[str, int],
    measured: dict[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    """Hours that the table of the paper's budgets takes, by device, number of images and model.

    A query is one batch's gradient, for ABS a search of every class; warm starts take less.
    """
    suite = read_suite(table1.get_config())
    decoded = _CLASSES * search.evaluations
    found = []
    searched = (
        _CLASSES * sum(search.flop().values()),
        decoded * measured["ABS, decoder and gradient"]["xla_bytes"],
    )
    steps = _SURROGATE_STEPS * kernels["step on the surrogate"]
    steps += _DECODER_STEPS * kernels["step on the decoder"]
    for name, launches, (flop, moved) in (
        ("cnn", kernels["cnn"], _cost(measured["CNN, gradient"])),
        ("madry", kernels["madry"], _cost(measured["Madry, gradient"])),
        ("abs", steps, searched),
    ):
        model = models[name]
        total = sum(queries(spec, model) for spec in suite if spec.why_not(model) is None)
        waiting = launches * PER_KERNEL + PER_QUERY
        for device in DEVICES:
            for images, batch in ((1000, 100), (1000, 1000), (10_000, 1000)):
                # Batches are shared out; a device that gets none waits.
                batches = -(-images // batch)
                rounds = -(-batches // device.count)
                working = batch * max(flop / device.flop_rate, moved / device.byte_rate)
                working /= EFFICIENCY
                found.append(
                    {
                        "device": device.name,
                        "images": images,
                        "batch": batch,
                        "model": name,
                        "queries": total,
                        "hours": rounds * total * (waiting + working) / 3600,
                        "share_waiting": waiting / (waiting + working),
                        "devices_at_work": min(batches, device.count),
                    }
                )
    return found


def _cost(program: dict[str, Any]) -> tuple[float, float]:
    """FLOP and bytes of a unit."""
    return program["flop"], program["xla_bytes"]


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
    """Markdown of `measure_attacks`: queries, the most by formula, milliseconds for each."""
    names = ("cnn", "madry", "abs")
    titles = [f"{_title(n)}: queries | most | ms" for n in names]
    lines = [f"| Attack | {' | '.join(titles)} |", f"| --- |{' ---: |' * 9}"]
    for attack, row in attacks.items():
        cells = []
        for name in names:
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


def device_table(predicted: list[dict[str, Any]]) -> str:
    """Markdown of `predict`: hours, and the share of them that waits for kernels to start."""
    names = ("cnn", "madry", "abs")
    titles = " | ".join(f"{_title(name)}: hours | waiting" for name in names)
    lines = [
        f"| Device | Images | Batch | At work | {titles} |",
        f"| --- |{' ---: |' * 9}",
    ]
    rows: dict[tuple[str, int, int, int], dict[str, Any]] = {}
    for one in predicted:
        key = one["device"], one["images"], one["batch"], one["devices_at_work"]
        rows.setdefault(key, {})[one["model"]] = one
    for (device, images, batch, at_work), row in rows.items():
        cells = [device, f"{images:,}", f"{batch:,}", str(at_work)]
        for name in names:
            cells += [f"{row[name]['hours']:,.2g}", f"{row[name]['share_waiting']:.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _images(count: int) -> np.ndarray:
    """Validation images, which nothing is tuned on test images by."""
    return abs_model.load_dataset("mnist").validation.images[:count].astype(np.float32) / 255


def _title(name: str) -> str:
    return "Madry" if name == "madry" else name.upper()


def _wait(run: Callable[..., object], *arguments: Any) -> None:
    jax.block_until_ready(run(*arguments))


def _compile(run: Any, *arguments: Any) -> Any:
    return run.lower(*arguments).compile()


def _logits(model: Classifier, images: jax.Array) -> jax.Array:
    return model.batch_logits(images)


def _gradient(model: Classifier, images: jax.Array) -> jax.Array:
    return jax.grad(lambda images: model.batch_logits(images)[:, 0].sum())(images)


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


def _kernels(compiled: Any) -> int:
    """Instructions of an optimized program that do something, but for those inside of fusions."""
    count, counts = 0, True
    for line in compiled.as_text().splitlines():
        if line and not line[0].isspace():
            counts = "fused" not in line.split("(")[0] and "wrapped" not in line.split("(")[0]
        elif counts and (match := _INSTRUCTION.match(line)) and match[1] not in _FREE:
            count += 1
    return count


if __name__ == "__main__":
    run_main(main, parse)
