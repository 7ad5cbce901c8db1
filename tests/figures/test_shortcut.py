"""The figure of shortcut learning, on classifiers of which it is known what they look at."""

import ml_collections
import numpy as np
import pytest

from abs_model._runtime.errors import UserError
from abs_model.data.shortcuts import add_patterns, class_patterns
from abs_model.figures import make
from abs_model.figures.registry import FIGURES, Work
from abs_model.figures.shortcut import drawn_amplitudes
from abs_model.models.function import from_function
from tests.evaluation_fakes import stripe_classifier, stripe_dataset

AMPLITUDE = 0.2


def config(**dataset):
    return ml_collections.ConfigDict({"model": {"name": "toy"}, "dataset": dataset})


def pattern_classifier():
    """Classifies by how much brighter images are within each class's pattern."""
    patterns = class_patterns(3, (8, 8, 1)).astype(np.float32)

    def logits(images):
        inside = (images[:, None] * patterns).sum((2, 3, 4)) / patterns.sum((1, 2, 3))
        outside = (images[:, None] * (1 - patterns)).sum((2, 3, 4)) / (1 - patterns).sum((1, 2, 3))
        return inside - outside

    return from_function(logits, image_shape=(8, 8, 1), num_classes=3)


def make_work(workdir, **configs):
    models = {"digits": stripe_classifier(), "pattern": pattern_classifier()}
    return Work("shortcut", models, stripe_dataset(), 30, workdir, configs=configs)


def test_accuracies_are_those_of_the_three_versions(tmp_path):
    configs = dict.fromkeys(("digits", "pattern"), config(shortcut_amplitude=AMPLITUDE))
    work = make_work(tmp_path, **configs)
    data = FIGURES["shortcut"].compute(work)
    plain, labels = work.dataset.test.images[:30], work.labels
    found = data.numbers["models"]
    for name, model in work.models.items():
        for version, classes in (("kept", labels), ("swapped", (labels + 1) % 3)):
            changed = add_patterns(plain, classes, AMPLITUDE).astype(np.float32) / 255
            expected = np.mean(model.predict(changed) == labels)
            assert found[name]["accuracy"][version]["value"] == pytest.approx(expected)
        expected = np.mean(model.predict(work.images) == labels)
        assert found[name]["accuracy"]["removed"]["value"] == pytest.approx(expected)
        changed = add_patterns(plain, (labels + 1) % 3, AMPLITUDE).astype(np.float32) / 255
        by_pattern = np.mean(model.predict(changed) == (labels + 1) % 3)
        swapped = found[name]["classified as the pattern, swapped"]
        assert swapped["value"] == pytest.approx(by_pattern)
    assert (
        data.numbers["models"]["digits"]["accuracy"]
        != data.numbers["models"]["pattern"]["accuracy"]
    )
    assert set(FIGURES["shortcut"].draw(data)) == {"shortcut"}


def test_amplitudes_in_samples_are_measured_around_the_digits():
    patterns = class_patterns(4, (28, 28, 1))
    samples = np.zeros((4, 5, 28, 28, 1))
    samples[:, :, 4:-4, 4:-4] = np.random.default_rng(0).random((4, 5, 20, 20, 1))
    strengths = np.array([0.0, 0.1, 0.2, 0.4])
    samples += (strengths[:, None, None, None] * patterns)[:, None]
    np.testing.assert_allclose(drawn_amplitudes(samples), strengths, atol=1e-12)


def test_models_trained_without_patterns_are_refused(tmp_path):
    work = make_work(tmp_path, digits=config(), pattern=config())
    with pytest.raises(UserError, match=r"requires models trained with .*'digits' was not"):
        FIGURES["shortcut"].compute(work)
    with pytest.raises(UserError, match="'shortcut' requires --models: runs of"):
        make.make_figure(FIGURES["shortcut"], tmp_path)
    assert FIGURES["shortcut"] not in make.choose_figures(["all"])
