import base64
import dataclasses
import html
import json
import math
import re
import shutil
import subprocess
import zlib

import numpy as np
import pytest

from abs_model._runtime.errors import UserError
from abs_model.attacks import NORMS
from abs_model.attacks.registry import Access, AttackInfo
from abs_model.evaluation import AttackSpec, Settings, collect, evaluate, make_tables
from abs_model.evaluation.report import make_content, reconstruct, sources, to_html
from abs_model.evaluation.tables.results import Results
from scripts import report
from tests.conftest import call_script
from tests.evaluation_fakes import (
    GenerativeClassifier,
    liar,
    stripe_classifier,
    stripe_dataset,
    towards_next_class,
)

NASTY = """<b>"x"</b></script><script>alert('&amp;')"""
NAMES = ("plain", "generative")
NUM_IMAGES = 10


def generative():
    """A model as `--models` takes it: package.module:function."""
    return stripe_classifier(cls=GenerativeClassifier, scale=0.2)


def retrained():
    return stripe_classifier(cls=GenerativeClassifier, scale=0.3)


def suite():
    def spec(name, function, norm, group, **settings):
        entry = AttackInfo(title=name.title(), function=function, norms=NORMS, access=Access.SCORES)
        return AttackSpec(name, "tests", entry, norm, group, settings=settings)

    return [
        spec("step", towards_next_class, "l2", "paper", epsilon=3.0),
        spec("long_step", towards_next_class, "l2", "stronger", epsilon=5.0),
        spec("step_linf", towards_next_class, "linf", "stronger", epsilon=0.4),
        spec("liar", liar(lambda images: images), "linf", "stronger"),
    ]


def run(workdir, models=None, shape=(8, 8, 1), **about):
    dataset = stripe_dataset(shape=shape)
    dataset.test.labels[2] = (dataset.test.labels[2] + 1) % 3
    if models is None:
        models = dict(zip(NAMES, (stripe_classifier(), generative()), strict=True))
    settings = Settings(num_clean=30, num_images=NUM_IMAGES, batch_size=4, seed=0)
    about = {"dataset": {"name": "stripes", "image_shape": list(shape)}, **about}
    return evaluate(models, dataset, suite(), settings, workdir, about=about), dataset


def models_from(**paths):
    return [{"name": name, "path": path, "binary": False} for name, path in paths.items()]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    own = "tests.evaluation.test_report"
    run(folder, models_from=models_from(plain="gone", generative=f"{own}:generative"))
    return folder


@pytest.fixture
def stripes(monkeypatch):
    """Makes the data set of the evaluation one that can be loaded."""
    dataset = stripe_dataset()
    monkeypatch.setattr(sources, "load_dataset", lambda **section: dataset)


@pytest.fixture
def page(workdir, tmp_path, stripes):
    """The page that the script writes."""
    call_script(report, str(workdir), f"--output={tmp_path / 'page.html'}")
    return (tmp_path / "page.html").read_text()


def content_of(page):
    (text,) = re.findall(r'<script type="application/json" id="content">(.*?)</script>', page, re.S)
    return json.loads(text)


def unpack(packed, dtype=np.uint8):
    return np.frombuffer(zlib.decompress(base64.b64decode(packed)), dtype)


def infinite(value):
    return math.inf if value is None else value


def test_the_page_needs_nothing_else(page):
    # Namespaces of XML are names, not addresses.
    text = re.sub(r'"http://www\.w3\.org/[^"]*"', "", page)
    assert "://" not in text.replace(json.dumps(content_of(page), separators=(",", ":")), "")
    assert re.findall(r'(?:src|href)="(?!data:)', text) == []
    assert not re.search(r"@import|url\(|@@", text)
    assert "default-src 'none'" in page


def test_it_holds_the_figures_of_the_tables(page, workdir):
    content, tables = content_of(page), make_tables(collect(workdir))
    assert [model["name"] for model in content["models"]] == list(NAMES)
    assert [model["clean"] for model in content["models"]] == list(tables.clean.values())
    for found, block in zip(content["blocks"], tables.blocks, strict=True):
        assert content["norms"][found["norm"]]["key"] == block.norm
        for shown, row in zip(found["rows"], block.rows, strict=True):
            assert (shown["title"], shown["budget"]) == (row.title, row.budget)
            for cell, name in zip(shown["cells"], NAMES, strict=True):
                expected = row.cells[name].summary
                shown_figures = ("median", "accuracy") if cell["median"] else ("accuracy",)
                assert (cell["median"] is not None) == row.cells[name].minimizes
                for figure in shown_figures:
                    values = dataclasses.astuple(getattr(expected, figure))
                    assert tuple(map(infinite, cell[figure])) == values
                assert cell["num_rejected"] == row.cells[name].num_rejected
    results = collect(workdir)
    assert (content["commits"], content["devices"]) == (results.commits, results.devices)
    refused = [row for row in content["blocks"][1]["rows"] if row["title"] == "Liar"]
    assert refused[0]["cells"][0]["rejections"] == {"not_adversarial": NUM_IMAGES - 1}


def test_it_holds_what_the_ledgers_say_of_each_image(page, workdir):
    content, results = content_of(page), collect(workdir)
    for found, name in zip(content["gallery"]["found"], NAMES, strict=True):
        for columns, attack in zip(found, results.plan.attacks, strict=True):
            records = results.records(name, attack.name)
            assert columns["index"] == [record.index for record in records]
            assert columns["prediction"] == [record.prediction for record in records]
            assert columns["queries"] == [record.num_queries for record in records]
            distances = [infinite(each) for each in columns["distance"]]
            assert distances == [record.distance for record in records]
    for number, norm in enumerate(results.norms):
        closest = results.closest(NAMES[1], norm, ("paper", "stronger"))
        curve = content["curves"][number][1]["distances"]
        np.testing.assert_array_equal([infinite(each) for each in curve], np.sort(closest))
        for index, (attack, record) in enumerate(results.closest_records(NAMES[1], norm)):
            chosen = content["gallery"]["closest"][1][number][index]
            assert content["attacks"][chosen]["name"] == attack.name
            assert record.distance == closest[index]


@pytest.mark.parametrize("shape", [(8, 8, 1), (6, 5, 3)])
def test_images_come_back_to_within_a_gray_level(shape, tmp_path):
    models = {"m": stripe_classifier(shape)}
    results, dataset = run(tmp_path, models, shape)
    content = make_content(results, dataset.test, {}, num_images=7)
    gallery = content["gallery"]
    assert gallery["num_images"] == 7 and gallery["shape"] == list(shape)
    clean = unpack(gallery["clean"]).reshape(-1, *shape)
    np.testing.assert_array_equal(clean, dataset.test.images[:7])
    columns, records = gallery["found"][0][0], results.records("m", "step")[:7]
    steps = unpack(columns["perturbations"], np.int8).reshape(-1, *shape)
    assert columns["place"] == [0, 1, None, 2, 3, 4, 5]
    assert len(steps) == len(columns["scales"]) == 6
    for record, place in zip(records, columns["place"], strict=True):
        if place is not None:
            shown = clean[record.index] / 255 + columns["scales"][place] * steps[place] / 127
            np.testing.assert_allclose(shown, record.image, atol=0.5 / 127 * 1.01)
            assert np.abs(steps[place]).max() == 127


def test_reconstructions_are_those_of_clean_and_closest_images(page, workdir):
    content, results = content_of(page), collect(workdir)
    plain, found = content["gallery"]["reconstructions"]
    assert plain is None
    model = generative()
    images = stripe_dataset().test.images[:NUM_IMAGES].astype(np.float32) / 255
    assert found["clean"]["indices"] == list(range(NUM_IMAGES))
    energies = model.weighted_energies(model.infer(images))
    np.testing.assert_allclose(found["clean"]["energies"], energies, rtol=1e-6)
    closest = results.closest_records("generative", "l2")
    held = [record for _, record in closest if record.image is not None]
    assert found["closest"][0]["indices"] == [record.index for record in held]
    adversarial = np.stack([record.image for record in held])
    energies = model.weighted_energies(model.infer(adversarial))
    np.testing.assert_allclose(found["closest"][0]["energies"], energies, rtol=1e-6)
    lowest = np.argmin(found["closest"][0]["energies"], axis=1)
    np.testing.assert_array_equal(lowest, [record.prediction for record in held])
    shown = unpack(found["closest"][0]["images"]).reshape(len(held), 3, 8, 8, 1)
    expected = np.clip(model.infer(adversarial).reconstructions, 0, 1) * 255
    np.testing.assert_allclose(shown, expected, atol=0.501)


def test_names_are_never_html(workdir):
    results = collect(workdir)
    plan = results.plan
    attacks = [
        dataclasses.replace(attack, title=NASTY, ledgers={NASTY: attack.ledgers["plain"]})
        for attack in plan.attacks
    ]
    about = {**plan.about, "dataset": {"name": NASTY}}
    plan = dataclasses.replace(plan, models=[NASTY], attacks=attacks, about=about)
    found = {(NASTY, attack.name): results.found["plain", attack.name] for attack in attacks}
    renamed = Results(plan, {NASTY: results.clean["plain"]}, found)
    page = to_html(make_content(renamed, stripe_dataset().test, {}, notes=[NASTY, "@@STYLE@@"]))
    assert content_of(page)["models"][0]["name"] == NASTY
    assert content_of(page)["notes"] == [NASTY, "@@STYLE@@"]
    assert "<b>" not in page and page.count("</script>") == 2
    assert f"Accuracy and robustness: {html.escape(NASTY)}" in page


def test_a_model_that_is_gone_is_said_to_be(workdir, tmp_path, stripes, capfd):
    call_script(report, str(workdir), f"--output={tmp_path / 'page.html'}")
    (note,) = content_of((tmp_path / "page.html").read_text())["notes"]
    assert "by model 'plain': there is no pretrained model 'gone'" in note
    assert note in capfd.readouterr().err


def test_a_model_that_changed_since_is_left_out(tmp_path, monkeypatch):
    paths = {"generative": "tests.evaluation.test_report:retrained"}
    results, dataset = run(tmp_path, {"generative": generative()}, models_from=models_from(**paths))
    monkeypatch.setattr(sources, "load_dataset", lambda **section: dataset)
    found = sources.open_sources(tmp_path, results.plan)
    assert not found.models and "no longer the model that was evaluated" in found.notes[0]
    assert found.test is dataset.test


def test_other_images_than_those_attacked_are_refused(workdir, monkeypatch, capfd):
    other = stripe_dataset(count=39)
    monkeypatch.setattr(sources, "load_dataset", lambda **section: other)
    assert_fails([str(workdir)], "the test images of stripes are not those", capfd)
    assert not (workdir / "report.html").exists()


def test_what_has_no_evaluation_is_refused(tmp_path, workdir, capfd):
    assert_fails([str(tmp_path)], "holds no evaluation", capfd)
    assert_fails([str(workdir), "--num_images=0"], "must be an integer of at least 1", capfd)
    assert_fails([str(workdir)], "must be a TFDS data set", capfd)


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path, capfd):
    absent = tmp_path / "absent"
    assert_fails(
        [str(absent), f"--output={absent}/a.html"],
        f"--output: there is no directory {absent}",
        capfd,
    )
    assert_fails([str(absent), f"--output={tmp_path}"], "must be a file", capfd)


def assert_fails(arguments, message, capfd):
    with pytest.raises((UserError, SystemExit)) as stopped:
        call_script(report, *arguments)
    assert message in f"{stopped.value}{capfd.readouterr().err}"


def test_a_page_that_cannot_be_written_leaves_the_old_one(
    workdir, tmp_path, stripes, monkeypatch, capfd
):
    old = tmp_path / "page.html"
    old.write_text("old")

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("abs_model._runtime.atomic_files.os.replace", fail)
    assert_fails([str(workdir), f"--output={old}"], "the disk is full", capfd)
    assert old.read_text() == "old" and list(tmp_path.iterdir()) == [old]


def test_an_unfinished_evaluation_can_be_shown(workdir):
    results = collect(workdir)
    found = {
        key: {index: record for index, record in records.items() if index % 2}
        for key, records in results.found.items()
        if key[1] != "long_step"
    }
    part = Results(results.plan, results.clean, found)
    content = make_content(part, stripe_dataset().test, {})
    assert not content["complete"]
    assert content["gallery"]["closest"][0][0][:4] == [None, 0, None, 0]
    json.dumps(content, allow_nan=False)
    assert reconstruct(generative(), "generative", part, stripe_dataset().test.images[:4])


needs_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")


def draw(path, choice):
    """The page as a browser draws it, with a choice of images."""
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000",
        "--enable-logging=stderr", f"--user-data-dir={path.parent / 'profile'}", "--dump-dom",
    ]  # fmt: skip
    address = f"file://{path}#images?{choice}"
    done = subprocess.run([*command, address], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    return done.stdout


@needs_browser
def test_a_browser_draws_it(page, tmp_path):
    drawn = draw(tmp_path / "page.html", "norm=l2&model=1&attack=closest")
    cards = drawn.count('class="card"')
    gallery = content_of(page)["gallery"]
    places = [
        gallery["found"][1][attack]["place"][index]
        for index, attack in enumerate(gallery["closest"][1][0])
    ]
    assert cards == NUM_IMAGES - places.count(None) > 3
    assert drawn.count("<canvas") == 3 * cards


@needs_browser
def test_a_browser_says_how_far_attacks_were_tried(tmp_path):
    entry = AttackInfo(title="Step", function=towards_next_class, norms=NORMS, access=Access.SCORES)
    weak = AttackSpec("weak", "tests", entry, "linf", "stronger", settings={"epsilon": 0.02})
    settings = Settings(num_clean=4, num_images=4, batch_size=4, seed=0)
    dataset = stripe_dataset()
    results = evaluate({"m": stripe_classifier()}, dataset, [weak], settings, tmp_path / "run")
    content = make_content(results, dataset.test, {})
    assert content["curves"][0][0]["limit"] == content["attacks"][0]["limits"][0] == 0.02
    (tmp_path / "page.html").write_text(to_html(content))
    drawn = draw(tmp_path / "page.html", "norm=linf&model=0&attack=closest")
    assert drawn.count("tried to 0.02 only") == 2 and ">at 0.02<" in drawn
    # An attack within epsilon has no median, and neither has a minimum over such attacks.
    assert "no median: the attack does not look" in drawn and "∞</b>" not in drawn
    assert not re.search(r">(false|null|undefined|NaN)<", drawn)
    # Beyond it, where the curve is read at rest, nothing is known.
    assert re.search(r'<div class="panels".*?</th><td>\N{EN DASH}</td>', drawn, re.S)
