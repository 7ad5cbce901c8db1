"""A published evaluation: what it holds, and going on from it."""

import json
import math
import shutil
import tarfile

import numpy as np
import pytest

import abs_model
from abs_model.evaluation import collect, evaluate, make_tables, pack, show
from abs_model.evaluation.comparison import compare
from abs_model.evaluation.run.archive import lost_images
from abs_model.evaluation.run.batch_log import TIMES_FILE
from abs_model.evaluation.run.workdir import model_identity
from tests.conftest import ROOT, run_script
from tests.evaluation.test_evaluation import SETTINGS, spec
from tests.evaluation.test_tables import make_results, planned, records
from tests.evaluation_fakes import stripe_classifier, stripe_dataset
from tests.forked_scripts import run_forked

PUBLISH = ROOT / "scripts" / "publish_results.py"
COMPARE = ROOT / "scripts" / "compare_attack.py"
SUITE = [
    spec(name="near", norm="l2", settings={"epsilon": 3.0}),
    spec(name="far", norm="l2", settings={"epsilon": 5.0}),
    spec(name="other", norm="linf"),
]


@pytest.fixture
def published(tmp_path):
    """A workdir, and what is unpacked from what was published of it."""
    workdir, unpacked = tmp_path / "workdir", tmp_path / "unpacked"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "examples_gone_l2.png").touch()
    results = evaluate({"m": stripe_classifier()}, stripe_dataset(), SUITE, SETTINGS, workdir)
    show(workdir, results, {"m": stripe_classifier()}, stripe_dataset(), None)
    done = run_forked(PUBLISH, str(workdir), str(tmp_path / "folder"))
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / "folder" / "workdir.tar.xz") as archive:
        archive.extractall(unpacked, filter="data")
    return workdir, unpacked


def test_a_published_evaluation_has_the_same_tables_and_the_closest_images(published):
    folder = published[0].parent / "folder"
    assert not (folder / "examples_gone_l2.png").exists() and (folder / "curves.png").exists()
    whole, part = (collect(workdir) for workdir in published)
    assert make_tables(part) == make_tables(whole)
    assert part.probes == whole.probes and "m" in part.probes
    for norm in whole.norms:
        pairs = zip(whole.closest_records("m", norm), part.closest_records("m", norm), strict=True)
        for (_, expected), (_, found) in pairs:
            np.testing.assert_array_equal(found.image, expected.image)
    closest = {(attack.name, record.index) for attack, record in whole.closest_records("m", "l2")}
    for attack in SUITE[:2]:
        for record in part.records("m", attack.name):
            assert (record.image is not None) == ((attack.name, record.index) in closest)
    assert {len(found) for found in part.found.values()} == {SETTINGS.num_images}


def test_going_on_from_a_published_evaluation_attacks_only_what_is_new(published):
    _, unpacked = published
    before = (unpacked / TIMES_FILE).read_text().splitlines()
    models = {"m": stripe_classifier(), "new": stripe_classifier(name="new", scale=0.3)}
    assert evaluate(models, stripe_dataset(), SUITE, SETTINGS, unpacked).complete
    done = (unpacked / TIMES_FILE).read_text().splitlines()
    assert done[: len(before)] == before
    assert {json.loads(line)["model"] for line in done[len(before) :]} == {"new"}


def test_a_closest_image_that_was_not_kept_is_told(published):
    workdir, unpacked = published
    assert lost_images(collect(workdir)) == lost_images(collect(unpacked)) == []
    models = {"m": stripe_classifier()}
    part = evaluate(models, stripe_dataset(), SUITE[1:], SETTINGS, unpacked)
    (line,) = lost_images(part)
    expected = [
        record.index
        for attack, record in collect(workdir).closest_records("m", "l2")
        if attack.name == "near" and record.is_verified
    ]
    assert line == f"m l2, far: images {', '.join(map(str, expected))}"


def test_the_published_table_is_of_the_shipped_models():
    """A change of `model_identity` would have all of it done again, here and by users."""
    with tarfile.open(ROOT / "results" / "table1" / "workdir.tar.xz") as archive:
        plan = json.load(archive.extractfile("evaluation.json"))
        for name in {*plan["models"]} - {"nearest_neighbor"}:  # which needs the data set
            ledger = f"{plan['clean_ledgers'][name]}/settings.json"
            assert json.load(archive.extractfile(ledger))["model"] == model_identity(
                abs_model.load(name)
            )


@pytest.mark.parametrize("script", [PUBLISH, COMPARE], ids=lambda path: path.stem)
def test_a_script_finds_all_it_imports(script):
    """Forked processes have the imports and the path of the tests."""
    done = run_script(str(script), "--help")
    assert done.returncode == 0 and "usage" in done.stdout, done.stderr


def test_an_attack_is_compared_with_the_others(published):
    workdir, _ = published
    results = collect(workdir)
    near, far = (results.distances("m", name) for name in ("near", "far"))
    done = run_forked(COMPARE, str(workdir), "m", "far")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"images with no other closer: {(far <= near).sum()}" in lines
    assert f"images with no other closer by more than 1.00%: {(far <= 1.01 * near).sum()}" in lines
    assert f"closest there: near, {(near < far).sum()}" in lines
    for arguments, message in (
        (("m", "nothing"), "no attack 'nothing' on m; there are near, far, other"),
        (("n", "far"), "no model 'n'; there are m"),
        (("m", "other"), "other is the only attack on m in linf"),
        (("m", "far", "--thorough"), "does not name its data set"),
    ):
        done = run_forked(COMPARE, str(workdir), *arguments)
        assert done.returncode == 2 and message in done.stderr


def test_an_attack_is_compared_only_as_far_as_it_and_the_others_looked(capsys):
    attacks = [
        planned(name, models=("m",), epsilon=epsilon) for name, epsilon in (("a", 1), ("b", 2))
    ]
    attacks.append(planned("c", models=("m",), epsilon=0.5))
    found = {
        ("m", "a"): records([0.5, 0.9, math.inf, math.inf]),
        ("m", "b"): records([0.6, 0.8, 1.5, math.inf]),
        ("m", "c"): records([math.inf] * 4),
    }
    results = make_results(attacks, found, models=("m",))
    for name, limit, no_closer in (("a", 1, 1), ("b", 1, 1), ("c", 0.5, 0)):
        compare(results, "m", name)
        lines = capsys.readouterr().out.splitlines()
        left_out = 4 - (1 if name == "c" else 2)
        assert f"images left out, with nothing within {limit:g}: {left_out}" in lines
        assert f"images with no other closer: {no_closer}" in lines


def test_the_archive_of_an_evaluation_is_always_the_same(published, monkeypatch):
    workdir, _ = published
    before = pack(workdir, collect(workdir))
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert pack(workdir, collect(workdir)) == before


def test_a_workdir_without_tables_or_with_older_ones_is_refused(published, tmp_path):
    workdir, unpacked = published
    older = tmp_path / "older"
    shutil.copytree(workdir, older)
    lines = next(older.glob("ledger/m/far/*/all.jsonl"))
    lines.write_bytes(b"\n".join(lines.read_bytes().split(b"\n")[:-2]) + b"\n")
    bare = tmp_path / "bare"
    shutil.copytree(workdir, bare)
    (bare / "curves.png").unlink()
    for where, message in (
        (unpacked, "are not those of its ledger"),
        (bare, "or lack their pictures"),
        (older, "are not those of its ledger"),
        (tmp_path, "holds no evaluation"),
        (tmp_path / "nowhere", "there is no directory"),
    ):
        done = run_forked(PUBLISH, str(where), str(tmp_path / "out"))
        assert done.returncode == 2 and message in done.stderr
        assert not (tmp_path / "out").exists()
    assert json.loads((workdir / "results.json").read_text())["complete"] is True
