"""BFGS in a ball against closed forms, surrogates, and the two solvers on a trained model."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import abs_model
from abs_model import register_dataclass
from abs_model._runtime.errors import UserError
from abs_model._runtime.vectorize import map_chunks
from abs_model.inference.solvers import QuasiNewtonSettings, bfgs, make_quasi_newton
from abs_model.inference.solvers.multistart import polish
from abs_model.inference.solvers.surrogates import (
    Surrogate,
    SurrogateFileError,
    SurrogateSettings,
    fit_surrogates,
    read_surrogate,
    surrogate_origin,
    write_surrogate,
)

SIZE = 4


def ridge(matrix, target, radius):
    """The minimum of ||A z - x||^2 + ||z||^2 / 2 in the ball, by bisection on the multiplier."""
    hessian, pull = matrix.T @ matrix + 0.5 * np.eye(SIZE), matrix.T @ target

    def solve(multiplier):
        return np.linalg.solve(hessian + multiplier * np.eye(SIZE), pull)

    low, high = 0.0, 1e6
    if np.linalg.norm(solve(0)) <= radius:
        return solve(0)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.linalg.norm(solve(middle)) > radius else (low, middle)
    return solve(high)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), radius=st.floats(0.2, 3))
def test_bfgs_finds_the_minimum_inside_and_on_the_sphere(seed, radius):
    random = np.random.default_rng(seed)
    matrix = random.normal(size=(9, SIZE)) * random.uniform(0.3, 3, SIZE)
    targets = random.normal(size=(9, 6)) * 2
    now = bfgs.initial_iterate(jnp.asarray(random.normal(size=(SIZE, 6)) * 0.05, jnp.float32))
    decode, pixels = jnp.asarray(matrix, jnp.float32), jnp.asarray(targets, jnp.float32)
    step = jax.jit(lambda now: bfgs.step(lambda z: decode @ z, pixels, now, radius)[0])
    energies = []
    for _ in range(60):
        now = step(now)
        energies.append(now.energies)
    assert np.all(np.diff(energies, axis=0) <= 0)
    expected = np.stack([ridge(matrix, target, radius) for target in targets.T], axis=1)
    lowest = ((matrix @ expected - targets) ** 2).sum(0) + 0.5 * (expected**2).sum(0)
    np.testing.assert_allclose(now.energies, lowest, rtol=1e-3, atol=1e-3)
    assert np.linalg.norm(now.latents, axis=0).max() <= radius * (1 + 1e-5)
    assert np.all(bfgs.predicted_decrease(now)[0] < 0.05)


def test_inverse_hessians_stay_positive_definite_where_curvature_is_negative():
    def decode(z):
        return jnp.sin(3 * z) * 2

    latents = jax.random.normal(jax.random.key(0), (SIZE, 50))
    targets = jax.random.normal(jax.random.key(1), (SIZE, 50)) * 2
    now = bfgs.initial_iterate(latents)
    for _ in range(15):
        now = bfgs.step(decode, targets, now, 5.0)[0]
        assert np.linalg.eigvalsh(np.asarray(now.inverse_hessians).transpose(2, 0, 1)).min() > 0


def test_inverses_of_positive_definite_matrices():
    slopes = np.random.default_rng(0).normal(size=(20, SIZE, SIZE)).astype("f")
    matrices = 50 * slopes @ slopes.transpose(0, 2, 1) + np.eye(SIZE, dtype="f")
    inverses = bfgs.inverse_of_definite(jnp.asarray(matrices.transpose(1, 2, 0)))
    expected = np.linalg.inv(matrices.astype("d"))
    np.testing.assert_allclose(np.asarray(inverses).transpose(2, 0, 1), expected, atol=1e-4)


def test_the_first_step_only_evaluates_also_on_the_sphere():
    directions = jax.random.normal(jax.random.key(0), (SIZE, 500))
    start = bfgs.initial_iterate(5 * directions / jnp.linalg.norm(directions, axis=0))
    targets = 100 * jax.random.normal(jax.random.key(1), (SIZE, 500))
    now = bfgs.step(lambda z: 3 * z, targets, start, 5.0)[0]
    np.testing.assert_array_equal(now.inverse_hessians, start.inverse_hessians)
    np.testing.assert_allclose(now.latents, start.latents, rtol=1e-5)
    assert 0.2 < float(now.held.mean()) < 0.8
    assert float(jnp.min(bfgs.predicted_decrease(now)[0])) > 1e-3


def test_a_step_gives_the_outputs_of_the_points_whose_energy_fell():
    mix = jax.random.normal(jax.random.key(0), (9, SIZE))

    def decode(z):
        return jnp.sin(mix @ z)

    targets = jax.random.normal(jax.random.key(1), (9, 40))
    now = bfgs.initial_iterate(jax.random.normal(jax.random.key(2), (SIZE, 40)))
    for _ in range(5):
        before = now
        now, outputs = bfgs.step(decode, targets, now, 5.0)
        fell = np.asarray(now.energies < before.energies)
        np.testing.assert_allclose(outputs[:, fell], decode(now.latents)[:, fell], atol=1e-6)
    assert not fell.all()


def test_a_forecast_with_the_true_hessian_is_the_minimum():
    matrix = np.random.default_rng(0).normal(size=(9, SIZE))
    targets = np.random.default_rng(1).normal(size=(9, 6))
    inverse = np.linalg.inv(2 * matrix.T @ matrix + np.eye(SIZE))
    start = bfgs.initial_iterate(jnp.ones((SIZE, 6)), jnp.asarray(inverse)[:, :, None].repeat(6, 2))
    now, _ = bfgs.step(lambda z: jnp.asarray(matrix) @ z, jnp.asarray(targets), start, 50.0)
    decreases, ahead = bfgs.predicted_decrease(now)
    expected = np.stack([ridge(matrix, target, 50) for target in targets.T], axis=1)
    lowest = ((matrix @ expected - targets) ** 2).sum(0) + 0.5 * (expected**2).sum(0)
    np.testing.assert_allclose(ahead, expected, atol=1e-4)
    np.testing.assert_allclose(decreases, now.energies - lowest, rtol=1e-3)


def test_what_is_remembered_of_curvature_saves_evaluations_when_targets_move():
    random = np.random.default_rng(0)
    matrix = jnp.asarray(random.normal(size=(9, SIZE)) * [0.3, 1, 2, 4], jnp.float32)
    targets = jnp.asarray(random.normal(size=(9, 40)) * 2, jnp.float32)
    moved = targets + jnp.asarray(random.normal(size=(9, 40)) * 0.2, jnp.float32)
    precise = QuasiNewtonSettings(max_norm=50.0, tolerance=1e-5)

    def decode(z):
        return matrix @ z

    def start(latents, inverse_hessians=None):
        now = bfgs.initial_iterate(latents, inverse_hessians)
        return dataclasses.replace(now, energies=jnp.zeros(latents.shape[1]))

    found = polish(decode, targets, start(jnp.zeros((SIZE, 40))), precise)
    fresh = polish(decode, moved, start(found.latents), precise)
    remembering = polish(decode, moved, start(found.latents, found.inverse_hessians), precise)
    expected = np.stack([ridge(np.asarray(matrix), t, 50) for t in np.asarray(moved).T], axis=1)
    np.testing.assert_allclose(remembering.latents, expected, atol=5e-3)
    assert remembering.evaluations.mean() <= 0.7 * fresh.evaluations.mean()


TWO_MINIMA = QuasiNewtonSettings(max_norm=5.0, tolerance=1e-5)


def two_minima(z):
    """||G(z)||^2 falls towards z = (2, 0) and, lower, z = (-2, 0)."""
    return jnp.stack([z[0] ** 2 - 4, 0.1 * (z[0] + 2), 3 * z[1]])


def candidates(starts, energies):
    now = bfgs.initial_iterate(jnp.asarray(starts, jnp.float32).T)
    return dataclasses.replace(now, energies=jnp.asarray(energies, jnp.float32))


def test_polishing_finds_the_lowest_minimum_that_a_candidate_leads_to():
    """Two images, columns with images fastest; the second image's other candidate is left alone."""
    starts = [(1.5, 0.3), (1.5, 0.3), (-1.5, 0.2), (-1.5, 0.2)]
    found = polish(two_minima, jnp.zeros((3, 2)), candidates(starts, [1, 1, 2, np.inf]), TWO_MINIMA)
    assert found.latents[0, 0] < -1.5
    assert found.latents[0, 1] > 1.5
    np.testing.assert_allclose(found.decoded, two_minima(found.latents), atol=1e-6)
    assert found.evaluations[3] == 0
    assert np.all(np.asarray(found.evaluations) <= TWO_MINIMA.max_evaluations)
    few = dataclasses.replace(TWO_MINIMA, max_evaluations=2)
    limited = polish(two_minima, jnp.zeros((3, 2)), candidates(starts, [1, 1, 1, 1]), few)
    assert int(limited.evaluations.max()) == 2


def test_candidates_that_head_for_the_same_minimum_are_followed_once():
    starts = [(1.5, 0.1), (1.8, 0.0)]
    found = polish(two_minima, jnp.zeros((3, 1)), candidates(starts, [1, 1]), TWO_MINIMA)
    assert sorted(np.asarray(found.evaluations) > 3) == [False, True]


def test_polishing_without_a_finite_energy_gives_nan():
    found = polish(two_minima, jnp.zeros((3, 1)), candidates([(1, 1)], [np.inf]), TWO_MINIMA)
    assert np.isnan(found.decoded).all()


def test_candidates_are_minima_that_lie_apart_and_points_on_the_path_to_them():
    keys = jax.random.split(jax.random.key(1), 5)
    network = (
        (jax.random.normal(keys[0], (32, SIZE)), jax.random.normal(keys[1], (12, 32)) / 4),
        (jax.random.normal(keys[2], (32, 1)), jnp.zeros((12, 1))),
    )
    surrogate = Surrogate(*network, jnp.zeros((12, 1)), jnp.eye(12))
    setup = QuasiNewtonSettings(
        num_prior_samples=400, num_starts=6, num_minima=3, num_path_starts=2
    )
    solver = make_quasi_newton(
        setup,
        None,
        jax.random.normal(keys[3], (400, SIZE)),
        jax.tree.map(lambda leaf: leaf[None], surrogate),
    )
    one = jax.tree.map(lambda leaf: leaf[0], solver)
    targets = surrogate(2 * jax.random.normal(keys[4], (SIZE, 50))) + 1.0
    found = jax.jit(type(one)._candidates)(one, targets)
    energies = np.asarray(found.energies).reshape(5, 50)
    latents = np.asarray(found.latents).reshape(SIZE, 5, 50)
    exact = jnp.sum((surrogate(found.latents) - jnp.tile(targets, (1, 5))) ** 2, axis=0)
    exact = np.asarray(exact + 0.5 * jnp.sum(found.latents**2, axis=0)).reshape(5, 50)
    finite = np.isfinite(energies)
    np.testing.assert_allclose(energies[finite], exact[finite], rtol=1e-4)
    assert finite[0].all()
    assert 0.03 < finite[1:3].mean() < 1
    assert 0.03 < finite[3:].mean() < 1
    distances = np.linalg.norm(latents[:, :, None] - latents[:, None], axis=0)
    both = finite[:, None] & finite[None]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.all(distances[i, j][both[i, j]] > 1.0)
        assert np.all(energies[i] <= energies[j])
    for j in (3, 4):
        assert np.all(distances[0, j][finite[j]] > 0.5)
        assert np.all((energies[j] <= energies[0] + 4.0)[finite[j]])


@pytest.mark.parametrize("length", [1, 31, 32, 33, 100])
def test_chunks_give_what_the_whole_gives(length):
    a, b = jnp.arange(3 * length).reshape(3, length), jnp.arange(length)
    np.testing.assert_array_equal(map_chunks(lambda a, b: a * b + 1, a, b), a * b + 1)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class WavyDecoder:
    """Smooth and not linear; what surrogates need of a decoder."""

    biases: tuple[jax.Array, ...]

    def __call__(self, latents):
        mix = jax.random.normal(jax.random.key(7), (12, SIZE)) / 2
        return jnp.sin(mix @ latents + self.biases[0])


def test_surrogates_imitate_their_own_class(tmp_path, monkeypatch):
    decoder = WavyDecoder((jnp.stack([jnp.zeros((12, 1)), jnp.ones((12, 1))]),))
    fit = SurrogateSettings(
        components=12, widths=(32, 32), num_samples=1000, num_steps=600, batch_size=100
    )
    fitted = fit_surrogates(decoder, SIZE, fit)
    latents = jax.random.normal(jax.random.key(1), (SIZE, 100))
    for index in range(2):
        decode, imitate = (
            jax.tree.map(lambda leaf, i=index: leaf[i], x) for x in (decoder, fitted)
        )
        components = imitate.project(decode(latents))
        errors = jnp.sum((imitate(latents) - components) ** 2, axis=0)
        assert errors.mean() < 0.05 * jnp.sum(components**2, axis=0).mean()
    path, origin = tmp_path / "surrogates.npz", surrogate_origin("these", fit)
    write_surrogate(path, fitted, origin)
    read = read_surrogate(path, origin)
    assert isinstance(read, Surrogate)
    jax.tree.map(np.testing.assert_array_equal, read, fitted)
    other = surrogate_origin("these", dataclasses.replace(fit, num_steps=601))
    with monkeypatch.context() as patched:
        patched.setattr("abs_model.inference.solvers.surrogates._METHOD", -1)
        older = surrogate_origin("these", fit)
    for unlike in (other, older, surrogate_origin("those", fit)):
        with pytest.raises(SurrogateFileError, match="another model or other settings"):
            read_surrogate(path, unlike)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SurrogateFileError, match="can't be read"):
        read_surrogate(path, origin)


@pytest.fixture(scope="module")
def searched(abs_run, tmp_path_factory):
    """A trained model with either solver, quasi_newton loaded twice."""
    workdir = shutil.copytree(abs_run, tmp_path_factory.mktemp("solvers") / "abs")
    load = functools.partial(abs_model.load, workdir, batch_size=40)
    loaded = {solver: load(solver=solver) for solver in ("adam", "quasi_newton")}
    assert (workdir / "surrogates.npz").exists()
    return loaded | {"again": load(solver="quasi_newton")}


def test_quasi_newton_explains_better_than_few_steps_of_adam(searched, mnist_sample):
    images = mnist_sample["test_images"][:40].astype(np.float32) / 255
    adam, ours = (searched[name].infer(images).energies for name in ("adam", "quasi_newton"))
    assert np.mean(ours) < np.mean(adam)
    assert np.mean(ours < adam + 0.1) > 0.9


def test_a_run_without_a_race_margin_measures_it_once(searched, tmp_path, abs_run, monkeypatch):
    first, again = searched["quasi_newton"], searched["again"]
    assert first.races and again.races and not searched["adam"].races
    assert float(first.race_margin) == float(again.race_margin) > 0

    workdir = shutil.copytree(abs_run, tmp_path / "abs")
    (workdir / "race_margins.json").unlink(missing_ok=True)

    def no_data(**_):
        raise UserError("no data")

    monkeypatch.setattr("abs_model.training.finished_run.load_dataset", no_data)
    assert not abs_model.load(workdir, solver="quasi_newton").races  # as well as can be
    assert not (workdir / "race_margins.json").exists()


def test_surrogates_are_fitted_once(searched):
    fitted, read = searched["quasi_newton"].solver.surrogate, searched["again"].solver.surrogate
    jax.tree.map(np.testing.assert_array_equal, fitted, read)


def test_refinement_of_a_trained_model_agrees_with_a_full_search(searched, mnist_sample):
    """Counts disagreements where an image moves a little and only its best class is required."""
    model = searched["quasi_newton"]
    images = mnist_sample["test_images"][:40].astype(np.float32) / 255
    start = model.infer(images)
    first = model.predict(images)
    noise = np.random.default_rng(0).normal(size=images.shape).astype(np.float32)
    noise *= 0.1 / np.sqrt((noise**2).sum((1, 2, 3), keepdims=True))
    there = np.clip(images + noise, 0, 1)
    refined = model.infer(there, start=start, required=np.eye(10, dtype=bool)[first])
    full = np.asarray(model.infer(there).energies)
    searched_now = np.asarray(refined.searched)
    assert np.mean(searched_now) < 0.9
    energies = np.asarray(refined.energies)
    assert np.mean(energies[searched_now] < full[searched_now] + 0.05) > 0.95
    weights = np.asarray(model.class_weights)
    assert np.mean((weights * energies).argmin(1) != (weights * full).argmin(1)) <= 0.05
    assert np.mean(energies[~searched_now] <= full[~searched_now] + 1e-3) > 0.99


@pytest.mark.parametrize(
    ("required", "message"),
    [
        (np.ones((3, 9), bool), r"required must be bool \(3, 10\)"),
        (np.ones((3, 10)), "got float64"),
        (np.zeros((3, 10), bool), "at least one class"),
    ],
)
def test_what_is_asked_must_fit(searched, mnist_sample, required, message):
    images = mnist_sample["test_images"][:3].astype(np.float32) / 255
    start = searched["adam"].infer(images)
    with pytest.raises(ValueError, match=message):
        searched["adam"].infer(images, start=start, required=required)
    with pytest.raises(ValueError, match="required needs start"):
        searched["adam"].infer(images, required=required)
    with pytest.raises(ValueError, match="start must be what this model's infer returned"):
        searched["adam"].infer(images, start=start.latents)
    with pytest.raises(ValueError, match="start must have energies"):
        searched["adam"].infer(images[:2], start=start)
