"""`load`: a trained model as a classifier, from the zoo or from the workdir of its training run."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Protocol

import jax.numpy as jnp
import ml_collections
from flax import nnx

from abs_model._runtime.atomic_files import as_path
from abs_model._runtime.checks import check_count
from abs_model._runtime.compilation_cache import enable_compilation_cache
from abs_model._runtime.errors import UserError
from abs_model._runtime.malloc import retain_freed_memory
from abs_model._runtime.mesh import replicate
from abs_model._runtime.precision import single_precision
from abs_model.data import load_dataset
from abs_model.inference.racing import RacingSolver
from abs_model.inference.solvers.surrogates import Surrogate
from abs_model.models.abs import ABSClassifier
from abs_model.models.architectures import create_network
from abs_model.models.build import DEFAULT_BATCH_SIZE, build_abs, search_settings, vaes_structure
from abs_model.models.classifier import Classifier
from abs_model.models.decoders import Decoder
from abs_model.models.nearest_neighbor import nearest_neighbor
from abs_model.models.network import NetworkClassifier
from abs_model.zoo import cards

PyTree = Any
# How command lines ask for thresholded images.
BINARY_SUFFIX = ":binary"


class Trained(Protocol):
    """A trained model as it is kept."""

    @property
    def name(self) -> str:
        """For tables and messages."""

    @property
    def binary(self) -> bool:
        """Whether it thresholds images without being asked to."""

    @property
    def config(self) -> ml_collections.ConfigDict:
        """The configuration that it was trained with."""

    @property
    def run(self) -> Mapping[str, Any]:
        """What `abs_model.training.finished_run.write_run` wrote."""

    def restore(self, template: PyTree) -> PyTree:
        """The model's arrays in the structure of `template`."""

    def surrogate(self, decoder: Decoder) -> Surrogate:
        """The surrogates of an ABS model's decoders."""

    def race_margin(self, classifier: ABSClassifier) -> float | None:
        """The race margin of an ABS model whose calibration has none."""


@single_precision
def load(
    model: str | os.PathLike[str],
    *,
    binary: bool = False,
    batch_size: int | None = None,
    name: str | None = None,
    solver: str | None = None,
) -> Classifier:
    """Loads a trained model as a classifier.

    From the first call on, what JAX compiles is kept on disk, and freed memory by the process; see
    `abs_model._runtime.compilation_cache` and `abs_model._runtime.malloc`.

    Args:
        model: A name of `abs_model.available()`, such as "abs", or the workdir of a training run,
            such as "runs/abs" or "~/runs/abs", of which the best checkpoint is taken. A name goes
            before a folder of that name; "./abs" is the folder. "nearest_neighbor" is made of
            MNIST's training images, which are prepared when they aren't yet.
        binary: Whether to classify thresholded images: Binary ABS, Binary CNN.
        batch_size: Images per call of the compiled function; by default 64, for the nearest
            neighbor 100.
        name: For tables and messages; that of the model or folder by default.
        solver: Of an ABS model's latent search, "adam" (the paper's) or "quasi_newton"; by default
            the one of its configuration. The first time that a run from before there were
            surrogates is opened with "quasi_newton", they are fitted, which takes minutes, and kept
            in its workdir.

    Raises:
        UserError: There is no such model or workdir, its files can't be used, its training has not
            ended, or an option does not fit the kind of model.
        ValueError: There is no such solver, or the batch size is no integer of at least 1.
    """
    if batch_size is not None:
        check_count("batch_size", batch_size)
    enable_compilation_cache()
    retain_freed_memory()
    if model == cards.NEAREST_NEIGHBOR:
        if binary or solver is not None:
            raise UserError(
                f"{model!r} takes neither binary nor solver, got binary={binary}, solver={solver!r}"
            )
        classifier: Classifier = nearest_neighbor(load_dataset("mnist"), name or model)
    else:
        classifier = build_classifier(find_trained(model), binary=binary, name=name, solver=solver)
    classifier = replicate(classifier)
    return classifier if batch_size is None else classifier.with_batch_size(batch_size)


@single_precision
def build_classifier(
    trained: Trained, *, binary: bool = False, name: str | None = None, solver: str | None = None
) -> Classifier:
    """The classifier that a trained model is; arguments and errors as in `load`."""
    config = trained.config
    image_shape, num_classes = tuple(trained.run["image_shape"]), trained.run["num_classes"]
    kind, name, binary = config.model.name, name or trained.name, binary or trained.binary
    if kind != "abs" and solver is not None:
        raise UserError(
            f"solver={solver!r} needs an ABS model; {trained.name!r} is a {kind!r} model"
        )
    graphdef, arrays = load_arrays(trained)
    if kind == "abs":
        found = build_abs(
            config,
            graphdef,
            arrays,
            image_shape,
            search=search_settings(config, solver),
            open_surrogate=trained.surrogate,
            name=name,
            binary=binary,
            calibration=trained.run["calibration"],
        )
        if found.race_margin is None and isinstance(found.solver, RacingSolver):
            margin = trained.race_margin(found)
            return dataclasses.replace(
                found, race_margin=None if margin is None else jnp.float32(margin)
            )
        return found
    return NetworkClassifier(
        name=name,
        image_shape=image_shape,
        num_classes=num_classes,
        batch_size=DEFAULT_BATCH_SIZE,
        graphdef=graphdef,
        state=arrays,
        binary=binary,
    ).with_folded_weights()


def find_trained(model: str | os.PathLike[str]) -> Trained:
    """What `load` loads, but for the nearest neighbor.

    Raises:
        UserError: There is no such model or workdir, or its training has not ended.
    """
    entry = cards.find(model) if isinstance(model, str) else None
    if entry is not None:
        return entry
    text = os.fspath(model)
    if text and as_path(text).is_dir():
        # Only here: what reads checkpoints takes long to import, and pretrained models have none.
        from abs_model.training.finished_run import FinishedRun

        return FinishedRun(text)
    if text.endswith(BINARY_SUFFIX):
        plain = text.removesuffix(BINARY_SUFFIX)
        raise UserError(f"for {text!r}, thresholded images, call load({plain!r}, binary=True)")
    raise UserError(
        f"there is no pretrained model {text!r} ({cards.suggest(text)}), and there is no directory"
        " of that name that could be the workdir of a training run"
    )


@single_precision
def load_arrays(trained: Trained) -> tuple[nnx.GraphDef, PyTree]:
    """The structure and the arrays of a trained model, for `nnx.merge`.

    For a network the module's state; for ABS the structure of one `abs_model.models.vae.VAE`, and
    {"params": ..., "statistics": ...} of all classes' VAEs, with a leading class axis.

    Raises:
        UserError: The model's files can't be used.
    """
    config = trained.config
    image_shape, num_classes = tuple(trained.run["image_shape"]), trained.run["num_classes"]
    if config.model.name == "abs":
        graphdef, template = vaes_structure(config, image_shape, num_classes)
    else:
        network = nnx.eval_shape(
            lambda: create_network(config.model, image_shape, num_classes, nnx.Rngs(0))
        )
        graphdef, state = nnx.split(network)
        template = nnx.to_pure_dict(state)
    return graphdef, trained.restore(template)
