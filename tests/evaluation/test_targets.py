"""Targeted rows of an evaluation: the classes they lead to, and how they are counted."""

import dataclasses
import math

import numpy as np
import pytest

from abs_model.attacks import NORMS
from abs_model.attacks.registry import ATTACKS, Access, AttackInfo
from abs_model.evaluation import AttackSpec, Settings, SuiteError, collect, evaluate, make_tables
from abs_model.evaluation.comparison import compare
from abs_model.evaluation.report import make_content
from abs_model.evaluation.run.targets import RULES, choose_targets
from abs_model.evaluation.tables.table import ALL
from tests.evaluation.test_suite import ENTRY, suite
from tests.evaluation_fakes import stripe_classifier, stripe_dataset, towards_next_class

SETTINGS = Settings(num_clean=4, num_images=12, batch_size=5, seed=0)


def towards_targets(model, images, labels, key, *, norm, epsilon=0.5, targets=None):
    """`towards_next_class`, whose success is the target."""
    found = towards_next_class(model, images, labels, key, norm=norm, epsilon=epsilon)
    if targets is None:
        return found
    assert targets.shape == labels.shape and (targets != labels).all()
    return dataclasses.replace(found, success=model.predict(found.images) == targets)


def spec(name, targets=None, function=towards_targets, norm="linf"):
    entry = AttackInfo(title="Step", function=function, norms=NORMS, access=Access.SCORES)
    return AttackSpec(name, "tests", entry, norm, "stronger", targets=targets)


def run(workdir, *specs, model=None, **changes):
    dataset = stripe_dataset()
    settings = dataclasses.replace(SETTINGS, **changes)
    return evaluate({"m": model or stripe_classifier()}, dataset, specs, settings, workdir), dataset


def chosen(rule, model=None, count=300, seed=0):
    generator = np.random.default_rng(1)
    images = generator.random((count, 8, 8, 1), np.float32)
    labels = generator.integers(0, 5, count).astype(np.int32)
    model = model or stripe_classifier(num_classes=5)
    return choose_targets(rule, model, images, labels, np.arange(count), seed), labels, images


def test_rules_lead_to_classes_as_described():
    assert RULES == ("next_class", "least_likely", "random")
    targets, labels, _ = chosen("next_class")
    np.testing.assert_array_equal(targets, (labels + 1) % 5)
    model = stripe_classifier(num_classes=5)
    targets, labels, images = chosen("least_likely", model)
    logits = np.array(model.logits(images))
    logits[np.arange(300), labels] = np.inf
    np.testing.assert_array_equal(targets, logits.argmin(axis=1))
    assert (chosen(3)[0] == 3).all()


def test_random_targets_are_of_seed_and_image_alone_and_of_equal_chances():
    targets, labels, _ = chosen("random")
    counts = np.bincount((targets - labels) % 5, minlength=5)
    assert counts[0] == 0 and counts[1:].min() > 45  # of 75 expected
    other = stripe_classifier(num_classes=5, scale=3.0)
    np.testing.assert_array_equal(chosen("random", other)[0], targets)
    fewer, its_labels, _ = chosen("random", count=7)
    np.testing.assert_array_equal((fewer - its_labels) % 5, (targets - labels)[:7] % 5)
    assert (chosen("random", seed=1)[0] != targets).any()


def test_logits_that_are_no_numbers_are_not_the_least_likely():
    class Undecided:
        num_classes, batch_size = 3, 4

        def with_batch_size(self, batch_size):
            return self

        def logits(self, images):
            return np.array([[np.nan, 1.0, 2.0]] * len(images), np.float32)

    images, labels = np.zeros((2, 8, 8, 1), np.float32), np.array([1, 2])
    targets = choose_targets("least_likely", Undecided(), images, labels, np.arange(2), 0)
    np.testing.assert_array_equal(targets, [2, 1])


def test_success_is_reaching_the_target(tmp_path):
    # Steps towards the next class never reach the class after that.
    results, _ = run(tmp_path, spec("next", "next_class"), spec("two", "random"), spec("any"))
    reached = results.distances("m", "next")
    assert np.isfinite(reached).all() and np.isfinite(results.distances("m", "any")).all()
    for record in results.records("m", "two"):
        is_next = record.target == (record.label + 1) % 3
        assert math.isfinite(record.distance) == record.claimed == is_next
    assert {r.target == (r.label + 1) % 3 for r in results.records("m", "two")} == {True, False}
    assert {record.target for record in results.records("m", "any")} == {None}


def test_a_false_report_of_a_target_is_rejected(tmp_path):
    def liar(model, images, labels, key, *, norm, targets):
        found = towards_next_class(model, images, labels, key, norm=norm)
        return dataclasses.replace(found, success=np.ones(len(targets), bool))

    results, _ = run(tmp_path, spec("two", "random", liar))
    wrong = [r for r in results.records("m", "two") if r.target != (r.label + 1) % 3]
    assert wrong and all(r.reasons == ("not_adversarial",) for r in wrong)


def test_images_of_the_targets_class_do_not_count(tmp_path, capsys):
    results, dataset = run(tmp_path, spec("one", 1), spec("again", 1))
    labels = dataset.test.labels[:12]
    assert 0 < (labels == 1).sum() < 12 and results.complete
    assert [r.index for r in results.records("m", "one")] == np.flatnonzero(labels != 1).tolist()
    row = make_tables(results).blocks[0].rows[0]
    cell = row.cells["m"]
    assert cell.summary.num_images == cell.num_expected == (labels != 1).sum()
    # The target is the next class of 0, which `towards_targets` reaches, but not that of 2.
    reached = np.isfinite(results.distances("m", "one")[labels != 1])
    np.testing.assert_array_equal(reached, labels[labels != 1] == 0)
    compare(results, "m", "one")
    assert f"{cell.num_expected} images, others: 1" in capsys.readouterr().out


def test_a_clean_image_of_the_target_needs_no_attack_and_another_error_does(tmp_path):
    dataset = stripe_dataset()
    shown = stripe_classifier().predict(dataset.test.images.astype(np.float32) / 255)
    dataset.test.labels[:2] = (shown[:2] + 2) % 3  # of the next class when clean
    dataset.test.labels[2:4] = (shown[2:4] + 1) % 3  # of another
    results = evaluate(
        {"m": stripe_classifier()}, dataset, [spec("next", "next_class")], SETTINGS, tmp_path
    )
    records = results.records("m", "next")
    assert [r.distance for r in records[:2]] == [0, 0] and all(r.clean_success for r in records[:2])
    assert all(r.clean_error and not r.clean_success for r in records[2:4])
    assert all(r.distance > 0 for r in records[2:4])


def test_targeted_rows_are_no_part_of_a_minimum_nor_of_the_pictures(tmp_path):
    far = dataclasses.replace(spec("any"), settings={"epsilon": 0.9})
    results, dataset = run(tmp_path, spec("next", "next_class"), far)
    (block,) = make_tables(results).blocks
    assert [row.title for row in block.rows] == ["Step", ALL, "Step, targeted: next class"]
    minimum = block.rows[1]
    assert minimum.budget == "1 attack"
    assert minimum.cells["m"].summary == block.rows[0].cells["m"].summary
    assert minimum.cells["m"].summary != block.rows[2].cells["m"].summary
    assert {attack.name for attack, _ in results.closest_records("m", "linf")} == {"any"}
    content = make_content(results, dataset.test, {})
    assert set(content["gallery"]["closest"][0][0]) == {1}
    assert [attack["targeted"] for attack in content["attacks"]] == [True, False]
    assert collect(tmp_path).plan.attacks[0].targets == "next_class"


def test_titles_name_the_targets():
    shown = {spec("a", targets).display_title for targets in (None, *RULES, 7)}
    assert shown == {
        "Step", "Step, targeted: next class", "Step, targeted: least likely",
        "Step, targeted: random", "Step, targeted: class 7",
    }  # fmt: skip


def test_an_untargeted_attacks_identity_is_what_it_was():
    model = stripe_classifier()
    plain, targeted = (suite(row=ENTRY | changes)[0] for changes in ({}, {"targets": "random"}))
    assert "targets" not in plain.identity(model)
    assert targeted.identity(model) == plain.identity(model) | {"targets": "random"}


@pytest.mark.parametrize("targets", ["next", "nxt_class", -1, True, 1.0, (1, 2)])
def test_faulty_targets_are_named(targets):
    with pytest.raises(SuiteError, match=r"attacks\.row: targets must be one of next_class, .* or"):
        suite(row=ENTRY | {"targets": targets})


def test_what_cannot_be_targeted_is_not_tried_and_says_so():
    model = stripe_classifier()
    for name, entry in ATTACKS.items():
        row = {"attack": name, "norm": entry.norms[0], "group": "paper", "targets": "random"}
        settings = {"loss": "ce"} if name == "apgd" else {}
        refusal = suite(row=row | {"settings": settings})[0].why_not(model)
        untargetable = name in (
            "cutting_planes", "deepfool", "flip_pixels", "gaussian_noise", "greedy_pixels",
            "latent_descent", "salt_and_pepper", "transfer",
        )  # fmt: skip
        assert (refusal == "cannot be targeted") == untargetable, name
        assert untargetable or refusal is None
    (row,) = suite(row=ENTRY | {"targets": 3})
    assert row.why_not(model) == "its target is class 3, and the model has 3"
    # The DLR with targets needs a fourth class.
    (row,) = suite(row=ENTRY | {"attack": "apgd", "settings": {"epsilon": 1}, "targets": "random"})
    assert row.why_not(model) == "requires 4 classes, and the model has 3"


def test_an_attack_of_the_catalogue_is_launched_with_its_targets(tmp_path):
    settings = {"epsilon": 3.0, "step_size": 0.5, "num_steps": 10}
    (row,) = suite(row=ENTRY | {"settings": settings, "targets": "random"})
    results, _ = run(tmp_path, row)
    records = results.records("m", "row")
    assert all(record.prediction == record.target for record in records)
    assert {(record.target - record.label) % 3 for record in records} == {1, 2}
