"""Patterns that give classes away: what they look like, and which images have them."""

import functools

import numpy as np
import pytest

from abs_model.data import load_dataset
from abs_model.data.shortcuts import add_patterns, class_patterns


def test_half_of_the_blocks_of_each_class_are_brighter():
    patterns = class_patterns(10, (28, 28, 1))
    assert patterns.shape == (10, 28, 28, 1) and patterns.dtype == bool
    blocks = patterns.reshape(10, 7, 4, 7, 4)
    assert np.all(blocks == blocks[:, :, :1, :, :1])
    assert np.all(blocks[:, :, 0, :, 0].sum(axis=(1, 2)) == 24)
    agreement = (patterns[:, None] == patterns).mean(axis=(2, 3, 4))
    assert agreement[~np.eye(10, dtype=bool)].max() < 0.8
    np.testing.assert_array_equal(patterns[:3], class_patterns(3, (28, 28, 1)))


def test_patterns_add_their_amplitude_and_stop_at_white():
    images = np.array([0, 100, 250], np.uint8)[:, None, None, None] * np.ones(
        (1, 5, 6, 3), np.uint8
    )
    classes = np.array([2, 0, 1])
    changed = add_patterns(images, classes, 0.1)
    where = class_patterns(3, (5, 6, 3))[classes]
    assert changed.dtype == np.uint8
    np.testing.assert_array_equal(changed[0][where[0]], 26)
    np.testing.assert_array_equal(changed[1][where[1]], 126)
    np.testing.assert_array_equal(changed[2][where[2]], 255)
    np.testing.assert_array_equal(changed[~where], images[~where])


def test_an_amplitude_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"amplitude must be from 0 to 1, got 1\.5"):
        add_patterns(np.zeros((1, 4, 4, 1), np.uint8), np.array([0]), 1.5)


def test_only_training_and_validation_images_have_patterns(data_dir):
    load = functools.partial(
        load_dataset, "mnist_sample", module="tests.tiny_datasets", data_dir=str(data_dir),
        validation_size=100,
    )  # fmt: skip
    plain, changed = load(), load(shortcut_amplitude=0.05)
    np.testing.assert_array_equal(changed.test.images, plain.test.images)
    for split, original in ((changed.train, plain.train), (changed.validation, plain.validation)):
        images, labels = original.images[:50], original.labels[:50]
        np.testing.assert_array_equal(split.images[:50], add_patterns(images, labels, 0.05))
