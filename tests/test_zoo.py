"""The model zoo: the models that are shipped, and an entry made of a tiny run."""

import json
import shutil

import numpy as np
import pytest

import abs_model
from abs_model import zoo
from scripts import export_pretrained
from tests.conftest import ROOT

SHIPPED = sorted(set(abs_model.available()) - {"nearest_neighbor"})
MAX_BYTES = 60e6


@pytest.fixture(scope="module")
def images(mnist_sample):
    return mnist_sample["test_images"][:20].reshape(-1, 28, 28, 1).astype(np.float32) / 255


@pytest.fixture(scope="module")
def run(abs_run, tmp_path_factory):
    """The tiny ABS run, with surrogates."""
    workdir = shutil.copytree(abs_run, tmp_path_factory.mktemp("runs") / "surrogates")
    config = json.loads((workdir / "config.json").read_text())
    config["inference"]["solver"] = "quasi_newton"
    (workdir / "config.json").write_text(json.dumps(config))
    return workdir


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    """A zoo of one entry with two models, made of the run."""
    folder = tmp_path_factory.mktemp("zoo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "FOLDER", folder)
        export_pretrained.main(
            [str(run), "tiny_abs", "--binary_name=tiny_binary", "--num_attacked=2"]
        )
    return folder


@pytest.fixture
def tiny_zoo(folder, tmp_path, monkeypatch):
    """A copy of that zoo, to be damaged."""
    copy = shutil.copytree(folder, tmp_path / "zoo")
    monkeypatch.setattr(zoo, "FOLDER", copy)
    return copy


@pytest.mark.parametrize(("name", "binary"), [("tiny_abs", False), ("tiny_binary", True)])
def test_an_entry_is_the_model_it_was_made_of(name, binary, tiny_zoo, run, images):
    model, original = abs_model.load(name), abs_model.load(run, binary=binary)
    assert (model.name, model.binary) == (name, binary)
    np.testing.assert_array_equal(model.logits(images), original.logits(images))
    np.testing.assert_array_equal(model.confidences(images), original.confidences(images))


def test_the_card_says_what_the_model_is_and_how_good(tiny_zoo, run):
    card = json.loads((tiny_zoo / "tiny_abs.json").read_text())
    assert set(card["models"]) == {"tiny_abs", "tiny_binary"}
    assert card["config"]["train"] == json.loads((run / "config.json").read_text())["train"]
    assert card["config"]["dataset"]["data_dir"] is None
    training = json.loads((run / "run.json").read_text())["training"]
    assert card["run"]["training"] == training and training["seconds"] > 0
    for model in card["models"].values():
        clean, *attacked = model["measured"]
        assert clean["num_images"] == 500 and clean["condition"] == "clean"
        assert [row["attack"]["num_steps"] for row in attacked] == [40, 40]
        assert {row["num_images"] for row in attacked} == {2}


def test_available_lists_what_load_takes(tiny_zoo):
    assert abs_model.available() == ["nearest_neighbor", "tiny_abs", "tiny_binary"]


def test_other_weights_than_the_cards_are_refused(tiny_zoo):
    path = tiny_zoo / "tiny_abs.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(abs_model.UserError, match=r"tiny_abs\.safetensors .* SHA-256 differs"):
        abs_model.load("tiny_abs")
    path.unlink()
    with pytest.raises(abs_model.UserError, match="the weights of 'tiny_abs' can't be read"):
        abs_model.load("tiny_abs")


def test_an_unknown_name_lists_the_near_ones(tiny_zoo):
    with pytest.raises(abs_model.UserError, match=r"'tiny_asb' \(did you mean 'tiny_abs'"):
        abs_model.load("tiny_asb")
    with pytest.raises(abs_model.UserError, match="there are nearest_neighbor, tiny_abs, tiny_bin"):
        abs_model.load("resnet")
    with pytest.raises(abs_model.UserError, match=r"load\('tiny_abs', binary=True\)"):
        abs_model.load("tiny_abs:binary")


def test_a_name_goes_before_a_folder(tiny_zoo, tmp_path, monkeypatch):
    (tmp_path / "tiny_abs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert abs_model.load("tiny_abs").name == "tiny_abs"
    with pytest.raises(abs_model.UserError, match=r"holds no config\.json"):
        abs_model.load("./tiny_abs")


@pytest.mark.parametrize("option", [{"binary": True}, {"solver": "adam"}])
def test_the_nearest_neighbor_takes_no_options_of_others(option):
    with pytest.raises(abs_model.UserError, match="takes neither binary nor solver"):
        abs_model.load("nearest_neighbor", **option)


def test_only_abs_takes_a_solver():
    with pytest.raises(abs_model.UserError, match="needs an ABS model; 'cnn' holds a 'cnn' model"):
        abs_model.load("cnn", solver="adam")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_classifies_real_images(name, mnist_sample):
    model = abs_model.load(name, batch_size=20)
    count = 100
    images = mnist_sample["test_images"][:count].reshape(-1, 28, 28, 1).astype(np.float32) / 255
    assert np.mean(model.predict(images) == mnist_sample["test_labels"][:count]) >= 0.95
    card = zoo.find(name).card
    assert set(card["run"]["training"]) == {"git_commit", "seconds", "packages", "device"}
    clean, *attacked = card["models"][name]["measured"]
    assert clean["num_images"] == 10000
    assert {row["attack"]["norm"] for row in attacked} == {"l2", "linf"}


def test_the_shipped_files_are_small():
    files = list((ROOT / "abs_model" / "pretrained").iterdir())
    assert sum(file.stat().st_size for file in files) < MAX_BYTES
    assert {file.suffix for file in files} == {".json", ".safetensors"}
