import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging as absl_logging
from flax import nnx

from abs_model.training.checkpoints import (
    CheckpointError,
    CheckpointMismatchError,
    CheckpointStore,
)

ROOT = pathlib.Path(__file__).parents[2]


def open_store(directory, keep=2, best_mode="max"):
    return CheckpointStore(directory, keep=keep, best_metric="accuracy", best_mode=best_mode)


def small_state(step):
    return {"model": {"w": np.full((3, 2), step, np.float32)}, "optimizer": {"count": step}}


def save_all(store, accuracies):
    for step, accuracy in accuracies.items():
        store.save(step, small_state(step), {"accuracy": accuracy})


def truncate_files(directory):
    for path in directory.rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)


def test_restores_structure_values_kinds_and_dtypes_of_a_flax_model_and_its_optimizer(tmp_path):
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    optimizer = optax.adam(1e-3)
    state = {
        "model": params,
        "optimizer": optimizer.init(params),
        "extra": {
            "half": jnp.ones((2,), jnp.bfloat16),
            "key": np.array([1, 2], np.uint32),
            "long": np.arange(3),
            "lists": [1, (2.5, True)],
            "none": None,
            "scalar": np.float32(0.1),
        },
        "empty": optax.EmptyState(),
    }
    open_store(tmp_path).save(7, state, {"accuracy": 0.5})
    restored = open_store(tmp_path).restore(7, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for expected, found in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        assert isinstance(found, jax.Array if isinstance(expected, jax.Array) else type(expected))
        assert np.asarray(found).dtype == np.asarray(expected).dtype
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    nnx.update(model, restored["model"])


def test_restores_one_item_alone_from_shapes_only(tmp_path):
    open_store(tmp_path).save(1, small_state(1), {"accuracy": 0.5})
    template = {"model": {"w": jax.ShapeDtypeStruct((3, 2), jnp.float32)}}
    restored = open_store(tmp_path).restore(1, template)
    assert set(restored) == {"model"}
    assert isinstance(restored["model"]["w"], jax.Array)
    np.testing.assert_array_equal(restored["model"]["w"], np.ones((3, 2)))


def test_restores_on_another_number_of_devices(tmp_path):
    code = """
import sys
import jax
import jax.numpy as jnp
from abs_model.training.checkpoints import CheckpointStore
mesh = jax.sharding.Mesh(jax.devices(), ("x",))
sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
state = {"model": {"w": jax.device_put(jnp.arange(8.0), sharding)}}
assert len(state["model"]["w"].devices()) == 2
store = CheckpointStore(sys.argv[1], best_metric="accuracy", best_mode="max")
store.save(1, state, {"accuracy": 0.5})
"""
    flags = "--xla_force_host_platform_device_count=2"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=True,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )
    template = {"model": {"w": jnp.zeros(8)}}
    restored = open_store(tmp_path).restore(1, template)["model"]["w"]
    assert restored.sharding == template["model"]["w"].sharding
    np.testing.assert_array_equal(restored, np.arange(8.0))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"w": np.zeros((3, 3), np.float32)}, "model/w: expected float32[3,3], found float32[3,2]"),
        ({"w": np.zeros((3, 2), np.int32)}, "model/w: expected int32[3,2], found float32[3,2]"),
        ({}, "model/w: expected no such leaf, found float32[3,2]"),
        ({"v": np.zeros(1)}, "model/v: expected float64[1], found no such leaf"),
        ({"v": np.zeros(1)}, "model/w: expected no such leaf, found float32[3,2]"),
    ],
)
def test_a_mismatch_names_leaf_expectation_and_finding(tmp_path, template, message):
    store = open_store(tmp_path)
    store.save(1, small_state(1), {"accuracy": 0.5})
    with pytest.raises(CheckpointMismatchError) as caught:
        store.restore(1, {"model": template})
    assert message in str(caught.value)
    with pytest.raises(CheckpointMismatchError):
        store.restore_latest({"model": template})
    assert store.steps() == [1]


def test_a_missing_item_and_a_missing_step_are_named(tmp_path):
    store = open_store(tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3 .*steps: none"):
        store.restore(3, small_state(0))
    store.save(1, {"model": small_state(1)["model"]}, {"accuracy": 0.5})
    with pytest.raises(CheckpointMismatchError, match="no item optimizer"):
        store.restore(1, small_state(0))


@pytest.mark.parametrize(
    ("best_mode", "keep", "expected", "best"),
    [("max", 2, [2, 5, 6], 2), ("min", 1, [4, 6], 4), ("max", 1, [2, 6], 2)],
)
def test_keeps_the_newest_and_the_best_of_all(tmp_path, best_mode, keep, expected, best):
    store = open_store(tmp_path, keep=keep, best_mode=best_mode)
    accuracies = {1: 0.5, 2: 0.9, 3: float("nan"), 4: 0.1, 5: 0.3, 6: 0.2}
    save_all(store, accuracies)
    reopened = open_store(tmp_path, keep=keep, best_mode=best_mode)
    assert reopened.steps() == expected
    assert (reopened.latest_step(), reopened.best_step()) == (6, best)
    assert reopened.metrics(best) == {"accuracy": accuracies[best]}


def test_of_equal_checkpoints_the_later_is_best(tmp_path):
    store = open_store(tmp_path)
    save_all(store, {1: 0.5, 2: 0.5})
    assert store.best_step() == 2


@pytest.mark.parametrize("best_mode", ["max", "min"])
def test_a_nan_is_never_best(tmp_path, best_mode):
    store = open_store(tmp_path, best_mode=best_mode)
    save_all(store, {1: float("nan"), 2: 0.5, 3: float("nan")})
    assert store.best_step() == 2


def test_an_empty_store_has_no_steps(tmp_path):
    store = open_store(tmp_path / "none")
    assert (store.latest_step(), store.best_step()) == (None, None)
    assert store.restore_latest(small_state(0)) is None
    assert not (tmp_path / "none").exists()


def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path, caplog):
    store = open_store(tmp_path)
    save_all(store, {1: 0.1, 2: 0.2})
    truncate_files(tmp_path / "2")
    with pytest.raises(CheckpointError, match=str(tmp_path / "2")):
        store.restore(2, small_state(0))
    step, state = open_store(tmp_path).restore_latest(small_state(0))
    assert step == 1
    np.testing.assert_array_equal(state["model"]["w"], small_state(1)["model"]["w"])
    assert "step 2 is unusable" in caplog.text
    assert "went back from unusable step 2 to step 1" in caplog.text
    assert store.steps() == [1]
    save_all(store, {2: 0.3})
    assert store.restore(2, small_state(0))["optimizer"] == {"count": 2}


@pytest.mark.parametrize(
    "part", ["model/manifest.ocdbt", "model/_METADATA", "model/d", "model", "record"]
)
def test_a_missing_part_is_noticed(tmp_path, part):
    store = open_store(tmp_path)
    save_all(store, {1: 0.1, 2: 0.2})
    (tmp_path / "2" / part).rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError):
        store.restore(2, small_state(0))
    step, _ = store.restore_latest(small_state(0))
    assert step == 1


def test_a_flipped_bit_in_the_data_is_noticed(tmp_path):
    store = open_store(tmp_path)
    state = {"model": {"w": np.random.default_rng(0).normal(size=(200, 200))}}
    store.save(1, state, {"accuracy": 0.5})
    largest = max(tmp_path.rglob("d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0x10
    largest.write_bytes(data)
    with pytest.raises(CheckpointError, match="can't be read"):
        store.restore(1, state)


def test_only_damaged_checkpoints_are_an_error_and_stay(tmp_path):
    store = open_store(tmp_path)
    save_all(store, {1: 0.1})
    truncate_files(tmp_path / "1")
    with pytest.raises(CheckpointError, match="none of the checkpoints"):
        store.restore_latest(small_state(0))
    assert store.steps() == [1]
    assert store.best_step() == 1


def test_refuses_what_it_cannot_keep(tmp_path):
    store = open_store(tmp_path)
    with pytest.raises(ValueError, match="'accuracy'"):
        store.save(1, small_state(1), {"loss": 1.0})
    with pytest.raises(ValueError, match="record"):
        store.save(1, {"record": {"a": 1}}, {"accuracy": 1.0})
    with pytest.raises(TypeError, match="model/name must be an array or a scalar, got str"):
        store.save(1, {"model": {"name": "x"}}, {"accuracy": 1.0})
    with pytest.raises(TypeError, match="key_data"):
        store.save(1, {"model": {"key": jax.random.key(0)}}, {"accuracy": 1.0})
    with pytest.raises(ValueError, match="path 'a/b'"):
        store.save(1, {"model": {"a/b": 1, "a": {"b": 2}}}, {"accuracy": 1.0})
    store.save(1, small_state(1), {"accuracy": 1.0})
    with pytest.raises(ValueError, match="above the latest"):
        store.save(1, small_state(1), {"accuracy": 1.0})
    with pytest.raises(ValueError, match="best_mode"):
        open_store(tmp_path, best_mode="largest")


def test_leaves_the_users_logging_level_alone(tmp_path):
    logger = absl_logging.get_absl_logger()
    before = logger.level
    save_all(open_store(tmp_path), {1: 0.1})
    assert logger.level == before


WRITER = """
import sys
import numpy as np
from abs_model.training.checkpoints import CheckpointStore
store = CheckpointStore(sys.argv[1], keep=1, best_metric="accuracy", best_mode="max")
step = (store.latest_step() or 0) + 1
print("ready", flush=True)
while True:
    state = {"model": {"w": np.full((64, 1024), step, np.int32), "step": step}}
    store.save(step, state, {"accuracy": -step if step % 3 else step})
    print(step, flush=True)
    step += 1
"""


def test_kill_minus_nine_at_any_moment_leaves_the_newest_checkpoint_whole(tmp_path):
    random.seed(0)
    directory = tmp_path / "checkpoints"
    template = {"model": {"w": np.zeros((64, 1024), np.int32), "step": 0}}
    previous = 0
    for _ in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(directory)],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout.readline() == "ready\n"
        writer.stdout.readline()
        time.sleep(random.uniform(0.05, 0.8))
        writer.send_signal(signal.SIGKILL)
        printed = [int(line) for line in writer.stdout.read().split()]
        writer.wait()
        store = CheckpointStore(directory, keep=1, best_metric="accuracy", best_mode="max")
        step = store.latest_step()
        # At most the save that was under way is lost.
        assert step >= max([previous + 1, *printed])
        restored_step, state = store.restore_latest(template)
        assert restored_step == step == state["model"]["step"]
        np.testing.assert_array_equal(state["model"]["w"], step)
        best = store.best_step()
        assert best == max((s for s in store.steps() if s % 3 == 0), default=best)
        assert store.restore(best, template)["model"]["step"] == best
        assert json.dumps(store.metrics(step)) == json.dumps(
            {"accuracy": float(-step if step % 3 else step)}
        )
        previous = step
