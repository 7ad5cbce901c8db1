import json
import math
import os
import pathlib
import subprocess
import sys
import types

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from abs_model._runtime import wandb_log
from abs_model._runtime.errors import UserError
from abs_model.training.metrics import MetricsLogger, read_metrics

CONFIG = ml_collections.ConfigDict({"train": {"epochs": 2}})


@pytest.fixture(autouse=True)
def no_login(tmp_path, monkeypatch):
    """No test sees the login of whoever runs it."""
    for name in os.environ:
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def open_metrics(workdir, resume_step=-1, wandb_mode="off"):
    return MetricsLogger(workdir, config=CONFIG, wandb_mode=wandb_mode, resume_step=resume_step)


def strict_lines(workdir):
    def refuse(constant):
        raise AssertionError(f"{constant} isn't JSON")

    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_each_call_is_one_line_on_disk_at_once(tmp_path):
    logger = open_metrics(tmp_path)
    logger.scalars(1, {"train/loss": 0.5, "n": 3})
    logger.scalars(2, {"train/loss": jnp.float32(0.25), "n": np.int64(4)})
    first, second = strict_lines(tmp_path)
    assert {**first, "time": 0} == {"step": 1, "time": 0, "train/loss": 0.5, "n": 3}
    assert {**second, "time": 0} == {"step": 2, "time": 0, "train/loss": 0.25, "n": 4}
    assert second["time"] >= first["time"] > 1e9
    logger.close()
    logger.close()
    assert read_metrics(tmp_path) == [first, second]


def test_non_finite_numbers_stay_valid_json_and_read_back(tmp_path):
    with open_metrics(tmp_path) as logger:
        logger.scalars(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": jnp.bfloat16(2)})
    (line,) = strict_lines(tmp_path)
    assert (line["a"], line["b"], line["c"], line["d"]) == ("NaN", "Infinity", "-Infinity", 2.0)
    assert math.isnan(float(line["a"])) and float(line["c"]) == -math.inf


@pytest.mark.parametrize("values", [{"step": 1}, {"time": 1}, {"a": np.zeros(2)}, {"a": "x"}])
def test_refuses_reserved_names_and_non_scalars(tmp_path, values):
    with open_metrics(tmp_path) as logger, pytest.raises(ValueError, match="metric"):
        logger.scalars(1, values)
    assert strict_lines(tmp_path) == []


@given(
    st.lists(st.integers(0, 20), max_size=10),
    st.integers(-1, 20),
    st.sampled_from(["", "{", '{"step": 3', '{"step": 3}', "\x00\x00"]),
)
@settings(max_examples=40, deadline=None)
def test_resuming_drops_later_steps_and_a_torn_line(tmp_path_factory, steps, resume_step, torn):
    workdir = tmp_path_factory.mktemp("workdir")
    with open_metrics(workdir) as logger:
        for index, step in enumerate(steps):
            logger.scalars(step, {"index": index})
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(torn)
    with open_metrics(workdir, resume_step=resume_step) as logger:
        logger.scalars(resume_step + 1, {"index": -1})
    kept = [index for index, step in enumerate(steps) if step <= resume_step]
    assert [line["index"] for line in strict_lines(workdir)] == [*kept, -1]


def test_a_torn_line_is_reported(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 2}\n{"step": 2, "a"')
    open_metrics(tmp_path, resume_step=5).close()
    assert "line 2 is cut short" in caplog.text
    assert strict_lines(tmp_path) == [{"step": 1, "a": 2}]


def test_images_are_written_as_png(tmp_path):
    gray = np.array([[0.0, 0.5], [1.0, 2.0]])
    color = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    with open_metrics(tmp_path) as logger:
        path = logger.image(3, "samples/gray", gray)
        assert path == tmp_path / "images" / "samples" / "gray-00000003.png"
        np.testing.assert_array_equal(np.asarray(Image.open(path)), [[0, 128], [255, 255]])
        same = logger.image(4, "gray", jnp.asarray(gray)[:, :, None])
        np.testing.assert_array_equal(np.asarray(Image.open(same)), [[0, 128], [255, 255]])
        np.testing.assert_array_equal(
            np.asarray(Image.open(logger.image(3, "color", color))), color
        )


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(4),
        np.zeros((2, 2, 4)),
        np.zeros((0, 2)),
        np.zeros((2, 2), int),
        np.full((2, 2), np.nan),
    ],
)
def test_refuses_what_is_no_image(tmp_path, array):
    with open_metrics(tmp_path) as logger, pytest.raises(ValueError, match="image must"):
        logger.image(1, "bad", array)


def test_off_does_not_import_wandb(tmp_path):
    code = (
        "import sys, ml_collections\n"
        "from abs_model.training.metrics import MetricsLogger\n"
        "config = ml_collections.ConfigDict({'a': 1})\n"
        "logger = MetricsLogger(sys.argv[1], config=config, wandb_mode='off')\n"
        "logger.scalars(1, {'a': 1})\n"
        "logger.close()\n"
        "assert 'wandb' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_an_unknown_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="auto, online, offline, off, got 'on'"):
        open_metrics(tmp_path, wandb_mode="on")


class FakeRun:
    def __init__(self, fail_on=""):
        self.calls = []
        self._fail_on = fail_on

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls.append(name)
            if name == self._fail_on:
                raise ConnectionResetError("Connection lost")

        return call


def fake_wandb(monkeypatch, run=None, *, fail_modes=(), api_key=None):
    """Puts a stand-in for the wandb module in place and returns the init calls it gets."""
    inits = []

    def init(**kwargs):
        inits.append(kwargs)
        if kwargs["mode"] in fail_modes:
            raise TimeoutError("can't reach the server")
        return run or FakeRun()

    credentials = types.SimpleNamespace(
        api_key=api_key, identity_token_file=None, base_url="https://api.example.org"
    )
    module = types.ModuleType("wandb")
    module.init = init
    module.setup = lambda: types.SimpleNamespace(settings=credentials)
    module.Settings = lambda **kwargs: kwargs
    module.Image = lambda path: path
    module.teardown = lambda exit_code: inits.append("teardown")
    monkeypatch.setitem(sys.modules, "wandb", module)
    return inits


@pytest.mark.parametrize("fail_on", ["log", "finish"])
def test_losing_wandb_gives_one_warning_and_the_run_goes_on(tmp_path, monkeypatch, caplog, fail_on):
    run = FakeRun(fail_on)
    fake_wandb(monkeypatch, run)
    with open_metrics(tmp_path, wandb_mode="offline") as logger:
        for step in range(3):
            logger.scalars(step, {"a": step})
            logger.image(step, "b", np.zeros((2, 2)))
    assert [line["step"] for line in strict_lines(tmp_path)] == [0, 1, 2]
    assert caplog.text.count("lost Weights & Biases (ConnectionResetError") == 1
    assert run.calls.count(fail_on) == 1


def test_a_server_out_of_reach_falls_back_to_offline_saying_so(tmp_path, monkeypatch, caplog):
    inits = fake_wandb(monkeypatch, fail_modes=("online",), api_key="k")
    open_metrics(tmp_path, wandb_mode="auto").close()
    assert [init if init == "teardown" else init["mode"] for init in inits] == [
        "online",
        "teardown",
        "offline",
    ]
    assert inits[0]["settings"]["init_timeout"] <= 15
    assert "no Weights & Biases online (TimeoutError" in caplog.text
    assert "trying offline" in caplog.text


def test_a_wandb_that_fails_altogether_leaves_the_metrics(tmp_path, monkeypatch, caplog):
    fake_wandb(monkeypatch, fail_modes=("online", "offline"))
    with open_metrics(tmp_path, wandb_mode="offline") as logger:
        logger.scalars(1, {"a": 1})
    assert len(strict_lines(tmp_path)) == 1
    assert "going on with metrics.jsonl" in caplog.text


def test_a_missing_wandb_leaves_the_metrics(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    open_metrics(tmp_path, wandb_mode="auto").close()
    assert "no Weights & Biases" in caplog.text


@pytest.mark.parametrize(
    ("environment", "api_key", "netrc_host", "expected"),
    [
        ({}, None, None, ["offline"]),
        ({}, "key", None, ["online"]),
        ({}, None, "api.example.org", ["online"]),
        ({}, None, "other.example.org", ["offline"]),
        ({"WANDB_MODE": "offline"}, "key", None, ["offline"]),
        ({"WANDB_MODE": "disabled"}, "key", None, []),
    ],
)
def test_auto_is_online_only_for_the_logged_in(
    tmp_path, monkeypatch, environment, api_key, netrc_host, expected
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if netrc_host:
        (tmp_path / "netrc").write_text(f"machine {netrc_host} login user password secret\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    inits = fake_wandb(monkeypatch, api_key=api_key)
    open_metrics(tmp_path, wandb_mode="auto").close()
    assert [init["mode"] for init in inits] == expected


def test_a_resumed_run_keeps_its_wandb_id(tmp_path, monkeypatch):
    inits = fake_wandb(monkeypatch, api_key="k")
    for _ in range(2):
        open_metrics(tmp_path, wandb_mode="online").close()
    assert inits[0]["id"] == inits[1]["id"]
    assert inits[1]["resume"] == "allow"


def test_in_a_sweep_the_id_that_wandb_gives_is_noted(tmp_path, monkeypatch):
    inits = fake_wandb(monkeypatch, api_key="k")
    monkeypatch.setenv("WANDB_RUN_ID", "trial7")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    open_metrics(tmp_path, wandb_mode="online").close()
    assert inits[0]["id"] is None and inits[0]["project"] is None  # W&B knows both
    assert (tmp_path / wandb_log.RUN_ID_FILE).read_text() == "trial7\n"


def test_outside_of_a_sweep_a_run_keeps_its_id(tmp_path, monkeypatch):
    inits = fake_wandb(monkeypatch, api_key="k")
    for run_id in ("first", "second"):
        monkeypatch.setenv("WANDB_RUN_ID", run_id)
        open_metrics(tmp_path, wandb_mode="online").close()
    assert [init["id"] for init in inits] == ["first", "first"]


def test_run_ids_in_paths(monkeypatch):
    path = pathlib.Path("runs/{run_id}/x")
    monkeypatch.setenv("WANDB_RUN_ID", "trial7")
    assert wandb_log.with_run_id(path) == pathlib.Path("runs/trial7/x")
    monkeypatch.delenv("WANDB_RUN_ID")
    assert wandb_log.with_run_id(pathlib.Path("runs/x")) == pathlib.Path("runs/x")
    with pytest.raises(UserError, match=r"only in a sweep is there a \{run_id\}"):
        wandb_log.with_run_id(path)


def test_real_wandb_offline_writes_inside_the_workdir_and_survives_its_service(tmp_path):
    code = (
        "import logging, os, signal, sys, ml_collections, numpy as np, psutil\n"
        "logging.basicConfig()\n"
        "from abs_model.training.metrics import MetricsLogger\n"
        "config = ml_collections.ConfigDict({'a': {'b': 1}})\n"
        "logger = MetricsLogger(sys.argv[1], config=config, wandb_mode='auto')\n"
        "logger.scalars(1, {'a': 1.0, 'b': float('nan')})\n"
        "logger.image(1, 'c', np.zeros((4, 4)))\n"
        "for child in psutil.Process().children():\n"
        "    child.kill(); child.wait()\n"
        "for step in range(2, 50):\n"
        "    logger.scalars(step, {'a': 1.0})\n"
        "logger.close()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert len(strict_lines(tmp_path)) == 49
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert result.stderr.count("lost Weights & Biases") == 1
    run_id = (tmp_path / wandb_log.RUN_ID_FILE).read_text().strip()
    assert list((tmp_path / "wandb").glob(f"offline-run-*-{run_id}"))
