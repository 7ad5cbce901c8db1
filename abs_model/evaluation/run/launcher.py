"""Calling attacks as an evaluation's configuration has them."""

import inspect
import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from abs_model._runtime.configuration import positive_int
from abs_model._runtime.errors import UserError
from abs_model._runtime.pytrees import array_identity
from abs_model.attacks._core.result import AttackResult
from abs_model.attacks.registry import ATTACKS
from abs_model.evaluation.run.suite import AttackSpec, SuiteError
from abs_model.evaluation.run.workdir import model_identity
from abs_model.models.classifier import Classifier
from abs_model.models.estimated_gradients import estimate_gradients
from abs_model.zoo.load import load

_LOGGER = logging.getLogger(__name__)


class _Stop(Exception):
    """Ends an attack at its first query."""


class Launcher:
    """Calls attacks, with what their settings name put in the place of the names.

    `surrogate` in a configuration is the name of a model, `starting_points` a number of training
    images.
    """

    def __init__(self, training_images: np.ndarray) -> None:
        """Takes the training images, uint8 (N, height, width, channels)."""
        self._training_images = training_images
        self._surrogates: dict[str, Classifier] = {}

    def identity(self, spec: AttackSpec, model: Classifier) -> dict[str, Any]:
        """`AttackSpec.identity`, and that of what its settings name.

        Raises:
            SuiteError: A setting is nothing that a ledger can note.
            UserError: There is no such surrogate.
        """
        identity = spec.identity(model)
        surrogate, points = (
            identity["settings"].get(key) for key in ("surrogate", "starting_points")
        )
        if surrogate is not None:
            identity["surrogate"] = model_identity(self._surrogate(spec, surrogate))
        if points is not None:
            identity["starting_points"] = array_identity(self._starting_points(spec, points))
        return identity

    def check(
        self, spec: AttackSpec, model: Classifier, images: np.ndarray, labels: np.ndarray
    ) -> None:
        """Calls a registered attack up to its first query, before which it checks settings.

        Raises:
            SuiteError: The attack does not take the settings.
        """

        def stop(count: int) -> None:
            raise _Stop

        if spec.reference not in ATTACKS:
            return  # a user-defined attack may do anything before its first query
        try:
            keys = jax.random.split(jax.random.key(0), len(images))
            targets = None if spec.targets is None else (labels + 1) % model.num_classes
            self(spec, model, images, labels, keys, stop, targets)
        except _Stop:
            pass
        except TypeError as error:
            raise SuiteError(f"attack {spec.name!r} on {model.name!r}: {error}") from error

    def __call__(
        self,
        spec: AttackSpec,
        model: Classifier,
        images: np.ndarray,
        labels: np.ndarray,
        keys: jax.Array,
        progress: Callable[[int], None],
        targets: np.ndarray | None = None,
    ) -> AttackResult:
        """Attacks a batch, with the classes to lead to where the attack is targeted.

        Raises:
            SuiteError: The attack does not take the settings, or returns something else than an
                AttackResult of these images.
        """
        settings = spec.settings_on(model)
        if settings.get("surrogate") is not None:
            surrogate = self._surrogate(spec, settings["surrogate"])
            settings["surrogate"] = surrogate.with_batch_size(model.batch_size)
        if settings.get("starting_points") is not None:
            points = self._starting_points(spec, settings["starting_points"])
            settings["starting_points"] = points.astype(np.float32) / 255
        target = estimate_gradients(model) if spec.estimate_gradients else model
        signature = inspect.signature(spec.info.function)
        optional = {"norm": spec.norm, "progress": progress}
        given = {name: value for name, value in optional.items() if name in signature.parameters}
        if targets is not None:
            given["targets"] = targets
        try:
            signature.bind(target, images, labels, keys, **given, **settings)
        except TypeError as error:
            raise SuiteError(
                f"attack {spec.name!r} on {model.name!r}: {spec.reference} can't be called with its"
                f" settings: {error}; it must take model, images, labels, key and its settings"
            ) from error
        try:
            found = spec.info.function(target, images, labels, keys, **given, **settings)
        except ValueError as error:
            _LOGGER.debug("attack %r on %r", spec.name, model.name, exc_info=error)
            where = "" if spec.reference in ATTACKS else " (--verbosity=1 shows where)"
            raise SuiteError(f"attack {spec.name!r} on {model.name!r}: {error}{where}") from error
        _check_result(spec, found, images)
        return found

    def _surrogate(self, spec: AttackSpec, name: Any) -> Classifier:
        if not isinstance(name, str):
            raise SuiteError(
                f"attack {spec.name!r}: setting surrogate must be the name of a pretrained model or"
                f" a workdir, got {name!r}"
            )
        if name not in self._surrogates:
            try:
                self._surrogates[name] = load(name)
            except UserError as error:
                raise SuiteError(f"attack {spec.name!r}: setting surrogate: {error}") from error
        return self._surrogates[name]

    def _starting_points(self, spec: AttackSpec, count: Any) -> np.ndarray:
        if not positive_int.accepts(count):
            raise SuiteError(
                f"attack {spec.name!r}: setting starting_points must be a number of training"
                f" images, {positive_int.description}; got {count!r}"
            )
        return self._training_images[:count]


def _check_result(spec: AttackSpec, found: Any, images: np.ndarray) -> None:
    wanted = f"an AttackResult whose images are {images.shape}"
    if not isinstance(found, AttackResult):
        raise SuiteError(
            f"attack {spec.name!r} ({spec.reference}) must return {wanted}, got"
            f" {type(found).__name__}"
        )
    if np.shape(found.images) != images.shape:
        raise SuiteError(
            f"attack {spec.name!r} ({spec.reference}) must return {wanted}, got"
            f" {np.shape(found.images)}"
        )
    counts = ("num_queries", "num_gradients", "num_zero_gradients", "num_nonfinite_gradients")
    for name in ("success", *counts):
        value = getattr(found, name)
        if np.shape(value) != (len(images),) and (name == "success" or value is not None):
            raise SuiteError(
                f"attack {spec.name!r} ({spec.reference}) must return {name} of the shape"
                f" ({len(images)},), got {np.shape(value)}"
            )
