"""Two processes on the loopback interface train and evaluate; one of them is killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import abs_model
from abs_model.training.metrics import read_metrics
from benchmarks.loopback import free_address, killed_at_the_end
from tests.conftest import ROOT, run_script, train_arguments

_STOPPED_WITHIN = 60


@contextlib.contextmanager
def two_processes(arguments, folder, num_devices=1):
    """Runs a script as two processes; what they print goes to files in the folder."""
    address = free_address()
    environment = os.environ | {
        "JAX_COORDINATOR_BIND_ADDRESS": address,
        "JAX_NUM_CPU_DEVICES": str(num_devices),
    }
    started = []
    for number in range(2):
        flags = [f"--coordinator={address}", "--num_processes=2", f"--process_id={number}"]
        command = [sys.executable, *arguments, *flags]
        with (folder / f"{number}.txt").open("ab") as log:
            started.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
            )
    with killed_at_the_end(started):
        yield started


def run_two(arguments, folder, num_devices=1):
    with two_processes(arguments, folder, num_devices) as started:
        for number, process in enumerate(started):
            assert process.wait(300) == 0, (folder / f"{number}.txt").read_text()


def checkpoints(workdir):
    """The steps of finished checkpoints."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return [int(name) for name in names if name.isdecimal()]


def parameters(workdir):
    model = abs_model.load(workdir)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model.solver.decoder)]


def check_same_training(one, two):
    """Compares the parameters and losses that two workdirs hold."""
    # Adam makes a step of its own out of the rounding of a gradient near 0: a share of the rate.
    for expected, found in zip(parameters(one), parameters(two), strict=True):
        np.testing.assert_allclose(expected, found, atol=0.05)
    one, two = (read_metrics(each) for each in (one, two))
    assert [each["step"] for each in one] == [each["step"] for each in two]
    losses = [[each["train/loss"] for each in run if "train/loss" in each] for run in (one, two)]
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_two_processes_evaluate_what_one_evaluates(abs_run, tmp_path):
    def arguments(workdir):
        return [
            "evaluate.py", "--config=configs/table1.py:tiny", "--attacks=mim_linf,salt_and_pepper",
            f"--models=binary_abs={abs_run}:binary", "--config.batch_size=1",
            "--config.certify=False", f"--workdir={workdir}", "--wandb=off",
        ]  # fmt: skip

    def rows(workdir):
        rows = json.loads((workdir / "results.json").read_text())["rows"]
        return [(row["row"], row["norm"], row["accuracy"], row["median"]) for row in rows]

    run_two(arguments(tmp_path / "two"), tmp_path)
    # Each has its own part of the ledger.
    parts = {path.name for path in (tmp_path / "two").glob("ledger/*/*/*/*.jsonl")}
    assert parts == {"1-of-2.jsonl", "2-of-2.jsonl"}
    one = run_script(*arguments(tmp_path / "one"))
    assert one.returncode == 0, one.stderr
    assert rows(tmp_path / "one") == rows(tmp_path / "two")


@pytest.mark.parametrize(("killed", "num_devices"), [(0, 1), (1, 2)])
def test_after_a_kill_the_other_process_ends_and_training_resumes(
    abs_run, tmp_path, data_dir, killed, num_devices
):
    workdir = tmp_path / "run"
    arguments = train_arguments("abs", workdir, data_dir, "mnist_sample")
    with two_processes(arguments, tmp_path, num_devices) as started:
        deadline = time.monotonic() + 200
        while not checkpoints(workdir):
            assert time.monotonic() < deadline and all(each.poll() is None for each in started), (
                tmp_path / "0.txt"
            ).read_text()
            time.sleep(0.05)
        started[killed].send_signal(signal.SIGKILL)
        start = time.monotonic()
        assert started[1 - killed].wait(_STOPPED_WITHIN) != 0
    assert time.monotonic() - start < _STOPPED_WITHIN
    message = (tmp_path / f"{1 - killed}.txt").read_text()
    assert "another one has ended" in message or "another task died" in message
    saved = max(checkpoints(workdir))
    logged = [each for each in read_metrics(workdir) if each["step"] <= saved]
    assert logged and saved < read_metrics(abs_run)[-1]["step"], "killed too late"
    if num_devices == 1:
        run_two(arguments, tmp_path)
    else:  # with fewer processes and devices than before
        done = run_script(*arguments)
        assert done.returncode == 0, done.stderr
    # Lines up to the checkpoint are not written again: their times would differ.
    assert read_metrics(workdir)[: len(logged)] == logged
    check_same_training(abs_run, workdir)
