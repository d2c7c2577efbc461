"""The console on stderr, and how the command lines end: an error is one sentence and exit code 2; no result is lost."""

import contextlib
import errno
import io
import logging
import os
import sys
from collections.abc import Iterator

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from haystack_distill.errors import DistilError

STDERR = Console(stderr=True)  # the only one there: lines and bars of two consoles would write over each other


class LogHandler(RichHandler):
    """Log records on stderr: as rich shows them in a terminal, one plain line each elsewhere."""

    def __init__(self) -> None:
        super().__init__(console=STDERR, show_path=False)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        if self.console.is_terminal:
            super().emit(record)
        else:
            line = f"{record.levelname}: {self.format(record)}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def errors_as_messages() -> Iterator[None]:
    """Errors that are the user's to mend end in one sentence on stderr and exit code 2."""
    try:
        yield
        sys.stdout.flush()  # a full disk behind it shows now, not when Python ends
    except DistilError as error:
        say(f"[bold red]Error:[/] {escape(str(error))}")
        raise typer.Exit(2) from error
    except OSError as error:
        # The net below all checks: what the system refuses is the user's to mend, wherever it was asked.
        if error.errno is None or error.errno == errno.EPIPE:  # a pipe that was closed is click's to end quietly
            raise
        _give_up_stdout()
        if error.filename is None:  # of what is written, all but stdout has a name by now
            message = f"cannot write the result to stdout ({error.strerror}): make room there, or send it elsewhere"
        else:
            message = f"{error.filename}: {error.strerror}: check the path, or choose another"
        say(f"[bold red]Error:[/] {escape(message)}")
        raise typer.Exit(2) from error
    except RuntimeError as error:
        if str(error) != "Could not determine home directory.":  # pathlib's, for ~ where nobody is at home
            raise
        say("[bold red]Error:[/] a path begins with ~, but there is no home directory: set HOME, or write the path out")
        raise typer.Exit(2) from error


def never_lose_a_result() -> None:
    """Let stdout and stderr escape what their encoding lacks: a long run must not end in an encoding error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _give_up_stdout() -> None:
    """Drop what waits for a stdout that cannot be written: Python would try it again at its end, and say so."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(message: str) -> None:
    """A line on stderr, in rich's markup."""
    STDERR.print(message, soft_wrap=True, highlight=False)
