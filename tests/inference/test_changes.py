"""Reaches of changes against closed forms, exhaustive search, and changes drawn at random."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from abs_model.inference.changes import REACHES, allowed_range, find_radius

SIZE = 7
WEIGHT_DIFFERENCES = (-0.15, 0.0, 0.2)


def problem(seed, *, binary=False, low=0.0, high=1.0):
    """Pixels and v of one image, and how it may change."""
    random = np.random.default_rng(seed)
    pixels = random.uniform(low, high, (SIZE, 1)).astype(np.float32)
    v = random.normal(size=(SIZE, 1)).astype(np.float32)
    allowed = allowed_range(jnp.asarray(pixels), jnp.ones((SIZE, 1)), channels=1, binary=binary)
    return pixels[:, 0].astype(np.float64), v[:, 0].astype(np.float64), allowed


def reach(norm, allowed, v, a, radius):
    column = jnp.asarray(v, jnp.float32)[:, None]
    return float(REACHES[norm](allowed, column, jnp.array([a]), jnp.array([radius]))[0])


def fall(v, a, changes):
    """By how much changes (..., pixels) lower the difference of costs."""
    return -(2 * changes @ v + a * np.sum(changes**2, axis=-1))


@pytest.mark.parametrize("a", WEIGHT_DIFFERENCES)
def test_far_from_the_range_the_reach_has_a_closed_form(a):
    _, v, allowed = problem(0, low=0.4, high=0.6)
    length = np.linalg.norm(v)
    assert reach("l2", allowed, v, a, 0.1) == pytest.approx(0.2 * length - 0.01 * a, rel=1e-4)
    expected = 0.02 * np.abs(v).sum() - SIZE * 1e-4 * a
    assert reach("linf", allowed, v, a, 0.01) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("a", WEIGHT_DIFFERENCES)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("norm", "radius"), [("l2", 0.8), ("linf", 0.4), ("l0", 3.0)])
def test_no_change_within_the_radius_reaches_farther_and_one_comes_close(norm, radius, seed, a):
    pixels, v, allowed = problem(seed)
    bound = reach(norm, allowed, v, a, radius)
    if norm == "l0":
        options = np.stack(
            [-pixels, np.zeros(SIZE), 1 - pixels, np.clip(-v / (a or 1), -pixels, 1 - pixels)]
        )
        gains = np.max(-(2 * options * v + a * options**2), axis=0)
        best = np.sort(gains)[-int(radius) :].sum()
    elif norm == "linf":
        low, high = np.maximum(-radius, -pixels), np.minimum(radius, 1 - pixels)
        steps = low + np.linspace(0, 1, 5001)[:, None] * (high - low)
        best = np.max(-(2 * steps * v + a * steps**2), axis=0).sum()
    else:
        bounds = list(zip(-pixels, 1 - pixels, strict=True))
        found = scipy.optimize.minimize(
            lambda d: -fall(v, a, d), -0.01 * np.sign(v), bounds=bounds,
            constraints={"type": "ineq", "fun": lambda d: radius**2 - d @ d}, method="SLSQP",
        )  # fmt: skip
        best = -found.fun
    assert bound == pytest.approx(best, rel=2e-3)
    assert bound >= best * (1 - 1e-5)


@pytest.mark.parametrize("a", WEIGHT_DIFFERENCES)
@pytest.mark.parametrize("norm", ["l2", "linf", "l0"])
def test_flips_reach_no_farther_than_the_best_set_of_pixels(norm, a):
    for seed in range(4):
        pixels, v, allowed = problem(seed, binary=True)
        signs, prices = np.where(pixels > 0.5, -1, 1), np.abs(pixels - 0.5)
        gains = -2 * v * signs - a
        subsets = np.array(list(itertools.product([0, 1], repeat=SIZE)))
        costs = {
            "l2": np.sqrt(subsets @ prices**2),
            "linf": np.max(subsets * prices, axis=1),
            "l0": subsets.sum(axis=1),
        }[norm]
        for radius in {"l2": (0.2, 0.5), "linf": (0.1, 0.3), "l0": (1.0, 3.0)}[norm]:
            best = np.max((subsets @ gains)[costs <= radius])
            bound = reach(norm, allowed, v, a, radius)
            assert bound >= best - 1e-4
            if norm != "l2":  # where a fraction of a flip helps
                assert bound == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("norm", ["l2", "linf", "l0"])
def test_the_radius_is_where_the_reach_is_the_gap(norm):
    _, v, allowed = problem(1)
    column, a, largest = jnp.asarray(v)[:, None], jnp.array([0.1]), jnp.array([7.0])
    gap = jnp.array([0.7])
    found = find_radius(norm, allowed, column, a, gap, largest)
    assert reach(norm, allowed, v, 0.1, float(found[0])) == pytest.approx(0.7, rel=1e-3)
    out_of_reach = find_radius(norm, allowed, column, a, jnp.array([1e3]), largest)
    assert float(out_of_reach[0]) == pytest.approx(7.0, rel=1e-5)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(("norm", "radius"), [("l2", 0.6), ("linf", 0.3), ("l0", 2.0)])
def test_gradients_are_those_of_the_reach(norm, radius, binary):
    _, v, allowed = problem(2, binary=binary)

    def total(column):
        return jnp.sum(REACHES[norm](allowed, column, jnp.array([0.1]), jnp.array([radius])))

    gradients = np.asarray(jax.grad(total)(jnp.asarray(v, jnp.float32)[:, None]))[:, 0]
    for pixel in range(SIZE):
        step = 1e-2 * np.eye(SIZE)[pixel]
        difference = reach(norm, allowed, v + step, 0.1, radius) - reach(
            norm, allowed, v - step, 0.1, radius
        )
        # A fraction of the last pixel is left out where the budget ends within it.
        loose = norm == "l2" and binary
        assert gradients[pixel] == pytest.approx(difference / 2e-2, abs=2.0 if loose else 0.05)


@pytest.mark.parametrize("binary", [False, True])
def test_a_pixel_of_several_channels_counts_once(binary):
    random = np.random.default_rng(0)
    pixels, v = random.random((SIZE, 4)), random.normal(size=(SIZE, 4))
    a, inside = jnp.zeros(4), jnp.ones((SIZE, 1))

    def reach(channels, count):
        allowed = allowed_range(jnp.asarray(pixels), inside, channels=channels, binary=binary)
        return REACHES["l0"](allowed, jnp.asarray(v), a, jnp.full(4, float(count)))

    np.testing.assert_allclose(reach(3, 2), reach(1, 6), rtol=1e-5)
