"""`load`: a trained model from its workdir, as a classifier."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from flax import nnx

from abs_model.building import (
    DEFAULT_BATCH_SIZE,
    build_abs,
    search_settings,
    vaes_structure,
)
from abs_model.classifiers import Classifier, NetworkClassifier
from abs_model.errors import UserError
from abs_model.networks import create_network
from abs_model.training.checkpoints import CheckpointStore
from abs_model.training.runs import read_run
from abs_model.training.workdir import load_config

PyTree = Any


def load(
    path: str | os.PathLike[str],
    *,
    binary: bool = False,
    batch_size: int = DEFAULT_BATCH_SIZE,
    name: str | None = None,
    solver: str | None = None,
) -> Classifier:
    """Loads a training run's best checkpoint (by its validation metric) as a classifier.

    The first time that a run is opened with the solver "quasi_newton", surrogates are fitted, which
    takes minutes, and kept in its workdir; train.py has done it for runs that it finished.

    Args:
        path: The run's workdir, such as "runs/abs".
        binary: Whether to classify thresholded images: Binary ABS, Binary CNN.
        batch_size: Images per call of the compiled function.
        name: For tables and messages; the folder's name by default.
        solver: Of an ABS model's latent search, "adam" (the paper's) or "quasi_newton"; by default
            the one of the run's configuration.

    Raises:
        UserError: `path` holds no run, or one that has not been trained to its end, or `solver` was
            given for a model that is not ABS.
        ValueError: There is no such solver.
    """
    path = pathlib.Path(path)
    config, run = load_config(path), read_run(path)
    kind = config.model.name
    if kind != "abs" and solver is not None:
        raise UserError(
            f"solver={solver!r} needs an ABS model; {str(path)!r} holds a {kind!r} model"
        )
    if run is None:
        raise _unfinished(path)
    image_shape, num_classes = tuple(run["image_shape"]), run["num_classes"]
    name = name or path.name
    if kind != "abs":
        network = nnx.eval_shape(
            lambda: create_network(config.model, image_shape, num_classes, nnx.Rngs(0))
        )
        graphdef, state = nnx.split(network)
        return NetworkClassifier(
            name=name,
            image_shape=image_shape,
            num_classes=num_classes,
            batch_size=batch_size,
            graphdef=graphdef,
            state=_restore_best(path, run, nnx.to_pure_dict(state)),
            binary=binary,
        )
    search = search_settings(config, solver)
    graphdef, model = load_vaes(path)
    return build_abs(
        config,
        graphdef,
        model,
        image_shape,
        search=search,
        workdir=path,
        name=name,
        batch_size=batch_size,
        binary=binary,
        calibration=run["calibration"],
    )


def load_vaes(path: str | os.PathLike[str]) -> tuple[nnx.GraphDef, dict[str, PyTree]]:
    """The VAEs of an ABS run's best checkpoint.

    Returns:
        The structure of one `abs_model.vae.VAE`, and {"params": ..., "statistics": ...} of all
        classes' VAEs, with a leading class axis; `nnx.merge` makes one of a class's slices.

    Raises:
        UserError: `path` holds no run, or one that has not been trained to its end.
    """
    path = pathlib.Path(path)
    config, run = load_config(path), read_run(path)
    if run is None:
        raise _unfinished(path)
    graphdef, template = vaes_structure(config, tuple(run["image_shape"]), run["num_classes"])
    return graphdef, _restore_best(path, run, template)


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
