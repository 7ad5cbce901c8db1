import numpy as np
import pytest

from abs_model.evaluation import verify
from abs_model.evaluation.verification import NOT_CLASSIFIED
from tests.evaluation_fakes import stripe_classifier, stripe_images


def clean_images(count):
    images, labels = stripe_images(count)
    return images.astype(np.float32) / 255, labels


def test_verification_measures_distances_itself():
    clean, labels = clean_images(2)
    adversarial = clean.copy()
    adversarial[0, 0, 0] = clean[0, 0, 0] + 0.25
    adversarial[0, 1, 0] = clean[0, 1, 0] + 0.125
    model = stripe_classifier()
    for norm, expected in (("l2", np.hypot(0.25, 0.125)), ("linf", 0.25), ("l0", 2)):
        found = verify(model, clean, labels, adversarial, norm=norm)
        np.testing.assert_allclose(found.distances, [expected, 0], rtol=1e-6)
    assert found.distances.dtype == np.float64


def test_l0_counts_pixels_not_channels():
    images, labels = stripe_images(1, (4, 4, 3))
    clean = images.astype(np.float32) / 255
    adversarial = clean.copy()
    adversarial[0, 1, 2, :2] = 0.9
    adversarial[0, 3, 3, 0] = 0.9
    found = verify(stripe_classifier((4, 4, 3)), clean, labels, adversarial, norm="l0", epsilon=2)
    assert found.distances.item() == 2 and found.within_epsilon.item()


@pytest.mark.parametrize("norm", ["l2", "linf", "l0"])
@pytest.mark.parametrize(("value", "finite"), [(np.nan, False), (np.inf, False), (1.01, True)])
def test_verification_catches_what_is_no_image(value, finite, norm):
    clean, labels = clean_images(3)
    adversarial = clean.copy()
    adversarial[1, 2, 3] = value
    found = verify(stripe_classifier(), clean, labels, adversarial, norm=norm)
    np.testing.assert_array_equal(found.in_bounds, [True, False, True])
    assert found.reasons(1) == ("out_of_bounds",) + (() if finite else ("beyond_epsilon",))
    assert found.predictions[1] == NOT_CLASSIFIED and not found.verified.any()
    assert np.isinf(found.adversarial_distances).all()


def test_verification_allows_float32_rounding_and_no_more():
    clean, labels = clean_images(1)
    clean[:] = 0.5
    for excess, within in ((0.0, True), (1e-6, True), (1e-4, False)):
        adversarial = (clean + np.float32(0.3 + excess)).astype(np.float32)
        found = verify(stripe_classifier(), clean, labels, adversarial, norm="linf", epsilon=0.3)
        assert found.within_epsilon.item() is within


def test_an_image_of_its_class_is_not_adversarial():
    clean, labels = clean_images(3)
    found = verify(stripe_classifier(), clean, labels, clean, norm="l2")
    assert [found.reasons(row) for row in range(3)] == [("not_adversarial",)] * 3


def test_shapes_and_norms_that_do_not_fit_are_refused():
    clean, labels = clean_images(3)
    with pytest.raises(ValueError, match="adversarial must have the shape of clean"):
        verify(stripe_classifier(), clean, labels, clean[:2], norm="l2")
    with pytest.raises(ValueError, match="norm must be"):
        verify(stripe_classifier(), clean, labels, clean, norm="l1")
