"""User-defined functions: where they are found, and when two are the same."""

import inspect
import os
import sys
from collections.abc import Callable
from typing import Any


def is_redefinition(old: Callable[..., Any], new: Callable[..., Any]) -> bool:
    """Whether a function is another one as it is defined again.

    So is that of a module that is reloaded, of a notebook's cell that is run again, and of a
    configuration file that is read twice.
    """
    if old.__qualname__ != new.__qualname__:
        return False
    files = (os.path.abspath(inspect.unwrap(each).__code__.co_filename) for each in (old, new))
    return old.__module__ == new.__module__ or len(set(files)) == 1


def import_from_working_directory() -> None:
    """Lets imports find user-defined modules that lie in the working directory."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
