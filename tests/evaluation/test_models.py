"""The models of an evaluation: parsing, loading, refusing."""

import ml_collections
import numpy as np
import pytest

import abs_model
import abs_model.evaluation.run.models as evaluation_models
from abs_model._runtime.atomic_files import write_json
from abs_model._runtime.errors import UserError
from abs_model.evaluation import ModelSpec, load_models, parse_models
from abs_model.training.workdir import open_workdir
from abs_model.zoo.load import find_trained
from tests.conftest import load_tiny
from tests.evaluation_fakes import stripe_classifier, stripe_dataset


def test_parsing_models(tmp_path):
    assert parse_models(["abs=runs/x", "runs/madry/", "b=runs/x:binary"]) == [
        ModelSpec("abs", "runs/x"),
        ModelSpec("madry", "runs/madry/"),
        ModelSpec("b", "runs/x", binary=True),
    ]
    (own,) = parse_models(["mine=package.module:make"])
    assert own.made and not own.binary and not own.trained_here


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["runs/abs", "other/abs"], "two models are called 'abs'"),
        (["a=x", "a=y"], "two models are called 'a'"),
        (["../a/b=x"], "must be NAME=PATH"),
        (["a="], "must be NAME=PATH"),
        ([""], "names no model"),
        (["nearest_neighbor:binary"], "nearest_neighbor does not come with :binary"),
        (["a=package.module:make:binary"], "package.module:make does not come with :binary"),
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
    keys = ("image_shape", "num_classes", "best_metric", "best_mode")
    write_json(path / "run.json", dict.fromkeys(keys))
    return ModelSpec(path.name, str(path))


def test_models_of_different_data_sets_are_refused(tmp_path):
    specs = [make_run(tmp_path / "a", "mnist"), make_run(tmp_path / "b", "cifar10")]
    with pytest.raises(UserError, match="'a' on mnist, 'b' on cifar10"):
        load_models(specs)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            stripe_classifier((4, 4, 1)),
            r"takes images of 4x4x1, but the data set has images of 8x8x1",
        ),
        (stripe_classifier(num_classes=5), r"has 5 classes, but the data set 3"),
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
        return load_tiny("mnist_sample", data_dir)

    monkeypatch.setattr(evaluation_models, "load_dataset", load_sample)
    specs = parse_models(["cnn", "bin=cnn:binary", "nn=nearest_neighbor"])
    models, dataset = load_models(specs, data_dir="here")
    assert [models[name].name for name in ("cnn", "bin", "nn")] == ["cnn", "bin", "nn"]
    assert models["bin"].binary and not models["cnn"].binary
    images = dataset.test.images[:100].astype(np.float32) / 255
    for model in models.values():
        assert np.mean(model.predict(images) == dataset.test.labels[:100]) >= 0.8
    alone, _ = load_models([ModelSpec("nn", "nearest_neighbor")], data_dir="here")
    np.testing.assert_array_equal(alone["nn"].predict(images), models["nn"].predict(images))


def make_stripes():
    return stripe_classifier((28, 28, 1), 10)


def make_nothing():
    return None


def test_shortcuts_are_for_training_only(monkeypatch):
    section = {"name": "mnist", "module": "", "data_dir": None, "shortcut_amplitude": 0.3}
    config = ml_collections.ConfigDict({"dataset": section})
    monkeypatch.setattr(evaluation_models, "training_configs", lambda specs: {"m": config})
    monkeypatch.setattr(evaluation_models, "load", lambda *_, **__: stripe_classifier())
    given = {}
    monkeypatch.setattr(
        evaluation_models,
        "load_dataset",
        lambda **options: given.update(options) or stripe_dataset(),
    )
    load_models([ModelSpec("m", "runs/m")])
    assert given == {"name": "mnist", "module": "", "data_dir": None}


def test_a_model_of_ones_own_is_made_by_its_function(data_dir, monkeypatch):
    sample = load_tiny("mnist_sample", data_dir)
    monkeypatch.setattr(evaluation_models, "load_dataset", lambda *_, **__: sample)
    models, _ = load_models(parse_models(["mine=tests.evaluation.test_models:make_stripes"]))
    assert models["mine"].name == "mine"
    with pytest.raises(UserError, match=r"must return an abs_model.Classifier.*got NoneType"):
        load_models(parse_models(["mine=tests.evaluation.test_models:make_nothing"]))
    with pytest.raises(UserError, match="must have a function 'absent', but there is none"):
        load_models(parse_models(["mine=tests.evaluation.test_models:absent"]))


def test_a_home_directory_and_a_misspelt_suffix(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_run(tmp_path / "run", "mnist")
    (spec,) = parse_models(["~/run:binary"])
    assert (spec.name, spec.path, spec.binary) == ("binary_run", "~/run", True)
    assert find_trained("~/run").config.dataset.name == "mnist"
    for entry in ("cnn:binry", "x=cnn:binry", "~/run:binry", f"x={tmp_path}/run:Binary"):
        with pytest.raises(UserError, match=r"--models: .*did you mean .*:binary\?"):
            parse_models([entry])


def test_no_model_is_called_nothing():
    with pytest.raises(UserError, match="there is no pretrained model ''"):
        find_trained("")


def test_a_damaged_description_of_a_run_is_named(tmp_path):
    make_run(tmp_path, "mnist")
    for content in ('{"image_shape": [28', "{}", "[]", ""):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(UserError, match=rf"^{tmp_path}/run\.json is damaged .*delete it"):
            find_trained(tmp_path)


@pytest.mark.parametrize("batch_size", [2.5, 0, True, "4"])
def test_a_batch_size_is_a_whole_number(batch_size):
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1, got"):
        abs_model.load("cnn", batch_size=batch_size)
