"""Joining processes: the flags, what SLURM says, and what they agree on."""

import os
import socket
import subprocess
import sys

import pytest

from tests.conftest import ROOT

_PROGRAM = """
import sys
import jax
from absl import flags
from abs_model._runtime import processes
from abs_model._runtime.errors import UserError

processes.define_process_flags()
flags.FLAGS(sys.argv)
try:
    with processes.joined():
        number = jax.process_index()
        seen = [processes.any_process(number == 1), processes.any_process(False)]
        first = processes.primary_first(lambda: number, "here")
        print(number, jax.process_count(), processes.is_primary(), *seen, first)
        processes.check_same(3, "a number")
        processes.check_same(number, "their numbers")
except UserError as error:
    sys.exit(f"refused: {error}")
"""


def start(arguments, **variables):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *arguments],
        cwd=ROOT, env=environment | variables, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_one_process_needs_nothing():
    process = start([])
    assert process.communicate()[0] == "0 1 True False False 0\n"
    assert process.returncode == 0


def test_tasks_of_slurm_find_each_other_and_differences_end_them():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    tasks = [
        start(
            ["--cluster"], SLURM_JOB_ID="4711", SLURM_STEP_NODELIST="localhost", SLURM_NTASKS="2",
            SLURM_PROCID=str(number), SLURM_LOCALID=str(number), JAX_COORDINATOR_PORT=port,
        )
        for number in range(2)
    ]  # fmt: skip
    for number, task in enumerate(tasks):
        output, errors = task.communicate(timeout=120)
        # Before it, there is a message of the collectives' library.
        assert output.splitlines()[-1] == f"{number} 2 {number == 0} True False {number}", errors
        assert "processes differ in their numbers: [0, 1]" in errors
        assert "a number" not in errors and task.returncode == 75


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_processes=2"], "several processes also need --coordinator and --process_id"),
        (["--cluster", "--process_id=0"], "--cluster takes no --coordinator"),
        (["--cluster"], "the processes can't be joined"),
    ],
)
def test_flags_that_join_nothing_are_refused(arguments, message):
    process = start(arguments)
    assert message in process.communicate(timeout=120)[1]
    assert process.returncode == 1
