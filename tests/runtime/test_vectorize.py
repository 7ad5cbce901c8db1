"""Doing the same thing for many entries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import abs_model
from abs_model._runtime import vectorize
from abs_model._runtime.errors import UserError
from abs_model._runtime.vectorize import FORMULATION, map_chosen
from abs_model.data import Dataset, Split
from abs_model.inference import racing
from abs_model.inference.certificates import DEFAULT_SETTINGS, certify, decode_samples
from abs_model.inference.changes import REACHES
from abs_model.training.abs_task import ABSTask
from abs_model.training.network_task import NetworkTask
from configs import abs as abs_config
from configs import cnn, madry
from tests.device_results import fine_tuning_task, small_dataset
from tests.recorded_programs import check_lowering


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("size", [1, 4, 50])
def test_chosen_entries_are_mapped_in_chunks(share, size):
    random = np.random.default_rng(0)
    chosen = random.uniform(size=21) < share
    a, b = jnp.asarray(random.normal(size=(3, 21))), jnp.asarray(random.normal(size=21))
    sizes = []

    def function(a, b):
        sizes.append(len(b))
        return {"product": a * b, "sum": a.sum(axis=0) + b}

    default = {"product": 7.0, "sum": jnp.inf}
    found = jax.jit(lambda c: map_chosen(function, c, a, b, size=size, default=default))(chosen)
    np.testing.assert_allclose(found["product"], np.where(chosen, a * b, 7.0))
    np.testing.assert_allclose(found["sum"], np.where(chosen, a.sum(axis=0) + b, np.inf))
    assert set(sizes) == {min(size, 21)}


@pytest.fixture
def batched(monkeypatch):
    """The formulation of accelerators; traces of either one do not serve the other."""
    jax.clear_caches()
    monkeypatch.setenv(FORMULATION, "batched")
    yield
    jax.clear_caches()


def zeros_of(function):
    """Zeros in the shapes of what a function returns, which is traced only."""
    shapes = jax.eval_shape(function)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def make_task(configuration, task):
    config = configuration.get_config("tiny")
    split = Split(np.zeros((100, 28, 28, 1), np.uint8), np.arange(100, dtype=np.int32) % 10)
    return task(config, Dataset("black", 10, split, split, split))


@pytest.mark.parametrize(
    ("configuration", "task"), [(abs_config, ABSTask), (cnn, NetworkTask), (madry, NetworkTask)]
)
def test_training_steps_lower_for_accelerators(batched, configuration, task):
    made = make_task(configuration, task)
    check_lowering(lambda state: made.run_steps(state, 0, 1), (made.init_state(),))


def test_fine_tuning_steps_lower_for_accelerators(batched):
    made = fine_tuning_task(small_dataset())
    check_lowering(lambda state: made.run_steps(state, 0, 1), (made.init_state(),))


def test_inference_lowers_for_accelerators(batched):
    model = abs_model.load("abs").with_batch_size(2)
    solver, weights = model.solver, model.class_weights
    images = jnp.zeros((2, 28, 28, 1))
    found = zeros_of(lambda: model.batch_inference(images))
    required = jnp.ones((2, 10), bool)
    programs = {
        "search": lambda: model.batch_inference(images),
        "refinement": lambda: model.batch_refinement(images, found, required),
        "first look": lambda: racing.first_look(solver, images, weights, 8.0),
    }
    for program in programs.values():
        check_lowering(program)
    standings = racing.Standings(found.energies, required, required)
    check_lowering(jax.jit(lambda: racing.decide(solver, images, weights, 8.0, standings)), (), {})


@pytest.mark.parametrize("norm", list(REACHES))
def test_certificates_lower_for_accelerators(batched, norm):
    model = abs_model.load("abs").with_batch_size(2)
    images = jnp.zeros((2, 28, 28, 1))
    found = zeros_of(lambda: model.batch_inference(images))
    samples = zeros_of(lambda: decode_samples(model.solver, DEFAULT_SETTINGS))

    def certificate():
        return certify(
            model.solver, images, found, model.class_weights, samples, DEFAULT_SETTINGS,
            norm=norm, binary=False,
        )  # fmt: skip

    check_lowering(certificate)


def test_both_formulations_find_the_same(monkeypatch, mnist_sample):
    model = abs_model.load("abs").with_batch_size(3)
    images = mnist_sample["test_images"][:3].astype(np.float32) / 255
    found = {}
    for formulation in ("loops", "batched"):
        jax.clear_caches()
        monkeypatch.setenv(FORMULATION, formulation)
        found[formulation] = model.infer(images), model.decision_logits(images)
    jax.clear_caches()
    (loops, decided), (batched, others) = found["loops"], found["batched"]
    # The search ends within its tolerance of a minimum, wherever rounding has led it.
    np.testing.assert_allclose(loops.energies, batched.energies, atol=0.02)
    np.testing.assert_array_equal(decided.argmax(axis=1), others.argmax(axis=1))


def test_another_formulation_is_refused(monkeypatch):
    monkeypatch.setenv(FORMULATION, "vectorized")
    with pytest.raises(UserError, match="must be loops or batched, got 'vectorized'"):
        vectorize.map_classes(jnp.sin, jnp.zeros(3))
