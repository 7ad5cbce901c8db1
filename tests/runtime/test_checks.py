"""Arguments that can't be meant are refused by name, with the remedy where the slip is known."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from abs_model._runtime.checks import check_count, check_number
from abs_model.attacks._core.checks import check_epsilon, check_labels
from abs_model.attacks._core.keys import image_keys
from abs_model.models.checks import check_images

SHAPE = (4, 5, 1)
COLOR = (4, 5, 3)
GOOD = np.linspace(0, 1, 60, dtype=np.float32).reshape(3, *SHAPE)
CASES = {
    "uint8 / 255": (GOOD.astype(np.float64), 'float64; images.astype("float32") makes it that'),
    "float16": (GOOD.astype(np.float16), 'float16; images.astype("float32") makes it that'),
    "bfloat16": (jnp.asarray(GOOD, jnp.bfloat16), 'bfloat16; images.astype("float32") makes it'),
    "uint8": (GOOD.astype(np.uint8), "dtype uint8; divide uint8 images by 255"),
    "int64": (GOOD.astype(np.int64), "dtype int64; divide int64 images by 255"),
    "bool": (GOOD > 0.5, 'dtype bool; images.astype("float32") makes it that'),
    "text": (GOOD.astype(str), "got dtype <U32"),
    "list": ([[0.0]], 'got list; np.asarray(images, "float32") makes it one'),
    "None": (None, "images must be an array of float32 in [0, 1] of shape (N, 4, 5, 1), got None"),
    "no channel axis": (GOOD[..., 0], "(3, 4, 5); the channel axis is missing: images[..., None]"),
    "no axis but two": (GOOD[0, ..., 0], "(4, 5); the channel axis is missing: images[None, ..., "),
    "one image": (GOOD[0], "got shape (4, 5, 1); a single image needs an axis: images[None]"),
    "channels first": (
        GOOD.transpose(0, 3, 1, 2),
        "got shape (3, 1, 4, 5); channels come last: images.transpose(0, 2, 3, 1)",
    ),
    "flat": (GOOD.reshape(3, -1), "(3, 20); images.reshape(-1, 4, 5, 1) undoes the flattening"),
    "other shape": (GOOD[:, :3], "got shape (3, 3, 5, 1)"),
    "none": (GOOD[:0], "images must hold at least one image, got none (shape (0, 4, 5, 1))"),
    "0 to 255": (255 * GOOD, "from 0.0 to 255.0; divide pixels from 0 to 255 by 255"),
    "normalized": ((GOOD - 0.13) / 0.31, "undo the normalization (images * std + mean)"),
    "-1 to 1": (2 * GOOD - 1, "from -1.0 to 1.0; undo the normalization"),
    "rounding": (GOOD * np.float32(1.000001), "; images.clip(0, 1) removes rounding"),
    "NaN": (GOOD * np.nan, "got values from nan to nan"),
}


@pytest.mark.parametrize("case", CASES)
def test_images_that_are_none_are_refused_with_the_remedy(case):
    images, message = CASES[case]
    with pytest.raises(ValueError) as caught:
        check_images(images, SHAPE)
    assert message in str(caught.value)


def test_messages_about_images_name_the_argument():
    with pytest.raises(ValueError, match=r"^clean must be"):
        check_images(GOOD * 2, SHAPE, "clean")


@pytest.mark.parametrize(
    ("slip", "remedy"),
    [
        (lambda images: images[0], lambda images: images[None]),
        (lambda images: images.transpose(0, 3, 1, 2), lambda images: images.transpose(0, 2, 3, 1)),
        (lambda images: images.reshape(2, -1), lambda images: images.reshape(-1, *COLOR)),
    ],
)
def test_remedies_for_shapes_give_images_that_pass(slip, remedy):
    wrong = slip(np.zeros((2, *COLOR), np.float32))
    with pytest.raises(ValueError, match="; "):
        check_images(wrong, COLOR)
    check_images(remedy(wrong), COLOR)


LABELS = {
    "text": (["a", "b", "c"], "got <U1 of shape (3,); give each class by its number"),
    "bool": (np.array([True, False, True]), "labels must be integers of shape (3,), one for each"),
    "float": (np.array([0.0, 1.0, 2.0]), '; labels.astype("int32") makes it that'),
    "half": (np.array([0.5, 1.0, 2.0]), "got float64 of shape (3,)"),
    "y + 1": (np.array([1, 4, 2]), "0 to 3, got 1 to 4; classes count from 0: subtract 1"),
    "too large": (np.array([0, 4, 2]), "labels must lie in 0 to 3, got 0 to 4"),
    "-1": (np.array([0, -1, 2]), "got -1 to 2; leave out images without a label (-1)"),
    "one-hot": (np.eye(4)[:3], "shape (3, 4); labels.argmax(1) gives the classes of one-hot"),
    "column": (np.array([[0], [1], [2]]), "shape (3, 1); labels[:, 0] drops the second axis"),
    "one too few": (np.array([0, 1]), "labels must be integers of shape (3,)"),
    "ragged": ([[0], [1, 2], [3]], "labels must be integers of shape (3,)"),
    "None": (None, "got object of shape ()"),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_that_are_none_are_refused_with_the_remedy(case):
    labels, message = LABELS[case]
    with pytest.raises(ValueError) as caught:
        check_labels(labels, 3, 4)
    assert message in str(caught.value)
    with pytest.raises(ValueError, match=r"^targets must"):
        check_labels(labels, 3, 4, name="targets")


def test_no_labels_are_refused():
    with pytest.raises(ValueError, match="labels must be of at least one image, got none"):
        check_labels([], 0, 4)


@pytest.mark.parametrize("kind", [list, np.asarray, jnp.asarray, lambda x: np.asarray(x, "uint8")])
def test_labels_come_as_any_integers(kind):
    labels = check_labels(kind([3, 0, 2]), 3, 4)
    assert labels.dtype == jnp.int32
    np.testing.assert_array_equal(labels, [3, 0, 2])


SCALARS = [float, np.float32, np.float64, np.array, jnp.float32, jnp.array, ml_dtypes.bfloat16]


@pytest.mark.parametrize("kind", SCALARS)
def test_a_number_comes_as_any_scalar(kind):
    number = check_number("epsilon", kind(0.25), minimum=0.0)
    assert (type(number), number) == (float, 0.25)


@pytest.mark.parametrize("kind", [int, np.int64, np.uint8, np.array, jnp.int32, jnp.array])
def test_a_count_comes_as_any_integer(kind):
    count = check_count("num_steps", kind(3))
    assert (type(count), count) == (int, 3)
    assert check_number("epsilon", kind(3), minimum=0.0) == 3.0


def _kind(value):
    return type(value).__name__


NO_NUMBERS = [
    None, "0.3", True, np.True_, jnp.array(True), np.nan, np.inf, -np.inf, jnp.float32(np.nan),
    10**400, 1j, np.complex64(1), [0.3], np.array([0.3]), jnp.zeros(3),
]  # fmt: skip


@pytest.mark.parametrize("value", NO_NUMBERS, ids=_kind)
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(ValueError, match=r"^epsilon must be a finite number of at least 0.0, got"):
        check_number("epsilon", value, minimum=0.0)


@pytest.mark.parametrize("value", [*NO_NUMBERS[:9], 1.0, 2.5, np.float32(2), 0, -1], ids=_kind)
def test_what_is_no_count_is_refused(value):
    with pytest.raises(ValueError, match=r"^num_steps must be an integer of at least 1, got"):
        check_count("num_steps", value)


def test_a_number_that_is_being_traced_is_refused():
    with pytest.raises(ValueError, match=r"^epsilon must be a finite number"):
        jax.jit(lambda epsilon: check_number("epsilon", epsilon, minimum=0.0))(0.3)


@pytest.mark.parametrize("norm", ["linf", "l2", "l0"])
def test_epsilon_is_at_most_the_largest_distance_of_images(norm):
    farthest = {"linf": 1.0, "l2": 60**0.5, "l0": 20.0}[norm]
    assert check_epsilon(farthest, norm, COLOR) == farthest
    hint = {"linf": "such as 8 / 255", "l2": "such as 8 / 255", "l0": "has no more pixels"}[norm]
    for value in (farthest * 1.001, 255):
        with pytest.raises(ValueError, match=rf"at most .*, got {value}; .*{hint}"):
            check_epsilon(value, norm, COLOR)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (0, r"key must be a jax.random.key, got 0; jax.random.key\(0\) makes one of a seed"),
        (np.int64(7), r"jax.random.key\(7\) makes one"),
        (jax.random.PRNGKey(0), r"uint32 of shape \(2,\); jax.random.wrap_key_data makes one"),
        (None, "key must be a jax.random.key, got None"),
    ],
)
def test_keys_that_are_none_are_refused_with_the_remedy(key, message):
    with pytest.raises(ValueError, match=message):
        image_keys(key, 3)
