import dataclasses
import os
import subprocess
import sys

import ml_collections
import pytest

from abs_model._runtime.configuration import (
    ConfigError,
    between,
    boolean,
    check,
    check_all,
    choose_variant,
    non_negative,
    non_negative_int,
    one_of,
    optional,
    positive,
    positive_int,
    section,
    seed,
    sequence_of,
    text,
)
from tests.conftest import ROOT
from tests.forked_scripts import run_forked

SCRIPT = """
from abs_model._runtime.errors import UserError
from abs_model._runtime.command_line import define_config, define_path, run_main
from abs_model._runtime import configuration as known
from abs_model.training.workdir import open_workdir

CONFIG = define_config()
WORKDIR = define_path("workdir", None, "where to write")
KNOWN = {
    "seed": known.optional(known.seed),
    "train.epochs": known.positive_int,
    "train.learning_rate": known.positive,
    "train.augment": known.boolean,
    "train.name": known.optional(known.text),
}

def main(argv):
    known.check_all(CONFIG.value, KNOWN)
    if WORKDIR.value:
        open_workdir(WORKDIR.value, CONFIG.value)
    if CONFIG.value.train.name == "fault":
        raise ValueError("a fault of the program")
    if CONFIG.value.train.name == "unknown":
        raise UserError("no data set 'unknown'")
    print("epochs", CONFIG.value.train.epochs)
    print("seed", CONFIG.value.seed, "name", CONFIG.value.train.name)

if __name__ == "__main__":
    run_main(main)
"""
CONFIG = """
import ml_collections
from abs_model._runtime.configuration import choose_variant

def get_config(variant="full"):
    epochs = choose_variant(variant, {"full": 50, "quick": 1})
    return ml_collections.ConfigDict({
        "seed": 1,
        "train": {"epochs": epochs, "learning_rate": 0.1, "augment": True, "name": "x"},
    })
"""
FILES = {
    "script.py": SCRIPT,
    "conf.py": CONFIG,
    "derived.py": """
import conf

def get_config():
    config = conf.get_config()
    config.train.learning_rat = 100.0
    config.optimizer = {"name": "sgd", "momentum": 0.9}
    return config
""",
    "fresh.py": """
import ml_collections

def get_config():
    return ml_collections.ConfigDict({"seed": 1, "train": {"epoch": 3}})
""",
    "choosy.py": "def get_config(variant): ...",
    "other.py": "def config(): ...",
    "plain.py": "def get_config(): return {'seed': 1}",
    "slip.py": "import conf\ndef get_config():\n    conf.get_config().trian.epochs = 3",
    "syntax.py": "def get_config(:",
    "good.flags": "# a comment\n--config=conf.py:quick\n--config.train.epochs=7\n",
    "typo.flags": "--config=conf.py\n--config.train.epoch=7\n",
    "flag.flags": "--config=conf.py\n--wokdir=x\n",
    "dashes.flags": "--config=conf.py\ntrain.epochs=5\n",
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("script")
    for name, content in FILES.items():
        (path / name).write_text(content)
    (path / "binary.flags").write_bytes(b"\xff\xfe")
    return path


def run(directory, *arguments, **variables):
    return run_forked(directory / "script.py", *arguments, **variables)


def test_good_overrides_are_taken(directory):
    result = run(directory, "--config=conf.py:quick", "--config.train.epochs=5")
    assert (result.returncode, result.stdout) == (0, "epochs 5\nseed 1 name x\n")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--config.seed=None", "--config.train.name", "None"], "seed None name None"),
        (["--config.seed=None", "--config.seed=3"], "seed 3 name x"),
        (["--config.seed=3", "--config.seed=None"], "seed None name x"),
    ],
)
def test_none_undoes_a_setting_whatever_its_type(directory, arguments, shown):
    result = run(directory, "--config=conf.py:quick", *arguments)
    assert (result.returncode, result.stdout) == (0, f"epochs 1\n{shown}\n"), result.stderr


@pytest.mark.parametrize("notation", ["5", "5.0", "5e0", "+5", " 5.0"])
def test_integers_may_be_in_any_notation(directory, notation):
    for words in ([f"--config.train.epochs={notation}"], ["--config.train.epochs", notation]):
        result = run(directory, "--config=conf.py:quick", *words)
        assert (result.returncode, result.stdout) == (0, "epochs 5\nseed 1 name x\n"), result.stderr


def test_large_integers_keep_all_their_digits(directory):
    # More digits than a float has.
    for notation in ("9007199254740993", "9007199254740993.0"):
        result = run(directory, "--config=conf.py:quick", f"--config.train.epochs={notation}")
        assert result.stdout == "epochs 9007199254740993\nseed 1 name x\n", result.stderr


def test_flag_files_and_a_configuration_in_the_home(directory):
    result = run(directory, "--flagfile=good.flags", "--config.seed=None")
    assert (result.returncode, result.stdout) == (0, "epochs 7\nseed None name x\n")
    result = run(directory, "--config=~/conf.py", HOME=str(directory))
    assert (result.returncode, result.stdout) == (0, "epochs 50\nseed 1 name x\n")
    assert run(directory, "--config=conf.py", "--workdir=~/a", HOME=str(directory)).returncode == 0
    assert (directory / "a" / "config.json").exists()


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
        (
            ["--config=conf.py", "--config.train={'epochs': 3}"],
            "--config.train is a section; set its keys one by one, such as --config.train.augment",
        ),
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
        (["--config=conf.py", "--config.train.epochs=None"], "at least 1, got None"),
        (["--config=conf.py", "--config.trian=None"], "conf.py has no key 'trian'"),
        (["--config=conf.py", "--config.seed=4294967296"], "seed must be None or an integer from"),
        (["--config=conf.py", "--workdir="], "--workdir=: must name a file or directory, got ''"),
        (
            ["--config=derived.py"],
            "script.py: optimizer: the program knows no such key\ntrain.learning_rat: the program"
            " knows no such key, did you mean train.learning_rate?\n",
        ),
        (
            ["--config=derived.py", "--config.train.learning_rat=3"],
            "train.learning_rat: the program knows no such key, did you mean train.learning_rate?",
        ),
        (
            ["--config=fresh.py"],
            "train.epoch: the program knows no such key, did you mean train.epochs?",
        ),
        (["--config=fresh.py:cpu"], "--config: fresh.py has no variants, got 'cpu'"),
        (["--config=choosy.py"], "--config: choosy.py requires a variant: choosy.py:VARIANT"),
        (["--config=confi.py"], "--config: there is no file confi.py, did you mean conf.py?"),
        (["--config=other.py"], "--config: other.py must have a function get_config"),
        (["--config=plain.py"], "get_config must return an ml_collections.ConfigDict, got dict"),
        (["--config=plain.py", "--config.seed=2"], "return an ml_collections.ConfigDict, got dict"),
        (["--config=slip.py"], "--config: slip.py, line 3: AttributeError: "),
        (["--config=syntax.py"], "--config: syntax.py: SyntaxError: "),
        (["--flagfile=absent.flags"], "--flagfile can't be read: [Errno 2]"),
        (["--flagfile=."], "--flagfile can't be read: [Errno 21]"),
        (["--flagfile=binary.flags"], "--flagfile must be a text file"),
        (["--flagfile"], "--flagfile with no argument"),
        (["--flagfile=typo.flags"], "did you mean --config.train.epochs?"),
        (["--flagfile=flag.flags"], "Unknown command line flag 'wokdir'. Did you mean: workdir"),
        (["--flagfile=dashes.flags"], "unexpected argument 'train.epochs=5'"),
    ],
)
def test_faulty_command_lines_end_in_one_short_message(directory, arguments, message):
    result = run(directory, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 6


def test_faults_of_the_program_keep_their_traceback(directory):
    command = [sys.executable, "script.py", "--config=conf.py", "--config.train.name=fault"]
    result = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
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
        (seed, [0, 2**32 - 1], [-1, 2**32, 2**70, 0.0, True, None]),
        (text, ["", "a"], [None, 1]),
        (optional(positive_int), [None, 1], [0, "1"]),
        (section, [{"a": 1}], [{}, None, 3]),
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


def test_keys_within_a_known_section_are_its_own_affair():
    known = {"seed": seed, "attacks": section}
    config = ml_collections.ConfigDict({"seed": 0, "attacks": {"a": {"norm": "l2"}}})
    check_all(config, known)
    check_all(config, known | {"later": dataclasses.replace(seed, required=False)})
    config.attack = {"b": {}}
    with pytest.raises(ConfigError, match=r"^attack: .* did you mean attacks\?$"):
        check_all(config, known)


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
