"""Inference against closed forms and invariants, on a generator whose optimum is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abs_model.inference.energy import infer, refine
from abs_model.inference.solvers import (
    AdamSettings,
    QuasiNewtonSettings,
    SearchSettings,
    make_solver,
    read_settings,
    sample_prior,
)
from tests.linear_decoders import (
    IMAGE,
    PIXELS,
    linear_decoder,
    linear_energies,
    linear_surrogate,
)

CLASSES = 3
ONES = jnp.ones(CLASSES)


@pytest.fixture(scope="module")
def linear():
    """The decoders, matrices (C, 16, 2) and offsets (C, 16)."""
    random = np.random.default_rng(0)
    matrices = random.normal(size=(CLASSES, PIXELS, 2)).astype(np.float32) * 0.3
    offsets = random.uniform(size=(CLASSES, PIXELS)).astype(np.float32)
    return linear_decoder(matrices, offsets), matrices, offsets


@pytest.fixture(scope="module")
def surrogate(linear):
    return linear_surrogate(*linear[1:])


SETTINGS = {
    "adam": AdamSettings(num_prior_samples=500, num_steps=200),
    "quasi_newton": QuasiNewtonSettings(
        num_prior_samples=500, num_starts=3, num_minima=2, tolerance=1e-6
    ),
}


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(1).uniform(size=(37, *IMAGE)), jnp.float32)


@pytest.fixture(scope="module")
def make(linear, surrogate):
    return lambda settings: make_solver(settings, linear[0], 2, surrogate)


@pytest.fixture(scope="module", params=list(SETTINGS))
def solver(make, request):
    return make(SETTINGS[request.param])


def test_energies_reach_the_closed_form(linear, solver, images):
    found = infer(solver, images)
    np.testing.assert_allclose(found.energies, linear_energies(images, *linear[1:]), atol=1e-3)
    assert found.latents.shape == (37, CLASSES, 2)
    assert found.reconstructions.shape == (37, CLASSES, *IMAGE)
    assert bool(found.searched.all())


def test_energies_are_those_of_the_latents_and_reconstructions(solver, images):
    found = infer(solver, images)
    errors = jnp.sum((images[:, None] - found.reconstructions) ** 2, axis=(2, 3, 4))
    np.testing.assert_allclose(
        found.energies, errors + 0.5 * jnp.sum(found.latents**2, axis=2), rtol=1e-5
    )


def reconstructions(found, linear):
    """The latents of an Inference decoded again."""
    _, matrices, offsets = linear
    decoded = np.einsum("cpl,ncl->ncp", matrices, found.latents) + offsets
    return decoded.reshape(found.reconstructions.shape)


def test_reconstructions_are_the_latents_decoded(linear, solver, images):
    found = infer(solver, images)
    np.testing.assert_allclose(found.reconstructions, reconstructions(found, linear), atol=1e-5)


def test_gradients_equal_finite_differences_of_the_closed_form(linear, solver, images):
    """The envelope theorem, at converged latents: dE/dx = 2 (x - G(z*))."""
    direction = jax.random.normal(jax.random.key(0), images.shape)
    slope = jnp.vdot(jax.grad(lambda x: infer(solver, x).energies.sum())(images), direction)
    step = 1e-4
    ahead, behind = (
        linear_energies(np.float64(images) + sign * step * np.float64(direction), *linear[1:]).sum()
        for sign in (1, -1)
    )
    assert slope == pytest.approx((ahead - behind) / (2 * step), rel=1e-3)


def test_one_iteration_of_adam_only_evaluates_the_best_sample(linear, make, images):
    """The authors' code evaluates in its last iteration instead of stepping."""
    settings = dataclasses.replace(SETTINGS["adam"], num_steps=1)
    found = infer(make(settings), images)
    _, matrices, offsets = linear
    latents = np.asarray(sample_prior(settings, 2))
    flat = np.asarray(images).reshape(len(images), -1)
    for c in range(CLASSES):
        decoded = latents @ matrices[c].T + offsets[c]
        energies = ((flat[:, None] - decoded) ** 2).sum(2) + 0.5 * (latents**2).sum(1)
        np.testing.assert_allclose(found.energies[:, c], energies.min(1), rtol=1e-4)


def test_more_iterations_of_adam_explain_no_worse(make, images):
    few, many = (
        infer(make(dataclasses.replace(SETTINGS["adam"], num_steps=n)), images).energies
        for n in (2, 100)
    )
    assert bool(jnp.all(many <= few + 1e-4))


@pytest.mark.parametrize("name", SETTINGS)
def test_latents_stay_in_the_ball(make, images, name):
    settings = dataclasses.replace(SETTINGS[name], max_norm=0.1)
    found = infer(make(settings), images)
    assert float(jnp.linalg.norm(found.latents, axis=2).max()) <= 0.1 + 1e-6


def test_prior_samples_are_the_smallest_of_a_larger_draw():
    latents = sample_prior(SearchSettings(num_prior_samples=900), 8)
    assert latents.shape == (900, 8)
    drawn = jax.random.normal(jax.random.key(0), (1000, 8))
    norms = np.sort(np.linalg.norm(drawn, axis=1))
    np.testing.assert_allclose(np.sort(np.linalg.norm(latents, axis=1)), norms[:900], rtol=1e-5)


def test_decoded_samples_are_in_the_order_of_the_latents(linear, make):
    adam = make(SETTINGS["adam"])
    _, matrices, offsets = linear
    for c in range(CLASSES):
        expected = (np.asarray(adam.latents[c]) @ matrices[c].T + offsets[c]).T
        np.testing.assert_allclose(adam.decoded[c], expected, atol=1e-5)


def test_quasi_newton_needs_a_surrogate(linear):
    with pytest.raises(ValueError, match="needs surrogate"):
        make_solver(SETTINGS["quasi_newton"], linear[0], 2, None)


def test_faulty_settings_are_refused():
    with pytest.raises(ValueError, match="adam, quasi_newton; got 'newton'"):
        read_settings("newton", {})
    with pytest.raises(ValueError, match="num_path_starts must be at least 1, got 0"):
        QuasiNewtonSettings(num_path_starts=0)


def test_accelerators_form_batches_of_classes_and_lists_as_long_as_the_images(
    linear, make, images, monkeypatch
):
    monkeypatch.setenv("ABS_MODEL_FORMULATION", "batched")
    count = 5
    solver, images = make(SETTINGS["quasi_newton"]), images[:count]
    found = infer(solver, images)
    np.testing.assert_allclose(found.energies, linear_energies(images, *linear[1:]), atol=1e-3)
    np.testing.assert_allclose(found.reconstructions, reconstructions(found, linear), atol=1e-5)
    refined = refine(solver, images, found, jnp.ones((count, CLASSES), bool), ONES)
    np.testing.assert_allclose(refined.energies, found.energies, atol=1e-3)


def test_more_minima_than_starts_and_more_starts_than_samples(linear, make, images):
    settings = dataclasses.replace(
        SETTINGS["quasi_newton"], num_prior_samples=2, num_starts=3, num_minima=5
    )
    found = infer(make(settings), images)
    np.testing.assert_allclose(found.energies, linear_energies(images, *linear[1:]), atol=1e-3)


def moved(images, length, seed=0):
    """Each image moved by `length` in a random direction."""
    direction = jax.random.normal(jax.random.key(seed), images.shape)
    return images + length * direction / jnp.sqrt(jnp.sum(direction**2, (1, 2, 3), keepdims=True))


def test_refinement_follows_moved_images(linear, solver, images):
    start = infer(solver, images)
    there = moved(images, 0.1)
    found = refine(solver, there, start, jnp.ones((37, CLASSES), bool), ONES)
    np.testing.assert_allclose(found.energies, linear_energies(there, *linear[1:]), atol=1e-3)
    assert bool(found.searched.all())


@pytest.mark.parametrize("weights", [ONES, jnp.asarray([1.0, 0.7, 1.4])])
def test_only_classes_that_may_have_overtaken_are_searched(linear, solver, images, weights):
    """Step after step: bounds hold, and the order of the classes is that of a full search."""
    # Dark images too, which a black reconstruction would explain.
    images = images.at[::2].multiply(0.02)
    found = infer(solver, images)
    first = jnp.argmin(weights * found.energies, axis=1)
    required = jax.nn.one_hot(first, CLASSES, dtype=bool)
    for step in range(3):
        images, before = moved(images, 0.05, seed=step), found
        found = refine(solver, images, found, required, weights)
        exact = linear_energies(images, *linear[1:])
        searched = np.asarray(found.searched)
        np.testing.assert_allclose(found.reconstructions, reconstructions(found, linear), atol=1e-5)
        for new, old in (
            (found.latents, before.latents),
            (found.reconstructions, before.reconstructions),
        ):
            np.testing.assert_array_equal(new[~searched], old[~searched])
        assert np.all(searched[np.asarray(required)])
        assert 0.05 < np.mean(~searched) < 0.95  # or this tests nothing
        energies = np.asarray(found.energies)
        np.testing.assert_allclose(energies[searched], exact[searched], atol=1e-3)
        assert np.all(energies[~searched] <= exact[~searched] + 1e-4)
        weighted = np.asarray(weights)
        np.testing.assert_array_equal((energies * weighted).argmin(1), (exact * weighted).argmin(1))


def test_gradients_of_refined_energies_pass_the_searched_classes_only(solver, images):
    start = infer(solver, images)
    required = jax.nn.one_hot(jnp.argmin(start.energies, axis=1), CLASSES, dtype=bool)
    there = moved(images, 0.01)
    found = refine(solver, there, start, required, ONES)
    gradient = jax.grad(lambda x: refine(solver, x, start, required, ONES).energies.sum())(there)
    slopes = 2 * (there[:, None] - found.reconstructions)
    expected = jnp.sum(jnp.where(found.searched[:, :, None, None, None], slopes, 0), axis=1)
    np.testing.assert_allclose(gradient, expected, atol=1e-4)
