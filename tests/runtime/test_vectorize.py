"""Doing the same thing for many entries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import abs_model
from abs_model._runtime import vectorize
from abs_model._runtime.vectorize import map_chosen
from abs_model.data import Dataset, Split
from abs_model.inference import racing
from abs_model.training.abs_task import ABSTask
from configs.abs import get_config


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


def test_training_and_search_of_trained_decoders_work_for_all_classes_at_once(monkeypatch):
    """As on accelerators; tracing is enough to see that nothing lacks a batched form."""
    model = abs_model.load("abs").with_batch_size(2)
    images = jnp.zeros((2, 28, 28, 1))
    config = get_config("tiny")
    split = Split(np.zeros((100, 28, 28, 1), np.uint8), np.arange(100, dtype=np.int32) % 10)
    monkeypatch.setattr(vectorize, "_on_cpu", lambda: False)

    def search(model, images):
        found = model.batch_inference(images)
        return model.batch_refinement(images, found, jnp.ones((2, 10), bool))

    jax.eval_shape(search, model, images)
    solver, weights = model.solver, model.class_weights
    standings = jax.eval_shape(racing.first_look, solver, images, weights, 8.0)
    jax.eval_shape(racing.decide, solver, images, weights, 8.0, standings)
    task = ABSTask(config, Dataset("black", 10, split, split, split))
    jax.eval_shape(lambda state: task.run_steps(state, 0, 1), task.init_state())
