import io
import math

import numpy as np
import pytest
from PIL import Image

from abs_model._runtime.errors import UserError
from abs_model.evaluation import Settings, evaluate, show
from abs_model.evaluation.images import curves, examples, style
from abs_model.evaluation.tables.paper_results import published
from tests.evaluation.test_evaluation import spec
from tests.evaluation.test_tables import make_results, planned, records
from tests.evaluation_fakes import (
    GenerativeClassifier,
    StripeClassifier,
    stripe_classifier,
    stripe_dataset,
    stripe_images,
)


def make_examples(model, count, change=0.2):
    images, labels = stripe_images(count, model.image_shape, model.num_classes)
    attack = planned("step", "linf")
    return [
        examples.Example(
            clean, np.clip(clean + change, 0, 1).astype(np.float32), attack,
            records([0.2], label=label, clean_prediction=label, prediction=(label + 1) % 3)[0],
        )
        for clean, label in zip(images.astype(np.float32) / 255, labels.tolist(), strict=True)
    ]  # fmt: skip


def saved(figure, path):
    style.save(figure, path)
    return np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))


def texts(figure):
    return [text.get_text() for text in figure.texts]


@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 7, 3), (6, 6, 2)])
@pytest.mark.parametrize("cls", [StripeClassifier, GenerativeClassifier])
def test_examples_picture(shape, cls, tmp_path):
    model = stripe_classifier(shape, cls=cls)
    shown = make_examples(model, 3)
    figure = examples.draw_examples(model, shown, title="t", note="n")
    pixels = saved(figure, tmp_path / "examples.png")
    panels = 3 * (3 + (2 * 3 if cls is GenerativeClassifier else 0))
    assert len(figure.axes) == panels
    assert all(len(axes.images) == 1 for axes in figure.axes)
    assert 600 < pixels.shape[1] < 3000 and 600 < pixels.shape[0] < 3000
    assert 0.02 < np.mean(np.any(pixels < 200, axis=-1)) < 0.95
    assert len(list(tmp_path.iterdir())) == 1


def test_the_perturbation_is_centered_and_its_scale_printed():
    model = stripe_classifier()
    (example,) = make_examples(model, 1)
    figure = examples.draw_examples(model, [example], title="t", note="n")
    (image,) = figure.axes[2].images
    shown = np.asarray(image.get_array())
    np.testing.assert_allclose(shown, (example.adversarial - example.clean)[:, :, 0], atol=0)
    low, high = image.get_clim()
    assert low == -high and high == pytest.approx(np.abs(shown).max())
    assert f"scale \N{PLUS-MINUS SIGN}{high:.2g}" in texts(figure)


def test_texts_say_prediction_confidence_attack_and_distance():
    model = stripe_classifier()
    (example,) = make_examples(model, 1)
    fooled = example.record.prediction
    confidence = model.confidences(example.adversarial[None])[0, fooled]
    shown = texts(examples.draw_examples(model, [example], title="t", note="n"))
    assert {"t", "n", f"label {example.record.label}"} <= set(shown)
    assert f"predicts {fooled} ({confidence:.1%})" in shown
    assert "STEP, distance 0.2" in shown


def test_examples_are_the_first_verified_images():
    clean = np.zeros((6, 4, 4, 1), np.uint8)
    image = np.ones((4, 4, 1), np.float32)
    attack = planned("step")
    found = [
        (attack, each)
        for each in (
            *records([0.0, 0.5], clean_prediction=4).values(),  # clean errors
            *records([0, 0, math.inf, 1.5, 2.5, 3.5], image=image).values(),
        )
    ]
    chosen = examples.choose_examples(found[:2] + found[4:], clean, count=2)
    assert [example.record.distance for example in chosen] == [1.5, 2.5]


def test_of_many_classes_the_lowest_energies_are_shown_and_the_prediction_framed():
    model = stripe_classifier((12, 12, 1), 14, cls=GenerativeClassifier)
    (example,) = make_examples(model, 1)
    energies = np.asarray(model.weighted_energies(model.infer(example.clean[None])))[0]
    record = records([0.2], clean_prediction=int(energies.argmin()), prediction=0)[0]
    example = examples.Example(example.clean, example.adversarial, example.attack, record)
    figure = examples.draw_examples(model, [example], title="t", note="n")
    small = figure.axes[3:]
    assert len(small) == 2 * examples.MAX_CLASSES
    thick = [axes.spines["left"].get_linewidth() > 1 for axes in small]
    assert sum(thick[:10]) == 1
    titles = [text for text in texts(figure) if text[:2].strip(":").isdigit()][:10]
    shown = [int(title.split(":")[0]) for title in titles]
    assert set(shown) == set(np.argsort(energies)[:10].tolist())
    assert titles == [f"{label}: {energies[label]:.1f}" for label in shown]
    assert shown[thick.index(True)] == energies.argmin()


def test_curves_are_the_shares_left_and_the_published_ones(tmp_path):
    attacks = [planned("a"), planned("b", group="stronger"), planned("c", "l0")]
    found = {
        ("abs", "a"): records([1, 2, math.inf, 3]),
        ("abs", "b"): records([2, 1, math.inf, math.inf]),
        ("mine", "c"): records([0, 3, 3, 5]),
    }
    figure = curves.draw_curves(make_results(attacks, found))
    left, right = figure.axes
    solid, dashed = (line for line in left.lines if len(line.get_xdata()) > 2)
    np.testing.assert_array_equal(solid.get_xdata(), [0, 1, 1, 3])
    np.testing.assert_array_equal(solid.get_ydata(), [1, 0.5, 0.5, 0.25])
    paper = published("l2", "abs")
    np.testing.assert_array_equal(dashed.get_xdata(), paper.distances)
    np.testing.assert_array_equal(dashed.get_ydata(), paper.accuracies)
    assert solid.get_color() == dashed.get_color()
    (mine,) = (line for line in right.lines if len(line.get_xdata()) == 5)
    np.testing.assert_array_equal(mine.get_ydata(), [0.75, 0.75, 0.25, 0.25, 0])
    assert "pixels" in right.get_xlabel()
    pixels = saved(figure, tmp_path / "curves.png")
    assert pixels.shape[0] > 400 and pixels.shape[1] > 600 and pixels.std() > 10


def test_curves_end_where_the_search_did():
    attacks = [planned("a", "linf", epsilon=0.1), planned("b", "l0", models=("mine",))]
    found = {
        ("abs", "a"): records([0.05, math.inf, math.inf, math.inf]),
        ("mine", "b"): records([2, math.inf, math.inf, math.inf]),
    }
    left, _ = curves.draw_curves(make_results(attacks, found, models=("abs",))).axes
    limited = min(left.lines, key=lambda line: len(line.get_xdata()) != 3)
    np.testing.assert_array_equal(limited.get_xdata(), [0, 0.05, 0.1])
    np.testing.assert_array_equal(limited.get_ydata(), [1, 0.75, 0.75])


class Tracker:
    """Notes what it is to log."""

    def __init__(self):
        self.logged = []

    def log_table(self, step, name, columns, rows):
        self.logged.append((name, len(columns), {len(row) for row in rows}))

    def log_image(self, step, name, path):
        self.logged.append((name, path.stat().st_size > 1000))

    def finish(self):
        self.logged.append("finished")


def test_show_writes_and_logs_tables_and_pictures(tmp_path):
    models = {"m": stripe_classifier(cls=GenerativeClassifier)}
    dataset, tracker = stripe_dataset(), Tracker()
    settings = Settings(num_clean=10, num_images=5, batch_size=5, seed=0)
    results = evaluate(models, dataset, [spec()], settings, tmp_path)
    (tmp_path / "examples_gone_linf.png").touch()
    show(tmp_path, results, models, dataset, tracker)
    files = {path.name for path in tmp_path.iterdir() if path.suffix != ".lock"}
    assert files >= {"results.md", "results.json", "curves.png", "examples_m_linf.png"}
    assert "examples_gone_linf.png" not in files
    (name, width, widths), *images, last = tracker.logged
    assert (name, widths, last) == ("results", {width}, "finished")
    assert images == [("examples_m_linf", True), ("curves", True)]


@pytest.mark.parametrize(
    ("blocked", "what"), [("results.md", "tables"), ("curves.png", "pictures")]
)
def test_what_cannot_be_written_is_said(blocked, what, tmp_path):
    models, dataset = {"m": stripe_classifier()}, stripe_dataset()
    settings = Settings(num_clean=10, num_images=5, batch_size=5, seed=0)
    results = evaluate(models, dataset, [spec()], settings, tmp_path)
    (tmp_path / blocked).mkdir()
    message = rf"can't write the {what} to .*{blocked}.*What was computed before stays"
    with pytest.raises(UserError, match=message):
        show(tmp_path, results, models, dataset, None)
