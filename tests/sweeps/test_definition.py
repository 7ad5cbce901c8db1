import pathlib
import runpy

import pytest
import yaml

from abs_model._runtime.configuration import flatten
from abs_model.sweeps.definition import Parameter, Stopping, SweepError, read_sweep

SHIPPED = sorted((pathlib.Path(__file__).parents[2] / "configs" / "sweeps").glob("*.yaml"))
GOOD = {
    "program": "train.py",
    "method": "bayes",
    "metric": {"name": "objective", "goal": "maximize"},
    "parameters": {"x": {"min": 0.0, "max": 1.0}},
}


def read(tmp_path, changes=None, text=None):
    path = tmp_path / "sweep.yaml"
    content = {**GOOD, **(changes or {})}
    path.write_text(yaml.safe_dump(content) if text is None else text)
    return read_sweep(path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps_can_be_run(path):
    sweep = read_sweep(path)
    assert (path.parents[2] / sweep.program).is_file()
    assert sweep.metric == "objective"
    # Every flag of the command, and every parameter, is a key of the configuration.
    flags = dict(word.removeprefix("--").split("=", 1) for word in sweep.command if "=" in word)
    file, variant = (*flags.pop("config").split(":"), "full")[:2]
    get_config = runpy.run_path(str(path.parents[2] / file))["get_config"]
    known = {f"config.{key}" for key in flatten(get_config(variant))}
    assert {*flags, *sweep.parameters} - {"workdir"} <= known


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ({"value": 3}, Parameter((3,))),
        ({"values": [[16, 32], None, True]}, Parameter(([16, 32], None, True))),
        ({"min": 1, "max": 4}, Parameter(low=1, high=4, integer=True)),
        ({"min": 1, "max": 4.0}, Parameter(low=1, high=4)),
        ({"distribution": "q_uniform", "min": 2, "max": 4, "q": 2}, Parameter((), 2, 4, step=2)),
        (
            {"distribution": "log_uniform_values", "min": 0.1, "max": 1},
            Parameter(low=0.1, high=1, log=True),
        ),
    ],
)
def test_parameters_mean_what_they_mean_for_wandb(tmp_path, description, expected):
    assert read(tmp_path, {"parameters": {"x": description}}).parameters == {"x": expected}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"type": "hyperband", "min_iter": 2}, Stopping(2, 3)),
        ({"type": "hyperband", "max_iter": 27, "s": 2, "eta": 3}, Stopping(3, 3)),
        (None, None),
    ],
)
def test_early_stopping(tmp_path, settings, expected):
    assert read(tmp_path, {"early_terminate": settings}).stopping == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metod": "grid"}, r"metod: W&B knows no such key, did you mean method\?"),
        ({"method": "tpe"}, "method: must be one of grid, random, bayes, got 'tpe'"),
        ({"method": "custom"}, "method: W&B knows custom, but this project does not"),
        ({"method": "grid"}, r"parameters\.x: a grid needs values"),
        ({"program": None}, "program: must be a text"),
        ({"metric": {"goal": "maximize"}}, "metric: must have a name and a goal"),
        ({"metric": {"name": "a", "goal": "max"}}, r"metric\.goal: must be maximize or minimize"),
        ({"metric": GOOD["metric"] | {"target": 1}}, r"metric\.target: W&B knows it"),
        ({"parameters": {}}, "parameters: must name at least one"),
        ({"parameters": {"2x": {"value": 1}}}, r"parameters\.2x: a name is made of"),
        ({"parameters": {"x": [1, 2]}}, r"parameters\.x: must be a section"),
        ({"parameters": {"x": {"values": []}}}, r"parameters\.x\.values: must be a list"),
        ({"parameters": {"x": {"values": [1, 1]}}}, r"parameters\.x\.values: must differ"),
        ({"parameters": {"x": {"min": 1}}}, r"parameters\.x: uniform needs max"),
        ({"parameters": {"x": {"min": 2, "max": 1}}}, r"parameters\.x: min must not be above max"),
        ({"parameters": {"x": {"value": 1, "min": 0}}}, r"parameters\.x: constant takes no min"),
        (
            {"parameters": {"x": {"distribution": "log_uniform_values", "min": 0, "max": 1}}},
            r"parameters\.x\.min: must be above 0, got 0",
        ),
        (
            {"parameters": {"x": {"distribution": "int_uniform", "min": 0.5, "max": 1}}},
            r"parameters\.x\.min: must be an integer, got 0\.5",
        ),
        (
            {"parameters": {"x": {"distribution": "normal"}}},
            r"parameters\.x: W&B knows normal, but this project samples from constant,",
        ),
        (
            {"parameters": {"x": {"distribution": "gauss"}}},
            r"parameters\.x\.distribution: must be one of",
        ),
        (
            {"parameters": {"train": {"parameters": {"epochs": {"value": 1}}}}},
            r"parameters\.train: .* write names with dots instead",
        ),
        (
            {"parameters": {"x": {"distribution": "q_uniform", "min": 0.5, "max": 2, "q": 1}}},
            r"parameters\.x: min and max must be multiples of q here, got 0\.5, 2 and 1",
        ),
        (
            {"parameters": {"x": {"distribution": ["uniform"], "min": 0, "max": 1}}},
            r"parameters\.x\.distribution: must be one of",
        ),
        ({"parameters": {"x": {"value": "1e-4"}}}, r"parameters\.x\.value: YAML reads 1e-4"),
        ({"command": ["${program}"]}, r"command: must have the word \$\{args\} once"),
        ({"command": ["${args}", "--python=${interpreter}"]}, r"got --python=\$\{interpreter\}"),
        ({"command": ["${programme}", "${args}"]}, r"got \$\{programme\}"),
        ({"early_terminate": {"type": "median"}}, "early_terminate: must be of type hyperband"),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate: needs min_iter"),
        ({"run_cap": 0}, "run_cap: must be an integer of at least 1"),
    ],
)
def test_what_cannot_be_run_is_named(tmp_path, changes, message):
    with pytest.raises(SweepError, match=message):
        read(tmp_path, changes)


def test_numbers_that_yaml_takes_for_texts_are_named(tmp_path):
    text = yaml.safe_dump(GOOD).replace("max: 1.0", "max: 1e-4").replace("min: 0.0", "min: 0")
    with pytest.raises(SweepError, match=r"x\.max: YAML reads 1e-4 as a text.*write 1\.0e-04"):
        read(tmp_path, text=text)
    assert read(tmp_path, text=text.replace("1e-4", "1.0e-04")).parameters["x"].high == 1e-4


def test_all_problems_are_named_at_once(tmp_path):
    with pytest.raises(SweepError) as error:
        read(tmp_path, {"method": "tpe", "run_cap": -1, "program": ""})
    assert len(str(error.value).splitlines()) == 4


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00"])
def test_what_is_no_sweep_at_all(tmp_path, text):
    with pytest.raises(SweepError):
        read(tmp_path, text=text)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SweepError, match="can't be read"):
        read_sweep(tmp_path / "none.yaml")
