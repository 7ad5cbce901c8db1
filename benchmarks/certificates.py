"""Measures how far the search of certificates is from a global minimum.

python benchmarks/certificates.py --norm=l2 [--images=100] [--json=PATH]

A certificate holds if its search over latents has found the global minimum. This prints how the
mean radius of the first test images moves with four and with sixteen times the starts, and compares
some images with another method: differential evolution, which uses no gradients, and Nelder-Mead on
what it finds, of radii that numpy computes in float64.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from rich.console import Console
from rich.progress import track

import abs_model
from abs_model._runtime.atomic_files import write_json
from abs_model._runtime.command_line import argument_parser, output_file, positive, run_main
from abs_model._runtime.errors import UserError
from abs_model._runtime.provenance import environment, git_commit
from abs_model.inference.certificates import DEFAULT_SETTINGS
from abs_model.models.abs import ABSClassifier
from abs_model.models.decoders import Decoder

_FACTORS = (1, 4, 16)
_POPULATION, _GENERATIONS = 48, 80
_BOX = 4.0  # in latent units; explanations lie within


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argument_parser(__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="abs", help="an ABS model")
    parser.add_argument("--norm", choices=["l2", "linf", "l0"], default="l2")
    parser.add_argument("--images", type=positive, default=100, help="the first test images")
    parser.add_argument(
        "--evolved", type=positive, default=20, help="of which also by differential evolution (L2)"
    )
    parser.add_argument("--json", type=output_file, help="also write the result to this file")
    return parser.parse_args(argv[1:])


def main(options: argparse.Namespace) -> None:
    """Measures, and prints the result as JSON."""
    model = abs_model.load(options.model)
    if not isinstance(model, ABSClassifier):
        raise UserError(f"--model={options.model} must be an ABS model")
    images = abs_model.load_dataset("mnist").test.images[: options.images].astype(np.float32) / 255
    result = {
        "benchmark": "certificates", "model": options.model, "norm": options.norm,
        "images": len(images), "commit": git_commit(), **environment(),
    }  # fmt: skip
    radii = {}
    for factor in track(_FACTORS, "certifying with more starts", console=Console(stderr=True)):
        settings = dataclasses.replace(
            DEFAULT_SETTINGS, num_starts=factor * DEFAULT_SETTINGS.num_starts
        )
        begun = time.perf_counter()
        found = model.certify(images, norm=options.norm, settings=settings)
        radii[factor] = np.asarray(found.radii, np.float64)
        result[f"starts {settings.num_starts}"] = {
            "mean": float(radii[factor].mean()),
            "mean moves by": float(radii[factor].mean() / radii[1].mean() - 1),
            "largest fall": float(np.max(1 - radii[factor] / np.maximum(radii[1], 1e-9))),
            "seconds": round(time.perf_counter() - begun, 1),
        }
    if options.norm == "l2" and not model.binary:
        count = min(options.evolved, len(images))
        evolved = np.array(
            [
                evolve(model, image)
                for image in track(images[:count], "evolving", console=Console(stderr=True))
            ]
        )
        ratios = evolved / radii[1][:count]
        result["evolution over certificate"] = {
            "images": count, "smallest": float(ratios.min()), "median": float(np.median(ratios)),
        }  # fmt: skip
    print(json.dumps(result, indent=2))
    if options.json:
        write_json(options.json, result)


def evolve(model: ABSClassifier, image: np.ndarray) -> float:
    """The smallest L2 radius that differential evolution finds for an image, over all rivals."""
    inference = model.infer(image[None])
    weights = np.asarray(model.class_weights, np.float64)
    y = int(np.argmin(np.asarray(model.weighted_energies(inference))[0]))
    x = image.astype(np.float64).reshape(-1)
    own = np.asarray(inference.reconstructions, np.float64)[0, y].reshape(-1)
    own_cost = weights[y] * float(inference.energies[0, y])
    best = np.inf
    for c in set(range(model.num_classes)) - {y}:

        def radii(latents: np.ndarray, c: int = c) -> np.ndarray:
            decoded = np.asarray(
                _decode(model.solver.decoder, c, jnp.asarray(latents, jnp.float32))
            )
            decoded = decoded.astype(np.float64)
            residuals = x - decoded
            costs = (residuals**2).sum(1) + 0.5 * (latents**2).sum(0)
            gaps = weights[c] * costs - own_cost
            v = weights[c] * residuals - weights[y] * (x - own)
            return boxed_radii(x, gaps, v, weights[c] - weights[y])

        found = scipy.optimize.differential_evolution(
            radii, [(-_BOX, _BOX)] * model.solver.decoder.latent_size, maxiter=_GENERATIONS,
            popsize=_POPULATION // 8, vectorized=True, updating="deferred", polish=False, rng=0,
        )  # fmt: skip
        polished = scipy.optimize.minimize(
            _of_one(radii), found.x, method="Nelder-Mead", options={"maxfev": 400}
        )
        best = min(best, found.fun, polished.fun)
    return float(best)


def _of_one(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], float]:
    return lambda latents: float(function(latents[:, None])[0])


def boxed_radii(x: np.ndarray, gaps: np.ndarray, v: np.ndarray, a: float) -> np.ndarray:
    """The shortest changes d, with x + d in [0, 1], with gap + 2 v . d + a ||d||^2 <= 0, (N,).

    They are clip(-t v) at the smallest t for which that holds (Karush-Kuhn-Tucker).

    Args:
        x: (pixels,).
        gaps: (N,).
        v: (N, pixels).
        a: Of the classes.
    """
    low, high = np.zeros(len(gaps)), np.full(len(gaps), 1 / a if a > 0 else 1e3)

    def change(t: np.ndarray) -> np.ndarray:
        return np.clip(-t[:, None] * v, -x, 1 - x)

    def holds(d: np.ndarray) -> np.ndarray:
        return gaps + 2 * (v * d).sum(1) + a * (d**2).sum(1) <= 0

    reachable = holds(change(high))
    for _ in range(40):
        middle = (low + high) / 2
        reached = holds(change(middle))
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    lengths = np.linalg.norm(change(high), axis=1)
    return np.where(reachable, lengths, np.sqrt(len(x)))


@jax.jit
def _decode(decoders: Decoder, c: jax.Array, latents: jax.Array) -> jax.Array:
    """Images of latents (latent, N) by class c, (N, pixels)."""
    decoder = jax.tree.map(lambda leaf: leaf[c], decoders)
    return decoder.to_images(decoder(latents)).reshape(latents.shape[1], -1)


if __name__ == "__main__":
    run_main(main, parse)
