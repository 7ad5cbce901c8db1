"""Classifiers from trained parameters: `load` opens a training run's workdir."""

import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from abs_model.classifiers import ABSClassifier, Classifier, NetworkClassifier
from abs_model.errors import UserError
from abs_model.inference import SearchSettings, make_generators, sample_prior
from abs_model.networks import MadryCNN
from abs_model.training.checkpoints import CheckpointStore
from abs_model.training.runs import read_run
from abs_model.training.workdir import load_config
from abs_model.vae import VAE, derive_shape, stacked_vaes

PyTree = Any
DEFAULT_BATCH_SIZE = 64


def load(
    path: str | os.PathLike[str],
    *,
    binary: bool = False,
    batch_size: int = DEFAULT_BATCH_SIZE,
    name: str | None = None,
) -> Classifier:
    """Loads a training run's best checkpoint (by its validation metric) as a classifier.

    Args:
        path: The run's workdir, such as "runs/abs".
        binary: Whether to make an ABS model classify thresholded images (Binary ABS).
        batch_size: Images per call of the compiled function.
        name: For tables and messages; the folder's name by default.

    Raises:
        UserError: `path` holds no run, or one that has not been trained to its end, or `binary` was
            asked of a model that is not ABS.
    """
    path = pathlib.Path(path)
    config, run = load_config(path), read_run(path)
    kind = config.model.name
    if binary and kind != "abs":
        raise UserError(f"binary=True needs an ABS model; {str(path)!r} holds a {kind!r} model")
    if run is None:
        raise _unfinished(path)
    image_shape, num_classes = tuple(run["image_shape"]), run["num_classes"]
    name = name or path.name
    if kind == "madry":
        network = nnx.eval_shape(lambda: MadryCNN(image_shape, num_classes, rngs=nnx.Rngs(0)))
        graphdef, state = nnx.split(network)
        return NetworkClassifier(
            name=name,
            image_shape=image_shape,
            num_classes=num_classes,
            batch_size=batch_size,
            graphdef=graphdef,
            state=_restore_best(path, run, nnx.to_pure_dict(state)),
        )
    create = functools.partial(_create_vaes, config, image_shape, num_classes)
    graphdef, template = _structure(create)
    return build_abs(
        config,
        graphdef,
        _restore_best(path, run, template),
        image_shape,
        name=name,
        batch_size=batch_size,
        binary=binary,
        calibration=run["calibration"],
    )


def init_vaes(
    config: ml_collections.ConfigDict, image_shape: tuple[int, int, int], num_classes: int
) -> tuple[nnx.GraphDef, dict[str, PyTree]]:
    """The untrained VAEs of a configuration.

    Returns:
        The structure of one VAE, and {"params": ..., "statistics": ...} of all classes' VAEs,
        with a leading class axis.
    """
    # Compiled as one program: one by one, its many small operations take ten times as long.
    create = functools.partial(_create_vaes, config, image_shape, num_classes)
    return _structure(create)[0], jax.jit(lambda: _arrays(create()))()


def _create_vaes(
    config: ml_collections.ConfigDict, image_shape: tuple[int, int, int], num_classes: int
) -> VAE:
    model = config.model
    shape = derive_shape(
        image_shape, model.latent_size, model.encoder_features, model.decoder_features
    )
    return stacked_vaes(shape, num_classes, nnx.Rngs(config.seed))


def _arrays(vaes: VAE) -> dict[str, PyTree]:
    _, params, statistics = nnx.split(vaes, nnx.Param, nnx.BatchStat)
    return {"params": nnx.to_pure_dict(params), "statistics": nnx.to_pure_dict(statistics)}


def _structure(create: Callable[[], VAE]) -> tuple[nnx.GraphDef, dict[str, PyTree]]:
    """Graph and shapes of what `create` makes, without making it."""
    vaes = nnx.eval_shape(create)
    return nnx.graphdef(vaes), _arrays(vaes)


def build_abs(
    config: ml_collections.ConfigDict,
    graphdef: nnx.GraphDef,
    model: Mapping[str, PyTree],
    image_shape: tuple[int, int, int],
    *,
    name: str = "abs",
    batch_size: int = DEFAULT_BATCH_SIZE,
    binary: bool = False,
    calibration: Mapping[str, Any] | None = None,
) -> ABSClassifier:
    """An ABS classifier from trained VAEs; decodes the prior samples.

    Args:
        config: Uses `model.latent_size`, `inference` and `calibration.alpha`.
        graphdef: From `init_vaes`.
        model: {"params": ..., "statistics": ...}, leading axis classes.
        image_shape: (height, width, channels).
        name: For tables and messages.
        batch_size: Images per call of the compiled function.
        binary: Whether images are thresholded.
        calibration: {"abs" and "binary_abs": {"eta": number, "class_weights": numbers}}; without
            one, eta is 0 and the weights are 1.
    """
    settings = SearchSettings(**config.inference)
    state = (model["params"], model["statistics"])
    num_classes = jax.tree.leaves(state)[0].shape[0]
    fitted = {"eta": 0.0, "class_weights": [1.0] * num_classes}
    if calibration is not None:
        fitted = calibration["binary_abs" if binary else "abs"]
    latents = sample_prior(settings, config.model.latent_size)
    return ABSClassifier(
        name=name,
        image_shape=image_shape,
        num_classes=num_classes,
        batch_size=batch_size,
        generators=make_generators(graphdef, state, latents),
        class_weights=jnp.asarray(fitted["class_weights"], jnp.float32),
        eta=jnp.float32(fitted["eta"]),
        alpha=config.calibration.alpha,
        search=settings,
        binary=binary,
    )


def _restore_best(path: pathlib.Path, run: Mapping[str, Any], template: PyTree) -> PyTree:
    """The model of the best checkpoint; `template` holds shapes and dtypes only."""
    store = CheckpointStore(
        path / "checkpoints", best_metric=run["best_metric"], best_mode=run["best_mode"]
    )
    return store.restore_best({"model": template})["model"]


def _unfinished(path: pathlib.Path) -> UserError:
    return UserError(
        f"{str(path)!r} holds a training run that has not ended; start train.py again with the "
        "same --config and --workdir, and it goes on from the last checkpoint"
    )
