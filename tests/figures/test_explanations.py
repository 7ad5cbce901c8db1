"""The figure of explanations and of what decides, with linear decoders."""

import json
import pathlib

import numpy as np
import pytest

from abs_model.data import Dataset, Split
from abs_model.figures import explanations
from abs_model.figures.registry import Work
from tests.linear_decoders import IMAGE, PIXELS, linear_abs, linear_energies

CLASSES = 3
WEIGHTS = np.array([1.0, 0.8, 1.3])


def problem(seed=0):
    generator = np.random.default_rng(seed)
    matrices = generator.normal(scale=0.2, size=(CLASSES, PIXELS, 2))
    offsets = generator.uniform(0.2, 0.8, size=(CLASSES, PIXELS))
    return matrices, offsets


def some_images(count=6):
    generator = np.random.default_rng(1)
    return generator.uniform(0, 1, (count, *IMAGE)).astype(np.float32)


@pytest.mark.parametrize("binary", [False, True])
def test_pixels_and_prior_sum_to_the_margin(binary):
    model = linear_abs(*problem(), class_weights=WEIGHTS, binary=binary)
    images = some_images()
    inference = model.infer(images)
    parts = explanations.split(inference, model.class_weights)
    np.testing.assert_allclose(parts.energies, model.weighted_energies(inference), rtol=1e-5)
    np.testing.assert_array_equal(parts.best[:, 0], model.predict(images))
    sums = parts.pixel_terms.sum(axis=(1, 2)) + parts.prior_terms
    np.testing.assert_allclose(sums, parts.margins, rtol=1e-9)
    # In closed form.
    seen = (images > 0.5).astype(np.float32) if binary else images
    energies = np.sort(WEIGHTS * linear_energies(seen, *problem()), axis=1)
    np.testing.assert_allclose(parts.margins, energies[:, 1] - energies[:, 0], atol=1e-4)
    # As the model decides, in logits per pixel.
    logits = np.sort(np.asarray(model.logits(images), np.float64), axis=1)
    np.testing.assert_allclose(parts.margins / PIXELS, logits[:, -1] - logits[:, -2], atol=1e-5)


def test_pixels_for_half():
    terms = np.array(
        [[[3.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]], [[-1.0, 0.0], [1.0, 0.0]]]
    )
    # The last image's pixels add nothing to the prior's 4.
    np.testing.assert_array_equal(
        explanations.pixels_for_half(terms, np.array([6.0, 4.0, 4.0])), [1, 2, 4]
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    model = linear_abs(*problem(), class_weights=WEIGHTS, binary=True)
    images = some_images(8)
    stored = np.round(images * 255).astype(np.uint8)
    labels = model.predict(stored.astype(np.float32) / 255).copy()
    labels[0] = (labels[0] + 1) % CLASSES  # is misclassified, and so not shown
    train, test = Split(stored[:CLASSES], np.arange(CLASSES)), Split(stored, labels)
    work = Work(
        "explanations",
        {"lines": model},
        Dataset("grays", CLASSES, train, train, test),
        len(labels),
        pathlib.Path(tmp_path_factory.mktemp("explanations")),
    )
    return work, explanations.compute(work)


def test_inputs(made):
    work, data = made
    numbers = data.numbers["lines"]
    json.dumps(numbers, allow_nan=False)
    inputs = numbers["inputs"]
    assert list(inputs) == ["clean", "adversarial", "noise"]
    clean, adversarial = inputs["clean"], inputs["adversarial"]
    assert clean["test image"] == adversarial["test image"] > 0
    assert clean["prediction"] == clean["label"] != adversarial["prediction"]
    assert "label" not in inputs["noise"]
    images = data.arrays["lines/images"]
    distance = np.linalg.norm((images[1].astype(np.float64) - images[0]).reshape(-1))
    assert adversarial["distance"] == pytest.approx(distance)
    assert adversarial["distance"] <= numbers["attack"]["epsilon"] + 1e-5
    model = work.models["lines"]
    for stated, image in zip(inputs.values(), images, strict=True):
        confidences = model.confidences(image[None])[0]
        assert stated["prediction"] == confidences.argmax()
        assert stated["confidence"] == pytest.approx(confidences.max(), abs=1e-3)
        assert stated["margin"] == pytest.approx(
            stated["margin of pixels"] + stated["margin of prior terms"]
        )
        assert stated["margin"] >= 0


@pytest.mark.parametrize("binary", [False, True])
def test_picture(made, binary):
    _, data = made
    numbers = {"lines": data.numbers["lines"] | {"binary": binary}}
    assert set(explanations.draw(explanations.Data(numbers, data.arrays))) == {"explanations_lines"}


def test_without_an_adversarial_example(made, monkeypatch):
    work, _ = made
    monkeypatch.setattr(explanations, "_EPSILON", 1e-6)
    data = explanations.compute(work)
    assert list(data.numbers["lines"]["inputs"]) == ["clean", "noise"]
    assert set(explanations.draw(data)) == {"explanations_lines"}
