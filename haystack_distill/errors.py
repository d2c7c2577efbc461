"""The errors that this package raises on purpose: callers can catch `DistilError` and print its message."""

import contextlib
from collections.abc import Iterator


class DistilError(ValueError):
    """Something that was asked for cannot be done; the message names the problem and the remedy."""


class DataError(DistilError):
    """Input data is invalid; the message names the file, article, paragraph and question id."""


class WriteError(DistilError):
    """A file or directory cannot be written; the message names it and the reason that the system gave."""


@contextlib.contextmanager
def in_section(name: str) -> Iterator[None]:
    """Errors in here begin with the name of a section."""
    try:
        yield
    except DistilError as error:
        raise type(error)(f"{name}: {error}") from error
