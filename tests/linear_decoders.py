"""Decoders whose best latents are known in closed form, for tests of inference and of attacks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from abs_model import register_dataclass
from abs_model.inference.solvers import QuasiNewtonSettings, make_solver
from abs_model.inference.solvers.surrogates import Surrogate
from abs_model.models.abs import ABSClassifier

IMAGE = (4, 4, 1)
PIXELS = 16


@register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearDecoder:
    """G(z) = A z + b: E(x) is a ridge regression, with a closed form."""

    matrix: jax.Array
    offset: jax.Array

    @property
    def latent_size(self):
        return self.matrix.shape[-1]

    @property
    def fingerprint_arrays(self):
        return self.matrix, self.offset

    def __call__(self, latents):
        return self.matrix @ latents + self.offset[:, None]

    def to_pixels(self, images):
        return images.reshape(len(images), -1).T

    def to_images(self, pixels):
        return pixels.T.reshape(-1, *IMAGE)


def linear_decoder(matrices, offsets):
    """All classes', of matrices (C, 16, 2) and offsets (C, 16)."""
    return LinearDecoder(jnp.asarray(matrices, jnp.float32), jnp.asarray(offsets, jnp.float32))


def linear_surrogate(matrices, offsets):
    """A network of one layer, which imitates a linear decoder, though not quite."""
    bases = np.stack([np.linalg.qr(matrix)[0] for matrix in matrices])
    kernels = bases.swapaxes(1, 2) @ matrices * 1.1
    arrays = (kernels, np.full((len(matrices), 2, 1), 0.1), offsets[:, :, None], bases)
    kernel, bias, mean, basis = (jnp.asarray(array, jnp.float32) for array in arrays)
    return Surrogate((kernel,), (bias,), mean, basis)


def explaining_forms(matrices):
    """M_c, (C, 16, 16), with E_c(x) = (x - b_c)' M_c (x - b_c); float64."""
    forms = []
    for matrix in np.asarray(matrices, np.float64):
        inner = np.linalg.inv(matrix.T @ matrix + 0.5 * np.eye(2))
        forms.append(np.eye(PIXELS) - matrix @ inner @ matrix.T)
    return np.stack(forms)


def linear_energies(images, matrices, offsets):
    """E_c(x) in float64, (N, C)."""
    residuals = np.asarray(images, np.float64).reshape(len(images), 1, -1) - offsets
    return np.einsum("ncp,cpq,ncq->nc", residuals, explaining_forms(matrices), residuals)


def linear_abs(matrices, offsets, *, class_weights=None, binary=False, batch_size=6):
    """An ABS model, or a Binary ABS model, of linear decoders."""
    settings = QuasiNewtonSettings(
        num_prior_samples=100, num_starts=2, num_minima=1, tolerance=1e-7
    )
    surrogate = linear_surrogate(matrices, offsets)
    weights = np.ones(len(matrices)) if class_weights is None else class_weights
    return ABSClassifier(
        name="linear_abs",
        image_shape=IMAGE,
        num_classes=len(matrices),
        batch_size=batch_size,
        solver=make_solver(settings, linear_decoder(matrices, offsets), 2, surrogate),
        class_weights=jnp.asarray(weights, jnp.float32),
        eta=jnp.asarray(1e-5),
        alpha=100.0,
        binary=binary,
    )
