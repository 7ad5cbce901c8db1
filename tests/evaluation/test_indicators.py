"""Signs of attack failure: models whose robustness is an illusion are flagged, others are not."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import abs_model
from abs_model.attacks.registry import ATTACKS
from abs_model.evaluation import AttackSpec, Settings, evaluate
from abs_model.evaluation.run.ledger import Record
from abs_model.evaluation.run.probe import ProbeError, probe, read_probe, write_probe
from abs_model.evaluation.tables.indicators import find_warnings
from abs_model.evaluation.tables.results import Plan, PlannedAttack, Results
from tests.evaluation_fakes import stripe_classifier, stripe_dataset

SETTINGS = Settings(num_clean=8, num_images=8, batch_size=4, seed=0)
QUIET = stripe_classifier()


def noisy(images):
    generator = np.random.default_rng()
    noise = jax.pure_callback(
        lambda x: generator.normal(size=(len(x), 3)).astype(np.float32),
        jax.ShapeDtypeStruct((len(images), 3), np.float32),
        jax.lax.stop_gradient(images),
    )
    return QUIET.batch_logits(images) + 0.5 * noise


MODELS = {
    "plain": QUIET.batch_logits,
    "rounded": lambda images: QUIET.batch_logits(jnp.round(4 * images) / 4),
    "rooted": lambda images: QUIET.batch_logits(jnp.sqrt(images.at[:, 0].set(0.0))),
    "undefined": lambda images: QUIET.batch_logits(images) * jnp.nan,
    "masked": lambda images: jnp.round(QUIET.batch_logits(images) * 4) / 4,
    "random": noisy,
    "centered": lambda images: QUIET.batch_logits(images) - QUIET.batch_logits(images).mean(0),
}


def wrapped(name):
    return abs_model.from_function(MODELS[name], num_classes=3, image_shape=(8, 8, 1), name=name)


def spec(name, **settings):
    settings = {"epsilon": 0.3} | settings
    return AttackSpec(f"{name}_linf", name, ATTACKS[name], "linf", "stronger", settings)


@pytest.fixture(scope="module")
def warnings(tmp_path_factory):
    """By model, the pairs of indicator and attack."""
    suite = [spec("pgd", step_size=0.05, num_steps=8), spec("square", num_steps=40)]
    models = {name: wrapped(name) for name in MODELS}
    folder = tmp_path_factory.mktemp("indicators")
    results = evaluate(models, stripe_dataset(), suite, SETTINGS, folder)
    found = {name: set() for name in MODELS}
    for each in find_warnings(results):
        found[each.model].add((each.indicator, each.attack))
    return found


def test_a_model_with_useful_gradients_gets_no_warning(warnings):
    assert warnings["plain"] == set()


def test_gradients_that_are_zero_are_flagged(warnings):
    for name in ("rounded", "masked"):
        assert {
            ("growing_epsilon", ""),
            ("zero_gradients", "pgd_linf"),
            ("still_loss", "pgd_linf"),
        } <= warnings[name]
    # Steps of the logits themselves stop random search, too.
    assert ("black_box_beats_white_box", "") in warnings["rounded"]


def test_gradients_that_are_not_finite_are_flagged(warnings):
    assert ("nonfinite_gradients", "pgd_linf") in warnings["rooted"]


def test_logits_that_are_nan_are_flagged(warnings):
    # They are errors before any attack, so growing epsilons say nothing.
    assert warnings["undefined"] & {("no_decision", ""), ("growing_epsilon", "")} == {
        ("no_decision", "")
    }


def test_a_random_model_is_flagged(warnings):
    assert ("random", "") in warnings["random"]


def test_a_model_that_looks_at_other_images_is_flagged(warnings):
    flagged = [name for name in MODELS if ("batch_dependent", "") in warnings[name]]
    assert flagged == ["centered"]


def test_a_probe_is_written_once_and_read_back(tmp_path):
    images, labels = stripe_dataset().test.images, stripe_dataset().test.labels
    found = probe(wrapped("rounded"), images[:6].astype(np.float32) / 255, labels[:6])
    assert found.accuracies[-1] == 1.0 and found.num_images == 6 and not found.random
    write_probe(tmp_path, found)
    assert read_probe(tmp_path) == found
    assert read_probe(tmp_path / "other") is None
    content = json.loads((tmp_path / "probe.json").read_text())
    del content["depends_on_batch"]
    (tmp_path / "probe.json").write_text(json.dumps(content))
    assert read_probe(tmp_path) is None  # of an older version
    (tmp_path / "probe.json").write_text("{")
    with pytest.raises(ProbeError, match=r"probe\.json"):
        read_probe(tmp_path)


def results_of(**changes):
    """Ten images under an attack with gradients that finds nothing."""
    record = Record(
        index=0, label=0, clean_prediction=0, claimed=False, reasons=(), prediction=0,
        distance=np.inf, num_queries=5, num_gradients=10, image=None, num_zero_gradients=0,
        num_nonfinite_gradients=0, margin=-0.5, clean_margin=-1.0,
    )  # fmt: skip
    records = {i: dataclasses.replace(record, index=i, **changes) for i in range(10)}
    attack = PlannedAttack(
        "pgd_l2", "PGD", "l2", "stronger", "pgd", {"m": {}}, {"m": "ledger/m"}, {}, "gradients"
    )
    plan = Plan(["m"], [attack], 10, 10, {}, {})
    return Results(plan, {"m": {}}, {("m", "pgd_l2"): records})


@pytest.mark.parametrize(
    ("changes", "indicators"),
    [
        ({}, []),
        ({"num_zero_gradients": 1}, []),
        ({"num_zero_gradients": 2}, ["zero_gradients"]),
        ({"num_nonfinite_gradients": 1}, ["nonfinite_gradients"]),
        ({"claimed": True, "reasons": ("not_adversarial",)}, ["all_rejected"]),
        ({"margin": -1.0}, ["still_loss"]),
        ({"margin": -1.0, "distance": 1.0}, []),
        ({"margin": -1.0, "clean_prediction": 1, "distance": 0.0}, []),
        # As in ledgers from before any of this was noted.
        ({"num_zero_gradients": None, "num_nonfinite_gradients": None, "margin": None}, []),
    ],
)
def test_indicators_of_single_attacks(changes, indicators):
    assert [each.indicator for each in find_warnings(results_of(**changes))] == indicators
