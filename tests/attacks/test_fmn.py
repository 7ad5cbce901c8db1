"""FMN against linear classifiers and Foolbox."""

import foolbox
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from abs_model.attacks.fmn import fmn
from benchmarks.linear import exact_distances
from tests import minimal_norm
from tests.linear_classifiers import grays, linear_classifier, three_classes, two_classes
from tests.minimal_norm import KEY

lengths = pytest.mark.parametrize("norm", ["l2", "linf"])
norms = pytest.mark.parametrize("norm", ["l2", "linf", "l0"])


@lengths
def test_closed_forms_are_reached(norm):
    minimal_norm.check_closed_form(fmn, norm, 0.01, norm=norm)


@lengths
def test_the_range_of_images_is_taken_into_account(norm):
    minimal_norm.check_closed_form_at_the_walls(fmn, norm, 0.01, norm=norm)


def test_the_fewest_pixels_are_changed():
    """The best pixels of a linear classifier are those with the most to gain, in all channels."""
    _, w, _ = two_classes()
    images = minimal_norm.walled(6)
    model = linear_classifier(np.stack([0 * w, w], 1), [0.0, -np.maximum(w, 0).sum() * 0.8])
    labels = model.predict(images)
    assert np.all(labels == 0)
    fewest = exact_distances(model, images, labels, "l0")
    assert fewest.min() > 3
    result = fmn(model, images, labels, KEY, norm="l0", num_steps=200)
    assert np.all(result.success)
    assert np.all(np.asarray(result.distances) >= fewest)
    assert np.all(np.asarray(result.distances) <= fewest + 1)
    assert np.mean(np.asarray(result.distances) == fewest) >= 0.5


def test_short_steps_find_the_nearest_image_where_several_classes_meet():
    """Steps of length 1, by default, jump between gradients if the boundary is nearer than that."""
    minimal_norm.check_targets(fmn, 0.01, norm="l2", step_size=0.1)


@norms
def test_any_scale_of_the_logits_will_do(norm):
    minimal_norm.check_scales(fmn, 0.01, norm=norm)


@norms
def test_general_properties(norm):
    minimal_norm.check_clean_errors(fmn, norm=norm, num_steps=20)
    minimal_norm.check_zero_gradients(fmn, norm=norm, num_steps=3)


@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(seed=st.integers(0, 1000), norm=st.sampled_from(["l2", "linf", "l0"]))
def test_results_keep_to_the_range(seed, norm):
    minimal_norm.check_bounds_and_success(fmn, norm, seed, norm=norm, num_steps=5)


def test_progress_and_result_count_the_questions():
    seen = []
    result = fmn(
        three_classes(), grays(3), np.zeros(3, int), KEY, norm="l2", num_steps=3,
        progress=seen.append,
    )  # fmt: skip
    assert seen == [1, 2, 3, 4]
    np.testing.assert_array_equal(result.num_gradients, 4)


def test_no_worse_than_foolbox_in_linf(mnist_sample):
    """Its L2 attack never projects, and its L0 attack changes a pixel more than it says."""
    attack = foolbox.attacks.LInfFMNAttack(steps=30)
    minimal_norm.compare_with_foolbox(
        mnist_sample, 4, "linf", attack, fmn, norm="linf", num_steps=30
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "l1"}, "norm must be one of l2, linf, l0, got 'l1'"),
        ({"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        ({"step_size": 0.0}, "step_size must be a finite number above 0.0, got 0.0"),
        ({"gamma": 0.0}, "gamma must be a finite number of at least 0.001 and at most 1, got 0.0"),
        ({"gamma": 1.5}, "gamma must be .* and at most 1, got 1.5"),
    ],
)
def test_faulty_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        fmn(three_classes(), grays(2), np.array([0, 1]), KEY, **({"norm": "l2"} | changes))
