"""Analysis by synthesis as a classifier."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abs_model._runtime.mesh import over_devices
from abs_model._runtime.precision import single_precision
from abs_model._runtime.pytrees import register_dataclass
from abs_model.inference.certificates import (
    DEFAULT_SETTINGS,
    Certificate,
    CertificateSettings,
    Samples,
    certify,
    decode_samples,
)
from abs_model.inference.changes import REACHES
from abs_model.inference.energy import Inference, infer, refine
from abs_model.inference.racing import (
    RacingSolver,
    Standings,
    decide,
    estimation_errors,
    first_look,
)
from abs_model.inference.solvers import Solver
from abs_model.models.checks import validate_images
from abs_model.models.classifier import STATIC, Classifier, as_seen, jitted_cold_logits

PyTree = Any


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class ABSClassifier(Classifier):
    """Analysis by synthesis (Schott et al. 2019): the class whose VAE explains the image best.

    logit_c = -w_c E_c(x) / pixels, with the energies of `abs_model.inference.energy`. Binary ABS
    thresholds the image at 0.5 first; its gradient passes the threshold straight through. At
    converged latents the gradient of the logits is exact.

    Attributes:
        solver: Searches the latents; holds all classes' decoders.
        class_weights: Factors w_c of the energies, (classes,); see `inference.calibration`. The
            paper has ones but for Binary ABS.
        eta: Added to each class's score; makes the model unsure far from the data.
        alpha: Scale of the logits in the confidences.
        race_margin: The margin, in nats, by which classes leave the race that decides
            (`inference.racing`); without one, every class is searched. It is not part of a
            fingerprint, because what counts is verified by a search of every class.
    """

    solver: Solver
    class_weights: jax.Array
    eta: jax.Array
    alpha: float = dataclasses.field(metadata=STATIC)
    race_margin: jax.Array | None = dataclasses.field(default=None, metadata={"identifies": False})

    @property
    def fingerprint_arrays(self) -> PyTree:
        return self.class_weights, self.eta, self.solver.fingerprint_arrays

    @property
    def logit_tolerance(self) -> jax.Array:
        # Either of the two energies may be above its minimum by as much as the search leaves.
        tolerance = 2 * self.solver.settings.tolerance
        return tolerance * jnp.max(self.class_weights) / np.prod(self.image_shape)

    def batch_inference(self, images: jax.Array) -> Inference:
        """Inference of images that have been checked; pure, energies are differentiable."""
        return infer(self.solver, self._preprocess(images))

    def batch_refinement(
        self, images: jax.Array, start: Inference, required: jax.Array
    ) -> Inference:
        """`refine` of images that have been checked; pure, energies are differentiable."""
        return refine(self.solver, self._preprocess(images), start, required, self.class_weights)

    def _preprocess(self, images: jax.Array) -> jax.Array:
        """The images that the decoders explain."""
        return as_seen(images, self.binary)

    def weighted_energies(self, inference: Inference) -> jax.Array:
        """The energies that decide, w_c E_c in nats, (N, classes)."""
        return self.class_weights * inference.energies

    def batch_logits(self, images: jax.Array) -> jax.Array:
        return self.cold_logits(images)[0]

    def cold_logits(self, images: jax.Array) -> tuple[jax.Array, Inference]:
        inference = self.batch_inference(images)
        return self.logits_from_inference(inference), inference

    def warm_logits(
        self, images: jax.Array, state: Inference, required: jax.Array | None = None
    ) -> tuple[jax.Array, Inference]:
        # Given the classes that were ahead, the search takes up all that may have overtaken.
        _, leaders = jax.lax.top_k(-self.weighted_energies(state), 2)
        searched = jax.nn.one_hot(leaders, self.num_classes, dtype=bool).any(axis=1)
        searched = searched if required is None else searched | required
        inference = self.batch_refinement(images, state, searched)
        return self.logits_from_inference(inference), inference

    @property
    def races(self) -> bool:
        return self.race_margin is not None and isinstance(self.solver, RacingSolver)

    @property
    def _race(self) -> tuple[RacingSolver, jax.Array]:
        """The solver and the margin of a model that `races`."""
        assert isinstance(self.solver, RacingSolver) and self.race_margin is not None
        return self.solver, self.race_margin

    def batch_decision_logits(self, images: jax.Array) -> jax.Array:
        if not self.races:
            return super().batch_decision_logits(images)
        logits, standings = _jitted_first_look(self, images)
        if not np.asarray(standings.left).any():
            return logits
        return _jitted_decision(self, images, standings)

    def decision_logits(self, images: jax.Array | np.ndarray) -> np.ndarray:
        if not self.races:
            return super().decision_logits(images)
        logits, standings = self._in_batches(
            lambda *batch: jax.tree.map(np.array, _jitted_first_look(*batch)), images
        )
        # The images that are undecided are few: together they fill batches.
        rows = np.flatnonzero(standings.left.any(axis=1))
        if len(rows):
            left = jax.tree.map(lambda leaf: leaf[rows], standings)
            logits[rows] = self._in_batches(_jitted_decision, np.asarray(images)[rows], left)
        return logits

    def logits_from_inference(self, inference: Inference) -> jax.Array:
        """The logits of images that have been inferred, (N, classes)."""
        return self.logits_from_energies(inference.energies)

    def logits_from_energies(self, energies: jax.Array) -> jax.Array:
        """Logits, (N, classes), from energies in nats, (N, classes)."""
        return -self.class_weights * energies / np.prod(self.image_shape)

    def energies_from_logits(self, logits: jax.Array | np.ndarray) -> jax.Array:
        """Energies in nats, (N, classes), from logits, (N, classes)."""
        return -np.prod(self.image_shape) * jnp.asarray(logits) / self.class_weights

    def logits_to_confidences(self, logits: jax.Array) -> jax.Array:
        """p(c|x) = (exp(alpha l_c) + eta) / sum over k of (exp(alpha l_k) + eta)."""
        # In logarithms: far from the data every exp(alpha l) underflows.
        return jax.nn.softmax(jnp.logaddexp(self.alpha * logits, jnp.log(self.eta)))

    def infer(
        self,
        images: jax.Array | np.ndarray,
        start: Inference | None = None,
        required: jax.Array | np.ndarray | None = None,
    ) -> Inference:
        """Energies in nats (unweighted), latents and reconstructions per class.

        Args:
            images: As for `logits`.
            start: What this model found for the same images before they moved a little; the search
                goes on from there.
            required: Only with `start`: whether the class is required, bool (N, classes).
                Other classes are searched only where they may have overtaken one of these, and
                their energies are lower bounds elsewhere (`Inference.searched`), as far as those in
                `start` are global minima. All by default.

        Raises:
            ValueError: `start` or `required` do not fit the images, or `required` comes without
                `start` or has a row without a class.
        """
        if start is None:
            if required is not None:
                raise ValueError("required needs start: without one, every class is searched")
            return self._in_batches(lambda *batch: jitted_cold_logits(*batch)[1], images)
        if not isinstance(start, Inference):
            raise ValueError(
                f"start must be what this model's infer returned, got {type(start).__name__}"
            )
        expected = (len(validate_images(images, self.image_shape)), self.num_classes)
        required = np.ones(expected, bool) if required is None else np.asarray(required)
        if required.shape != expected or required.dtype != bool:
            raise ValueError(
                f"required must be bool {expected}, got {required.dtype} {required.shape}"
            )
        if not required.any(axis=1).all():
            raise ValueError("required must have at least one class for each image")
        if start.energies.shape != expected:
            raise ValueError(f"start must have energies {expected}, got {start.energies.shape}")
        if start.images.shape[1:] != self.image_shape:
            raise ValueError(
                f"start must be of images {self.image_shape}, got {start.images.shape[1:]}; give "
                "what this model's infer returned"
            )
        return self._in_batches(_jitted_refinement, images, start, required)

    def estimation_errors(
        self, images: jax.Array | np.ndarray, energies: jax.Array | np.ndarray
    ) -> jax.Array:
        """By how much the solver's estimates are above energies, in nats, (N, classes).

        Args:
            images: As for `logits`.
            energies: What `infer` finds for them, (N, classes).

        Raises:
            TypeError: The solver makes no estimates, as Adam.
        """
        if not isinstance(self.solver, RacingSolver):
            raise TypeError(f"solver {type(self.solver).__name__} makes no estimates of energies")
        return self._in_batches(_jitted_estimation_errors, images, energies)

    @single_precision
    def certify(
        self,
        images: jax.Array | np.ndarray,
        *,
        norm: str,
        settings: CertificateSettings = DEFAULT_SETTINGS,
    ) -> Certificate:
        """Radii below which no change within [0, 1] can change the decision on each image.

        They hold if the search over latents finds the global minimum, as `inference.certificates`
        derives.

        Args:
            images: As for `logits`.
            norm: "l2", "linf" or "l0".
            settings: How thoroughly to search.

        Raises:
            ValueError: There is no such norm.
        """
        if norm not in REACHES:
            raise ValueError(f"norm must be one of {', '.join(REACHES)}; got {norm!r}")
        samples = _jitted_samples(self.solver, settings)

        def certificate(classifier: ABSClassifier, images: jax.Array) -> Certificate:
            _, inference = jitted_cold_logits(classifier, images)
            return _jitted_certificate(
                classifier, images, inference, samples,
                norm=norm, settings=settings, binary=self.binary,
            )  # fmt: skip

        return self._in_batches(certificate, images)


@functools.partial(jax.jit, static_argnums=1)
def _jitted_samples(solver: Solver, settings: CertificateSettings) -> Samples:
    return decode_samples(solver, settings)


@functools.partial(jax.jit, static_argnames=("norm", "settings", "binary"))
def _jitted_certificate(
    classifier: ABSClassifier,
    images: jax.Array,
    inference: Inference,
    samples: Samples,
    *,
    norm: str,
    settings: CertificateSettings,
    binary: bool,
) -> Certificate:
    def certificate(
        whole: tuple[ABSClassifier, Samples], images: jax.Array, inference: Inference
    ) -> Certificate:
        model, samples = whole
        return certify(
            model.solver,
            images,
            inference,
            model.class_weights,
            samples,
            settings,
            norm=norm,
            binary=binary,
        )

    return over_devices(certificate, (classifier, samples), images, inference)


@jax.jit
def _jitted_first_look(classifier: ABSClassifier, images: jax.Array) -> tuple[jax.Array, Standings]:
    """Logits as far as they decide where nothing is left open, and the standings."""

    def look(model: ABSClassifier, images: jax.Array) -> tuple[jax.Array, Standings]:
        solver, margin = model._race
        found = first_look(solver, model._preprocess(images), model.class_weights, margin)
        return model.logits_from_energies(found.energies), found

    return over_devices(look, classifier, images)


@jax.jit
def _jitted_decision(
    classifier: ABSClassifier, images: jax.Array, standings: Standings
) -> jax.Array:
    def finish(model: ABSClassifier, images: jax.Array, standings: Standings) -> jax.Array:
        solver, margin = model._race
        seen, weights = model._preprocess(images), model.class_weights
        return model.logits_from_energies(decide(solver, seen, weights, margin, standings))

    return over_devices(finish, classifier, images, standings)


@jax.jit
def _jitted_refinement(
    classifier: ABSClassifier, images: jax.Array, start: Inference, required: jax.Array
) -> Inference:
    return over_devices(
        lambda model, *batch: model.batch_refinement(*batch), classifier, images, start, required
    )


@jax.jit
def _jitted_estimation_errors(
    classifier: ABSClassifier, images: jax.Array, energies: jax.Array
) -> jax.Array:
    def errors(model: ABSClassifier, images: jax.Array, energies: jax.Array) -> jax.Array:
        assert isinstance(model.solver, RacingSolver)  # checked before
        return estimation_errors(model.solver, model._preprocess(images), energies)

    return over_devices(errors, classifier, images, energies)
