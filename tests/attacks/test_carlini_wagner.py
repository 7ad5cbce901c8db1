"""The attack of Carlini and Wagner against linear classifiers."""

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from abs_model.attacks import Batch
from abs_model.attacks._core.keys import image_keys
from abs_model.attacks._core.query import GradientAnswer
from abs_model.attacks.carlini_wagner import _begin, _Constants, _move, carlini_wagner
from tests import minimal_norm
from tests.linear_classifiers import (
    PIXELS,
    SHAPE,
    boundary_distances,
    grays,
    three_classes,
    two_classes,
)
from tests.minimal_norm import KEY

# Images are close to the boundary: distances are some 0.1.
FINE = {"num_searches": 8, "num_steps": 150, "step_size": 0.002, "initial_constant": 0.01}
FINER = FINE | {"num_steps": 300, "step_size": 0.0005}


def test_closed_forms_are_reached():
    minimal_norm.check_closed_form(carlini_wagner, "l2", 0.03, **FINE)


def test_the_range_of_images_is_taken_into_account():
    settings = FINE | {"num_steps": 400, "step_size": 0.02, "initial_constant": 1.0}
    minimal_norm.check_closed_form_at_the_walls(carlini_wagner, "l2", 0.02, **settings)


def test_targets_are_reached_by_short_ways():
    minimal_norm.check_targets(carlini_wagner, 0.03, **FINER)


def test_confidence_leads_beyond_the_boundary():
    """On a linear classifier, margin / s is the distance to the boundary exactly."""
    model, w, bias = two_classes()
    images = grays(6)
    needed = boundary_distances(images, w, bias, "l2")
    settings = FINE | {"step_size": 0.01, "initial_constant": 0.1}
    result = carlini_wagner(model, images, model.predict(images), KEY, confidence=0.2, **settings)
    assert np.all(result.success)
    assert np.all(np.asarray(result.distances) >= needed + 0.2 - 1e-4)
    np.testing.assert_allclose(result.distances, needed + 0.2, rtol=0.05)


def test_confidence_out_of_reach_is_no_success_but_leaves_the_closest_image_that_fools():
    model, w, bias = two_classes()
    images = grays(6)
    settings = {"num_searches": 1, "num_steps": 100, "step_size": 0.002, "initial_constant": 10.0}
    labels = model.predict(images)
    result = carlini_wagner(model, images, labels, KEY, confidence=7.7, **settings)
    assert not np.any(result.success)
    assert np.all(model.predict(result.images) != labels)
    # Adam moves all pixels by the same amount at first, far beyond the boundary; the first step
    # over it is what counts.
    needed = np.sqrt(PIXELS) * boundary_distances(images, w, bias, "linf")
    np.testing.assert_allclose(result.distances, needed, atol=0.01)


def test_the_search_for_the_constant():
    """Tenfold until one succeeds, then halves; for each image by itself."""
    constants = _Constants.start(2, 0.5)
    tried = [constants.current]
    for found in ([False, True], [False, False], [True, True], [False, True]):
        constants = constants.next(jnp.array(found))
        tried.append(constants.current)
    expected = [[0.5, 0.5], [5, 0.25], [50, 0.375], [27.5, 0.3125], [38.75, 0.28125]]
    np.testing.assert_allclose(tried, expected)


def test_images_stay_when_they_are_done():
    """Else what is found would depend on how long others of the batch take."""
    model, images = three_classes(), jnp.asarray(grays(2))
    batch = Batch(images, jnp.array([0, 0]), image_keys(KEY, 2), targeted=False)
    ones = jnp.ones(2)
    descent = _begin(images, ones, ones, jnp.array([True, False]))
    gradients = jnp.broadcast_to(model.weights[:, 1].reshape(1, *SHAPE), images.shape)
    answer = GradientAnswer(images, model.logits(images), (), gradients)
    following, moved = _move(batch, descent, answer, 0.1)
    for before, after in ((images, moved), (descent.points, following.points)):
        np.testing.assert_array_equal(jnp.any(before != after, axis=(1, 2, 3)), [False, True])


def test_any_scale_of_the_logits_will_do():
    minimal_norm.check_scales(carlini_wagner, 0.01, **FINE)
    settings = FINE | {"confidence": 0.1, "step_size": 0.01}
    minimal_norm.check_scales(carlini_wagner, 0.01, **settings)


def test_general_properties():
    few = {"num_searches": 2, "num_steps": 12, "step_size": 0.01, "initial_constant": 1.0}
    minimal_norm.check_clean_errors(carlini_wagner, **few)
    minimal_norm.check_zero_gradients(carlini_wagner, **few)


@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(seed=st.integers(0, 1000))
def test_results_keep_to_the_range(seed):
    few = {"num_searches": 2, "num_steps": 5, "step_size": 1.0, "initial_constant": 1.0}
    minimal_norm.check_bounds_and_success(carlini_wagner, "l2", seed, **few)


def test_asks_no_more_than_it_says_and_stops_early():
    model, images = three_classes(), grays(3)
    labels = model.predict(images)
    seen = []
    settings = {"num_searches": 2, "num_steps": 10, "step_size": 0.01, "initial_constant": 1.0}
    result = carlini_wagner(model, images, labels, KEY, progress=seen.append, **settings)
    assert seen == list(range(1, 22))
    np.testing.assert_array_equal(result.num_gradients, 21)
    # No step makes the loss smaller where it is the squared distance and nothing else.
    settings |= {"num_searches": 1, "num_steps": 1000, "initial_constant": 1e-20}
    early = carlini_wagner(model, images, labels, KEY, **settings)
    assert int(early.num_queries[0]) < 500


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_searches": 0}, "num_searches must be an integer of at least 1, got 0"),
        ({"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        ({"step_size": 0.0}, "step_size must be a finite number above 0.0, got 0.0"),
        ({"confidence": -1.0}, r"confidence must be .* 0.0 and at most 7.7\d*, got -1.0"),
        ({"initial_constant": 0}, "initial_constant must be a finite number above 0.0, got 0"),
    ],
)
def test_faulty_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        carlini_wagner(three_classes(), grays(2), np.array([0, 1]), KEY, **changes)
