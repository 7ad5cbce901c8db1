import dataclasses
import json

import ml_collections
import numpy as np
import pytest

import abs_model.evaluation.models as evaluation_models
from abs_model.data import Split, load_dataset
from abs_model.errors import UserError
from abs_model.evaluation import (
    EvaluationError,
    ModelSpec,
    Settings,
    evaluate,
    load_models,
    parse_models,
    verify,
)
from abs_model.training.workdir import open_workdir
from tests.conftest import run_script
from tests.evaluation_fakes import (
    GenerativeClassifier,
    blob_classifier,
    blob_images,
    liar,
    towards_next_class,
)

SETTINGS = Settings(num_clean=30, num_attacked=10, num_steps=5, num_restarts=2)


def blob_test(count=40, **options):
    return Split(*blob_images(count, **options))


def clean_images(count):
    images, labels = blob_images(count)
    return images.astype(np.float32) / 255, labels


def rotated(images, fraction):
    """The images, a part of the way towards the stripes moved on by one."""
    moved = np.roll(images.reshape(len(images), -1), 21, axis=1).reshape(images.shape)
    return (images + fraction * (moved - images)).astype(np.float32)


def test_verification_measures_distances_itself():
    clean, labels = clean_images(2)
    adversarial = clean.copy()
    adversarial[0, 0, 0] = clean[0, 0, 0] + 0.25
    adversarial[0, 1, 0] = clean[0, 1, 0] + 0.125
    model = blob_classifier()
    for norm, expected in (("l2", np.hypot(0.25, 0.125)), ("linf", 0.25)):
        found = verify(model, clean, labels, adversarial, norm=norm, epsilon=1.0)
        np.testing.assert_allclose(found.distances, [expected, 0], rtol=1e-6)
    assert found.distances.dtype == np.float64


@pytest.mark.parametrize(
    ("value", "reasons"),
    [(np.nan, {"out_of_bounds", "beyond_epsilon"}), (1.01, {"out_of_bounds"})],
)
def test_verification_catches_what_is_no_image(value, reasons):
    clean, labels = clean_images(3)
    adversarial = clean.copy()
    adversarial[1, 2, 3] = value
    found = verify(blob_classifier(), clean, labels, adversarial, norm="linf", epsilon=0.99)
    np.testing.assert_array_equal(found.in_bounds, [True, False, True])
    claimed = np.array([False, True, False])
    assert {reason for reason, count in found.rejections(claimed).items() if count} == reasons
    assert found.num_rejected(claimed) == 1 and not found.verified.any()


def test_verification_allows_float32_rounding_and_no_more():
    clean, labels = clean_images(1)
    clean[:] = 0.5
    for excess, within in ((0.0, True), (1e-6, True), (1e-4, False)):
        adversarial = (clean + np.float32(0.3 + excess)).astype(np.float32)
        found = verify(blob_classifier(), clean, labels, adversarial, norm="linf", epsilon=0.3)
        assert found.within_epsilon.item() is within


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda images, epsilon: images - 2 * (images.min() + 0.01), "out_of_bounds"),
        (lambda images, epsilon: np.full_like(images, np.inf), "out_of_bounds"),
        (lambda images, epsilon: rotated(images, 1.0), "beyond_epsilon"),
        (lambda images, epsilon: images, "not_adversarial"),
    ],
)
def test_an_attack_that_lies_is_caught_and_counted(change, reason, tmp_path):
    images, labels = blob_images(40)
    # Dim stripes 0.55 from bright ones: no image within L-inf 0.3 is the next class's.
    images = np.where(images > 110, 220, 80).astype(np.uint8)
    models = {"fake": blob_classifier()}
    rows = evaluate(models, Split(images, labels), SETTINGS, tmp_path, attack=liar(change))
    row = rows[2]
    assert row.attack.norm == "linf" and row.num_claimed == row.num_rejected == 10
    assert row.rejections[reason] == 10
    assert row.num_correct == 10 - row.num_clean_errors
    assert json.loads((tmp_path / "results.json").read_text())["rows"][2]["num_rejected"] == 10
    with np.load(tmp_path / "adversarial_fake_linf.npz") as saved:
        assert saved["claimed"].all() and not saved["verified"].any()


def test_accuracy_under_attack_counts_clean_errors_and_verified_images(tmp_path):
    images, labels = blob_images(40)
    labels[:3] = (labels[:3] + 1) % 3  # clean errors
    model = blob_classifier()

    def attack(model, images, labels, key, **options):
        found = towards_next_class(model, images, labels, key, **options)
        found.images[:3] = rotated(images[:3], 1.0)  # towards the label, which changes nothing
        found.images[7:] = images[7:]
        found.success[:] = True
        return found

    rows = evaluate({"m": model}, Split(images, labels), SETTINGS, tmp_path, attack=attack)
    assert [row.condition for row in rows] == ["clean", "L2 <= 1.5", "L-inf <= 0.3"]
    assert (rows[0].num_images, rows[0].num_correct) == (30, 27)
    # Of ten images, three are wrong when clean, four are attacked within 0.3, three are left.
    linf = rows[2]
    assert (linf.num_images, linf.num_clean_errors, linf.num_correct) == (10, 3, 3)
    assert (linf.num_claimed, linf.num_rejected) == (10, 6)


def test_evaluation_end_to_end(tmp_path):
    models = {"a": blob_classifier(cls=GenerativeClassifier), "b": blob_classifier()}
    about = {"models": [{"name": "a", "path": "runs/a"}]}
    rows = evaluate(
        models, blob_test(), SETTINGS, tmp_path / "new", about=about, attack=towards_next_class
    )
    assert [row.model for row in rows] == ["a"] * 3 + ["b"] * 3
    files = {path.name for path in (tmp_path / "new").iterdir()}
    parts = [f"{model}_{norm}" for model in models for norm in ("l2", "linf")]
    assert files == {"results.json", "results.md", "summary.png"} | {
        name for part in parts for name in (f"adversarial_{part}.npz", f"examples_{part}.png")
    }
    text = (tmp_path / "new" / "results.json").read_text()
    content = json.loads(text)
    assert content["complete"] is True and content["models"] == about["models"]
    assert content["settings"] == dataclasses.asdict(SETTINGS) | {"norms": ["l2", "linf"]}
    assert content["packages"].keys() >= {"python", "jax", "flax"} and content["device"]["kind"]
    assert len(content["rows"]) == 6 and str(tmp_path) not in text
    with np.load(tmp_path / "new" / "adversarial_b_linf.npz") as saved:
        found = verify(
            models["b"], saved["clean"], saved["labels"], saved["images"], norm="linf", epsilon=0.3
        )
        np.testing.assert_array_equal(found.verified, saved["verified"])
        right = saved["clean_predictions"] == saved["labels"]
        assert content["rows"][5]["num_correct"] == np.sum(right & ~found.verified)
        assert found.verified.any()


def test_a_crash_costs_no_finished_work(tmp_path):
    seen = []

    def attack(model, *arguments, **options):
        if model.name == "crashing":
            raise MemoryError
        content = json.loads((tmp_path / "results.json").read_text())
        seen.append((content["complete"], len(content["rows"])))
        return towards_next_class(model, *arguments, **options)

    models = {"a": blob_classifier(), "b": blob_classifier(name="crashing")}
    with pytest.raises(MemoryError):
        evaluate(models, blob_test(), SETTINGS, tmp_path, attack=attack)
    content = json.loads((tmp_path / "results.json").read_text())
    assert seen == [(False, 1), (False, 2)]
    assert content["complete"] is False and len(content["rows"]) == 4
    assert "isn't complete" in (tmp_path / "results.md").read_text()
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


def test_every_model_gets_the_same_random_numbers_in_whichever_norms(tmp_path):
    calls = []

    def attack(model, images, labels, key, *, norm, **options):
        calls.append((norm, key))
        return towards_next_class(model, images, labels, key, norm=norm, **options)

    models = {name: blob_classifier(batch_size=8) for name in "ab"}
    evaluate(models, blob_test(), SETTINGS, tmp_path, attack=attack)
    assert calls[:2] == calls[2:] and calls[0][1] != calls[1][1]
    one = dataclasses.replace(SETTINGS, norms=("linf",))
    rows = evaluate({"a": models["a"]}, blob_test(), one, tmp_path, attack=attack)
    assert calls[4:] == calls[1:2] and [row.condition for row in rows] == ["clean", "L-inf <= 0.3"]


@pytest.mark.parametrize("flag", ["num_clean", "num_attacked"])
def test_too_many_images_are_refused(flag, tmp_path):
    settings = dataclasses.replace(SETTINGS, **{flag: 41})
    with pytest.raises(EvaluationError, match=f"--{flag} must be from 1 to the 40 test images"):
        evaluate({"m": blob_classifier()}, blob_test(), settings, tmp_path)


def test_parsing_models(tmp_path):
    assert parse_models(["abs=runs/x", "runs/madry/", "b=runs/x:binary"]) == [
        ModelSpec("abs", "runs/x"),
        ModelSpec("madry", "runs/madry/"),
        ModelSpec("b", "runs/x", binary=True),
    ]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["runs/abs", "runs/abs:binary"], "two models are called 'abs'"),
        (["a=x", "a=y"], "two models are called 'a'"),
        (["../a/b=x"], "must be NAME=PATH"),
        (["a="], "must be NAME=PATH"),
        ([""], "names no model"),
        (["nearest_neighbor:binary"], "nearest_neighbor does not come with :binary"),
    ],
)
def test_unusable_models_are_refused(entries, message):
    with pytest.raises(UserError, match=message):
        parse_models(entries)


def test_a_missing_workdir_is_named():
    with pytest.raises(UserError, match="--models: model 'a': there is no pretrained model"):
        load_models([ModelSpec("a", "runs/absent")])


def make_run(path, dataset):
    section = {"name": dataset, "data_dir": "", "validation_size": 5, "module": ""}
    open_workdir(path, ml_collections.ConfigDict({"dataset": section}))
    (path / "run.json").write_text("{}")
    return ModelSpec(path.name, str(path))


def test_models_of_different_data_sets_are_refused(tmp_path):
    specs = [make_run(tmp_path / "a", "mnist"), make_run(tmp_path / "b", "cifar10")]
    with pytest.raises(UserError, match="'a' on mnist, 'b' on cifar10"):
        load_models(specs)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            blob_classifier((4, 4, 1)),
            r"takes images of 4x4x1, but the data set has images of 8x8x1",
        ),
        (blob_classifier(num_classes=5), r"has 5 classes, but the data set 3"),
    ],
)
def test_a_model_of_other_images_is_refused(model, message, tmp_path, monkeypatch):
    dataset = ml_collections.ConfigDict({"image_shape": (8, 8, 1), "num_classes": 3})
    monkeypatch.setattr(evaluation_models, "load_dataset", lambda *_, **__: dataset)
    monkeypatch.setattr(evaluation_models, "load", lambda *_, **__: model)
    with pytest.raises(UserError, match=message):
        load_models([make_run(tmp_path / "a", "mnist")])


def test_pretrained_models_and_the_nearest_neighbor_are_loaded_by_name(data_dir, monkeypatch):
    def load_sample(name, **options):
        assert name == "mnist" and options["data_dir"] == "here"
        return load_dataset(
            "mnist_sample", data_dir=str(data_dir), validation_size=50, module="tests.tiny_datasets"
        )

    monkeypatch.setattr(evaluation_models, "load_dataset", load_sample)
    specs = parse_models(["cnn", "bin=cnn:binary", "nn=nearest_neighbor"])
    models, dataset = load_models(specs, data_dir="here", batch_size=10)
    assert [models[name].name for name in ("cnn", "bin", "nn")] == ["cnn", "bin", "nn"]
    assert models["bin"].binary and not models["cnn"].binary
    images = dataset.test.images[:100].astype(np.float32) / 255
    for model in models.values():
        assert model.batch_size == 10
        assert np.mean(model.predict(images) == dataset.test.labels[:100]) >= 0.8
    alone, _ = load_models([ModelSpec("nn", "nearest_neighbor")], data_dir="here")
    np.testing.assert_array_equal(alone["nn"].predict(images), models["nn"].predict(images))


def test_the_command_line_reports_without_traceback():
    done = run_script("evaluate.py", "--models=a=absent", "--workdir=absent-too")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "no pretrained model 'absent'" in done.stderr


def test_the_command_line_evaluates_a_trained_model(abs_run, tmp_path):
    done = run_script(
        "evaluate.py",
        f"--models=abs={abs_run},binary_abs={abs_run}:binary",
        f"--workdir={tmp_path}",
        "--num_clean=4",
        "--num_attacked=2",
        "--num_steps=2",
        "--batch_size=4",
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["complete"] and len(results["rows"]) == 6
    assert (tmp_path / "results.md").read_text().count("abs") >= 6
    for name in ("abs", "binary_abs"):
        for norm in ("l2", "linf"):
            assert (tmp_path / f"examples_{name}_{norm}.png").stat().st_size > 10_000
            assert (tmp_path / f"adversarial_{name}_{norm}.npz").exists()
