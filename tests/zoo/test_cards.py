"""The model zoo: the models that are shipped, and an entry made of a tiny run."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

import abs_model
from abs_model._runtime.errors import UserError
from abs_model.evaluation import zoo_export
from abs_model.zoo import cards
from abs_model.zoo import load as loading
from abs_model.zoo.load import find_trained, load_arrays
from scripts import export_pretrained
from tests.conftest import ROOT, call_script, load_tiny, run_script, train_arguments

SHIPPED = (
    "abs",
    "binary_abs",
    "binary_cnn",
    "cnn",
    "madry",
    "madry_l2",
    "plain",
    "transfer",
)
MAX_BYTES = 60e6


@pytest.fixture(scope="module")
def images(mnist_sample):
    return mnist_sample["test_images"][:20].reshape(-1, 28, 28, 1).astype(np.float32) / 255


@pytest.fixture(scope="module")
def cnn_run(data_dir, tmp_path_factory):
    """The workdir of a tiny CNN's training."""
    workdir = tmp_path_factory.mktemp("runs") / "cnn"
    done = run_script(*train_arguments("cnn", workdir, data_dir, "mnist_sample"))
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture(scope="module")
def folder(cnn_run, tmp_path_factory):
    """A zoo of one entry with two models, made of the run."""
    folder = tmp_path_factory.mktemp("zoo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cards, "FOLDER", folder)
        arguments = [str(cnn_run), "tiny", "--binary_name=binary_tiny", "--num_attacked=2"]
        call_script(export_pretrained, *arguments)
    return folder


@pytest.fixture
def tiny_zoo(folder, tmp_path, monkeypatch):
    """A copy of that zoo, to be changed."""
    copy = shutil.copytree(folder, tmp_path / "zoo")
    monkeypatch.setattr(cards, "FOLDER", copy)
    return copy


@pytest.mark.parametrize(("name", "binary"), [("tiny", False), ("binary_tiny", True)])
def test_an_entry_is_the_model_it_was_made_of(name, binary, tiny_zoo, cnn_run, images):
    model = abs_model.load(name, batch_size=20)
    original = abs_model.load(cnn_run, binary=binary, batch_size=20)
    assert (model.name, model.binary) == (name, binary)
    np.testing.assert_array_equal(model.logits(images), original.logits(images))


def test_an_entry_of_abs_has_surrogates_and_calibration(abs_run, tiny_zoo, tmp_path, images):
    workdir = shutil.copytree(abs_run, tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["inference"]["solver"] = "quasi_newton"
    (workdir / "config.json").write_text(json.dumps(config))
    original, trained = abs_model.load(workdir, batch_size=20), find_trained(workdir)
    card = {
        "models": {"tiny_abs": {"binary": False}},
        "config": trained.config.to_dict(),
        "run": trained.run,
    }
    surrogate = original.solver.surrogate
    path = tiny_zoo / "tiny_abs.safetensors"
    cards.write_entry(path, load_arrays(trained)[1], surrogate, card)
    model = abs_model.load("tiny_abs", batch_size=20)
    assert jax.tree.structure(model.solver) == jax.tree.structure(original.solver)
    jax.tree.map(np.testing.assert_array_equal, model.solver, original.solver)
    np.testing.assert_array_equal(model.confidences(images), original.confidences(images))
    cards.write_entry(path, load_arrays(trained)[1], None, card)
    assert abs_model.load("tiny_abs", solver="adam", batch_size=2).predict(images[:2]).shape == (2,)
    with pytest.raises(abs_model.UserError, match="without surrogates"):
        abs_model.load("tiny_abs")


def test_the_card_says_what_the_model_is_and_how_good(tiny_zoo, cnn_run):
    card = json.loads((tiny_zoo / "tiny.json").read_text())
    assert set(card["models"]) == {"tiny", "binary_tiny"}
    assert card["config"]["train"] == json.loads((cnn_run / "config.json").read_text())["train"]
    assert card["config"]["dataset"]["data_dir"] is None
    training = json.loads((cnn_run / "run.json").read_text())["training"]
    assert card["run"]["training"] == training and training["seconds"] > 0
    for model in card["models"].values():
        clean, *attacked = model["measured"]
        assert clean["num_images"] == 500 and clean["condition"] == "clean"
        assert [row["attack"]["num_steps"] for row in attacked] == [40, 40]
        assert {row["num_images"] for row in attacked} == {2}


def test_available_lists_what_load_takes(tiny_zoo):
    assert abs_model.available() == ["binary_tiny", "nearest_neighbor", "tiny"]


def test_other_weights_than_the_cards_are_refused(tiny_zoo):
    path = tiny_zoo / "tiny.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(abs_model.UserError, match=r"tiny\.safetensors .* SHA-256 differs"):
        abs_model.load("tiny")
    path.unlink()
    with pytest.raises(abs_model.UserError, match="the weights of 'tiny' can't be read"):
        abs_model.load("tiny")


def test_a_damaged_card_is_named_and_runs_are_loaded_all_the_same(tiny_zoo, cnn_run):
    for content in ("{", "[]", '{"models": {"tiny": {"binary": false}}}'):
        (tiny_zoo / "tiny.json").write_text(content)
        with pytest.raises(abs_model.UserError, match=r"the card .*tiny\.json can't be read"):
            abs_model.load("tiny")
    assert abs_model.load(str(cnn_run)).name == cnn_run.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["other", "--binary_name=tiny"], "needs a name of its own, got other and tiny"),
        (["tiny"], "there is an entry 'tiny' already"),
        (["tiny", "--replace"], "also holds binary_tiny, which replacing it would lose"),
        (["nearest_neighbor"], "needs a name of its own, got nearest_neighbor"),
        (["same", "--binary_name=same"], "needs a name of its own, got same and same"),
        (["a/b"], "'a/b' can't be the name of a model"),
    ],
)
def test_an_export_under_an_unusable_name_stops_at_once(arguments, message, tiny_zoo, cnn_run):
    before = sorted(tiny_zoo.iterdir())
    with pytest.raises(UserError, match=re.escape(message)):
        call_script(export_pretrained, str(cnn_run), *arguments)
    assert sorted(tiny_zoo.iterdir()) == before


def test_a_run_that_does_not_say_how_it_was_trained_is_not_exported(tiny_zoo, cnn_run, tmp_path):
    workdir = shutil.copytree(cnn_run, tmp_path / "old")
    run = json.loads((workdir / "run.json").read_text())
    del run["training"]
    (workdir / "run.json").write_text(json.dumps(run))
    with pytest.raises(UserError, match="does not say when and how it was trained"):
        call_script(export_pretrained, str(workdir), "old")


def test_an_unknown_name_lists_the_near_ones(tiny_zoo):
    with pytest.raises(abs_model.UserError, match=r"'tinny' \(did you mean 'tiny'\?"):
        abs_model.load("tinny")
    with pytest.raises(abs_model.UserError, match=r"did you mean 'tiny'"):
        abs_model.load("TINY")
    with pytest.raises(abs_model.UserError, match="there are binary_tiny, nearest_neighbor, tiny"):
        abs_model.load("resnet")
    with pytest.raises(abs_model.UserError, match=r"load\('tiny', binary=True\)"):
        abs_model.load("tiny:binary")


def test_a_name_goes_before_a_folder(tiny_zoo, tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert abs_model.load("tiny").name == "tiny"
    with pytest.raises(abs_model.UserError, match=r"holds no config\.json"):
        abs_model.load("./tiny")


def test_the_nearest_neighbor_is_made_of_mnist(data_dir, monkeypatch):
    def load_sample(name):
        assert name == "mnist"
        return load_tiny("mnist_sample", data_dir)

    monkeypatch.setattr(loading, "load_dataset", load_sample)
    model, dataset = abs_model.load("nearest_neighbor"), load_sample("mnist")
    assert (model.name, model.batch_size) == ("nearest_neighbor", 100)
    other = abs_model.load("nearest_neighbor", name="nn", batch_size=7)
    assert (other.name, other.batch_size) == ("nn", 7)
    # Each training image is its own nearest neighbor.
    images = dataset.train.images[:20].astype(np.float32) / 255
    for each in (model, other):
        np.testing.assert_array_equal(each.predict(images), dataset.train.labels[:20])


@pytest.mark.parametrize("option", [{"binary": True}, {"solver": "adam"}])
def test_the_nearest_neighbor_takes_no_options_of_others(option):
    with pytest.raises(abs_model.UserError, match="takes neither binary nor solver"):
        abs_model.load("nearest_neighbor", **option)


def test_only_abs_takes_a_solver():
    with pytest.raises(abs_model.UserError, match="needs an ABS model; 'cnn' is a 'cnn' model"):
        abs_model.load("cnn", solver="adam")


def test_all_of_the_papers_models_are_there():
    assert abs_model.available() == sorted([*SHIPPED, "nearest_neighbor"])


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_classifies_real_images(name, mnist_sample):
    model = abs_model.load(name, batch_size=20)
    count = 100
    images = mnist_sample["test_images"][:count].reshape(-1, 28, 28, 1).astype(np.float32) / 255
    assert np.mean(model.predict(images) == mnist_sample["test_labels"][:count]) >= 0.95
    card = cards.find(name).card
    assert card["run"]["training"]["seconds"] > 60
    assert {len(session["git_commit"]) for session in card["run"]["training"]["sessions"]} == {40}
    clean, *attacked = card["models"][name]["measured"]
    assert clean["num_images"] == 10000
    assert {row["attack"]["norm"] for row in attacked} == {"l2", "linf"}


def test_the_shipped_files_are_small():
    files = list((ROOT / "abs_model" / "zoo" / "weights").iterdir())
    assert sum(file.stat().st_size for file in files) < MAX_BYTES
    assert {file.suffix for file in files} == {".json", ".safetensors"}


def test_cards_name_no_folder_of_the_machine_that_trained_the_model(tmp_path):
    dataset = {"name": "mnist", "data_dir": str(tmp_path / "data")}
    first = {"training": {"seconds": 1}, "config": {"dataset": dataset}}
    second = first | {"config": {"dataset": dataset, "pretrained": str(tmp_path / "a")}}
    run = {"num_classes": 10, "pretrained": second | {"pretrained": first}}
    card = json.dumps(zoo_export.run_without_folders(run))
    assert str(tmp_path) not in card and card.count('"seconds": 1') == 2
    config = zoo_export.config_without_folders(second["config"])
    assert config == {"dataset": {"name": "mnist", "data_dir": None}, "pretrained": "a"}
    assert zoo_export.run_without_folders({"num_classes": 10}) == {"num_classes": 10}
