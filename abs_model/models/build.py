"""ABS from a configuration: structure, untrained parameters, classifiers from trained ones."""

import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from flax import nnx
from rich.console import Console
from rich.progress import track

from abs_model.inference.energy import Inference
from abs_model.inference.racing import fit_margin
from abs_model.inference.solvers import SearchSettings, find_solver, make_solver, read_settings
from abs_model.inference.solvers.surrogates import (
    Surrogate,
    SurrogateFileError,
    SurrogateSettings,
    fit_surrogates,
    read_surrogate,
    surrogate_origin,
    write_surrogate,
)
from abs_model.models.abs import ABSClassifier
from abs_model.models.decoders import Decoder, fold_decoders
from abs_model.models.vae import VAE, derive_shape, stacked_vaes

PyTree = Any
DEFAULT_BATCH_SIZE = 64
_SURROGATE_FILE = "surrogates.npz"


def init_vaes(
    config: ml_collections.ConfigDict, image_shape: tuple[int, int, int], num_classes: int
) -> tuple[nnx.GraphDef, dict[str, PyTree]]:
    """The untrained VAEs of a configuration.

    Returns:
        The structure of one VAE, and {"params": ..., "statistics": ...} of all classes' VAEs,
        with a leading class axis.
    """
    # Compiled as one program: one by one, its many small operations take ten times as long.
    graphdef, _ = vaes_structure(config, image_shape, num_classes)
    return graphdef, jax.jit(lambda: _arrays(_create_vaes(config, image_shape, num_classes)))()


def vaes_structure(
    config: ml_collections.ConfigDict, image_shape: tuple[int, int, int], num_classes: int
) -> tuple[nnx.GraphDef, dict[str, PyTree]]:
    """What `init_vaes` returns, with shapes and dtypes instead of arrays; makes no arrays."""
    vaes = nnx.eval_shape(lambda: _create_vaes(config, image_shape, num_classes))
    return nnx.graphdef(vaes), _arrays(vaes)


def _create_vaes(
    config: ml_collections.ConfigDict, image_shape: tuple[int, int, int], num_classes: int
) -> VAE:
    model = config.model
    shape = derive_shape(
        image_shape, model.latent_size, model.encoder_features, model.decoder_features
    )
    return stacked_vaes(shape, num_classes, nnx.Rngs(config.seed))


def _arrays(vaes: VAE) -> dict[str, PyTree]:
    params, statistics = nnx.state(vaes, nnx.Param), nnx.state(vaes, nnx.BatchStat)
    return {"params": nnx.to_pure_dict(params), "statistics": nnx.to_pure_dict(statistics)}


def search_settings(config: ml_collections.ConfigDict, solver: str | None = None) -> SearchSettings:
    """How a configuration searches latents; `solver` replaces its own.

    Configurations from before there was a choice mean "adam": their runs were calibrated with it.

    Raises:
        ValueError: There is no such solver.
    """
    fields = {"solver": "adam"} | config.inference.to_dict()
    return read_settings(solver or fields["solver"], fields)


def build_abs(
    config: ml_collections.ConfigDict,
    graphdef: nnx.GraphDef,
    model: Mapping[str, PyTree],
    image_shape: tuple[int, int, int],
    *,
    search: SearchSettings,
    open_surrogate: Callable[[Decoder], Surrogate] | None = None,
    name: str = "abs",
    batch_size: int = DEFAULT_BATCH_SIZE,
    binary: bool = False,
    calibration: Mapping[str, Any] | None = None,
) -> ABSClassifier:
    """An ABS classifier from trained VAEs.

    Args:
        config: Uses `model.latent_size` and `calibration.alpha`.
        graphdef: From `init_vaes`.
        model: {"params": ..., "statistics": ...}, leading axis classes.
        image_shape: (height, width, channels).
        search: How latents are searched.
        open_surrogate: Gives the surrogates of all classes' decoders to a solver that needs them.
        name: For tables and messages.
        batch_size: Images per call of the compiled function.
        binary: Whether images are thresholded.
        calibration: {"abs" and "binary_abs": {"eta": number, "class_weights": numbers,
            "race_margin": number}}; without one, eta is 0 and the weights are 1. Without a
            margin, `predict` searches every class.
    """
    state = (model["params"], model["statistics"])
    num_classes = jax.tree.leaves(state)[0].shape[0]
    fitted: Mapping[str, Any] = {"eta": 0.0, "class_weights": [1.0] * num_classes}
    if calibration is not None:
        fitted = calibration["binary_abs" if binary else "abs"]
    margin = fitted.get("race_margin")
    decoder = fold_decoders(graphdef, state, image_shape)
    surrogate = None
    if find_solver(search).needs_surrogate and open_surrogate is not None:
        surrogate = open_surrogate(decoder)
    return ABSClassifier(
        name=name,
        image_shape=image_shape,
        num_classes=num_classes,
        batch_size=batch_size,
        solver=make_solver(search, decoder, config.model.latent_size, surrogate),
        class_weights=jnp.asarray(fitted["class_weights"], jnp.float32),
        eta=jnp.float32(fitted["eta"]),
        alpha=config.calibration.alpha,
        binary=binary,
        race_margin=None if margin is None else jnp.float32(margin),
    )


def infer_in_batches(
    classifier: ABSClassifier, images: np.ndarray, description: str
) -> Iterator[Inference]:
    """What `infer` finds, batch by batch, with a progress bar.

    Args:
        classifier: The model.
        images: As for `logits`.
        description: What the progress bar says.
    """
    starts = range(0, len(images), classifier.batch_size)
    for start in track(starts, description, console=Console(stderr=True)):
        yield classifier.infer(images[start : start + classifier.batch_size])


def measure_energies(classifier: ABSClassifier, images: np.ndarray, description: str) -> np.ndarray:
    """Energies in nats, (N, classes), with a progress bar; arguments as in `infer_in_batches`."""
    found = infer_in_batches(classifier, images, description)
    return np.concatenate([np.asarray(batch.energies) for batch in found])


def measure_race_margin(
    classifier: ABSClassifier, images: np.ndarray, energies: np.ndarray, description: str
) -> float:
    """The margin of the race between classes, in nats; see `inference.racing`.

    It is measured on training images, and halfway between each two of them, where classes are
    close.

    Args:
        classifier: A model whose solver can race.
        images: Training images, at least 2, as for `logits`.
        energies: In nats, (N, classes), of these.
        description: What the progress bar says.
    """
    half = len(images) // 2
    between = (images[:half] + images[-half:]) / 2
    all_images = np.concatenate([images, between])
    energies = np.concatenate([energies, measure_energies(classifier, between, description)])
    errors = classifier.estimation_errors(all_images, energies)
    return fit_margin(errors, classifier.class_weights * energies)


def kept_surrogate(
    workdir: pathlib.Path, config: ml_collections.ConfigDict, decoder: Decoder
) -> Surrogate:
    """The surrogates of all classes' decoders: read, or fitted, which takes minutes, and kept.

    Args:
        workdir: Where they are kept.
        config: Uses `inference.max_norm` and `surrogate`.
        decoder: All classes' decoders.
    """
    # Configurations from before there were surrogates have no such section.
    fields = config.get("surrogate", ml_collections.ConfigDict()).to_dict()
    if "widths" in fields:
        fields["widths"] = tuple(fields["widths"])
    settings = SurrogateSettings(max_norm=config.inference.max_norm, **fields)
    path, origin = workdir / _SURROGATE_FILE, surrogate_origin(decoder.origin, settings)
    try:
        return read_surrogate(path, origin)
    except FileNotFoundError:
        pass
    except SurrogateFileError as error:
        logging.warning("Fitting the surrogates again: %s", error)
    surrogate = fit_surrogates(decoder, config.model.latent_size, settings)
    try:
        write_surrogate(path, surrogate, origin)
    except OSError as error:
        logging.warning("The surrogates can't be kept and will be fitted again: %s", error)
    return surrogate
