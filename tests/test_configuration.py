import os
import pathlib
import subprocess
import sys

import ml_collections
import pytest

from abs_model.training.configuration import (
    ConfigError,
    between,
    boolean,
    check,
    choose_variant,
    non_negative,
    non_negative_int,
    one_of,
    positive,
    positive_int,
    sequence_of,
)

SCRIPT = """
from absl import flags
from ml_collections import config_flags
from abs_model.errors import UserError
from abs_model.training.configuration import check, positive_int, run_main
from abs_model.training.workdir import open_workdir

CONFIG = config_flags.DEFINE_config_file("config", help_string="FILE[:VARIANT]")
WORKDIR = flags.DEFINE_string("workdir", None, "where to write")
flags.mark_flag_as_required("config")

def main(argv):
    check(CONFIG.value, {"train.epochs": positive_int})
    if WORKDIR.value:
        open_workdir(WORKDIR.value, CONFIG.value)
    if CONFIG.value.train.name == "fault":
        raise ValueError("a fault of the program")
    if CONFIG.value.train.name == "unknown":
        raise UserError("no data set 'unknown'")
    print("epochs", CONFIG.value.train.epochs)

if __name__ == "__main__":
    run_main(main)
"""
CONFIG = """
import ml_collections
from abs_model.training.configuration import choose_variant

def get_config(variant="full"):
    epochs = choose_variant(variant, {"full": 50, "quick": 1})
    return ml_collections.ConfigDict({
        "seed": 0,
        "train": {"epochs": epochs, "learning_rate": 0.1, "augment": True, "name": "x"},
    })
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("script")
    (path / "script.py").write_text(SCRIPT)
    (path / "conf.py").write_text(CONFIG)
    return path


def run(directory, *arguments):
    root = str(pathlib.Path(__file__).parents[1])
    return subprocess.run(
        [sys.executable, "script.py", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_good_overrides_are_taken(directory):
    result = run(directory, "--config=conf.py:quick", "--config.train.epochs=5")
    assert (result.returncode, result.stdout) == (0, "epochs 5\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config=conf.py:quick", "--config.train.epoch=5"],
            "script.py: --config.train.epoch: conf.py:quick has no key 'train.epoch', did you mean"
            " --config.train.epochs?",
        ),
        (["--config", "conf.py", "--config.trian.epochs=3"], "did you mean --config.train.epochs?"),
        (["--config=conf.py", "--config.epochs=3"], "did you mean --config.train.epochs?"),
        (["--config=conf.py", "--config.train.epochs.x=3"], "has no key 'train.epochs.x'"),
        (["--config=conf.py", "--config.train.epochs=abc"], "--config.train.epochs=abc"),
        (["--config=conf.py", "--config.train.epochs=1.5"], "--config.train.epochs=1.5"),
        (["--config=conf.py", "--config.train.augment=3"], "--config.train.augment=3"),
        (["--config=conf.py", "--config.train=3"], "--config.train=3"),
        (
            ["--config=conf.py:qiuck"],
            "no configuration variant 'qiuck', did you mean quick?; choose from full, quick",
        ),
        (["--config=nowhere.py"], "nowhere.py"),
        (["--config=nowhere.py", "--config.train.epochs=1"], "nowhere.py"),
        ([], "--config"),
        (["--confg=conf.py"], "confg"),
        (["--config=conf.py", "train.epochs=5"], "unexpected argument 'train.epochs=5'"),
        (["--config=conf.py", "--config.train.epochs=0"], "at least 1, got 0"),
        (["--config=conf.py", "--workdir=conf.py"], "another --workdir"),
        (["--config=conf.py", "--config.train.name=unknown"], "no data set 'unknown'"),
    ],
)
def test_faulty_command_lines_end_in_one_short_message(directory, arguments, message):
    result = run(directory, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 4


def test_faults_of_the_program_keep_their_traceback(directory):
    result = run(directory, "--config=conf.py", "--config.train.name=fault")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "a fault of the program" in result.stderr


@pytest.mark.parametrize(
    ("expectation", "good", "bad"),
    [
        (positive_int, [1, 10], [0, -1, 1.0, True, "1", None]),
        (non_negative_int, [0, 1], [-1, 0.0, False]),
        (positive, [1, 0.1], [0, -0.1, float("nan"), float("inf"), True, "1"]),
        (non_negative, [0, 0.0, 2], [-1e-9, float("nan")]),
        (between(0, 1), [0, 0.5, 1], [-0.1, 1.1, float("nan"), None]),
        (boolean, [True, False], [1, 0, "true"]),
        (one_of("a", "b"), ["a", "b"], ["c", "", None]),
        (sequence_of(positive_int), [(1,), [1, 2]], [(), (1, 0), 1, "12"]),
    ],
)
def test_expectations(expectation, good, bad):
    for value in good:
        check(ml_collections.ConfigDict({"a": {"b": value}}), {"a.b": expectation})
    for value in bad:
        with pytest.raises(ConfigError, match=r"^a\.b must be "):
            check(ml_collections.ConfigDict({"a": {"b": value}}), {"a.b": expectation})


def test_check_reports_every_problem_at_once():
    config = ml_collections.ConfigDict({"train": {"epochs": 0, "rate": 1.0}})
    with pytest.raises(ConfigError) as caught:
        check(
            config,
            {"train.epochs": positive_int, "train.rate": positive, "data.name": one_of("a")},
        )
    assert str(caught.value).splitlines() == [
        "train.epochs must be an integer of at least 1, got 0",
        "data.name must be one of a, but it isn't there",
    ]


def test_choose_variant():
    assert choose_variant("full", {"full": 1, "quick": 2}) == 1
    with pytest.raises(ConfigError, match="'huge'; choose from full, quick"):
        choose_variant("huge", {"full": 1, "quick": 2})
