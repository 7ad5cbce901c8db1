"""Reads a sweep: a YAML file in the format of Weights & Biases.

What W&B would refuse is refused, and so is what it accepts but this project does not run: each
message says which. W&B checks a file only on its server, after a login.
"""

import dataclasses
import math
import numbers
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from abs_model._runtime.configuration import suggestion
from abs_model._runtime.errors import UserError

_METHODS = ("grid", "random", "bayes")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
# Words of a command that stand for others; also the command of a file that has none.
MACROS = ("${env}", "${interpreter}", "${program}", "${args}")

# Keys of the format; True for those that this project runs.
_KEYS = {
    "program": True, "method": True, "metric": True, "parameters": True, "command": True,
    "early_terminate": True, "run_cap": True, "name": True, "description": True,
    "project": True, "entity": True, "kind": True, "apiVersion": True,
    "controller": False, "job": False, "image_uri": False, "metrics": False, "scheduler": False,
}  # fmt: skip
# By distribution: its required keys, the others, and whether this project samples from it.
_DISTRIBUTIONS: Mapping[str, tuple[set[str], set[str], bool]] = {
    "constant": ({"value"}, set(), True),
    "categorical": ({"values"}, set(), True),
    "int_uniform": ({"min", "max"}, set(), True),
    "uniform": ({"min", "max"}, set(), True),
    "q_uniform": ({"min", "max"}, {"q"}, True),
    "log_uniform_values": ({"min", "max"}, set(), True),
    "categorical_w_probabilities": ({"values", "probabilities"}, set(), False),
    "log_uniform": ({"min", "max"}, set(), False),
    "inv_log_uniform": ({"min", "max"}, set(), False),
    "inv_log_uniform_values": ({"min", "max"}, set(), False),
    "q_log_uniform": ({"min", "max"}, {"q"}, False),
    "q_log_uniform_values": ({"min", "max"}, {"q"}, False),
    "normal": (set(), {"mu", "sigma"}, False),
    "q_normal": (set(), {"mu", "sigma", "q"}, False),
    "log_normal": (set(), {"mu", "sigma"}, False),
    "q_log_normal": (set(), {"mu", "sigma", "q"}, False),
    "beta": (set(), {"a", "b"}, False),
    "q_beta": (set(), {"a", "b", "q"}, False),
}


class SweepError(UserError):
    """A sweep's file can't be read or run."""


@dataclasses.dataclass(frozen=True)
class Parameter:
    """What a setting may be: one of some values, or a number in a range.

    Attributes:
        values: The choices; empty for a range.
        low: The least number of the range.
        high: The largest number of the range.
        integer: Whether the range is of integers.
        log: Whether the logarithm of the number is uniform.
        step: The distance of the range's numbers; None where it is continuous.
    """

    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    integer: bool = False
    log: bool = False
    step: float | None = None


@dataclasses.dataclass(frozen=True)
class Stopping:
    """Hyperband: after `first * eta^k` objectives, only the best 1 / eta of all trials go on."""

    first: int
    eta: int


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep, as its file describes it.

    Attributes:
        path: The file.
        method: grid, random or bayes.
        metric: Name of the metric to optimize.
        maximize: Whether large values are good.
        parameters: By flag without its dashes, such as "config.train.epochs".
        command: Words of a trial's command, with macros.
        program: The script that "${program}" stands for.
        stopping: When trials are stopped early; None for never.
        run_cap: The most trials; None without a limit.
    """

    path: pathlib.Path
    method: str
    metric: str
    maximize: bool
    parameters: Mapping[str, Parameter]
    command: tuple[str, ...]
    program: str
    stopping: Stopping | None
    run_cap: int | None


def read_sweep(path: pathlib.Path) -> Sweep:
    """Reads a file.

    Raises:
        SweepError: It can't be read, or W&B or this project would refuse it; the message lists all
            that is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SweepError(f"{path} can't be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise SweepError(f"{path} must hold keys and values, got {type(content).__name__}")
    problems = _Problems(path)
    for key in content:
        if key not in _KEYS:
            problems.add(str(key), f"W&B knows no such key{suggestion(str(key), list(_KEYS))}")
        elif not _KEYS[key]:
            problems.add(key, "W&B knows it, but this project does not run such sweeps")
    sweep = Sweep(
        path=path,
        method=_method(content, problems),
        **_metric(content, problems),
        parameters=_parameters(content, problems),
        command=_command(content, problems),
        program=_text(content, "program", problems),
        stopping=_stopping(content, problems),
        run_cap=_run_cap(content, problems),
    )
    if sweep.method == "grid":
        for name, parameter in sweep.parameters.items():
            if not (parameter.values or parameter.integer):
                problems.add(f"parameters.{name}", "a grid needs values, or a range of integers")
    problems.report()
    return sweep


class _Problems:
    """Collects what is wrong with a file."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._lines: list[str] = []

    def add(self, key: str, problem: str) -> None:
        self._lines.append(f"{key}: {problem}")

    def report(self) -> None:
        if self._lines:
            lines = "\n".join(f"  {line}" for line in self._lines)
            raise SweepError(f"{self._path} can't be run as a sweep:\n{lines}")


def _method(content: Mapping[str, Any], problems: _Problems) -> str:
    method = content.get("method")
    if method == "custom":
        problems.add("method", "W&B knows custom, but this project does not run such sweeps")
    elif method not in _METHODS:
        problems.add("method", f"must be one of {', '.join(_METHODS)}, got {method!r}")
    return str(method)


def _text(content: Mapping[str, Any], key: str, problems: _Problems) -> str:
    value = content.get(key)
    if not isinstance(value, str) or not value:
        problems.add(key, f"must be a text, got {value!r}")
    return str(value)


def _metric(content: Mapping[str, Any], problems: _Problems) -> dict[str, Any]:
    metric = content.get("metric")
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
        problems.add("metric", f"must have a name and a goal, got {metric!r}")
        return {"metric": "", "maximize": False}
    for key in metric.keys() - {"name", "goal"}:
        known = key in ("target", "impute", "impute_while_running")
        problems.add(
            f"metric.{key}",
            "W&B knows it, but this project does not" if known else "W&B knows no such key",
        )
    goal = metric.get("goal")
    if goal not in ("maximize", "minimize"):
        problems.add("metric.goal", f"must be maximize or minimize, got {goal!r}")
    return {"metric": metric["name"], "maximize": goal == "maximize"}


def _parameters(content: Mapping[str, Any], problems: _Problems) -> dict[str, Parameter]:
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        problems.add("parameters", f"must name at least one, got {parameters!r}")
        return {}
    found = {}
    for name, description in parameters.items():
        key = f"parameters.{name}"
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            problems.add(key, "a name is made of letters, digits, and . _ -")
        elif not isinstance(description, dict):
            problems.add(key, f"must be a section such as {{values: [1, 2]}}, got {description!r}")
        else:
            found[name] = _parameter(key, description, problems)
    return found


def _parameter(key: str, description: Mapping[str, Any], problems: _Problems) -> Parameter:
    if "parameters" in description:
        problems.add(
            key,
            "W&B allows parameters within parameters, but its own engine loses them; write names"
            " with dots instead, such as config.train.epochs",
        )
        return Parameter()
    for name in ("min", "max", "q"):
        if isinstance(description.get(name), str):
            problems.add(f"{key}.{name}", _not_a_number(description[name]))
            return Parameter()
    kind = description.get("distribution", _implied(description))
    if not isinstance(kind, str) or kind not in _DISTRIBUTIONS:
        known = ", ".join(_DISTRIBUTIONS)
        problems.add(f"{key}.distribution", f"must be one of {known}, got {kind!r}")
        return Parameter()
    required, others, supported = _DISTRIBUTIONS[kind]
    if missing := required - description.keys():
        problems.add(key, f"{kind} needs {', '.join(sorted(missing))}")
        return Parameter()
    if excess := description.keys() - required - others - {"distribution"}:
        problems.add(key, f"{kind} takes no {', '.join(sorted(map(str, excess)))}")
        return Parameter()
    if not supported:
        names = ", ".join(name for name, (_, _, runs) in _DISTRIBUTIONS.items() if runs)
        problems.add(key, f"W&B knows {kind}, but this project samples from {names} only")
        return Parameter()
    if kind == "constant":
        return _choices(f"{key}.value", [description["value"]], problems)
    if kind == "categorical":
        return _choices(f"{key}.values", description["values"], problems)
    return _range(key, kind, description, problems)


def _implied(description: Mapping[str, Any]) -> str:
    """The distribution that W&B takes where none is named."""
    if "value" in description:
        return "constant"
    if "values" in description:
        return "categorical_w_probabilities" if "probabilities" in description else "categorical"
    limits = (description.get("min"), description.get("max"))
    return "int_uniform" if all(map(_is_int, limits)) else "uniform"


def _choices(key: str, values: Any, problems: _Problems) -> Parameter:
    if not isinstance(values, list) or not values:
        problems.add(key, f"must be a list of at least one value, got {values!r}")
        return Parameter()
    if len({str(value) for value in values}) < len(values):
        problems.add(key, f"must differ, got {values}")
    for value in values:
        if isinstance(value, str) and _is_float(value):
            problems.add(key, _not_a_number(value))
    return Parameter(tuple(values))


def _range(key: str, kind: str, description: Mapping[str, Any], problems: _Problems) -> Parameter:
    low, high, step = description["min"], description["max"], description.get("q", 1.0)
    accepts: Callable[[Any], bool] = _is_int if kind == "int_uniform" else _is_number
    wanted = "an integer" if kind == "int_uniform" else "a number"
    faulty = {name: each for name, each in (("min", low), ("max", high)) if not accepts(each)}
    if not _is_number(step):
        faulty["q"] = step
    for name, value in faulty.items():
        problems.add(f"{key}.{name}", f"must be {wanted}, got {value!r}")
    if faulty:
        return Parameter()
    if low > high:
        problems.add(key, f"min must not be above max, got {low} and {high}")
    if kind == "log_uniform_values" and low <= 0:
        problems.add(f"{key}.min", f"must be above 0, got {low}")
    if kind == "q_uniform" and step <= 0:
        problems.add(f"{key}.q", f"must be above 0, got {step}")
    elif kind == "q_uniform" and any(abs(x / step - round(x / step)) > 1e-9 for x in (low, high)):
        problems.add(key, f"min and max must be multiples of q here, got {low}, {high} and {step}")
    return Parameter(
        low=low,
        high=high,
        integer=kind == "int_uniform",
        log=kind == "log_uniform_values",
        step=step if kind == "q_uniform" else None,
    )


def _command(content: Mapping[str, Any], problems: _Problems) -> tuple[str, ...]:
    command = content.get("command", list(MACROS))
    if not isinstance(command, list) or not command:
        problems.add("command", f"must be a list of words, got {command!r}")
        return ()
    words = tuple(map(str, command))
    for word in words:
        if "${" in word and word not in MACROS:
            known = ", ".join(MACROS)
            problems.add("command", f"this project knows the words {known}, got {word}")
    if words.count("${args}") != 1:
        problems.add(
            "command", "must have the word ${args} once, with which settings reach a trial"
        )
    return words


def _stopping(content: Mapping[str, Any], problems: _Problems) -> Stopping | None:
    settings = content.get("early_terminate")
    if settings is None:
        return None
    key = "early_terminate"
    if not isinstance(settings, dict) or settings.get("type") != "hyperband":
        problems.add(key, f"must be of type hyperband, got {settings!r}")
        return None
    if excess := settings.keys() - {"type", "min_iter", "max_iter", "s", "eta", "strict"}:
        problems.add(key, f"W&B knows no {', '.join(sorted(map(str, excess)))}")
    if settings.get("strict", True) is not True:
        problems.add(f"{key}.strict", "W&B knows it, but this project stops trials strictly")
    eta = settings.get("eta", 3)
    if not _is_int(eta) or eta < 2:
        problems.add(f"{key}.eta", f"must be an integer of at least 2 here, got {eta!r}")
        return None
    first, last, count = (settings.get(name, 0) for name in ("min_iter", "max_iter", "s"))
    if not all(map(_is_int, (first, last, count))):
        problems.add(key, "min_iter, max_iter and s must be integers")
        return None
    first = first or last // eta**count
    if first < 1:
        problems.add(key, "needs min_iter, or max_iter and s with max_iter of at least eta^s")
        return None
    return Stopping(first, eta)


def _run_cap(content: Mapping[str, Any], problems: _Problems) -> int | None:
    cap = content.get("run_cap")
    if cap is not None and not (_is_int(cap) and cap >= 1):
        problems.add("run_cap", f"must be an integer of at least 1, got {cap!r}")
    return cap


def _not_a_number(text: str) -> str:
    problem = f"YAML reads {text} as a text, not as a number"
    if not _is_float(text):
        return problem
    mantissa, exponent = f"{float(text):e}".split("e")
    return f"{problem}; write {float(mantissa)}e{exponent}"


def _is_float(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _is_int(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
