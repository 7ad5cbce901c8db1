"""Errors of the data part: each says what was expected, what was found and what to do."""

from abs_model._runtime.errors import UserError


class DataError(UserError):
    """Base of all errors about data that cannot be had or must not be used."""


class DataUnavailableError(DataError):
    """No source of the data set can be reached."""


class MissingToolError(DataUnavailableError):
    """A program that the fallback needs (npm, GNU gzip) is not installed."""


class CorruptDataError(DataError):
    """A file or array differs from its checksum; it is refused, never trained on."""
