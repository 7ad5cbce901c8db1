import numpy as np
import pytest

from abs_model.data import corruptions
from abs_model.data.corruptions import CORRUPTIONS, corrupt

EMPTY = np.zeros((1, 28, 28, 1), np.float32)


@pytest.fixture(scope="module")
def digits(mnist_sample):
    return mnist_sample["test_images"][:6].reshape(-1, 28, 28, 1).astype(np.float32) / 255


def square(top=10, left=10, size=8):
    image = np.zeros((1, 28, 28, 1), np.float32)
    image[:, top : top + size, left : left + size] = 1
    return image


def gray(value, count=20):
    """Images that differ a little, so that each has random numbers of its own."""
    values = np.full((count, 28, 28, 1), value) + 1e-6 * np.arange(count)[:, None, None, None]
    return values.astype(np.float32)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_keeps_shape_and_range_and_repeats_itself(name, digits):
    before = digits.copy()
    found = corrupt(name, digits)
    assert found.shape == digits.shape and found.dtype == np.float32
    assert found.min() >= 0 and found.max() <= 1
    np.testing.assert_array_equal(digits, before)
    # In whatever batch.
    np.testing.assert_array_equal(corrupt(name, digits[[4, 2]]), found[[4, 2]])
    changes = np.abs(found - digits).max(axis=(1, 2, 3))
    assert np.all(changes == 0 if name == "identity" else changes > 0.1)


def test_the_random_numbers_of_images_differ():
    noise = corrupt("impulse noise", gray(0.5, 2))
    assert np.mean(np.abs(noise[0] - noise[1]) > 0.1) > 0.1


def test_what_cannot_be_corrupted():
    with pytest.raises(ValueError, match=r"shot noise.*got 'snow'"):
        corrupt("snow", EMPTY)
    with pytest.raises(ValueError, match=r"\(1, 8, 8, 1\)"):
        corrupt("fog", EMPTY[:, :8, :8])


def test_shot_noise_counts_three_photons():
    found = corrupt("shot noise", gray(0.3))
    np.testing.assert_allclose(3 * found, np.round(3 * found), atol=1e-6)
    # Poisson of mean 0.9, at most 3: its mean is the sum of P(more than k) for k = 0, 1, 2.
    tails = 1 - np.exp(-0.9) * np.cumsum([1, 0.9, 0.9**2 / 2])
    assert found.mean() == pytest.approx(tails.sum() / 3, abs=0.01)
    assert not corrupt("shot noise", EMPTY).any()


def test_impulse_noise_is_black_or_white_in_a_share_of_pixels():
    found = corrupt("impulse noise", gray(0.5))
    assert np.mean(found == 1) == pytest.approx(0.085, abs=0.01)
    assert np.mean(found == 0) == pytest.approx(0.085, abs=0.01)


@pytest.mark.parametrize("name", ["glass blur", "motion blur"])
def test_blurs_keep_brightness(name):
    found = corrupt(name, square())
    assert found.sum() == pytest.approx(64, rel=1e-3)
    np.testing.assert_allclose(corrupt(name, gray(0.5)), 0.5, atol=1e-4)


def test_motion_blur_trails_to_the_left_within_45_degrees():
    point = square(14, 20, 1)
    found = corrupt("motion blur", point)[0, ..., 0]
    rows, columns = np.nonzero(found)
    assert columns.max() == 20 and np.all(np.abs(rows - 14) <= 20 - columns + 1)
    # The first of half a Gaussian of sigma 3.
    weights = np.exp(-(np.arange(21) ** 2) / 18)
    assert found[14, 20] == pytest.approx(1 / weights.sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "factor"), [("scale", 0.7**2), ("rotate", 1), ("shear", 1 / np.cos(0.4))]
)
def test_affine_maps_change_area_and_keep_the_center(name, factor):
    # Smooth, because nothing is blurred before the image is sampled.
    squares = ((np.indices((28, 28)) - 13.5) ** 2).sum(axis=0)
    bump = np.exp(-squares / 18).astype(np.float32)
    found = corrupt(name, bump[None, ..., None])[0, ..., 0]
    assert found.sum() == pytest.approx(bump.sum() * factor, rel=0.01)
    middle = (np.indices((28, 28)) * found).sum(axis=(1, 2)) / found.sum()
    np.testing.assert_allclose(middle, 13.5, atol=1e-4)


def test_rotation_is_by_0_4_radians():
    found = corrupt("rotate", square(13, 4, 2))[0, ..., 0]
    down, right = (np.indices((28, 28)) * found).sum(axis=(1, 2)) / found.sum() - 13.5
    # The center of the square was 9 pixels to the left and half a pixel above or below.
    assert abs(np.arctan2(down, -right)) == pytest.approx(0.4, abs=0.07)


def test_translation_is_by_three_pixels_each_way():
    for digit in (square(8, 9), square(11, 9), square(4, 15)):
        rows, columns = np.nonzero(corrupt("translate", digit)[0, ..., 0])
        before = np.argwhere(digit[0, ..., 0]).min(axis=0)
        assert abs(rows.min() - before[0]) == abs(columns.min() - before[1]) == 3
        assert len(rows) == 64


def test_brightness_and_stripes(digits):
    np.testing.assert_allclose(
        corrupt("brightness", digits), np.minimum(digits + 0.5, 1), atol=1e-7
    )
    found = corrupt("stripe", digits)
    np.testing.assert_array_equal(found[:, :, 7:21], digits[:, :, 7:21])
    np.testing.assert_allclose(found[:, :, :7], 1 - digits[:, :, :7], atol=1e-7)
    np.testing.assert_allclose(found[:, :, 21:], 1 - digits[:, :, 21:], atol=1e-7)


def test_fog_covers_three_quarters(digits):
    brightest = digits.max((1, 2, 3), keepdims=True)
    fog = (corrupt("fog", digits) * (brightest + 3) / brightest - digits) / 3
    assert fog.min() >= -1e-6 and fog.max() <= 1 + 1e-6
    assert 0.2 < fog.mean() < 0.8
    assert not corrupt("fog", EMPTY).any()


def test_plasma_has_neighbors_of_similar_height():
    heights = corruptions._plasma(np.random.default_rng(0), decay=2.0, size=64)
    assert heights.min() == 0 and heights.max() == 1
    # On a torus.
    for axis in (0, 1):
        steps = np.abs(heights - np.roll(heights, 1, axis))
        assert steps.mean() < 0.3 * np.abs(heights - np.roll(heights, 32, axis)).mean()


def test_spatter_is_dark_mud():
    found = corrupt("spatter", gray(0))
    assert found.max() <= 63 / 255 + 1e-6
    covered = found > 0.01
    assert 0.05 < covered.mean() < 0.6 and found[covered].min() > 0.8 * 63 / 255 - 1e-6
    assert corrupt("spatter", gray(1)).min() >= 63 / 255 - 1e-6


def test_a_dotted_line_has_columns_in_pairs():
    found = corrupt("dotted line", EMPTY)[0, ..., 0]
    lit = found.max(axis=0) > 0
    np.testing.assert_array_equal(lit, (np.arange(28) // 2 % 2 == 1) & (np.arange(28) < 27))
    assert found.max() <= 1


def test_a_line_is_brightest_in_its_middle():
    line = corruptions._line((0, 10), (28, 10))
    np.testing.assert_allclose(line[10], 1)
    np.testing.assert_allclose(line[9], 1 + np.log(1 - 1 / 2.3))
    np.testing.assert_array_equal(line[9], line[11])
    assert not line[12:].any()
    slope = corruptions._line((2, 2), (20, 20))
    np.testing.assert_allclose(slope[range(2, 20), range(2, 20)], 1)
    assert not slope[:, :2].any() and not slope[:, 20:].any()


def test_a_zigzag_turns_along_its_line():
    found = corrupt("zigzag", EMPTY)[0, ..., 0]
    lit = found.max(axis=0) > 0
    assert not lit[:2].any() and lit[3:24].all() and not lit[26:].any()
    assert found.max() == pytest.approx(1, abs=0.3)


def test_canny_edges_of_a_square_are_its_outline():
    found = corrupt("canny edges", square(8, 8, 12))[0, ..., 0]
    assert set(np.unique(found)) == {0, 1}
    assert not found[10:18, 10:18].any() and not found[:7].any() and not found[21:].any()
    # One edge, a pixel or two wide, is crossed from each side.
    for line in (found[14], found[:, 14]):
        assert 1 <= line[:14].sum() <= 2 and 1 <= line[14:].sum() <= 2
    assert not corrupt("canny edges", gray(0.7, 1)).any()
