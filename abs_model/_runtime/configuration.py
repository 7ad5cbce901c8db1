"""Configurations: what they may hold, and short messages where they don't.

What a program knows of a configuration are the keys of its expectations: `check_all` refuses all
others, wherever they were set, since a misspelt key would leave the default in force.
"""

import dataclasses
import difflib
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import ml_collections

from abs_model._runtime.errors import UserError

T = TypeVar("T")
_MISSING = object()


class ConfigError(UserError):
    """A configuration has an unknown key, an unknown variant, or a value that can't be used."""


@dataclasses.dataclass(frozen=True)
class Expectation:
    """What a value of a configuration must be.

    Attributes:
        description: Completes "KEY must be ...".
        accepts: Whether a value meets it; only ever called with the value.
        required: Whether the key must be there.
    """

    description: str
    accepts: Callable[[Any], bool]
    required: bool = True


def _is_int(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


positive_int = Expectation("an integer of at least 1", lambda v: _is_int(v) and v >= 1)
non_negative_int = Expectation("an integer of at least 0", lambda v: _is_int(v) and v >= 0)
positive = Expectation("a finite number above 0", lambda v: _is_finite(v) and v > 0)
non_negative = Expectation("a finite number of at least 0", lambda v: _is_finite(v) and v >= 0)
boolean = Expectation("true or false", lambda v: isinstance(v, bool))
text = Expectation("a text", lambda v: isinstance(v, str))
# `jax.random.key` takes larger seeds, too, but looks at their last 32 bits only.
seed = Expectation("an integer from 0 to 2^32 - 1", lambda v: _is_int(v) and 0 <= v < 2**32)
section = Expectation(
    "a section with one entry or more",
    lambda v: isinstance(v, ml_collections.ConfigDict) and len(v) > 0,
)


def between(low: float, high: float) -> Expectation:
    """A number in [low, high], both ends included."""
    return Expectation(
        f"a number from {low} to {high}", lambda v: _is_finite(v) and low <= v <= high
    )


def one_of(*choices: str) -> Expectation:
    """One of the given strings."""
    return Expectation("one of " + ", ".join(choices), lambda v: v in choices)


def sequence_of(expectation: Expectation) -> Expectation:
    """A non-empty tuple or list whose every element meets `expectation`."""
    return Expectation(
        f"a sequence, each element {expectation.description}",
        lambda v: isinstance(v, list | tuple) and len(v) > 0 and all(map(expectation.accepts, v)),
    )


def optional(expectation: Expectation) -> Expectation:
    """None, or what meets `expectation`."""
    return Expectation(
        f"None or {expectation.description}", lambda v: v is None or expectation.accepts(v)
    )


def check(config: ml_collections.ConfigDict, expectations: Mapping[str, Expectation]) -> None:
    """Checks the named values of a configuration, and reports all that are wrong at once.

    Args:
        config: The configuration.
        expectations: What each dotted key must be, e.g. {"train.epochs": positive_int}.

    Raises:
        ConfigError: A key is absent or its value not as expected.
    """
    _report(_wrong_values(config, expectations))


def check_all(config: ml_collections.ConfigDict, expectations: Mapping[str, Expectation]) -> None:
    """Checks a whole configuration: it has the named values, and no other keys.

    Args:
        config: The configuration.
        expectations: What each dotted key must be; a key of a section stands for all within it.

    Raises:
        ConfigError: A key is unknown or absent, or its value not as expected.
    """
    _report([*_unknown_keys(config, list(expectations)), *_wrong_values(config, expectations)])


def _report(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError("\n".join(problems))


def _wrong_values(
    config: ml_collections.ConfigDict, expectations: Mapping[str, Expectation]
) -> list[str]:
    problems = []
    for key, expectation in expectations.items():
        value: Any = config
        for part in key.split("."):
            inside = isinstance(value, ml_collections.ConfigDict) and part in value
            value = value[part] if inside else _MISSING
        if value is _MISSING and not expectation.required:
            continue
        if value is _MISSING:
            problems.append(f"{key} must be {expectation.description}, but it isn't there")
        elif not expectation.accepts(value):
            problems.append(f"{key} must be {expectation.description}, got {value!r}")
    return problems


def _unknown_keys(config: ml_collections.ConfigDict, known: Sequence[str]) -> list[str]:
    """A message for each key, or section, that is neither known nor within what is."""
    sections = {key[:place] for key in known for place, c in enumerate(key) if c == "."}
    unknown = {}
    for leaf in flatten(config):
        parts = leaf.split(".")
        for count in range(1, len(parts) + 1):
            key = ".".join(parts[:count])
            if key in known:
                break
            if key not in sections:
                unknown[key] = suggestion(key, [*known, *sections])
                break
    return [f"{key}: the program knows no such key{near}" for key, near in unknown.items()]


def choose_variant(name: str, variants: Mapping[str, T]) -> T:
    """The entry of `variants` called `name`, for `get_config(variant)` in a configuration file.

    Raises:
        ConfigError: There is none of that name; the message lists those there are.
    """
    if name not in variants:
        raise ConfigError(
            f"there is no configuration variant {name!r}{suggestion(name, list(variants))};"
            f" choose from {', '.join(variants)}"
        )
    return variants[name]


def suggestion(name: str, known: Sequence[str], form: str = "{}") -> str:
    """ ", did you mean ...?" for the entries of `known` near to `name`, else ""."""
    near = [key for key in known if key.endswith(f".{name}")]
    near = near or difflib.get_close_matches(name, known, n=1)
    return f", did you mean {' or '.join(form.format(key) for key in near)}?" if near else ""


def as_config(content: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """What was read from a configuration's JSON as a locked configuration, lists as tuples."""
    return ml_collections.ConfigDict(_with_tuples(content)).lock()


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a nested configuration by dotted key, e.g. {"train.epochs": 50}.

    An empty section is a leaf of its own, so that nothing gets lost.
    """
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict) and len(value):
            leaves.update(flatten(value, f"{prefix}{key}."))
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_with_tuples(item) for item in value)
    return value
