"""Sweeps from file to report, with a program that stands for train.py."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import yaml

from abs_model._runtime.atomic_files import locked
from abs_model.sweeps.definition import SweepError, read_sweep
from abs_model.sweeps.run import run_sweep
from abs_model.sweeps.study import open_study, propose
from abs_model.sweeps.trials import command_of

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = pathlib.Path(__file__).with_name("fake_training.py")


def write_sweep(folder, extra=(), **changes):
    content = {
        "program": str(PROGRAM),
        "method": "random",
        "metric": {"name": "objective", "goal": "maximize"},
        "command": [
            "${interpreter}", "${program}", f"--workdir={folder}/{{run_id}}", *extra, "${args}",
        ],
        "parameters": {"x": {"min": 0.0, "max": 1.0}},
    } | changes  # fmt: skip
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def results(folder):
    return json.loads((folder / "results.json").read_text())["trials"]


def starts(row):
    lines = (pathlib.Path(row["workdir"]) / "starts.txt").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_sweep_finds_good_settings_and_reports_them(tmp_path):
    path = write_sweep(tmp_path, method="bayes")
    done, files = run_sweep(path, tmp_path / "out", count=12, parallel=6)
    assert done and [file.name for file in files] == ["results.md", "results.json", "trials.png"]
    rows = results(tmp_path / "out")
    assert [row["outcome"] for row in rows] == ["complete"] * 12
    objectives = [row["objective"] for row in rows]
    assert objectives == sorted(objectives, reverse=True)
    for row in rows:
        x = row["settings"]["x"]
        assert row["objective"] == pytest.approx(-((x - 0.3) ** 2) - 1 / 3)
        assert starts(row) == [{"workdir": f"{tmp_path}/{{run_id}}", "x": str(x)}]
    assert len({row["run_id"] for row in rows}) == 12
    table = (tmp_path / "out" / "results.md").read_text()
    assert "| Trial | objective | x |" in table and table.count("complete") == 12
    # More trials continue the same study.
    assert run_sweep(path, tmp_path / "out", count=13)[0]
    assert {row["trial"] for row in results(tmp_path / "out")} == set(range(13))


def test_a_grid_tries_each_point_once(tmp_path):
    parameters = {"x": {"values": [0.1, 0.2]}, "y": {"min": 1, "max": 2}, "z": {"value": [3, 4]}}
    path = write_sweep(tmp_path, method="grid", parameters=parameters)
    assert run_sweep(path, tmp_path / "out", count=20, parallel=2)[0]
    found = [tuple(row["settings"].values()) for row in results(tmp_path / "out")]
    assert sorted(found) == [(x, y, "[3, 4]") for x in (0.1, 0.2) for y in (1, 2)]


def test_trials_that_fall_behind_are_stopped_early(tmp_path):
    path = write_sweep(
        tmp_path,
        ["--epochs=12", "--seconds=0.2"],
        method="grid",
        parameters={"x": {"values": [0.3, 0.9, 0.8, 0.7]}},
        early_terminate={"type": "hyperband", "min_iter": 2, "eta": 2},
    )
    assert run_sweep(path, tmp_path / "out", count=4, parallel=4)[0]
    rows = {row["settings"]["x"]: row for row in results(tmp_path / "out")}
    assert rows[0.3]["outcome"] == "complete"
    stopped = [row for row in rows.values() if row["outcome"] == "stopped early"]
    assert len(stopped) == 3 and all(row["objectives logged"] < 12 for row in stopped)


def test_a_trial_that_fails_does_not_stop_the_others(tmp_path):
    parameters = {"x": {"value": 0.5}, "fail": {"values": [True, False]}}
    path = write_sweep(tmp_path, method="grid", parameters=parameters)
    assert run_sweep(path, tmp_path / "out", count=2)[0]
    good, bad = results(tmp_path / "out")
    assert (good["outcome"], bad["outcome"], bad["reason"]) == (
        "complete",
        "failed",
        "exit status 1",
    )
    log = tmp_path / "out" / "logs" / f"{bad['run_id']}.txt"
    assert "no more memory" in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_sweep_resumes_its_trials(tmp_path, number):
    path = write_sweep(tmp_path, ["--epochs=8", "--seconds=0.1"])
    out = tmp_path / "out"
    command = [
        sys.executable, str(ROOT / "scripts" / "sweep.py"), str(path), "--count=3",
        "--parallel=2", f"--folder={out}",
    ]  # fmt: skip
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}) as runner:
        deadline = time.monotonic() + 60
        while sum(1 for _ in tmp_path.glob("*/metrics.jsonl")) < 2:
            assert time.monotonic() < deadline and runner.poll() is None
            time.sleep(0.1)
        runner.send_signal(number)
    before = {
        trial.number: trial.params
        for trial in open_study(read_sweep(path), out, 0).get_trials(deepcopy=False)
    }
    assert len(before) == 2
    assert run_sweep(path, out, count=3, parallel=2)[0]
    rows = {row["trial"]: row for row in results(out)}
    assert [rows[n]["outcome"] for n in range(3)] == ["complete"] * 3
    for place, settings in before.items():
        assert rows[place]["settings"] == settings
        begun = starts(rows[place])
        assert len(begun) == 2 and begun[0] == begun[1]
        assert rows[place]["objectives logged"] == 8
    # The third does not repeat the settings of the first.
    assert rows[2]["settings"] not in before.values()


def test_a_trial_of_a_killed_sweep_is_not_started_twice(tmp_path):
    """Its process lives on, and has not come to its workdir yet when the sweep is resumed."""
    path = write_sweep(tmp_path, ["--before=3"])
    command = [sys.executable, "-m", "scripts.sweep", str(path), "--count=1"]
    command.append(f"--folder={tmp_path / 'out'}")
    with subprocess.Popen(command, cwd=ROOT) as runner:
        deadline = time.monotonic() + 60
        while not [each for each in tmp_path.glob("out/logs/*.lock") if each.read_text()]:
            assert time.monotonic() < deadline and runner.poll() is None
            time.sleep(0.05)
        runner.kill()
    assert run_sweep(path, tmp_path / "out", count=1)[0]
    (row,) = results(tmp_path / "out")
    # Once by the killed sweep, and once more, one after the other, to see that it has finished.
    assert row["outcome"] == "complete" and len(starts(row)) == 2


def test_a_kill_while_settings_are_chosen_is_survived(tmp_path):
    path = write_sweep(tmp_path)
    (tmp_path / "out").mkdir()
    study = open_study(read_sweep(path), tmp_path / "out", 0)
    study._storage.create_new_trial(study._study_id)  # what `Study.ask` does first
    assert run_sweep(path, tmp_path / "out", count=1)[0]
    (row,) = results(tmp_path / "out")
    assert row["outcome"] == "complete" and 0 <= row["settings"]["x"] <= 1


def test_a_trial_that_was_to_be_stopped_early_is_not_resumed(tmp_path):
    path = write_sweep(tmp_path)
    (tmp_path / "out").mkdir()
    sweep = read_sweep(path)
    trial = propose(open_study(sweep, tmp_path / "out", 0), sweep)
    trial.set_user_attr("pruned", True)
    assert run_sweep(path, tmp_path / "out", count=1)[0]
    (row,) = results(tmp_path / "out")
    assert row["outcome"] == "stopped early" and not pathlib.Path(row["workdir"]).exists()


def test_the_cap_of_a_sweep_and_small_objectives(tmp_path):
    goal = {"name": "objective", "goal": "minimize"}
    path = write_sweep(tmp_path, metric=goal, run_cap=3)
    assert run_sweep(path, tmp_path / "out", count=9, parallel=3)[0]
    objectives = [row["objective"] for row in results(tmp_path / "out")]
    assert len(objectives) == 3 and objectives == sorted(objectives)


def test_a_sweep_whose_first_trials_fail_is_ended(tmp_path):
    path = write_sweep(tmp_path, ["--fail=True"])
    with pytest.raises(SweepError, match="the first 3 trials have failed; see"):
        run_sweep(path, tmp_path / "out", count=9)


def test_what_cannot_be_run_is_explained(tmp_path):
    path = write_sweep(tmp_path, program="nowhere.py")
    with pytest.raises(SweepError, match=r"there is no program nowhere\.py here"):
        run_sweep(path, tmp_path / "out", count=1)
    path = write_sweep(tmp_path, command=["none", f"--workdir={tmp_path}/{{run_id}}", "${args}"])
    with pytest.raises(SweepError, match="can't start none"):
        run_sweep(path, tmp_path / "out", count=1)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "study.db").write_text("no database at all, but a text of some length")
    with pytest.raises(SweepError, match=r"study\.db can't be read"):
        run_sweep(path, tmp_path / "damaged", count=1)
    with locked(tmp_path / "out" / ".sweep.lock"):
        with pytest.raises(SweepError, match="another process runs the sweep"):
            run_sweep(path, tmp_path / "out", count=1)


def test_a_folder_belongs_to_one_sweep(tmp_path):
    path = write_sweep(tmp_path)
    assert run_sweep(path, tmp_path / "out", count=1)[0]
    write_sweep(tmp_path, method="bayes")
    with pytest.raises(SweepError, match="holds a sweep of another file"):
        run_sweep(path, tmp_path / "out", count=1)


def test_trials_need_workdirs_of_their_own(tmp_path):
    path = write_sweep(tmp_path, command=["${program}", "--workdir=runs/x", "${args}"])
    with pytest.raises(SweepError, match=r"--workdir=PATH with \{run_id\} in it"):
        run_sweep(path, tmp_path / "out", count=1)


def test_commands_are_those_of_an_agent_of_wandb(tmp_path):
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    settings = {"config.a": 3, "config.b": 3e-05, "config.c": [16, 32], "config.d": True}
    path = write_sweep(tmp_path, command=["${program}", "--workdir={run_id}", "${args}"])
    theirs = utils.create_sweep_command_args(
        {"args": {name: {"value": value} for name, value in settings.items()}}
    )["args"]
    ours = command_of(read_sweep(path), {name: str(value) for name, value in settings.items()})
    assert ours == [str(PROGRAM), "--workdir={run_id}", *theirs]
