"""Shifts and rotations of training images, against SciPy's."""

import jax
import numpy as np
from scipy import ndimage

from abs_model.data.augmentation import shift_and_rotate

_CENTER = np.array([13.5, 13.5])


def _digits(mnist_sample, count=20):
    return mnist_sample["train_images"][:count].astype(np.float32) / 255


def test_nothing_changes_where_nothing_may(mnist_sample):
    images = _digits(mnist_sample)
    same = shift_and_rotate(images, jax.random.key(0), max_shift=0.0, max_rotation=0.0)
    np.testing.assert_allclose(same, images, atol=1e-6)


def test_each_image_is_shifted_and_rotated_as_scipy_does(mnist_sample):
    images = 1 - _digits(mnist_sample, 4)  # bright up to the border
    changed = np.asarray(
        shift_and_rotate(images, jax.random.key(1), max_shift=2.0, max_rotation=15.0)
    )
    shift_key, angle_key = jax.random.split(jax.random.key(1))
    shifts = 2.0 * np.asarray(jax.random.uniform(shift_key, (4, 2), minval=-1, maxval=1))
    angles = np.deg2rad(15.0) * np.asarray(jax.random.uniform(angle_key, (4,), minval=-1, maxval=1))
    for image, got, shift, angle in zip(images, changed, shifts, angles, strict=True):
        cos, sin = np.cos(angle), np.sin(angle)
        matrix = np.array([[cos, -sin], [sin, cos]])
        expected = ndimage.affine_transform(
            image[..., 0], matrix, _CENTER - matrix @ (_CENTER + shift), order=1,
            mode="grid-constant",
        )  # fmt: skip
        np.testing.assert_allclose(got[..., 0], expected, atol=1e-4)
    assert len(np.unique(shifts)) == 8 and len(np.unique(angles)) == 4


def test_colors_move_together(mnist_sample):
    images = _digits(mnist_sample)[:, 2:-2].repeat(3, axis=3) * np.array([1, 0.5, 0.2], np.float32)
    changed = shift_and_rotate(images, jax.random.key(2), max_shift=3.0, max_rotation=30.0)
    assert changed.shape == images.shape
    np.testing.assert_allclose(changed[..., 1], 0.5 * changed[..., 0], atol=1e-6)
    np.testing.assert_allclose(changed[..., 2], 0.2 * changed[..., 0], atol=1e-6)
