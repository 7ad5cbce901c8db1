import dataclasses

import numpy as np

from abs_model.figures.hardest import hardest_first
from abs_model.figures.registry import FIGURES, Work
from tests.evaluation_fakes import stripe_classifier, stripe_dataset


def make_work(workdir):
    """Of a model that is always right, one that favors class 0, and one that is never right."""
    right = stripe_classifier()
    models = {
        "right": right,
        "biased": dataclasses.replace(right, weights=right.weights * np.array([2.5, 1, 1])),
        "wrong": dataclasses.replace(right, weights=right.weights[:, [1, 2, 0]]),
    }
    return Work("hardest", models, stripe_dataset(), 30, workdir)


def test_errors_are_those_of_the_predictions(tmp_path):
    work = make_work(tmp_path)
    data = FIGURES["hardest"].compute(work)
    wrong = {name: model.predict(work.images) != work.labels for name, model in work.models.items()}
    biased = int(wrong["biased"].sum())
    assert 0 < biased < 30 and not wrong["right"].any() and wrong["wrong"].all()
    counts = {name: each["count"] for name, each in data.numbers["errors"].items()}
    assert counts == {"right": 0, "biased": biased, "wrong": 30}
    assert data.numbers["errors"]["biased"]["share"]["value"] == biased / 30
    shared = data.numbers["shared errors"]
    assert shared["biased"] == {"right": 0, "biased": biased, "wrong": biased}
    assert all(shared[one][other] == shared[other][one] for one in shared for other in shared)
    most = data.numbers["misclassified by most"]
    assert {each["index"] for each in most} == set(np.flatnonzero(wrong["biased"]).tolist())
    assert all(each["label"] == work.labels[each["index"]] for each in most)
    assert all(each["predictions"]["biased"] == 0 for each in most)
    assert data.numbers["misclassified by all"] == []


def test_the_hardest_images_are_shown_with_predictions(tmp_path):
    work = make_work(tmp_path)
    data = FIGURES["hardest"].compute(work)
    shown = data.arrays["indices"]
    assert len(shown) == 20
    np.testing.assert_array_equal(data.arrays["images"], work.images[shown])
    wrong = (data.arrays["predictions"] != data.arrays["labels"]).sum(axis=0)
    assert np.all(np.diff(wrong) <= 0)

    pictures = FIGURES["hardest"].draw(data)
    assert set(pictures) == {"hardest", "hardest_shared"}
    assert len(pictures["hardest"].axes) == 20
    texts = [text.get_text() for text in pictures["hardest"].texts]
    assert texts.count("biased") == 20 and f"test image {shown[0]}" in texts
    cells = [text.get_text() for text in pictures["hardest_shared"].axes[0].texts]
    assert len(cells) == 9 and cells[-1] == "30"


def test_errors_come_before_margins():
    wrong = np.array([[False, True, False, False], [False, True, True, False]])
    margins = np.array([[-0.1, 0.1, -5.0, -0.2], [-10.0, 1.0, 0.1, -30.0]])
    np.testing.assert_array_equal(hardest_first(wrong, margins), [1, 2, 0, 3])


def test_the_scale_of_a_models_logits_does_not_matter():
    generator = np.random.default_rng(0)
    margins = generator.normal(size=(3, 50))
    scaled = margins * np.array([[1.0], [100.0], [0.01]])
    order = hardest_first(margins > 0, margins)
    np.testing.assert_array_equal(order, hardest_first(margins > 0, scaled))
    undefined = np.where(np.arange(50) == 7, np.nan, margins)
    assert hardest_first(undefined > -10, undefined)[0] != 7
    assert hardest_first(~(undefined < 10), undefined)[0] == 7
