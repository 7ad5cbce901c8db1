"""The launchers; in the place of srun and Python are programs that note how they are called."""

import json
import os
import shutil
import subprocess

import pytest

from tests.conftest import ROOT

SRUN = """#!/usr/bin/env bash
options=srun
while [[ $1 == --* ]]; do
    options+=" $1"
    shift
done
echo "$options" >> "$NOTES"
exec "$@"
"""
PYTHON = """#!/usr/bin/env python3
import json, os, sys
with open(os.environ["NOTES"], "a") as notes:
    notes.write(json.dumps(sys.argv[1:]) + "\\n")
"""


@pytest.fixture
def cluster(tmp_path):
    """Runs a batch script as SLURM does: a copy of it, told where it was submitted."""
    (tmp_path / "root" / ".venv" / "bin").mkdir(parents=True)
    for path, content in (("bin/srun", SRUN), ("root/.venv/bin/python", PYTHON)):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(content)
        (tmp_path / path).chmod(0o755)

    def submit(script, *arguments, **variables):
        notes = tmp_path / "notes"
        notes.unlink(missing_ok=True)
        copy = shutil.copy(ROOT / "scripts" / "slurm" / script, tmp_path / "slurm_script")
        environment = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "NOTES": str(notes),
            "SLURM_SUBMIT_DIR": str(tmp_path / "root"),
            "SLURM_CPUS_PER_TASK": "4",
            **variables,
        }
        done = subprocess.run(
            ["bash", copy, *arguments], env=environment, cwd="/", capture_output=True, text=True
        )
        lines = notes.read_text().splitlines() if notes.exists() else []
        return done, lines

    return submit


def test_a_training_gets_its_flags(cluster):
    flags = ["--config=configs/abs.py:quick", "--workdir=runs/a folder"]
    done, (srun, called) = cluster("train.sbatch", *flags)
    assert done.returncode == 0, done.stderr
    assert srun == "srun --cpus-per-task=4" and json.loads(called) == ["train.py", *flags]


def test_many_processes_are_told_to_join(cluster):
    done, (srun, called) = cluster("train_many.sbatch", "--workdir=runs/x")
    assert done.returncode == 0, done.stderr
    assert srun == "srun --cpus-per-task=4 --kill-on-bad-exit=1"
    assert json.loads(called) == ["train.py", "--cluster", "--workdir=runs/x"]


def test_an_array_shares_an_evaluation(cluster):
    called = []
    for task in ("1", "2", "3"):
        done, (_, line) = cluster(
            "evaluate.sbatch", "--workdir=runs/x", SLURM_ARRAY_TASK_ID=task,
            SLURM_ARRAY_TASK_COUNT="3", SLURM_ARRAY_TASK_MIN="1", SLURM_ARRAY_TASK_MAX="3",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        called.append(json.loads(line))
    assert called == [
        ["evaluate.py", f"--shard={task}/3", "--workdir=runs/x"] for task in (1, 2, 3)
    ]
    # The job after the array takes no share: it makes the tables.
    _, (_, line) = cluster("evaluate.sbatch", "--workdir=runs/x")
    assert json.loads(line) == ["evaluate.py", "--workdir=runs/x"]


@pytest.mark.parametrize(("first", "last", "count"), [("0", "7", "8"), ("1", "8", "4")])
def test_an_array_that_would_leave_work_undone_is_refused(cluster, first, last, count):
    done, lines = cluster(
        "evaluate.sbatch", SLURM_ARRAY_TASK_ID=first, SLURM_ARRAY_TASK_COUNT=count,
        SLURM_ARRAY_TASK_MIN=first, SLURM_ARRAY_TASK_MAX=last,
    )  # fmt: skip
    assert done.returncode == 2 and not lines
    assert "the array must be 1 to n" in done.stderr


@pytest.mark.parametrize("script", ["train.sbatch", "train_many.sbatch", "evaluate.sbatch"])
def test_a_submission_from_elsewhere_is_explained(cluster, tmp_path, script):
    done, lines = cluster(script, SLURM_SUBMIT_DIR=str(tmp_path))
    assert done.returncode == 2 and not lines
    assert "submit from the repository's root" in done.stderr
