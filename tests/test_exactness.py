"""Exact distances of linear classifiers, and the benchmark that measures attacks by them."""

import itertools
import json

import numpy as np
import pytest

from abs_model._runtime.errors import UserError
from abs_model.attacks.registry import ATTACKS
from abs_model.data import Dataset, Split
from benchmarks import exactness
from benchmarks.beds import SHAPE, make_bed, shrink
from benchmarks.candidates import OURS, Candidate, ours
from benchmarks.linear import exact_distances, exact_logits, make_classifier
from tests.conftest import ROOT, call_script


def tiny_classifier(shape, num_classes, seed=0):
    """Three or so classes that meet within [0, 1]."""
    weights = np.random.default_rng(seed).normal(size=(np.prod(shape), num_classes))
    return make_classifier(weights, -0.5 * weights.sum(0), shape, 4, "tiny")


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_distances_of_two_pixels_are_those_of_a_search_of_the_square(norm):
    shape = (1, 2, 1)
    model = tiny_classifier(shape, 4)
    # Black, white, and in between.
    ends = np.array([0.0, 0.1, 0.5, 0.9, 1.0])
    images = np.array(list(itertools.product(ends, ends)), np.float32).reshape(-1, *shape)
    labels = exact_logits(model, images).argmax(1)
    line = np.linspace(0, 1, 401)
    square = np.array(list(itertools.product(line, line)))
    predictions = exact_logits(model, square).argmax(1)
    found = exact_distances(model, images, labels, norm)
    for image, label, distance in zip(images, labels, found, strict=True):
        change = square[predictions != label] - image.reshape(-1)
        away = np.abs(change).max(1) if norm == "linf" else np.linalg.norm(change, axis=1)
        assert distance <= away.min() <= distance + 2 / 400
    # The ends of the range play a part.
    assert np.any(found > exact_distances(model, images, labels, norm, box=False) + 0.01)


@pytest.mark.parametrize("channels", [1, 2])
def test_fewest_pixels_are_those_of_trying_all_sets(channels):
    shape = (2, 3, channels)
    weights = tiny_classifier(shape, 3).weights
    # So far ahead that several pixels are needed.
    model = make_classifier(weights, np.array([3.0, 0.0, 0.0]), shape, 4, "tiny")
    images = np.random.default_rng(1).uniform(size=(20, *shape)).astype(np.float32)
    labels = exact_logits(model, images).argmax(1)
    corners = np.array(list(itertools.product([0.0, 1.0], repeat=2 * 3 * channels)))
    corners = corners.reshape(-1, *shape)
    expected = np.full(20, np.inf)
    for chosen in itertools.product([False, True], repeat=6):
        mask = np.reshape(chosen, (2, 3, 1))
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            tried = np.where(mask, corners, image)
            if np.any(exact_logits(model, tried).argmax(1) != label):
                expected[row] = min(expected[row], sum(chosen))
    found = exact_distances(model, images, labels, "l0")
    np.testing.assert_array_equal(found, expected)
    assert len(set(found)) >= 3


@pytest.mark.parametrize("norm", ["l2", "linf", "l0"])
def test_wrong_images_are_at_0_and_what_nothing_fools_is_infinitely_far(norm):
    model = make_classifier(np.eye(2), [5.0, 0.0], (1, 2, 1), 4, "sure")
    images = np.full((2, 1, 2, 1), 0.5)
    np.testing.assert_array_equal(exact_distances(model, images, [1, 0], norm), [0, np.inf])


@pytest.fixture(scope="module")
def beds(mnist_sample):
    train, test = (
        Split(mnist_sample[f"{part}_images"].reshape(-1, 28, 28, 1), mnist_sample[f"{part}_labels"])
        for part in ("train", "test")
    )
    return {name: make_bed(name, train, test, 12) for name in ("gray", "black")}


def test_the_range_of_images_plays_a_part_on_the_black_bed_only(beds):
    for name, bed in beds.items():
        assert bed.images.shape == (12, *SHAPE) and bed.model.batch_size == 12
        np.testing.assert_array_equal(bed.model.predict(bed.images), bed.labels)
        np.testing.assert_allclose(255 * bed.images, np.round(255 * bed.images), atol=1e-4)
        for norm in ("l2", "linf"):
            needed, free = (
                exact_distances(bed.model, bed.images, bed.labels, norm, box=box)
                for box in (True, False)
            )
            assert np.all(needed > 1.01 * free) == (name == "black")
            if name == "gray":
                np.testing.assert_allclose(needed, free, rtol=1e-9)
    ends = np.isin(beds["black"].images, [0.0, 1.0])
    assert 0.5 < ends.mean() and (beds["black"].images == 1.0).mean() > 0.02


def test_small_images_show_what_large_ones_do(mnist_sample):
    image = np.zeros((1, 28, 28, 1), np.uint8)
    image[0, 2:5, 23:26] = 255
    image[0, 5:8, 2:5] = 85
    image[0, 0] = 255  # outermost
    black, gray = shrink(image, "black"), shrink(image, "gray")
    expected = np.zeros((8, 8))
    expected[0, 7], expected[1, 0] = 1.0, 0.5  # half brighter
    np.testing.assert_allclose(black[0, :, :, 0], expected, atol=0.5 / 15 + 1e-6)
    np.testing.assert_allclose(gray, 0.25 + 0.5 * black, atol=1 / 255)


def lead(bed, share):
    """Images that lie on the way to the nearest boundary of the gray bed, at a share of it."""
    weights = np.asarray(bed.model.weights, np.float64)
    flat = bed.images.reshape(len(bed.images), -1).astype(np.float64)
    logits = exact_logits(bed.model, flat)
    found = []
    for image, label, scores in zip(flat, bed.labels, logits, strict=True):
        normals = weights - weights[:, [label]]
        values = scores - scores[label]
        away = np.full(10, np.inf)
        others = np.arange(10) != label
        away[others] = -values[others] / np.linalg.norm(normals[:, others], axis=0)
        other = away.argmin()
        way = -values[other] / (normals[:, other] @ normals[:, other]) * normals[:, other]
        found.append(image + share * way)
    return np.reshape(found, bed.images.shape)


def test_a_measurement_is_of_what_was_found(beds):
    bed = beds["gray"]
    shares = np.full((12, 1, 1, 1), 1.25)
    shares[0] = 0.5  # does not get across
    images = (1 - shares) * lead(bed, 0.0) + shares * lead(bed, 1.0)
    images[1] = lead(bed, 1.5)[1]
    found = exactness.measure(bed, Candidate("A", OURS, "l2", {"steps": 3}, lambda: images))
    assert found["ratio_median"] == pytest.approx(1.25, rel=1e-4)
    assert found["ratio_worst"] == pytest.approx(1.5, rel=1e-4)
    assert found["adversarial"] == found["one_by_one"] == 11 / 12
    rounded = exact_logits(bed.model, np.round(images * 255) / 255).argmax(1) != bed.labels
    assert found["eight_bits"] == rounded.mean()
    none = exactness.measure(bed, Candidate("B", OURS, "l2", {}, lambda: bed.images))
    assert none["ratio_median"] is None and none["adversarial"] == 0
    assert exactness.table([found, none, found | {"bed": "black"}], "gray").splitlines()[2:] == [
        f"| A (steps 3) | L2 | ours | 1.250 | 1.500 | 92% | 92% | {rounded.mean():.0%} |",
        "| B | L2 | ours | - | - | 0% | 0% | 0% |",
    ]
    with pytest.raises(ValueError, match=r"ours's C left \[0, 1\]"):
        exactness.measure(bed, Candidate("C", OURS, "l2", {}, lambda: images + 1))


def test_every_attack_of_ours_without_an_epsilon_is_measured(beds):
    measured = {(candidate.title, candidate.norm) for candidate in ours(beds["gray"])}
    left_out = {
        (entry.title, norm) for entry in ATTACKS.values() for norm in entry.norms
    } - measured
    assert {title for title, _ in left_out} == {
        "APGD", "PGD", "Square", "Cutting planes", "Pixel flips", "Latent Descent"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["gray", "black"])
def test_attacks_reach_the_exact_distances(beds, name):
    wanted = {"DeepFool": 1.021, "FAB": 1.02, "Greedy pixels": 1.0}
    for candidate in ours(beds[name]):
        if candidate.title in wanted:
            found = exactness.measure(beds[name], candidate)
            assert found["ratio_median"] <= wanted[candidate.title]
            assert found["adversarial"] == found["one_by_one"] == 1.0


def test_the_documented_tables_are_those_of_the_measurements():
    text = (ROOT / "docs" / "exactness.md").read_text()
    result = json.loads((ROOT / "benchmarks" / "exactness.json").read_text())
    for bed in ("gray", "black"):
        assert exactness.table(result["measurements"], bed) in text


def test_measured_attacks_come_as_close_as_documented():
    """The docs' claims: to 1.02 with gradients, to 1.05 along the boundary; all beyond doubt."""
    gradients = ("BIM", "MIM", "Carlini-Wagner", "DeepFool", "FAB", "FMN", "Fast gradient")
    limits = dict.fromkeys((*gradients, "Greedy pixels"), 1.0205)
    limits |= dict.fromkeys(("Boundary", "HopSkipJump"), 1.05)
    result = json.loads((ROOT / "benchmarks" / "exactness.json").read_text())
    own = [each for each in result["measurements"] if each["library"] == OURS]
    judged = [each for each in own if each["attack"] in limits]
    assert {each["attack"] for each in judged} == limits.keys()
    assert all(each["ratio_median"] <= limits[each["attack"]] for each in judged)
    # But for images that the surrogate of Transfer misclassifies as they are.
    beyond_doubt = [each for each in own if each["attack"] != "Transfer"]
    assert all(each["adversarial"] == each["one_by_one"] == 1.0 for each in beyond_doubt)


@pytest.fixture
def no_training(beds, mnist_sample, monkeypatch):
    """The command measures on the beds that there are already."""
    split = Split(mnist_sample["train_images"].reshape(-1, 28, 28, 1), mnist_sample["train_labels"])
    dataset = Dataset("sample", 10, split, split, split)
    monkeypatch.setattr(exactness.abs_model, "load_dataset", lambda name: dataset)
    monkeypatch.setattr(exactness, "make_bed", lambda name, *_: beds[name])


def test_an_unknown_attack_is_named(no_training):
    with pytest.raises(UserError, match="--attacks: there is no 'Fab'; there are "):
        call_script(exactness, "--images", "5", "--attacks", "Fab")


def test_a_stopped_run_goes_on(monkeypatch, no_training, tmp_path, capsys):
    monkeypatch.setattr(exactness, "git_commit", lambda: "abc")
    path = tmp_path / "found.json"
    arguments = ["--images", "3", "--attacks", "Idle", "Idler", f"--json={path}"]
    ran = []

    def idle(bed):
        def run(title):
            if title == "Idler" and bed.name == "black" and not ran.count("Idler") > 1:
                ran.append(title)
                raise KeyboardInterrupt
            ran.append(title)
            return bed.images

        return [
            Candidate(title, OURS, "l2", {}, lambda title=title: run(title))
            for title in ("Idle", "Idler")
        ]

    monkeypatch.setattr(exactness, "candidates", idle)
    with pytest.raises(KeyboardInterrupt):
        call_script(exactness, *arguments)
    assert len(json.loads(path.read_text())["measurements"]) == 3
    call_script(exactness, *arguments)
    assert ran == ["Idle", "Idler", "Idle", "Idler", "Idler"]
    assert len(json.loads(path.read_text())["measurements"]) == 4
    # Other code, another result.
    monkeypatch.setattr(exactness, "git_commit", lambda: "def")
    call_script(exactness, *arguments)
    assert ran[5:] == ["Idle", "Idler", "Idle", "Idler"]
    assert capsys.readouterr().out.count("| Idler | L2 | ours | - | - | 0% | 0% | 0% |") == 4
