import numpy as np
import pytest

from abs_model._runtime.errors import UserError
from abs_model.data.corruptions import CORRUPTIONS, corrupt
from abs_model.figures import corruptions
from abs_model.figures.registry import FIGURES, Work
from tests.evaluation_fakes import stripe_classifier, stripe_dataset

SHAPE = (28, 28, 1)


def make_work(workdir, shape=SHAPE):
    models = {name: stripe_classifier(shape, name=name) for name in ("one", "another")}
    return Work("corruptions", models, stripe_dataset(shape=shape), 5, workdir)


def test_accuracies_are_those_of_the_corrupted_images(tmp_path):
    work = make_work(tmp_path)
    data = FIGURES["corruptions"].compute(work)
    found = data.numbers["accuracies"]["one"]
    assert list(found) == [*CORRUPTIONS, "mean"]
    for name in ("identity", "stripe", "fog"):
        right = work.models["one"].predict(corrupt(name, work.images)) == work.labels
        assert found[name]["value"] == pytest.approx(right.mean())
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]
    assert found["identity"]["value"] == 1
    others = [found[name]["value"] for name in CORRUPTIONS if name != "identity"]
    assert len(others) == 15
    assert found["mean"]["value"] == pytest.approx(np.mean(others))

    (name, picture), *rest = FIGURES["corruptions"].draw(data).items()
    assert name == "corruptions" and not rest
    assert {"one", "another", "canny\nedges"} <= {text.get_text() for text in picture.texts}
    assert len(picture.axes) == len(CORRUPTIONS) + 3


def test_the_interval_of_the_mean_is_over_images():
    # Every corruption succeeds with the same images: as uncertain as one of them.
    right = np.arange(400) % 4 > 0
    found = corruptions.mean_accuracy(np.tile(right, (15, 1)))
    error = np.sqrt(0.75 * 0.25 / 400)
    assert found.value == 0.75
    assert found.low == pytest.approx(0.75 - 1.96 * error, abs=0.01)
    assert found.high == pytest.approx(0.75 + 1.96 * error, abs=0.01)


def test_images_must_be_those_of_mnist(tmp_path):
    with pytest.raises(UserError, match=r"requires images of 28 x 28 x 1.* 8 x 8 x 1"):
        corruptions.compute(make_work(tmp_path, (8, 8, 1)))
