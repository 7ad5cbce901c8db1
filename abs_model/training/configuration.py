"""Configurations from the command line: what they may hold, and short errors when they don't.

`ml_collections.config_flags` parses `--config=FILE:VARIANT --config.section.key=value`; on an
unknown key it ends in a traceback of its own insides, and a missing file only shows once the
configuration is used. `run_main` turns these, and every `UserError`, into one message and exit
status 2. Define the flag without a default and mark it as required::

    _CONFIG = config_flags.DEFINE_config_file("config", help_string="FILE[:VARIANT]")
    flags.mark_flag_as_required("config")

    if __name__ == "__main__":
        run_main(main)

(With a default, config_flags parses the overrides while the script is being imported, before
anything could catch its errors.)
"""

import dataclasses
import difflib
import math
import numbers
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import jax
import ml_collections
from absl import app, flags
from ml_collections.config_flags.config_flags import is_config_flag

from abs_model.allocation import keep_freed_memory
from abs_model.compilation import keep_compiled
from abs_model.errors import UserError
from abs_model.training.workdir import flatten

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
    """

    description: str
    accepts: Callable[[Any], bool]


def _is_int(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


positive_int = Expectation("an integer of at least 1", lambda v: _is_int(v) and v >= 1)
non_negative_int = Expectation("an integer of at least 0", lambda v: _is_int(v) and v >= 0)
positive = Expectation("a finite number above 0", lambda v: _is_finite(v) and v > 0)
non_negative = Expectation("a finite number of at least 0", lambda v: _is_finite(v) and v >= 0)
boolean = Expectation("true or false", lambda v: isinstance(v, bool))


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


def check(config: ml_collections.ConfigDict, expectations: Mapping[str, Expectation]) -> None:
    """Checks the named values of a configuration, and reports all that are wrong at once.

    Args:
        config: The configuration.
        expectations: What each dotted key must be, e.g. {"train.epochs": positive_int}.

    Raises:
        ConfigError: A key is absent or its value not as expected.
    """
    problems = []
    for key, expectation in expectations.items():
        value: Any = config
        for part in key.split("."):
            inside = isinstance(value, ml_collections.ConfigDict) and part in value
            value = value[part] if inside else _MISSING
        if value is _MISSING:
            problems.append(f"{key} must be {expectation.description}, but it isn't there")
        elif not expectation.accepts(value):
            problems.append(f"{key} must be {expectation.description}, got {value!r}")
    if problems:
        raise ConfigError("\n".join(problems))


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


def run_main(main: Callable[[list[str]], int | None]) -> None:
    """Runs a script through `absl.app.run`, with one clean message for what the user can mend.

    What it compiles is kept on disk.

    Faulty flags, unknown configuration keys and every `UserError` that `main` raises are
    printed to stderr without a traceback, and the process exits with status 2. Anything else is
    a fault of the program and keeps its traceback.

    Args:
        main: Called with [program name] once the flags are parsed; its result is the exit status.
    """

    def guarded(argv: list[str]) -> int | None:
        # Training and ledgers are the same whatever JAX_ENABLE_X64 says; see `precision`.
        jax.config.update("jax_enable_x64", False)
        keep_compiled()
        keep_freed_memory()
        try:
            return main(argv)
        except UserError as error:
            _exit_with_message(str(error))

    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        remaining = flags.FLAGS(argv)
        _check_loaded()
    except (flags.Error, UserError) as error:
        _exit_with_message(str(error))
    except (AttributeError, KeyError, IndexError, ValueError):
        # config_flags raises these from its insides for a key that the configuration lacks.
        message = _unknown_key(argv)
        if message is None:
            raise
        _exit_with_message(message)
    except OSError as error:
        _exit_with_message(str(error))
    if len(remaining) > 1:
        _exit_with_message(
            f"unexpected argument {remaining[1]!r}; options are written --name=value"
        )
    return remaining


def _config_flag_names() -> list[str]:
    return [name for name in flags.FLAGS if is_config_flag(flags.FLAGS[name])]


def _check_loaded() -> None:
    """Raises the OSError that config_flags keeps for the first use of an unreadable file."""
    for name in _config_flag_names():
        hasattr(flags.FLAGS[name].value, "lock")


def _unknown_key(argv: Sequence[str]) -> str | None:
    """Describes the first override of a key its configuration doesn't have; None without one."""
    for name in _config_flag_names():
        file = _argument(argv, name)
        if file is None:
            continue
        config: Any = flags.FLAGS[name].parser.parse(file)
        keys = flatten(config)
        for argument in argv:
            match = re.match(rf"--?(?:no)?{re.escape(name)}\.([^=]+)", argument)
            # A prefix of a key is a section, which may be overridden as a whole.
            if match and not any(f"{key}.".startswith(f"{match[1]}.") for key in keys):
                near = suggestion(match[1], list(keys), form=f"--{name}.{{}}")
                return f"--{name}.{match[1]}: {file} has no key {match[1]!r}{near}"
    return None


def _argument(argv: Sequence[str], name: str) -> str | None:
    """The value given to --name on the command line, as --name=value or --name value."""
    value = None
    for argument, following in zip(argv, [*argv[1:], None], strict=True):
        if match := re.fullmatch(rf"--?{re.escape(name)}(?:=(.*))?", argument):
            value = following if match[1] is None else match[1]
    return value


def suggestion(name: str, known: Sequence[str], form: str = "{}") -> str:
    """ ", did you mean ...?" for the entries of `known` near to `name`, else ""."""
    near = [key for key in known if key.endswith(f".{name}")]
    near = near or difflib.get_close_matches(name, known, n=1)
    return f", did you mean {' or '.join(form.format(key) for key in near)}?" if near else ""


def _exit_with_message(message: str) -> NoReturn:
    print(f"{pathlib.Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    sys.exit(2)
