"""Sessions of training in a workdir: one at a time, and what they say when the disk is full."""

import errno
import os
import resource
import types

import ml_collections
import numpy as np
import pytest

from abs_model._runtime.atomic_files import locked
from abs_model._runtime.errors import UserError
from abs_model.training import abs as abs_training
from abs_model.training import network as network_training
from abs_model.training.checkpoints import CheckpointStore
from abs_model.training.finished_run import session
from configs import abs as abs_config
from configs import cnn

CONFIG = ml_collections.ConfigDict({"seed": 0})
TRAINERS = [(abs_training, abs_config), (network_training, cnn)]


@pytest.fixture
def train(request, monkeypatch, tmp_path):
    """Trains with a `fit` that is given."""
    trainer, configuration = request.param
    task = types.SimpleNamespace(best_metric="m", best_mode="max")
    dataset = types.SimpleNamespace(num_classes=10)
    monkeypatch.setattr(trainer, "build_task", lambda *_: (task, dataset))

    def train(fit):
        monkeypatch.setattr(trainer, "fit", fit)
        config = configuration.get_config("tiny")
        return trainer.train_and_evaluate(config, str(tmp_path), "off")

    return train


both = pytest.mark.parametrize("train", TRAINERS, ids=["abs", "network"], indirect=True)


@both
def test_a_second_training_in_a_workdir_is_refused(train):
    refused = []

    def fit(*_):
        with pytest.raises(UserError, match=r"another process trains in --workdir=.*wait until"):
            train(lambda *_: False)
        refused.append(True)
        return False

    assert not train(fit) and refused
    assert not train(lambda *_: False)  # the lock is free again


@both
def test_a_full_disk_ends_training_with_one_sentence(train):
    def fit(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl")

    with pytest.raises(UserError, match=r"can't write to --workdir=.*No space left.*same command"):
        train(fit)


def test_a_checkpoint_that_the_disk_has_no_room_for_is_an_os_error(tmp_path, caplog):
    store = CheckpointStore(tmp_path, best_metric="m", best_mode="max")
    store.save(1, {"model": {"a": np.ones(3)}}, {"m": 1.0})
    large = np.random.default_rng(0).random(200_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            store.save(2, {"model": {"a": large}}, {"m": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.steps() == [1] and not caplog.records
    store.save(2, {"model": {"a": large}}, {"m": 2.0})
    np.testing.assert_array_equal(store.restore_best({"model": {"a": large}})["model"]["a"], large)


def test_damaged_sessions_are_named(tmp_path):
    with session(tmp_path, CONFIG):
        pass
    for content in ('{"sessions": [', "{}", ""):
        (tmp_path / "sessions.json").write_text(content)
        with pytest.raises(UserError, match=r"sessions\.json is damaged .*delete it"):
            with session(tmp_path, CONFIG):
                pass


def test_a_home_directory_is_a_workdir(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with session("~/a", CONFIG) as directory:
        assert directory == tmp_path / "a" and (directory / "config.json").exists()


def test_a_shared_lock_is_held_by_many(tmp_path):
    with locked(tmp_path / "lock", shared=True), locked(tmp_path / "lock", shared=True):
        with pytest.raises(BlockingIOError):
            with locked(tmp_path / "lock"):
                pass
    with locked(tmp_path / "lock"):
        pass
