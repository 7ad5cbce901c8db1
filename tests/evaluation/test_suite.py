"""The attacks of an evaluation: from configurations and command lines, and calling them."""

import dataclasses
import functools
import inspect
import json
import math
import sys
import tarfile

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import abs_model
from abs_model import register_dataclass
from abs_model._runtime.errors import UserError
from abs_model.attacks import NORMS, AttackResult
from abs_model.attacks.registry import ATTACKS, Access, AttackInfo
from abs_model.evaluation import (
    AttackSpec,
    SuiteError,
    check_any_applicable,
    check_applicable,
    choose_attacks,
    read_suite,
)
from abs_model.evaluation.run.launcher import Launcher
from abs_model.evaluation.run.suite import GIVEN, KINDS, kind_of
from configs import table1
from tests.conftest import ROOT
from tests.evaluation_fakes import (
    StripeClassifier,
    stripe_classifier,
    stripe_images,
    towards_next_class,
)
from tests.linear_decoders import linear_abs

ENTRY = {
    "attack": "pgd",
    "norm": "l2",
    "group": "stronger",
    "settings": {"epsilon": 1.5, "step_size": 0.1, "num_steps": 5},
}


def suite(**entries):
    return read_suite(ml_collections.ConfigDict({"attacks": entries}))


def test_an_entry_becomes_a_row():
    (spec,) = suite(
        row=ENTRY | {"settings_for": {"abs": {"num_steps": 9}}, "only": ("abs", "network")}
    )
    assert (spec.name, spec.display_title, spec.norm, spec.group) == (
        "row",
        "PGD",
        "l2",
        "stronger",
    )
    model = stripe_classifier()
    settings = spec.settings_on(model)
    assert settings["num_steps"] == 5 and settings["num_restarts"] == 1  # the latter by default
    assert "progress" not in settings and "targets" not in settings
    assert spec.why_not(model) is None and kind_of(model) == "network"
    only = dataclasses.replace(spec, only=("abs",))
    assert "has it for abs only" in only.why_not(model)
    named = dataclasses.replace(spec, only=("cnn", "abs"))
    assert "has it for cnn, abs only" in named.why_not(model)
    assert named.why_not(dataclasses.replace(model, name="cnn")) is None


def test_settings_for_a_kind_of_model_apply_to_it():
    (spec,) = suite(row=ENTRY | {"settings_for": {"network": {"num_steps": 9}}})
    assert spec.settings_on(stripe_classifier())["num_steps"] == 9
    assert spec.identity(stripe_classifier())["settings"]["num_steps"] == 9


def published(model):
    """By attack, the settings of the ledgers of results/table1."""
    found = {}
    with tarfile.open(ROOT / "results" / "table1" / "workdir.tar.xz") as archive:
        for member in archive:
            _, *path = member.name.split("/")
            if path and path[0] == model and path[-1] == "settings.json":
                found[path[1]] = json.load(archive.extractfile(member))
    for identity in found.values():
        # Renamed since.
        if (starts := identity.get("settings", {}).pop("starts", None)) is not None:
            identity["settings"]["starting_points"] = starts
    return found


def test_published_ledgers_are_still_those_of_their_attacks():
    """A setting that an attack gains would else make its ledgers another attack's."""
    model, ledgers = abs_model.load("cnn"), published("cnn")
    rows = {spec.name: spec for spec in read_suite(table1.get_config("cpu"))}
    assert {"deepfool_l2", "fab_linf", "boundary"} <= rows.keys() & ledgers.keys()
    for name in rows.keys() & ledgers.keys():
        identity = rows[name].identity(model)
        assert {key: ledgers[name][key] for key in identity} == identity


def test_newer_settings_are_part_of_an_identity_where_they_differ_from_their_defaults():
    row = {"attack": "deepfool", "norm": "l2", "group": "paper"}
    same, fewer = (
        suite(row=row | {"settings": settings})[0].identity(stripe_classifier())["settings"]
        for settings in ({"num_classes": 10}, {"num_classes": 5})
    )
    assert "num_classes" not in same and fewer["num_classes"] == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack": "pdg"}, r"attacks\.row: attack must be one of apgd, .*; got 'pdg'"),
        ({"norm": "l3"}, "norm must be one of l2, linf; got 'l3'"),
        ({"norm": "l0"}, "norm must be one of l2, linf; got 'l0'"),
        ({"settings": {"epsilom": 1}}, "pgd has no setting 'epsilom', did you mean epsilon"),
        ({"group": "papers"}, "group must be one of paper, stronger"),
        ({"setings": {}}, "there is no key 'setings', did you mean settings"),
        ({"only": ("networks",)}, "only: 'networks' is none of network, abs, .*, madry"),
        ({"settings_for": {"cnn": {}}}, "settings_for: 'cnn' is none of network, abs, nearest"),
        ({"settings": 3}, r"attacks\.row: settings must be a section, got 3"),
        ({"settings_for": 3}, "settings_for must be a section of sections, got 3"),
        ({"settings_for": {"abs": 3}}, "settings must be a section, got 3"),
        ({"settings": {"labels": 3}}, "'labels' is no setting: the evaluation itself gives it"),
        ({"settings": {"key": 0}}, "'key' is no setting"),
        ({"settings": {"norm": "l2"}}, "'norm' is no setting"),
        ({"only": "abs"}, "only must be a sequence of names, got 'abs'"),
        ({"estimate_gradients": "no"}, "estimate_gradients must be true or false, got 'no'"),
        ({"title": 3}, "title must be a text, got 3"),
        ({"attack": ["pgd"]}, r"attack must be a name, got \['pgd'\]"),
    ],
)
def test_faulty_entries_are_named(changes, message):
    with pytest.raises(SuiteError, match=message):
        suite(row=ENTRY | changes)


def test_what_is_no_section_of_attacks_is_refused():
    with pytest.raises(UserError, match=r"attacks must be a section.* but it isn't there"):
        read_suite(ml_collections.ConfigDict({"seed": 0}))
    with pytest.raises(UserError, match=r"attacks must be a section.* got 3"):
        read_suite(ml_collections.ConfigDict({"attacks": 3}))
    with pytest.raises(UserError, match=r"attacks\.row: it must be a section with attack, norm"):
        suite(row=3)
    with pytest.raises(UserError, match=r"attacks\.a/row: its name must be of letters"):
        suite(**{"a/row": ENTRY})
    with pytest.raises(UserError, match="--attacks names no attack"):
        choose_attacks(suite(row=ENTRY), [""])


def test_none_undoes_a_setting():
    settings = ENTRY["settings"] | {"num_restarts": None}
    (spec,) = suite(row=ENTRY | {"settings": settings})
    (plain,) = suite(row=ENTRY)
    assert spec.identity(stripe_classifier()) == plain.identity(stripe_classifier())


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class BinaryStripes(StripeClassifier):
    """As if it thresholded its images."""

    binary: bool = True


REQUIRED = {"epsilon": 0.1, "step_size": 0.1, "num_steps": 2, "num_pixels": 5, "surrogate": "cnn"}


@pytest.fixture
def unqueried(monkeypatch):
    """Launches a registered attack, on a model that fails when it is queried."""
    programs = (
        "jitted_cold_logits",
        "_warm_logits",
        "_gradients",
        "_jacobian",
    )
    for name in programs:
        monkeypatch.setattr(f"abs_model.attacks._core.query.{name}", None)
    generator = np.random.default_rng(0)
    linear = linear_abs(generator.random((3, 16, 2)), generator.random((3, 16)))
    models = {
        Access.ABS: linear,
        Access.BINARY: stripe_classifier((4, 4, 1), 4, BinaryStripes),
    }
    plain = stripe_classifier((4, 4, 1), 4)

    def load(name):
        if name != "cnn":
            raise UserError("there is no such model")
        return plain

    monkeypatch.setattr("abs_model.evaluation.run.launcher.load", load)
    launcher = Launcher(stripe_images(3, (4, 4, 1))[0])
    images, labels = np.full((1, 4, 4, 1), 0.5, np.float32), np.zeros(1, np.int32)

    def check(name, norm, **changes):
        accepted = inspect.signature(ATTACKS[name].function).parameters
        settings = {key: value for key, value in REQUIRED.items() if key in accepted} | changes
        entry = ENTRY | {"attack": name, "norm": norm, "settings": settings}
        (spec,) = suite(row=entry)
        model = models.get(ATTACKS[name].access, plain)
        launcher.identity(spec, model)
        launcher.check(spec, model, images, labels)

    return check


@pytest.mark.parametrize("name", ATTACKS)
def test_settings_are_checked_before_the_model_is_queried(name, unqueried):
    for norm in ATTACKS[name].norms:
        unqueried(name, norm)
    parameters = inspect.signature(ATTACKS[name].function).parameters
    for key in [key for key in parameters if key not in GIVEN]:
        for value in ("many", -1, [2], {"a": 1}):
            with pytest.raises(SuiteError, match=rf"attack 'row'.*\b{key}\b"):
                unqueried(name, norm, **{key: value})
        if parameters[key].default is inspect.Parameter.empty:
            with pytest.raises(SuiteError, match=rf"missing a required .*\b{key}\b"):
                unqueried(name, norm, **{key: None})


def test_a_surrogate_that_is_not_there_is_named(monkeypatch):
    settings = {"surrogate": "absent/run"}
    (spec,) = suite(row=ENTRY | {"attack": "transfer", "settings": settings})
    with pytest.raises(SuiteError, match="'row': setting surrogate: there is no pretrained model"):
        Launcher(stripe_images(3)[0]).identity(spec, stripe_classifier())


def test_attacks_are_chosen_by_name():
    both = suite(a=ENTRY, b=ENTRY)
    assert [spec.name for spec in choose_attacks(both, ["all"])] == ["a", "b"]
    assert [spec.name for spec in choose_attacks(both, ["b"])] == ["b"]
    own = choose_attacks(both, ["b", "mine=tests.evaluation_fakes:towards_next_class"])
    assert [spec.name for spec in own] == ["b", "mine_l2", "mine_linf", "mine_l0"]
    (one,) = choose_attacks(both, ["mine=tests.evaluation_fakes:towards_next_class:l2"])
    assert (one.name, one.norm, one.reference) == (
        "mine", "l2", "tests.evaluation_fakes:towards_next_class",
    )  # fmt: skip
    assert one.identity(stripe_classifier())["source"]


partial_attack = functools.partial(towards_next_class, epsilon=2.0)
jitted_attack = jax.jit(
    lambda model, images, labels, key, *, norm="l2": AttackResult(
        images, jnp.zeros(len(images), bool), jnp.zeros(len(images))
    ),
    static_argnames="norm",
)


@pytest.mark.parametrize("name", ["partial_attack", "jitted_attack"])
def test_any_callable_can_be_an_attack_of_ones_own(name, tmp_path, monkeypatch):
    (spec,) = choose_attacks([], [f"mine=tests.evaluation.test_suite:{name}:l2"])
    assert launch(spec).images.shape == (3, 8, 8, 1)
    before = spec.identity(stripe_classifier())
    (tmp_path / "edited.py").write_text("")
    monkeypatch.setattr(sys.modules[__name__], "__file__", str(tmp_path / "edited.py"))
    assert spec.identity(stripe_classifier())["source"] != before["source"]


@pytest.mark.parametrize("value", [np.ones(2), math.inf, len])
def test_settings_that_no_ledger_can_hold_are_refused(value):
    spec = own(towards_next_class, settings={"epsilon": value})
    with pytest.raises(SuiteError, match=r"'own' \(tests:own\): setting epsilon must be what JSON"):
        spec.identity(stripe_classifier())


def test_no_attack_is_called_clean():
    with pytest.raises(SuiteError, match="no attack can be called 'clean'"):
        suite(clean=ENTRY)
    with pytest.raises(SuiteError, match="no attack can be called 'clean'"):
        choose_attacks([], ["clean=tests.evaluation_fakes:towards_next_class:l2"])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("c", "no attack 'c'.*it has alpha"),
        ("alpah", "did you mean alpha"),
        ("x=nowhere", "must be package.module:function"),
        ("x=absent.module:f", "absent.module can't be imported"),
        ("x=tests.evaluation_fakes:absent:l3", "the norm of 'x' must be l2, linf, l0, got 'l3'"),
        ("x=tests.evaluation_fakes:absent", "must have a function 'absent', but there is none"),
        ("x=tests.evaluation_fakes:np", "but it is a module"),
        ("x=tests.evaluation_fakes:liar", "does not take norm; say which it attacks in"),
        ("../x=a:b", "must be of letters, digits and _"),
    ],
)
def test_attacks_that_are_not_there_are_refused(entry, message):
    with pytest.raises(UserError, match=message):
        choose_attacks(suite(alpha=ENTRY), [entry])


def launch(spec, model=None):
    images, labels = stripe_images(3)
    keys = jax.random.split(jax.random.key(0), 3)
    model = model or stripe_classifier()
    clean = images.astype(np.float32) / 255
    return Launcher(images)(spec, model, clean, labels, keys, lambda count: None)


def own(function, **changes):
    return AttackSpec(
        "own",
        "tests:own",
        AttackInfo(title="own", function=function, norms=NORMS, access=Access.SCORES),
        "l2",
        "stronger",
        **changes,
    )


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (np.zeros((3, 8, 8, 1)), "must return an AttackResult .* got ndarray"),
        (
            AttackResult(jnp.zeros((2, 8, 8, 1)), jnp.ones(2, bool), jnp.zeros(2)),
            r"images are \(3, 8, 8, 1\).*got \(2, 8, 8, 1\)",
        ),
        (
            AttackResult(jnp.zeros((3, 8, 8, 1)), jnp.ones((3, 1), bool), jnp.zeros(3)),
            r"success of the shape \(3,\), got \(3, 1\)",
        ),
        (
            AttackResult(jnp.zeros((3, 8, 8, 1)), jnp.ones(3, bool), jnp.zeros(3), jnp.int32(20)),
            r"num_queries of the shape \(3,\), got \(\)",
        ),
    ],
)
def test_what_is_no_result_is_refused(returned, message):
    with pytest.raises(SuiteError, match=message):
        launch(own(lambda model, images, labels, key: returned))


def test_a_value_error_of_an_attack_names_attack_and_model():
    (spec,) = suite(row=ENTRY | {"settings": {"epsilon": -1.0, "step_size": 1.0, "num_steps": 1}})
    with pytest.raises(SuiteError, match="attack 'row' on 'stripes': epsilon must be"):
        launch(spec)


def test_starts_are_training_images():
    seen = {}

    def attack(model, images, labels, key, *, norm, starting_points=None):
        seen["starting_points"] = starting_points
        return towards_next_class(model, images, labels, key, norm=norm)

    launch(own(attack, settings={"starting_points": 2}))
    expected = stripe_images(3)[0][:2].astype(np.float32) / 255
    np.testing.assert_array_equal(seen["starting_points"], expected)


def test_black_boxes_refuse_attacks_that_need_gradients():
    model = abs_model.from_function(
        lambda images: images.reshape(len(images), -1)[:, :3],
        num_classes=3, image_shape=(8, 8, 1), black_box=True,
    )  # fmt: skip
    (spec,) = suite(row=ENTRY)
    assert "the model is a black box" in spec.why_not(model)
    assert dataclasses.replace(spec, estimate_gradients=True).why_not(model) is None
    with pytest.raises(ValueError, match="is a black box, which has no gradients"):
        abs_model.pgd(
            model, np.zeros((1, 8, 8, 1), np.float32), np.zeros(1, int), jax.random.key(0),
            norm="l2", epsilon=1.0, step_size=0.1, num_steps=1,
        )  # fmt: skip


def test_every_attack_of_the_catalogue_says_what_it_needs():
    model = stripe_classifier()
    for name, entry in ATTACKS.items():
        refusal = entry.why_not(model, {"loss": "ce"})
        special = entry.access in (Access.BINARY, Access.ABS)
        assert (refusal is not None) == special, name


@pytest.mark.parametrize(("num_classes", "tried"), [(2, {"ce"}), (3, {"ce", "dlr"}), (4, None)])
def test_losses_that_need_more_classes_are_not_tried_but_do_not_end_a_run(num_classes, tried):
    model = abs_model.from_function(
        lambda images: images.reshape(len(images), -1)[:, :num_classes],
        num_classes=num_classes, image_shape=(8, 8, 1),
    )  # fmt: skip
    images, labels = np.full((2, 8, 8, 1), 0.4, np.float32), np.zeros(2, int)
    for loss in ("ce", "dlr", "targeted_dlr"):
        settings = {"epsilon": 0.1, "num_steps": 2, "loss": loss}
        (spec,) = suite(row=ENTRY | {"attack": "apgd", "settings": settings})
        refusal = spec.why_not(model)
        assert (refusal is None) == (tried is None or loss in tried)
        if refusal is None:
            spec.info.function(model, images, labels, jax.random.key(0), norm="l2", **settings)
        else:
            assert refusal.endswith(f"and the model has {num_classes}")


def claim(spec, kind):
    """The settings that say what is attacked and how, not how long, as far as they are given."""
    settings = {**spec.settings, **spec.settings_for.get(kind, {})}
    budget = ("starting_points", "step_size")  # fewer steps may be longer ones
    return {
        key: value
        for key, value in settings.items()
        if key == "num_pixels" or not (key in budget or key.startswith(("num_", "max_")))
    }


def test_table_1_has_every_attack_and_shorter_variants_differ_in_budgets_only():
    table = {spec.name: spec for spec in read_suite(table1.get_config())}
    for variant in ("full", "cpu", "smoke"):
        suite = read_suite(table1.get_config(variant))
        assert {spec.display_title for spec in suite} >= {
            entry.title for entry in ATTACKS.values()
        } - {
            "APGD"  # which has a row for each loss
        }
        for spec in suite:
            whole = table[spec.name]
            assert (spec.display_title, spec.norm, spec.group, spec.estimate_gradients) == (
                whole.display_title, whole.norm, whole.group, whole.estimate_gradients,
            )  # fmt: skip
            for kind in KINDS:
                assert claim(spec, kind) == claim(whole, kind), spec.name
    assert len(read_suite(table1.get_config("cpu"))) == len(table)


def test_an_attack_asked_for_by_name_must_take_a_model():
    spec = dataclasses.replace(suite(row=ENTRY)[0], only=("abs",))
    with pytest.raises(SuiteError, match=r"'row' can't attack any of the models \(m: the conf"):
        check_applicable([spec], {"m": stripe_classifier()})


def test_one_attack_at_least_must_take_a_model():
    first, second = suite(a=ENTRY, b=ENTRY)
    second = dataclasses.replace(second, only=("abs",))
    models = {"m": stripe_classifier()}
    check_any_applicable([first, second], models)
    with pytest.raises(SuiteError, match=r"none of .*\(b on m: the configuration has it for abs"):
        check_any_applicable([second], models)
    with pytest.raises(SuiteError, match="it has no attacks"):
        check_any_applicable([], models)


def test_functions_are_wrapped_as_classifiers():
    model = abs_model.from_function(lambda x: x.mean((1, 2)), num_classes=3, image_shape=(4, 4, 3))
    images = np.random.default_rng(0).random((5, 4, 4, 3), np.float32)
    np.testing.assert_allclose(model.logits(images), images.mean((1, 2)), rtol=1e-5)
    assert model.confidences(images).sum(1) == pytest.approx(np.ones(5))
    with pytest.raises(ValueError, match=r"must give logits \(n, 4\).*it gives \(2, 3\)"):
        abs_model.from_function(lambda x: x.mean((1, 2)), num_classes=4, image_shape=(4, 4, 3))
