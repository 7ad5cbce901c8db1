"""Fooling images: what is counted, and the bound on the energy of a confident ABS model."""

import numpy as np
import pytest

from abs_model.figures import fooling
from abs_model.figures.registry import Work
from tests.evaluation_fakes import GenerativeClassifier, stripe_classifier, stripe_dataset
from tests.linear_decoders import PIXELS, linear_abs

MATRICES = np.random.default_rng(0).normal(size=(3, PIXELS, 2))
OFFSETS = np.full((3, PIXELS), 0.5)


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_energy_bound_is_where_a_class_alone_reaches_the_confidence(weight):
    model = linear_abs(MATRICES, OFFSETS, class_weights=[1.0, weight, 1.0])
    bound = fooling.energy_bound(model)
    logits = np.full((1, 3), -np.inf, np.float32)
    logits[0, 1] = -weight * bound["nats"] / PIXELS
    confidence = model.logits_to_confidences(logits)[0, 1]
    assert float(confidence) == pytest.approx(fooling.CONFIDENCE, abs=1e-5)
    assert bound["L2 from what the decoder draws"] ** 2 == pytest.approx(bound["nats"])


def test_images_look_like_the_class_of_a_near_training_image():
    distances = np.array([[1.0, 2.0], [2.0, 1.0], [4.0, 3.0]])
    found = fooling.looks_like(distances, np.array([0, 0, 1]), 2.5)
    np.testing.assert_array_equal(found, [True, False, False])


def test_networks_have_no_energy_bound():
    assert fooling.energy_bound(stripe_classifier()) is None


def test_figure_of_small_models(tmp_path):
    models = {
        "sure": stripe_classifier(scale=4.0),
        "unsure": stripe_classifier(scale=1e-4),
        "generative": stripe_classifier(cls=GenerativeClassifier, scale=4.0),
    }
    data = fooling.compute(Work("fooling", models, stripe_dataset(), 2, tmp_path))
    assert data.numbers["starts"] == {"noise": 2, "gray": 1, "digit": 2}
    found = data.numbers["models"]
    assert found["sure"]["ascended"] == "margin of the target's logit"
    assert found["generative"]["ascended"] == "logit of the target"
    # A digit's own class does not count.
    pairs = {kind: found["sure"][kind]["pairs"] for kind in ("noise", "gray", "digit", "all")}
    assert pairs == {"noise": 6, "gray": 3, "digit": 4, "all": 13}
    assert found["sure"]["all"]["reached"]["value"] == 1
    assert found["unsure"]["all"]["reached"]["value"] == 0
    assert found["unsure"]["highest confidence on noise"]["maximum"] == pytest.approx(1 / 3, 1e-2)
    alike = "of these like the target"
    assigned = "of these assigned to the target by the nearest neighbor"
    assert found["unsure"]["all"][alike] is None
    assert found["sure"]["all"][alike]["value"] <= found["sure"]["all"][assigned]["value"]
    assert set(fooling.draw(data)) == {"fooling"}
