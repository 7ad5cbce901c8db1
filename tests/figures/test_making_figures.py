"""The frame of figures: caches, files, and the script."""

import json

import numpy as np
import pytest
from PIL import Image

from abs_model._runtime.errors import UserError
from abs_model._runtime.provenance import git_commit
from abs_model.evaluation.images.style import new_figure
from abs_model.figures import make, registry
from abs_model.figures.registry import FIGURES, Data, Figure, Film, Work, register
from scripts import figures as script
from tests.conftest import call_script
from tests.evaluation_fakes import stripe_classifier, stripe_dataset

CALLS = []


def compute(work):
    def count(images):
        CALLS.append(len(images))
        return {"sums": images.sum(axis=(1, 2, 3))}

    sums = work.in_batches("sums", [1], [work.images], count, size=4)["sums"]
    total = work.cached("total", [sums], lambda: {"total": sums.sum()})["total"]
    return Data({"total": float(total), "images": len(sums)}, {"sums": sums})


def draw(data):
    frames = [new_figure(1, 1) for _ in range(3)]
    for shade, frame in enumerate(frames):
        frame.set_facecolor(str(shade / 2))
    frames[0].text(0.1, 0.5, f"{data.numbers['total']:.0f}")
    return {"toy": frames[0], "toy_film": Film(frames, seconds=0.2)}


TOY = Figure("toy", "A toy", compute, draw, models=("stripes",), num_images=10)


@pytest.fixture
def stripes(monkeypatch):
    """The models and the data set that figures load; nothing has been computed."""
    CALLS.clear()
    dataset = stripe_dataset()
    loaded = {"stripes": stripe_classifier()}, dataset
    monkeypatch.setattr(make, "load_models", lambda specs, data_dir: loaded)
    monkeypatch.setattr(make, "training_configs", lambda specs: {})
    return dataset


def test_a_figure_leaves_pictures_and_numbers(stripes, tmp_path):
    files = make.make_figure(TOY, tmp_path)
    assert [path.name for path in files] == [
        "toy.json", "toy.png", "toy.pdf", "toy_film.png", "toy_film.gif",
    ]  # fmt: skip
    content = json.loads((tmp_path / "toy.json").read_text())
    images = stripes.test.images[:10].astype(np.float32) / 255
    assert content["numbers"] == {"total": pytest.approx(images.sum(), rel=1e-5), "images": 10}
    assert content["about"]["models"] == ["stripes"] and content["about"]["num_images"] == 10
    assert content["about"]["commits"] == [git_commit() or "not known"]
    with Image.open(tmp_path / "toy_film.gif") as film:
        assert film.n_frames == 3 and film.info["duration"] == 200
    assert (tmp_path / "toy.pdf").read_bytes().startswith(b"%PDF")


def test_what_was_computed_is_not_computed_again(stripes, tmp_path, monkeypatch):
    make.make_figure(TOY, tmp_path)
    assert CALLS == [4, 4, 2]
    # Killed in the second batch of another size: the first one is kept.
    make.make_figure(TOY, tmp_path)
    assert CALLS == [4, 4, 2]
    written, write = [], Work._write

    def die(work, path, arrays):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(path)
        write(work, path, arrays)

    other = tmp_path / "other"
    monkeypatch.setattr(Work, "_write", die)
    with pytest.raises(KeyboardInterrupt):
        make.make_figure(TOY, other)
    monkeypatch.setattr(Work, "_write", write)
    CALLS.clear()
    make.make_figure(TOY, other)
    assert CALLS == [4, 2]


def test_other_inputs_are_computed(stripes, tmp_path):
    work = Work("toy", {"stripes": stripe_classifier()}, stripes, 4, tmp_path)
    model = work.models["stripes"]
    first = work.cached("part", [model, {"a": 1}], lambda: {"x": np.array(1)})["x"]
    same = work.cached("part", [model, {"a": 1}], lambda: {"x": np.array(2)})["x"]
    other = work.cached("part", [model, {"a": 2}], lambda: {"x": np.array(3)})["x"]
    assert (first, same, other) == (1, 1, 3)


def test_a_figure_of_abs_models_says_so(stripes, tmp_path):
    work = Work("toy", {"stripes": stripe_classifier()}, stripes, 4, tmp_path)
    with pytest.raises(
        UserError, match="'toy' requires an ABS model, got --models=stripes; add one"
    ):
        work.models_with("certify")


def test_a_figure_can_be_registered_again_but_not_replaced(monkeypatch):
    monkeypatch.setattr(registry, "FIGURES", dict(FIGURES))
    register(TOY)
    register(TOY)
    other = Figure("toy", "Another", draw, draw, models=())
    with pytest.raises(ValueError, match="there is a figure 'toy' already"):
        register(other)


def test_the_script_makes_the_named_figures(stripes, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(FIGURES, "toy", TOY)
    options = [f"--workdir={tmp_path}", "--num_images=3", "--wandb=off"]
    call_script(script, "toy", *options)
    assert f"{tmp_path}/toy.png" in capsys.readouterr().out.splitlines()
    assert json.loads((tmp_path / "toy.json").read_text())["numbers"]["images"] == 3
    with pytest.raises(UserError, match=r"there is no figure 'tyo'; there are .*toy, and all"):
        call_script(script, "tyo", *options)


def test_an_evaluation_must_be_one(stripes, tmp_path, monkeypatch):
    monkeypatch.setitem(FIGURES, "toy", TOY)
    (tmp_path / "file").write_text("no archive")
    for path, message in (("file", "can't be unpacked"), ("nowhere", "holds no evaluation")):
        with pytest.raises(UserError, match=message):
            call_script(script, "toy", f"--evaluation={tmp_path / path}", f"--workdir={tmp_path}")
