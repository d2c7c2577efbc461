"""The console on stderr, and error handling of the command lines: an error is one sentence, with exit code 2."""

import contextlib
import errno
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from haystack_distill.errors import DistilError

STDERR = Console(stderr=True)  # the only console: lines and bars of two consoles would overwrite each other


class LogHandler(RichHandler):
    """Log records on stderr: formatted by rich in a terminal, one plain line each elsewhere."""

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
    """Report errors that the user can fix as one sentence on stderr, and exit with code 2."""
    try:
        yield
        sys.stdout.flush()  # an error of a full disk is raised here, not when Python exits
    except DistilError as error:
        print_message(f"[bold red]Error:[/] {escape(str(error))}")
        raise typer.Exit(2) from error
    except OSError as error:
        # The last resort: an error of the operating system can be fixed by the user, wherever it was raised.
        if error.errno is None or error.errno == errno.EPIPE:  # click exits quietly if a pipe was closed
            raise
        _discard_stdout()
        if error.filename is None:  # everything that is written has a file name, except stdout
            message = f"cannot write the result to stdout ({error.strerror}); make room there, or redirect it"
        else:
            message = f"{error.filename}: {error.strerror}; check the path, or choose another"
        print_message(f"[bold red]Error:[/] {escape(message)}")
        raise typer.Exit(2) from error
    except RuntimeError as error:
        if str(error) != "Could not determine home directory.":  # raised by pathlib for ~ without a home directory
            raise
        print_message(
            "[bold red]Error:[/] a path begins with ~, but there is no home directory; set HOME, or write the path out"
        )
        raise typer.Exit(2) from error


def never_lose_a_result() -> None:
    """Let stdout and stderr escape characters outside their encoding, so that no long run ends in an encoding error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def stop_cleanly() -> None:
    """Let SIGTERM, by which schedulers and containers stop a process, end it as Ctrl-C does; a second one at once.

    Otherwise Python would end without removing temporary directories, and leave processes that it started behind. The
    processes of one distributed run are ended at once as before: one may wait for another that is gone.
    """
    if "RANK" in os.environ or threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt


def _discard_stdout() -> None:
    """Discard the buffer of a stdout that cannot be written; Python would retry on exit and report an error."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_message(message: str) -> None:
    """Write a line in rich's markup to stderr."""
    STDERR.print(message, soft_wrap=True, highlight=False)
