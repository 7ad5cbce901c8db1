"""Calibration: eta against its closed form, class weights on a case with a known answer."""

import dataclasses
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abs_model.data import Dataset, Split
from abs_model.inference.calibration import (
    UnreachableError,
    confidences,
    search_class_weights,
    solve_eta,
)
from abs_model.training.abs import calibrate
from configs.abs import get_config

LABELS = np.arange(256) % 3


@dataclasses.dataclass
class TooHighForOnes:
    """Stands in for ABS: tells images by their position; class 1's energies are 5% too high.

    Attributes:
        binary: As of ABS.
        seen: Of each call, `binary` and the images.
    """

    binary: bool = False
    seen: list = dataclasses.field(default_factory=list)
    image_shape = (2, 1, 1)
    batch_size = 256
    solver = None

    def infer(self, images):
        self.seen.append((self.binary, images))
        energies = 20 + np.random.default_rng(0).uniform(0.6, 2, size=(256, 3))
        energies[np.arange(256), LABELS] = 20
        energies[:, 1] *= 1.05
        return types.SimpleNamespace(energies=energies)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.0, 30.0), st.integers(2, 12), st.floats(0.5, 0.99))
def test_eta_of_one_image_has_a_closed_form(gap, classes, target):
    """With scores (1, s, ..., s), target = (1 + eta) / (1 + (classes - 1) s + classes eta)."""
    logits = np.array([[0.0] + [-gap] * (classes - 1)])
    total = 1 + (classes - 1) * np.exp(-gap)
    if target >= 1 / total - 1e-9 or target <= 1 / classes + 1e-9:
        return
    expected = (1 - target * total) / (classes * target - 1)
    assert solve_eta(logits, 1.0, target) == pytest.approx(expected, rel=1e-6)


def test_the_median_confidence_is_reached():
    logits = -np.abs(np.random.default_rng(0).normal(size=(501, 10)))
    eta = solve_eta(logits, 20.0, 0.8)
    assert np.median(confidences(logits, 20.0, eta).max(axis=1)) == pytest.approx(0.8, abs=1e-9)


def test_confidences_sum_to_one_and_eta_makes_the_far_unsure():
    near = confidences(np.array([[-0.01, -0.1]]), 440.0, 3.9e-5)
    far = confidences(np.array([[-1.01, -1.1]]), 440.0, 3.9e-5)
    np.testing.assert_allclose(near.sum(), 1)
    assert near[0, 0] > 0.99
    np.testing.assert_allclose(far, 0.5, atol=1e-6)


@pytest.mark.parametrize("target", [0.1, 1.0, 0.05])
def test_impossible_targets_are_refused(target):
    with pytest.raises(ValueError, match=r"median_confidence must be between 0\.100"):
        solve_eta(np.zeros((3, 10)), 1.0, target)


def test_a_model_that_is_never_sure_is_refused():
    with pytest.raises(UnreachableError, match=r"can't be reached: it is 0\.500 without eta"):
        solve_eta(np.zeros((3, 2)), 1.0, 0.9)


def test_class_weights_mend_one_class_that_explains_too_little():
    """Class 1's energies are 5% too high: its weight must fall, to where all images are right."""
    random = np.random.default_rng(0)
    labels = np.arange(300) % 3
    energies = 20 + random.uniform(0.6, 2, size=(300, 3))
    energies[np.arange(300), labels] = 20
    energies[:, 1] *= 1.05
    weights = search_class_weights(energies, labels)
    assert np.mean(energies.argmin(1) == labels) < 0.9
    assert np.mean((energies * weights).argmin(1) == labels) == 1
    assert weights[1] < 1
    assert weights.dtype == np.float32


def test_a_class_without_images_keeps_its_weight():
    """A larger one would be right more often, since the class is never the right one here."""
    energies = np.array([[1.0, 2.0, 0.985], [2.0, 1.0, 3.0]])
    labels = np.array([0, 1])
    larger = np.array([1, 1, 1.1])
    assert np.mean((energies * larger).argmin(1) == labels) == 1
    weights = search_class_weights(energies, labels)
    assert weights[2] == 1
    assert np.mean((energies * weights).argmin(1) == labels) == 1


def test_class_weights_stay_at_one_where_nothing_can_be_gained():
    energies = np.array([[1.0, 2.0], [2.0, 1.0]])
    np.testing.assert_array_equal(search_class_weights(energies, np.array([0, 1])), [1, 1])


@pytest.mark.parametrize("fit_abs_class_weights", [True, False])
def test_calibration_fits_class_weights_where_the_configuration_says_so(fit_abs_class_weights):
    images = np.stack([np.arange(256), np.zeros(256)], axis=1).astype(np.uint8)
    split = Split(images.reshape(-1, 2, 1, 1), LABELS)
    dataset = Dataset("made", 3, split, split, split)
    config = get_config("tiny")
    config.calibration.update(
        num_images=256, fit_abs_class_weights=fit_abs_class_weights, alpha=10.0
    )
    model = TooHighForOnes()
    fitted = calibrate(model, config, dataset)
    assert (fitted["abs"]["class_weights"][1] < 1) == fit_abs_class_weights
    assert [binary for binary, _ in model.seen] == [False, True]
    for _, images in model.seen:
        np.testing.assert_allclose(images, split.images / 255, rtol=1e-6)
    assert fitted["binary_abs"]["class_weights"][1] < 1
    logits = -np.array(fitted["abs"]["class_weights"]) * model.infer(images).energies / 2
    assert np.mean(logits.argmax(axis=1) == LABELS) == 1 or not fit_abs_class_weights
    median = np.median(confidences(logits, 10.0, fitted["abs"]["eta"]).max(axis=1))
    assert median == pytest.approx(config.calibration.median_confidence, abs=1e-3)
