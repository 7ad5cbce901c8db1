"""Decisions by a race between classes, against closed forms and the full search."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import abs_model
from abs_model.inference.racing import fit_margin
from abs_model.inference.solvers import Adam
from abs_model.models.build import measure_race_margin
from tests.linear_decoders import PIXELS, linear_abs, linear_energies


@pytest.fixture(scope="module")
def linear():
    """Decoders that explain some images alike, their energies, and the racing classifier."""
    random = np.random.default_rng(3)
    matrices = random.normal(size=(5, PIXELS, 2)) * 0.15
    offsets = random.uniform(0.3, 0.7, size=(5, PIXELS))
    weights = np.array([1.0, 0.9, 1.1, 1.0, 0.95])
    images = random.uniform(size=(300, 4, 4, 1)).astype(np.float32)
    model = linear_abs(matrices, offsets, class_weights=weights, batch_size=50)
    energies = linear_energies(images, matrices, offsets)
    margin = measure_race_margin(model, images[:100], energies[:100], "measuring")
    return dataclasses.replace(model, race_margin=jnp.float32(margin)), images, energies, weights


def test_the_race_is_won_by_the_lowest_weighted_energy(linear):
    model, images, energies, weights = linear
    assert float(model.race_margin) > 0  # the surrogate is wrong on purpose
    np.testing.assert_array_equal(model.predict(images), (weights * energies).argmin(axis=1))


def test_what_decides_are_energies_and_bounds(linear):
    model, images, energies, weights = linear
    found = -PIXELS * np.asarray(model.decision_logits(images))
    rows, expected = np.arange(len(images)), weights * energies
    winners = found.argmin(axis=1)
    others = np.ones(found.shape, bool)
    others[rows, winners] = False
    assert np.all(found[rows, winners] >= expected[rows, winners] - 1e-4)
    assert np.all(found[others] <= expected[others] + 1e-4)
    # Most of the others are not searched to the end.
    assert np.mean(found[others] < expected[others] - 1e-3) > 0.5


def test_a_margin_of_infinity_leaves_what_may_win(linear):
    model, images, energies, weights = linear
    model = dataclasses.replace(model, race_margin=jnp.float32(jnp.inf))
    found = -PIXELS * np.asarray(model.decision_logits(images))
    expected = weights * energies
    winners = found.argmin(axis=1)
    np.testing.assert_array_equal(winners, expected.argmin(axis=1))
    rows = np.arange(len(images))
    np.testing.assert_allclose(found[rows, winners], expected[rows, winners], rtol=1e-4)


def test_a_margin_that_is_too_small_loses_the_winner(linear):
    """So that the other tests would see a race that is not one."""
    model, images, energies, weights = linear
    model = dataclasses.replace(model, race_margin=jnp.float32(-5.0))
    assert np.any(model.predict(images) != (weights * energies).argmin(axis=1))


@pytest.mark.parametrize("name", ["abs", "binary_abs"])
def test_shipped_models_decide_as_by_the_full_search(name):
    model = abs_model.load(name)
    random = np.random.default_rng(0)
    digits = abs_model.load_dataset("mnist").test.images[:64].astype(np.float32) / 255
    # Between two digits, where classes are close.
    images = np.concatenate(
        [digits, (digits + digits[::-1]) / 2, random.uniform(size=digits.shape)]
    )
    images = images.astype(np.float32)
    assert model.races
    np.testing.assert_array_equal(model.predict(images), np.argmax(model.logits(images), axis=1))


def test_the_margin_of_an_exponential_tail_is_its_quantile():
    errors = np.random.default_rng(0).exponential(2.0, size=(60_000, 1)) - 1
    same = np.zeros_like(errors)
    assert fit_margin(errors, same) == pytest.approx(2.0 * np.log(1e5) - 1, rel=0.1)
    normal = np.random.default_rng(0).normal(size=(100_000, 1))
    assert 4.26 < fit_margin(normal, np.zeros_like(normal)) < 6  # its tail falls faster


def test_the_margin_is_of_classes_that_may_win():
    errors = np.array([[1.0, 50.0], [1.0, 2.0]] * 500)
    energies = np.array([[10.0, 40.0], [13.0, 10.0]] * 500)
    assert fit_margin(errors, energies) == pytest.approx(2.0)


def test_the_margin_is_never_negative():
    assert fit_margin(np.full((1000, 1), -3.0), np.zeros((1000, 1))) == 0


def test_adam_makes_no_estimates(linear):
    model, images, energies, _ = linear
    adam = Adam(*(None,) * 5)
    with pytest.raises(TypeError, match="Adam makes no estimates"):
        dataclasses.replace(model, solver=adam).estimation_errors(images, energies)
