"""Command lines, all of them parsed by absl: flags, options, and short messages for faulty ones.

train.py and evaluate.py have a configuration and flags. `ml_collections.config_flags` parses
`--config=FILE:VARIANT --config.section.key=value`. A key that the configuration lacks, a faulty
file or a missing one end in tracebacks of its own insides. `run_main` turns these, and every
`UserError`, into one message and exit status 2::

    _CONFIG = define_config()

    if __name__ == "__main__":
        run_main(main)

`--config.section.key=None` sets any key to None, whatever its type. A section can't be set.

Scripts with positional arguments parse them as `absl.flags.argparse_flags` does, in a function of
their own that `run_main` calls::

    def parse(argv):
        parser = argument_parser(__doc__)
        parser.add_argument("workdir", metavar="WORKDIR", type=as_path)
        return parser.parse_args(argv[1:])

    if __name__ == "__main__":
        run_main(main, parse)
"""

import argparse
import dataclasses
import decimal
import inspect
import logging
import os
import pathlib
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import ml_collections
from absl import app, flags
from absl.flags import argparse_flags
from ml_collections import config_flags
from ml_collections.config_flags.config_flags import is_config_flag

from abs_model._runtime.atomic_files import as_path
from abs_model._runtime.compilation_cache import enable_compilation_cache
from abs_model._runtime.configuration import ConfigError, flatten, suggestion
from abs_model._runtime.errors import UserError
from abs_model._runtime.malloc import retain_freed_memory
from abs_model._runtime.precision import use_single_precision
from abs_model._runtime.registries import import_from_working_directory

# config_flags would read flag files while the script is being imported, where nothing could catch
# their errors; so it gets the arguments from here, when `run_main` has read them.
_ARGUMENTS: list[str] = []
flags.disclaim_key_flags()


def define_config() -> flags.FlagHolder:
    """Defines the required flag --config; to be called once, by a script."""
    holder = config_flags.DEFINE_config_file(
        "config",
        help_string="FILE[:VARIANT], such as configs/table1.py:cpu.",
        lock_config=True,
        sys_argv=_ARGUMENTS,
    )
    flags.mark_flag_as_required("config")
    return holder


class _PathParser(flags.ArgumentParser):
    """Reads paths as people write them."""

    def parse(self, argument: str) -> pathlib.Path:
        return as_path(argument)

    def flag_type(self) -> str:
        return "path"


def define_path(name: str, default: str | None, help_string: str) -> flags.FlagHolder:
    """Defines a flag for a path, which may begin with ~ and must not be empty."""
    return flags.DEFINE(_PathParser(), name, default, help_string)


def argument_parser(doc: str, **settings: Any) -> argparse_flags.ArgumentParser:
    """Returns a parser of options and positional arguments, beside absl's flags.

    Args:
        doc: Docstring of the script, whose first line describes it.
        settings: Arguments of `argparse.ArgumentParser`.
    """
    return argparse_flags.ArgumentParser(description=doc.splitlines()[0], **settings)


def positive(text: str) -> int:
    """Reads an option that must be an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def output_file(text: str) -> pathlib.Path:
    """Reads the path of a file to write, in a directory that exists."""
    path = as_path(text)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"there is no directory {folder}; make it first")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file, and {path} is a directory")
    return path


def run_main(
    main: Callable[[Any], int | None], parse: Callable[[list[str]], Any] | None = None
) -> None:
    """Runs a script through `absl.app.run`, with one clean message for what the user can fix.

    What it compiles is kept on disk.

    Faulty flags and configuration files, unknown keys and every `UserError` that `main` raises are
    printed to stderr without a traceback, and the process exits with status 2. Anything else is
    a fault of the program and keeps its traceback.

    Args:
        main: Called with what `parse` returns; its result is the exit status.
        parse: Called with the arguments, the program's name first. None parses flags only and
            returns [program name].
    """

    def guarded(options: Any) -> int | None:
        # Training and ledgers are the same whatever JAX's switches say; see `precision`.
        use_single_precision()
        # At INFO it reports each kind of device that there isn't, which looks like an error.
        logging.getLogger("jax").setLevel(logging.WARNING)
        enable_compilation_cache()
        retain_freed_memory()
        try:
            return main(options)
        except UserError as error:
            _exit_with_message(str(error))

    app.run(guarded, flags_parser=parse or _parse_flags)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    import_from_working_directory()  # for what configuration files import
    try:
        arguments = _in_notation_of_type(_with_flag_files(argv))
        given, undone = _without_nones(arguments)
        _ARGUMENTS[:] = given
        remaining = flags.FLAGS(given)
        _check_loaded()
        for name, key in undone:
            _undo(name, key)
    except UserError as error:
        _exit_with_message(str(error))
    except flags.Error as error:
        _exit_with_message(_faulty_file(arguments) or str(error))
    except Exception as error:  # config_flags raises what it likes for keys that there aren't
        message = _faulty_file(arguments) or _unknown_key(arguments)
        if message is None and not isinstance(error, OSError):
            raise
        _exit_with_message(message or str(error))
    if len(remaining) > 1:
        _exit_with_message(
            f"unexpected argument {remaining[1]!r}; options are written --name=value"
        )
    return remaining


def _with_flag_files(argv: Sequence[str]) -> list[str]:
    """The arguments, with those in --flagfile=FILE in its place; --config=~/FILE is of the home."""
    names = "|".join(map(re.escape, _config_flag_names()))
    try:
        arguments = flags.FLAGS.read_flags_from_files(list(argv[1:]), force_gnu=False)
    except flags.CantOpenFlagFileError as error:
        reason = str(error).removeprefix("ERROR:: Unable to open flagfile: ")
        raise ConfigError(f"--flagfile can't be read: {reason}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--flagfile must be a text file of one flag a line: {error}") from error
    except flags.Error as error:
        raise ConfigError(str(error)) from error
    home = re.compile(rf"(--?(?:{names})=)(~.*)", re.DOTALL)
    return [argv[0], *(home.sub(lambda m: m[1] + os.path.expanduser(m[2]), a) for a in arguments)]


@dataclasses.dataclass(frozen=True)
class _Argument:
    """An argument of the command line.

    Attributes:
        words: Its words: one, or two where a flag and its value are separate.
        override: The configuration's flag and the key that it sets; None for other arguments.
        value: What the key is set to; None without one.
    """

    words: list[str]
    override: tuple[str, str] | None = None
    value: str | None = None


def _in_notation_of_type(arguments: Sequence[str]) -> list[str]:
    """The arguments, with whole numbers for keys that hold integers: 8 for 8.0, 1000 for 1e3.

    W&B proposes some integers as 8.0, which config_flags refuses.

    Raises:
        ConfigError: An override names a section, which config_flags would replace as a whole.
    """
    kept: list[str] = []
    configs = dict[str, Any]()
    for argument in _split_arguments(arguments):
        if argument.override is None:
            kept.extend(argument.words)
            continue
        name, key = argument.override
        if name not in configs:
            configs[name] = _as_written(arguments, name)
        section, last = _section_of(configs[name], key)
        if isinstance(section, ml_collections.ConfigDict) and last in section:
            if isinstance(section[last], ml_collections.ConfigDict):
                inside = next(iter(flatten(section[last])), "KEY")
                raise ConfigError(
                    f"--{name}.{key} is a section; set its keys one by one, such as"
                    f" --{name}.{key}.{inside}"
                )
            number = _whole_number(argument.value)
            if section.get_type(last) is int and number is not None:
                kept.append(f"--{name}.{key}={number}")
                continue
        kept.extend(argument.words)
    return kept


def _section_of(config: Any, key: str) -> tuple[Any, str]:
    """The section of a configuration that a dotted key is in, or None, and the key's last part."""
    *sections, last = key.split(".")
    place = config
    for part in sections:
        place = place.get(part) if isinstance(place, ml_collections.ConfigDict) else None
    return place, last


def _as_written(arguments: Sequence[str], name: str) -> Any:
    """The configuration of a flag without overrides; None where it can't be read."""
    file = _argument(arguments, name)
    try:
        return flags.FLAGS[name].parser.parse(file) if file else None
    except Exception:  # config_flags raises what it likes; parsing all flags reports it
        return None


def _whole_number(text: str | None) -> int | None:
    """The integer that a text in another notation than an integer's means; None if it does not."""
    if text is None or re.fullmatch(r"[+-]?\d+", text):
        return None
    try:
        number = decimal.Decimal(text.strip())
    except decimal.InvalidOperation:
        return None
    return int(number) if number.is_finite() and number == number.to_integral_value() else None


def _split_arguments(arguments: Sequence[str]) -> list[_Argument]:
    """The arguments in order."""
    names = "|".join(map(re.escape, _config_flag_names()))
    found = []
    rest = list(arguments)
    while rest:
        words = [rest.pop(0)]
        match = re.fullmatch(rf"--?({names})\.([^=]+)(?:=(.*))?", words[0], re.DOTALL)
        if match is None:
            found.append(_Argument(words))
            continue
        value = match[3]
        if value is None and rest and not rest[0].startswith("-"):
            value = rest.pop(0)
            words.append(value)
        found.append(_Argument(words, (match[1], match[2]), value))
    return found


def _without_nones(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The arguments but those that set a configuration's key to None, and these keys by flag.

    As for any flag, the last of several settings of a key counts.
    """
    kept: list[_Argument] = []
    undone: dict[tuple[str, str], None] = {}
    for argument in _split_arguments(arguments):
        if argument.override is not None:
            undone.pop(argument.override, None)
            if argument.value == "None":
                kept = [each for each in kept if each.override != argument.override]
                undone[argument.override] = None
                continue
        kept.append(argument)
    return [word for argument in kept for word in argument.words], list(undone)


def _undo(name: str, key: str) -> None:
    """Sets a key of a configuration to None."""
    place, last = _section_of(flags.FLAGS[name].value, key)
    if not isinstance(place, ml_collections.ConfigDict) or last not in place:
        raise ConfigError(_no_such_key(name, key, flags.FLAGS[name].value))
    place[last] = None


def _config_flag_names() -> list[str]:
    return [name for name in flags.FLAGS if is_config_flag(flags.FLAGS[name])]


def _check_loaded() -> None:
    """Raises the OSError that config_flags keeps for the first use of an unreadable file."""
    for name in _config_flag_names():
        config = flags.FLAGS[name].value
        hasattr(config, "lock")
        if not isinstance(config, ml_collections.ConfigDict):
            raise ConfigError(
                f"--{name}: get_config must return an ml_collections.ConfigDict, got"
                f" {type(config).__name__}"
            )


def _faulty_file(arguments: Sequence[str]) -> str | None:
    """Describes what is wrong with a configuration's file; None where it does its work."""
    for name in _config_flag_names():
        argument = _argument(arguments, name)
        if not argument:
            continue
        file, *variant = argument.split(":", 1)
        if not pathlib.Path(file).is_file():
            others = [str(path) for path in sorted(pathlib.Path(file).parent.glob("*.py"))]
            return f"--{name}: there is no file {file}{suggestion(file, others)}"
        try:
            get_config = runpy.run_path(file).get("get_config")
            if get_config is None:
                return f"--{name}: {file} must have a function get_config"
            if (problem := _variant_problem(get_config, file, variant)) is not None:
                return f"--{name}: {problem}"
            get_config(*variant)
        except (OSError, UserError):
            continue
        except Exception as error:
            lines = [
                frame.lineno
                for frame in traceback.extract_tb(error.__traceback__)
                if frame.filename == file
            ]
            where = f"{file}, line {lines[-1]}" if lines else file
            return f"--{name}: {where}: {type(error).__name__}: {error}"
    return None


def _variant_problem(
    get_config: Callable[..., Any], file: str, variant: Sequence[str]
) -> str | None:
    try:
        inspect.signature(get_config).bind(*variant)
    except TypeError:
        if variant:
            return f"{file} has no variants, got {variant[0]!r}; give {file} alone"
        return f"{file} requires a variant: {file}:VARIANT"
    return None


def _unknown_key(arguments: Sequence[str]) -> str | None:
    """Describes the first override of a key its configuration doesn't have; None without one."""
    for name in _config_flag_names():
        file = _argument(arguments, name)
        if not file:
            continue
        config: Any = flags.FLAGS[name].parser.parse(file)
        if not isinstance(config, ml_collections.ConfigDict):
            continue
        for argument in arguments:
            match = re.match(rf"--?(?:no)?{re.escape(name)}\.([^=]+)", argument)
            # Sections have been refused before.
            if match and match[1] not in flatten(config):
                return _no_such_key(name, match[1], config)
    return None


def _no_such_key(name: str, key: str, config: ml_collections.ConfigDict) -> str:
    near = suggestion(key, list(flatten(config)), form=f"--{name}.{{}}")
    return f"--{name}.{key}: {_argument(_ARGUMENTS, name)} has no key {key!r}{near}"


def _argument(arguments: Sequence[str], name: str) -> str | None:
    """The value given to --name on the command line, as --name=value or --name value."""
    value = None
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        if match := re.fullmatch(rf"--?{re.escape(name)}(?:=(.*))?", argument):
            value = following if match[1] is None else match[1]
    return value


def _program() -> str:
    """The name of the script, or of the package that is run with `python -m`."""
    spec = sys.modules["__main__"].__spec__
    return spec.name.removesuffix(".__main__") if spec else pathlib.Path(sys.argv[0]).name


def _exit_with_message(message: str) -> NoReturn:
    print(f"{_program()}: {message}", file=sys.stderr)
    sys.exit(2)
