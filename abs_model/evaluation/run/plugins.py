"""User-defined models and attacks by name: package.module:function."""

import importlib
from collections.abc import Callable
from typing import Any

from abs_model._runtime.errors import UserError
from abs_model._runtime.registries import import_from_working_directory


class PluginError(UserError):
    """What a package.module:function names can't be had."""


def import_function(reference: str, flag: str) -> Callable[..., Any]:
    """The function that package.module:function names; the working directory is looked in, too.

    Args:
        reference: As a command line gives it.
        flag: The flag that gave it, for messages.

    Raises:
        PluginError: There is none.
    """
    module_name, _, name = reference.partition(":")
    if not module_name or not name:
        raise PluginError(f"{flag}: {reference!r} must be package.module:function")
    import_from_working_directory()
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise PluginError(f"{flag}: {module_name} can't be imported: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        found = "there is none" if function is None else f"it is a {type(function).__name__}"
        raise PluginError(f"{flag}: {module_name} must have a function {name!r}, but {found}")
    return function
