"""Attacks declare themselves; one of another package is registered like those of this one."""

import ml_collections
import pytest

from abs_model.attacks import ATTACKS, NORMS, Access, register, registry, run
from abs_model.evaluation import Settings, evaluate, read_suite
from tests.conftest import ROOT
from tests.evaluation_fakes import stripe_classifier, stripe_dataset


@pytest.fixture
def gray():
    """A toy attack, as another package would register it."""
    before = dict(ATTACKS)

    @register(title="Gray", norms=("l2",), access=Access.DECISIONS, smoke={"level": 0.5})
    def gray(model, images, labels, key, *, level=0.5, progress=None):
        def attack(query, batch):
            query.logits(batch.images)
            query.logits(batch.images * 0 + level)

        return run(attack, model, images, labels, key, norm="l2", norms=("l2",), progress=progress)

    yield gray
    ATTACKS.clear()
    ATTACKS.update(before)


def test_a_registered_attack_needs_one_configuration_row(gray, tmp_path):
    config = ml_collections.ConfigDict(
        {"attacks": {"gray": {"attack": "gray", "norm": "l2", "group": "stronger"}}}
    )
    (spec,) = read_suite(config)
    assert spec.display_title == "Gray" and spec.why_not(stripe_classifier()) is None
    settings = Settings(num_clean=4, num_images=4, batch_size=4, seed=0)
    results = evaluate(
        {"m": stripe_classifier()}, stripe_dataset(), [spec], settings, tmp_path / "evaluation"
    )
    (attack,) = results.plan.attacks
    assert attack.title == "Gray"
    assert len(results.records("m", "gray")) == 4


def test_its_source_is_part_of_the_fingerprint_unlike_that_of_built_in_attacks(gray):
    rows = {
        "gray": {"attack": "gray", "norm": "l2", "group": "stronger"},
        "bim": {"attack": "bim", "norm": "l2", "group": "stronger"},
    }
    model = stripe_classifier()
    suite = read_suite(ml_collections.ConfigDict({"attacks": rows}))
    assert {spec.name: "source" in spec.identity(model) for spec in suite} == {
        "gray": True,
        "bim": False,
    }


def test_names_and_norms_are_checked(gray):
    with pytest.raises(ValueError, match="there is an attack 'gray' already"):
        register(title="", norms=("l2",), access=Access.SCORES)(gray)

    def other():
        pass

    with pytest.raises(ValueError, match=f"norms must be of {', '.join(NORMS)}"):
        register(title="", norms=("l1",), access=Access.SCORES)(other)
    assert "other" not in ATTACKS


def test_the_documented_table_is_that_of_the_declarations():
    text = (ROOT / "docs" / "attacks.md").read_text("utf-8")
    assert registry.markdown_table() in text, registry.markdown_table()


def test_every_attack_has_a_source_and_a_smoke_budget():
    for name, info in ATTACKS.items():
        assert info.source and info.smoke, name
        assert set(info.smoke) | set(info.resources) <= set(info.parameters), name
        assert set(info.limits.values()) == {"epsilon"} or set(info.limits.values()) <= set(
            info.parameters
        ), name


def test_each_public_file_is_one_attack():
    files = {path.stem for path in (ROOT / "abs_model" / "attacks").glob("[!_]*.py")}
    assert files == {*ATTACKS, "registry"}


def test_each_attack_is_found_in_the_file_of_its_name():
    for name, info in ATTACKS.items():
        assert info.function.__module__ == f"abs_model.attacks.{name}"
