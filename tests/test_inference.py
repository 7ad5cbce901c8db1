"""Inference against closed forms and invariants, on a generator whose optimum is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from abs_model.inference import SearchSettings, infer, make_generators, sample_prior

IMAGE = (4, 4, 1)
CLASSES = 3


class LinearGenerator(nnx.Module):
    """G(z) = A z + b: E(x) is a ridge regression, with a closed form."""

    def __init__(self, matrix, offset):
        self.matrix = nnx.Param(matrix)
        self.offset = nnx.Param(offset)

    def decode_batch_last(self, latents):
        return (self.matrix[...] @ latents + self.offset[...][:, None]).reshape(1, 4, 4, -1)


@pytest.fixture(scope="module")
def linear():
    """Graph, stacked state, matrices (C, 16, 2) and offsets (C, 16)."""
    random = np.random.default_rng(0)
    matrices = random.normal(size=(CLASSES, 16, 2)).astype(np.float32) * 0.3
    offsets = random.uniform(size=(CLASSES, 16)).astype(np.float32)
    graphdef, _ = nnx.split(LinearGenerator(jnp.zeros((16, 2)), jnp.zeros(16)))
    state = ({"matrix": jnp.asarray(matrices), "offset": jnp.asarray(offsets)},)
    return graphdef, state, matrices, offsets


def optimum(images, matrices, offsets):
    """Energies (N, C) of the ridge regression, in float64."""
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    energies = []
    for matrix, offset in zip(matrices.astype(np.float64), offsets, strict=True):
        residual = flat - offset
        z = residual @ matrix @ np.linalg.inv(matrix.T @ matrix + 0.5 * np.eye(2))
        errors = ((residual - z @ matrix.T) ** 2).sum(1)
        energies.append(errors + 0.5 * (z**2).sum(1))
    return np.stack(energies, 1)


SETTINGS = SearchSettings(num_prior_samples=500, num_steps=200)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(1).uniform(size=(6, *IMAGE)), jnp.float32)


@pytest.fixture(scope="module")
def generators(linear):
    graphdef, state, _, _ = linear
    return make_generators(graphdef, state, sample_prior(SETTINGS, 2))


def test_energies_reach_the_closed_form(linear, generators, images):
    found = infer(generators, images, SETTINGS)
    np.testing.assert_allclose(found.energies, optimum(images, *linear[2:]), atol=1e-3)
    assert found.latents.shape == (6, CLASSES, 2)
    assert found.reconstructions.shape == (6, CLASSES, *IMAGE)


def test_energies_are_those_of_the_latents_and_reconstructions(generators, images):
    found = infer(generators, images, SETTINGS)
    errors = jnp.sum((images[:, None] - found.reconstructions) ** 2, axis=(2, 3, 4))
    np.testing.assert_allclose(
        found.energies, errors + 0.5 * jnp.sum(found.latents**2, axis=2), rtol=1e-5
    )


def test_gradients_equal_finite_differences_of_the_closed_form(linear, generators, images):
    """The envelope theorem, at converged latents: dE/dx = 2 (x - G(z*))."""
    direction = jax.random.normal(jax.random.key(0), images.shape)

    def total(images):
        return infer(generators, images, SETTINGS).energies.sum()

    slope = jnp.vdot(jax.grad(total)(images), direction)
    step = 1e-4
    ahead, behind = (
        optimum(images + sign * step * direction, *linear[2:]).sum() for sign in (1, -1)
    )
    assert slope == pytest.approx((ahead - behind) / (2 * step), rel=1e-3)


def test_one_iteration_only_evaluates_the_best_sample(linear, generators, images):
    """The authors' code evaluates in its last iteration instead of stepping."""
    settings = dataclasses.replace(SETTINGS, num_steps=1)
    found = infer(generators, images, settings)
    _, _, matrices, offsets = linear
    latents = np.asarray(generators.latents)
    flat = np.asarray(images).reshape(6, -1)
    for c in range(CLASSES):
        decoded = latents @ matrices[c].T + offsets[c]
        energies = ((flat[:, None] - decoded) ** 2).sum(2) + 0.5 * (latents**2).sum(1)
        np.testing.assert_allclose(found.energies[:, c], energies.min(1), rtol=1e-4)


def test_more_iterations_explain_no_worse(generators, images):
    few, many = (
        infer(generators, images, dataclasses.replace(SETTINGS, num_steps=n)).energies
        for n in (2, 100)
    )
    assert bool(jnp.all(many <= few + 1e-4))


def test_latents_stay_in_the_ball(linear, images):
    graphdef, state, _, _ = linear
    settings = dataclasses.replace(SETTINGS, max_norm=0.1)
    generators = make_generators(graphdef, state, sample_prior(settings, 2))
    found = infer(generators, images, settings)
    assert float(jnp.linalg.norm(found.latents, axis=2).max()) <= 0.1 + 1e-6


def test_prior_samples_are_the_smallest_of_a_larger_draw():
    latents = sample_prior(SearchSettings(num_prior_samples=900), 8)
    assert latents.shape == (900, 8)
    drawn = jax.random.normal(jax.random.key(0), (1000, 8))
    norms = np.sort(np.linalg.norm(drawn, axis=1))
    np.testing.assert_allclose(np.sort(np.linalg.norm(latents, axis=1)), norms[:900], rtol=1e-5)


def test_decoded_samples_are_in_the_order_of_the_latents(linear, generators):
    _, _, matrices, offsets = linear
    latents = np.asarray(generators.latents)
    for c in range(CLASSES):
        expected = (latents @ matrices[c].T + offsets[c]).T
        np.testing.assert_allclose(generators.decoded[c], expected, atol=1e-5)
