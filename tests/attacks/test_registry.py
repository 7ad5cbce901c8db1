"""Attacks declare themselves; one of another package is registered like those of this one."""

import importlib
import runpy
import sys

import jax
import ml_collections
import pytest

from abs_model._runtime.registries import import_from_working_directory
from abs_model.attacks import ATTACKS, NORMS, Access, register, registry, run
from abs_model.evaluation import Settings, SuiteError, choose_attacks, evaluate, read_suite
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
    def declare(name):
        def another():
            pass

        another.__name__ = name
        register(title="", norms=("l2",), access=Access.SCORES)(another)

    with pytest.raises(ValueError, match="there is an attack 'gray' already"):
        declare("gray")
    with pytest.raises(ValueError, match=f"norms must be a tuple of some of {', '.join(NORMS)}"):
        register(title="", norms=("l1",), access=Access.SCORES)
    with pytest.raises(ValueError, match=r"norms must be a tuple .*, got 'l2'"):
        register(title="", norms="l2", access=Access.SCORES)
    with pytest.raises(ValueError, match=r"access must be one of Access\.DECISIONS, .*, got 'abs'"):
        register(title="", norms=("l2",), access="abs")


def test_a_function_that_is_defined_again_replaces_itself(gray, tmp_path):
    """As a module that is reloaded, a cell that is run again, or a file that is read twice."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from abs_model.attacks import Access, register\n"
        "@register(title='Mine', norms=('l2',), access=Access.SCORES)\n"
        "def mine(model, images, labels, key): ...\n"
    )
    for _ in range(2):
        runpy.run_path(str(file))
        runpy.run_path(str(file), run_name="mine")
    assert ATTACKS["mine"].title == "Mine"
    for _ in range(2):

        def jitted(model, images, labels, key):
            return None

        register(title="Jitted", norms=("l2",), access=Access.SCORES)(jax.jit(jitted))
    other = tmp_path / "other.py"
    other.write_text(file.read_text())
    with pytest.raises(ValueError, match="there is an attack 'mine' already"):
        runpy.run_path(str(other), run_name="other")


def test_the_command_line_knows_what_a_registered_attack_declares(gray, monkeypatch):
    monkeypatch.setattr("tests.evaluation_fakes.gray", gray, raising=False)
    (spec,) = choose_attacks([], ["mine=tests.evaluation_fakes:gray"])
    assert (spec.name, spec.norm, spec.info) == ("mine_l2", "l2", ATTACKS["gray"])
    with pytest.raises(SuiteError, match="gray attacks in l2, not in linf"):
        choose_attacks([], ["mine=tests.evaluation_fakes:gray:linf"])


def test_a_configuration_file_imports_an_attack_beside_it(tmp_path, monkeypatch):
    (tmp_path / "beside.py").write_text("VALUE = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each != str(tmp_path)])
    import_from_working_directory()
    assert importlib.import_module("beside").VALUE == 3


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
