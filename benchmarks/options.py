"""Types of command-line options."""

import argparse
import pathlib

from abs_model._runtime.atomic_files import as_path


def count(text: str) -> int:
    """An integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def writable(text: str) -> pathlib.Path:
    """A file in a folder that exists."""
    path = as_path(text)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {folder}; make it first")
    return path
