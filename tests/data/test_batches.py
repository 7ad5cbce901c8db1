"""Class-balanced batches: each class sees its own images only, each in an order of its own."""

import jax
import numpy as np
import pytest

from abs_model.data import Split
from abs_model.data.batches import epoch_order, group_by_class, to_float


def make_split(counts):
    """Images whose only pixel is their class in the high digit and their number in the low one."""
    labels = np.repeat(np.arange(len(counts)), counts)
    numbers = np.concatenate([np.arange(count) for count in counts])
    shuffled = np.random.default_rng(0).permutation(len(labels))
    images = (labels * 10 + numbers).astype(np.uint8)[shuffled].reshape(-1, 1, 1, 1)
    return Split(images, labels[shuffled].astype(np.int32))


def test_no_class_ever_sees_another_class_or_padding():
    counts = (7, 3, 5)
    data = group_by_class(make_split(counts), 3)
    order = epoch_order(data, jax.random.key(0), 12)
    for label, count in enumerate(counts):
        seen = np.asarray(data.images)[label, order[label]].ravel()
        assert set(seen // 10) == {label}
        # 12 visits: every image at least floor(12 / count) times, none more than once more.
        visits = np.bincount(seen % 10, minlength=count)
        assert visits.min() >= 12 // count and visits.max() <= -(-12 // count)


def test_a_large_class_visits_distinct_images_and_epochs_differ():
    data = group_by_class(make_split((9, 9)), 2)
    first, second = (epoch_order(data, jax.random.key(i), 6) for i in range(2))
    assert all(len(set(row.tolist())) == 6 for row in np.asarray(first))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first[0], first[1])


def test_a_class_without_images_is_named():
    with pytest.raises(ValueError, match=r"none of classes \[1\]"):
        group_by_class(Split(np.zeros((2, 1, 1, 1), np.uint8), np.array([0, 2], np.int32)), 3)


def test_pixels_become_fractions():
    np.testing.assert_allclose(to_float(np.array([0, 51, 255], np.uint8)), [0, 0.2, 1])
