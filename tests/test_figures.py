import io

import numpy as np
import pytest
from PIL import Image

from abs_model.evaluation import examples, figures
from abs_model.evaluation.attacked import Attacked
from abs_model.evaluation.tables import AttackSettings, Row
from abs_model.evaluation.verification import verify
from tests.evaluation_fakes import (
    GenerativeClassifier,
    LinearClassifier,
    blob_classifier,
    blob_images,
    towards_next_class,
)

ATTACK = AttackSettings("linf", 0.3, 0.1, 5, 1)


def attacked_images(model, count, change=lambda images: images):
    stored, labels = blob_images(count, model.image_shape, model.num_classes)
    clean = stored.astype(np.float32) / 255
    found = towards_next_class(
        model, clean, labels, None, norm="linf", epsilon=0.3, step_size=0.1, num_steps=1,
        num_restarts=1, progress=lambda done: None,
    )  # fmt: skip
    images = change(found.images)
    verification = verify(model, clean, labels, images, norm="linf", epsilon=0.3)
    predictions = model.predict(clean)
    claimed = np.ones(count, bool)
    return Attacked(ATTACK, clean, labels, predictions, images, claimed, verification)


def saved(figure, path):
    figures.save(figure, path)
    return np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))


def texts(figure):
    return [text.get_text() for text in figure.texts]


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 7, 3), (6, 6, 2)])
@pytest.mark.parametrize("cls", [LinearClassifier, GenerativeClassifier])
def test_examples_picture(shape, cls, tmp_path):
    model = blob_classifier(shape, cls=cls)
    figure = examples.draw_examples(model, attacked_images(model, 5), name="m", max_examples=3)
    pixels = saved(figure, tmp_path / "examples.png")
    panels = 3 * (3 + (2 * 3 if cls is GenerativeClassifier else 0))
    assert len(figure.axes) == panels
    assert all(len(axes.images) == 1 for axes in figure.axes)
    assert 600 < pixels.shape[1] < 3000 and 600 < pixels.shape[0] < 3000
    assert 0.02 < np.mean(np.any(pixels < 200, axis=-1)) < 0.95
    assert len(list(tmp_path.iterdir())) == 1


def test_the_perturbation_is_centred_and_its_scale_printed():
    model = blob_classifier()
    attacked = attacked_images(model, 1)
    figure = examples.draw_examples(model, attacked, name="m")
    (image,) = figure.axes[2].images
    shown = np.asarray(image.get_array())
    np.testing.assert_allclose(shown, (attacked.adversarial - attacked.clean)[0, :, :, 0], atol=0)
    low, high = image.get_clim()
    assert low == -high and high == pytest.approx(np.abs(shown).max())
    assert f"scale ±{high:.2g}" in texts(figure)


def test_texts_say_prediction_confidence_and_verified_distance():
    model = blob_classifier()
    attacked = attacked_images(model, 1)
    label, fooled = attacked.labels[0], attacked.verification.predictions[0]
    confidence = model.confidences(attacked.adversarial)[0, fooled]
    shown = texts(examples.draw_examples(model, attacked, name="m"))
    assert attacked.verification.verified.all() and fooled != label
    assert f"label {label}" in shown and f"predicts {fooled} ({confidence:.1%})" in shown
    assert f"verified, distance {attacked.verification.distances[0]:.3g}" in shown


@pytest.mark.parametrize("value", [np.nan, np.inf, 7.0])
def test_what_is_no_image_is_drawn_as_rejected(value, tmp_path):
    model = blob_classifier(cls=GenerativeClassifier)
    attacked = attacked_images(model, 2, change=lambda images: np.full_like(images, value))
    figure = examples.draw_examples(model, attacked, name="m")
    assert "not classified" in texts(figure)
    assert any(text.startswith("rejected") for text in texts(figure))
    assert saved(figure, tmp_path / "a.png").size


def test_verified_images_come_first():
    model = blob_classifier()
    attacked = attacked_images(
        model, 4, change=lambda x: np.concatenate([np.zeros_like(x[:2]), x[2:]])
    )
    figure = examples.draw_examples(model, attacked, name="m", max_examples=3)
    order = [np.asarray(figure.axes[3 * row].images[0].get_array()) for row in range(3)]
    for shown, index in zip(order, (2, 3, 0), strict=True):
        np.testing.assert_array_equal(shown, attacked.clean[index, :, :, 0])


def test_of_many_classes_the_lowest_energies_are_shown_and_the_prediction_framed():
    model = blob_classifier((12, 12, 1), 14, cls=GenerativeClassifier)
    attacked = attacked_images(model, 1)
    figure = examples.draw_examples(model, attacked, name="m")
    small = figure.axes[3:]
    assert len(small) == 2 * examples.MAX_CLASSES
    thick = [axes.spines["left"].get_linewidth() > 1 for axes in small]
    assert sum(thick[:10]) == 1 and sum(thick[10:]) == 1
    energies = np.asarray(model.class_weights * model.infer(attacked.clean).energies)[0]
    titles = [text for text in texts(figure) if text[:2].strip(":").isdigit()][:10]
    shown = [int(title.split(":")[0]) for title in titles]
    assert set(shown) == set(np.argsort(energies)[:10].tolist())
    assert titles == [f"{label}: {energies[label]:.1f}" for label in shown]
    assert shown[thick.index(True)] == energies.argmin()


def test_summary_bars_and_intervals(tmp_path):
    rows = [
        Row("abs", None, 100, 98, {}),
        Row("abs", ATTACK, 20, 5, {}),
        Row("madry", None, 100, 100, {}),
        Row("madry", ATTACK, 20, 0, {}),
    ]
    figure = figures.draw_summary(rows)
    (axes,) = figure.axes
    assert sorted(bar.get_height() for bar in axes.patches) == [0.0, 0.25, 0.98, 1.0]
    segments = np.concatenate([lines.get_segments() for lines in axes.collections])
    drawn = sorted((min(s[:, 1]), max(s[:, 1])) for s in segments)
    np.testing.assert_allclose(drawn, sorted(row.interval for row in rows), atol=1e-12)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["abs", "madry"]
    pixels = saved(figure, tmp_path / "summary.png")
    assert pixels.shape[0] > 400 and pixels.shape[1] > 600 and pixels.std() > 10
