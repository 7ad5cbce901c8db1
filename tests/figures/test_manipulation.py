"""Gradient ascent on a score, and how many images it turns into the target."""

import jax
import numpy as np
import pytest

import abs_model
from abs_model._runtime.errors import UserError
from abs_model.figures import manipulation
from abs_model.figures.ascent import ascend, target_logits, target_margins
from abs_model.figures.registry import Work
from tests.evaluation_fakes import GenerativeClassifier, stripe_classifier, stripe_dataset
from tests.linear_classifiers import PIXELS, SHAPE, grays, linear_classifier

WEIGHTS = np.random.default_rng(1).normal(size=(PIXELS, 3))
LINEAR = linear_classifier(WEIGHTS, np.zeros(3))


@pytest.mark.parametrize("score", [target_logits, target_margins])
def test_steps_go_along_the_gradient(score):
    images, targets = grays(4), np.array([0, 1, 2, 1])
    found = ascend(LINEAR, images, targets, score=score, step_length=0.05, num_steps=3)
    directions = WEIGHTS.T[targets]
    if score is target_margins:
        logits = np.array(LINEAR.logits(images))
        logits[np.arange(4), targets] = -np.inf
        directions = directions - WEIGHTS.T[logits.argmax(axis=1)]
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    assert found.shape == (4, 4, *SHAPE)
    # Later steps may have another rival.
    moved = found[:, 1].reshape(4, -1) - found[:, 0].reshape(4, -1)
    np.testing.assert_allclose(moved, 0.05 * directions, atol=1e-6)


def test_the_margin_leaves_out_the_target():
    logits, targets = np.array([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]]), np.array([0, 1])
    np.testing.assert_allclose(target_margins(jax.numpy.asarray(logits), targets), [1.0, -2.0])


def test_images_stay_in_the_box_and_where_there_is_no_gradient():
    flat = linear_classifier(np.zeros((PIXELS, 3)), np.zeros(3))
    images, targets = grays(2), np.array([0, 1])
    options = {"score": target_logits, "step_length": 3.0, "num_steps": 4}
    found = ascend(LINEAR, images, targets, **options)
    assert found.min() == 0 and found.max() == 1
    found = ascend(flat, images, targets, **options)
    np.testing.assert_array_equal(found, np.repeat(images[:, None], 5, axis=1))


def test_images_stop_once_their_confidence_is_enough():
    images, targets = grays(6), np.arange(6) % 3
    options = {"score": target_margins, "step_length": 0.05, "num_steps": 30}
    stopped = ascend(LINEAR, images, targets, enough=0.9, **options)
    free = ascend(LINEAR, images, targets, **options)
    for image, path in enumerate(free):
        confidences = LINEAR.confidences(path)[:, targets[image]]
        first = np.argmax(confidences >= 0.9)
        assert confidences[first] >= 0.9
        expected = path[np.minimum(np.arange(31), first)]
        np.testing.assert_allclose(stopped[image], expected, atol=1e-6)


def test_black_boxes_are_refused():
    box = abs_model.from_function(
        lambda images: images.sum((1, 2)), num_classes=2, image_shape=SHAPE, black_box=True
    )
    with pytest.raises(UserError, match="black box"):
        ascend(box, grays(1), np.zeros(1, int), score=target_logits, step_length=0.1, num_steps=1)


def test_shares_of_pairs():
    origins, targets = np.array([0, 0, 1, 2]), np.array([1, 1, 0, 1])
    shares = manipulation.pair_shares(np.array([True, False, True, False]), origins, targets, 3)
    expected = [[np.nan, 0.5, np.nan], [1, np.nan, np.nan], [np.nan, 0, np.nan]]
    np.testing.assert_array_equal(shares, expected)


def test_images_count_from_the_step_on_which_they_stay():
    assigned = np.array([[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]], bool)
    found = manipulation.settled(assigned, np.array([0, 5, 10, 15]))
    assert found == {"images": 4, "at the end": 2, "from step": [15, None, 0, None]}


def test_figure_of_small_models(tmp_path):
    dataset = stripe_dataset()
    models = {
        "network": stripe_classifier(scale=4.0),
        "generative": stripe_classifier(cls=GenerativeClassifier, scale=4.0),
    }
    data = manipulation.compute(Work("manipulation", models, dataset, 2, tmp_path))
    assert data.numbers["images"] == 2 * 3 * 2
    found = {name: each["assigned to the target"] for name, each in data.numbers["models"].items()}
    # A generative model is no independent judge of itself, and judges others at fewer steps.
    assert set(found["network"]) == {"itself", "nearest_neighbor", "generative"}
    assert set(found["generative"]) == {"itself", "nearest_neighbor"}
    assert found["network"]["generative"]["steps"] == found["network"]["itself"]["steps"][::2]
    # The brightest stripe is the class, for model and data.
    for each in found.values():
        assert each["itself"]["at the end"]["value"] == 1
        assert each["nearest_neighbor"]["after these steps"][0]["value"] == 0
        matrix = each["itself"]["at the end, from (rows) to (columns)"]
        assert matrix == [[None if a == b else 1 for b in range(3)] for a in range(3)]
    pictures = manipulation.draw(data)
    assert set(pictures) == {"manipulation", "manipulation_film", "manipulation_pairs"}
    frames = pictures["manipulation_film"].frames
    assert len({tuple(frame.get_size_inches()) for frame in frames}) == 1
