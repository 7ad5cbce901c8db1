"""What `speed.py inference` measures: speed of the solvers, and how low their energies are."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.progress import track

import abs_model
from abs_model._runtime.errors import UserError
from abs_model._runtime.vectorize import map_classes
from abs_model.inference.energy import Inference
from abs_model.inference.solvers import QuasiNewton
from abs_model.models.abs import ABSClassifier
from abs_model.models.vae import derive_shape
from abs_model.zoo.load import find_trained, load_arrays
from benchmarks.costs import GRADIENT, decoder_flop
from benchmarks.timing import median_ratio, time_in_turns

_TOLERATED = 0.1  # nats, of energies above Adam's
_STEP = 0.1  # L2, of the images that refinement follows
_REFINED_TOLERATED = 0.05  # nats, of refined energies above searched ones
_QUANTILES = (0.5, 0.9, 0.99, 0.995, 1.0)
# Less than the default, for a faster search.
_FAST = {"num_path_starts": 1}
# Finds more than the default and takes longer: with the others' energies the best known optimum.
_THOROUGH = {
    "num_starts": 32,
    "num_minima": 16,
    "num_path_starts": 16,
    "max_evaluations": 60,
    "tolerance": 1e-3,
}

_NUM_CLASSES = 10
_COUNTED = 128  # images whose evaluations are counted
_ENERGY_BATCH = 100
_GEMM_SIZE = 2048

_Run = Callable[[], Any]
_Layers = list[tuple[np.ndarray, np.ndarray]]


def measure(
    workdir: str, batch_sizes: Sequence[int], turns: int, num_images: int, against_torch: bool
) -> dict[str, Any]:
    """Everything the benchmark says of a model, as JSON.

    Args:
        workdir: Of the run that holds the model.
        batch_sizes: To time.
        turns: How often each candidate is timed.
        num_images: First images of the test split on which energies are compared.
        against_torch: Whether PyTorch versions of the paper's algorithm are timed too.
    """
    ours = _load(workdir, "quasi_newton")
    fast = with_settings(ours, _FAST)
    adam = _load(workdir, "adam")
    models = {"adam": adam, "quasi_newton": ours, "quasi_newton_fast": fast}
    test = abs_model.load_dataset("mnist").test
    if max(num_images, *batch_sizes) > len(test.labels):
        raise UserError(f"--images and --batch_sizes can be {len(test.labels)} at most")
    images = test.images[: max(num_images, *batch_sizes)].astype(np.float32) / 255
    layers = _folded_layers(workdir)
    candidates = _candidates(models, images, batch_sizes)
    if against_torch:
        candidates |= _torch_candidates(layers, adam, images, batch_sizes)
    result = _rates(candidates, turns)
    evaluations = {
        "adam": adam.solver.settings.num_steps,
        "quasi_newton": round(mean_evaluations(ours, images[:_COUNTED]), 1),
        "quasi_newton_fast": round(mean_evaluations(fast, images[:_COUNTED]), 1),
    }
    result |= {"evaluations_per_image_and_class": evaluations}
    result |= {"gflops": _throughput(result["best_images_per_second"], evaluations)}
    result |= {"energies": _compare_energies(models, images[:num_images], test.labels[:num_images])}
    return result


def _load(workdir: str, solver: str) -> ABSClassifier:
    model = abs_model.load(workdir, solver=solver)
    if not isinstance(model, ABSClassifier):
        raise UserError(f"{workdir} must hold an ABS model, got a {type(model).__name__}")
    return model


def _compare_energies(
    models: dict[str, ABSClassifier], images: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Gaps of the solvers' energies to the best known and to each other's."""
    ours = models["quasi_newton"]
    models = models | {"thorough": with_settings(ours, _THOROUGH)}
    energies = {
        name: _in_batches(model.infer, f"energies of {name}", images).energies
        for name, model in models.items()
    }
    best = np.min(list(energies.values()), axis=0)
    result: dict[str, Any] = {"images": len(images)}
    for name, found in energies.items():
        quantiles = np.quantile(found - best, _QUANTILES)
        result[name] = {
            "accuracy": _share(_predictions(ours, found) == labels),
            "mean_above_best_known": round(float((found - best).mean()), 3),
            "quantiles_above_best_known": {
                str(q): round(float(gap), 3) for q, gap in zip(_QUANTILES, quantiles, strict=True)
            },
            "mean_above_adam": round(float((found - energies["adam"]).mean()), 3),
            f"at_most_{_TOLERATED}_above_adam": _share(found <= energies["adam"] + _TOLERATED),
            "same_prediction_as_adam": _share(
                _predictions(ours, found) == _predictions(ours, energies["adam"])
            ),
        }
    unlike = ours.predict(images) != _predictions(ours, energies["quasi_newton"])
    result["predict"] = {"predictions_unlike_search": int(unlike.sum())}
    return result | {"refinement": _compare_refinement(ours, images)}


def with_settings(model: ABSClassifier, changes: dict[str, Any]) -> ABSClassifier:
    """The model with other settings of its solver."""
    settings = dataclasses.replace(model.solver.settings, **changes)
    solver: Any = model.solver  # any dataclass with settings
    return dataclasses.replace(model, solver=dataclasses.replace(solver, settings=settings))


def _compare_refinement(model: ABSClassifier, images: np.ndarray) -> dict[str, Any]:
    """Refined against searched energies, where images move and the best two classes are asked."""
    start = _in_batches(model.infer, "searching", images)
    there, asked = _moved(images), _two_best(model, start.energies)
    refined = _in_batches(model.infer, "refining", there, start, asked)
    full = _in_batches(model.infer, "searching again", there).energies
    kept = refined.searched
    above = refined.energies[kept] - full[kept]
    return {
        "l2_step": _STEP,
        "pairs_searched": _share(kept),
        f"at_most_{_REFINED_TOLERATED}_above_search": _share(above <= _REFINED_TOLERATED),
        f"within_{_REFINED_TOLERATED}_of_search": _share(np.abs(above) <= _REFINED_TOLERATED),
        "predictions_unlike_search": int(
            np.sum(_predictions(model, refined.energies) != _predictions(model, full))
        ),
        "bounds_above_search": int(np.sum(refined.energies[~kept] > full[~kept])),
    }


def _in_batches(infer: Callable[..., Inference], description: str, *arguments: Any) -> Inference:
    """`infer` of all images, with a progress bar; the result holds NumPy arrays."""
    starts = range(0, len(arguments[0]), _ENERGY_BATCH)
    parts = []
    for first in track(starts, description, console=Console(stderr=True)):
        rows = slice(first, first + _ENERGY_BATCH)
        parts.append(infer(*jax.tree.map(lambda leaf, rows=rows: leaf[rows], arguments)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _moved(images: np.ndarray) -> np.ndarray:
    """Each image moved by an L2 step in a random direction, clipped to [0, 1]."""
    noise = np.random.default_rng(0).normal(size=images.shape)
    noise *= _STEP / np.sqrt((noise**2).sum(axis=(1, 2, 3), keepdims=True))
    return np.clip(images + noise, 0, 1).astype(np.float32)


def _predictions(model: ABSClassifier, energies: Any) -> np.ndarray:
    """The class that the model predicts at these energies, (N,)."""
    return np.argmin(model.class_weights * energies, axis=1)


def _two_best(model: ABSClassifier, energies: Any) -> np.ndarray:
    """Whether a class is one of the two that the model finds most probable, (N, classes)."""
    return np.argsort(np.argsort(model.class_weights * energies, axis=1), axis=1) < 2


def _share(hits: np.ndarray | jax.Array) -> float:
    return round(float(np.mean(hits)), 4)


def _candidates(
    models: dict[str, ABSClassifier], images: np.ndarray, batch_sizes: Sequence[int]
) -> dict[tuple[str, int], _Run]:
    """What is timed, by name and batch size."""
    candidates: dict[tuple[str, int], _Run] = {}
    for size in batch_sizes:
        batch = jnp.asarray(images[:size])
        for name, model in models.items():
            candidates[name, size] = functools.partial(_infer, model.with_batch_size(size), batch)
        model = models["quasi_newton"].with_batch_size(size)
        start = model.infer(batch)
        arguments = (jnp.asarray(_moved(images[:size])), start, _two_best(model, start.energies))
        candidates["refinement", size] = functools.partial(_infer, model, *arguments)
        candidates["predict", size] = functools.partial(model.predict, batch)
    return candidates


def _infer(model: ABSClassifier, *arguments: Any) -> Inference:
    return jax.block_until_ready(model.infer(*arguments))


def _torch_candidates(
    layers: list[_Layers], model: ABSClassifier, images: np.ndarray, batch_sizes: Sequence[int]
) -> dict[tuple[str, int], _Run]:
    """The paper's algorithm in PyTorch, from the same weights and prior samples."""
    # Only here, so that the benchmark runs without PyTorch.
    import torch

    from benchmarks import torch_inference

    solver: Any = model.solver  # Adam, which has its samples
    samples = np.array(solver.latents[0])
    versions = {
        "torch": torch_inference.ConvTransposeDecoder,
        "torch_blocks": torch_inference.BlockDecoder,
    }
    candidates: dict[tuple[str, int], _Run] = {}
    for name, version in versions.items():
        decoders: list[Any] = [
            version([k.transpose(2, 3, 0, 1).copy() for k, _ in each], [b for _, b in each])
            for each in layers
        ]
        search = torch_inference.make_inference(decoders, samples)
        theirs = search(torch.tensor(images[:8].transpose(0, 3, 1, 2))).numpy()
        np.testing.assert_allclose(theirs, model.infer(images[:8]).energies, atol=0.05)
        for size in batch_sizes:
            batch = torch.tensor(images[:size].transpose(0, 3, 1, 2))
            candidates[name, size] = functools.partial(search, batch)
    return candidates


def _folded_layers(workdir: str) -> list[_Layers]:
    """Kernels (height, width, in, out) and biases of each class's decoder, batch norm folded in."""
    graphdef, model = load_arrays(find_trained(workdir))
    layers: list[_Layers] = []
    for index in range(_NUM_CLASSES):
        params, statistics = (
            jax.tree.map(lambda leaf, i=index: leaf[i], model[part])
            for part in ("params", "statistics")
        )
        decoder = nnx.merge(graphdef, params, statistics).decoder
        folded = [layer.without_norm() for layer in decoder]
        layers.append([(np.asarray(kernel), np.asarray(bias)) for kernel, bias in folded])
    return layers


def mean_evaluations(model: ABSClassifier, images: np.ndarray) -> float:
    """How often a decoder and its gradient are evaluated per image and class."""
    pixels = model.solver.decoder.to_pixels(jnp.asarray(images))

    @jax.jit
    def count(solver: QuasiNewton) -> jax.Array:
        return map_classes(lambda one: one.search(pixels).evaluations, solver)

    return float(count(model.solver).sum()) / (pixels.shape[1] * _NUM_CLASSES)


def _throughput(rates: dict[str, float], evaluations: dict[str, float]) -> dict[str, float]:
    """GFLOP/s of the decoders alone, without padding that a formulation adds, and of a GEMM."""
    evaluation = _NUM_CLASSES * GRADIENT * decoder_flop(derive_shape((28, 28, 1)))
    gemm = _gemm_rate()
    throughput: dict[str, float] = {"gemm": round(gemm)}
    for name, rate in rates.items():
        if name not in ("refinement", "predict"):  # which search few classes
            achieved = rate * evaluations.get(name, evaluations["adam"]) * evaluation / 1e9
            throughput[name] = round(achieved, 1)
            throughput[f"{name}_share_of_gemm"] = round(achieved / gemm, 2)
    return throughput


def _gemm_rate() -> float:
    """GFLOP/s of a large matrix product, the best of a few."""
    matrix = jnp.ones((_GEMM_SIZE, _GEMM_SIZE))
    multiply = jax.jit(jnp.matmul)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        jax.block_until_ready(multiply(matrix, matrix))
        seconds.append(time.perf_counter() - start)
    return 2 * _GEMM_SIZE**3 / min(seconds) / 1e9


def _rates(candidates: dict[tuple[str, int], _Run], turns: int) -> dict[str, Any]:
    """Images/s of the candidates, timed in turns, and ratios of each one's best batch size."""
    rates = time_in_turns({key: (run, key[1]) for key, run in candidates.items()}, turns)
    medians = {key: statistics.median(values) for key, values in rates.items()}
    best: dict[str, tuple[str, int]] = {}
    for name in dict.fromkeys(name for name, _ in medians):
        best[name] = max((k for k in medians if k[0] == name), key=lambda key: medians[key])
    result: dict[str, Any] = {
        "images_per_second": {f"{n} {size}": round(rate, 1) for (n, size), rate in medians.items()},
        "best_images_per_second": {name: round(medians[key], 1) for name, key in best.items()},
        "range": {
            name: [round(min(rates[key]), 1), round(max(rates[key]), 1)]
            for name, key in best.items()
        },
    }
    for baseline in ("torch", "torch_blocks"):
        if baseline in best:
            theirs = rates[best[baseline]]
            result[f"ratio_to_{baseline}"] = {
                name: median_ratio(rates[key], theirs)
                for name, key in best.items()
                if not name.startswith("torch")
            }
    return result
