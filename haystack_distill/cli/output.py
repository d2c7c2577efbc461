"""The output of the command line: results on stdout, everything else on stderr, errors as one sentence."""

import contextlib
import json as json_module
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from haystack_distill.utils.console import errors_as_messages, never_lose_a_result, print_message, stop_cleanly


class Commands(TyperGroup):
    """Errors that are the user's to mend end in their message and exit code 2; any other keeps its traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line, on a stdout that takes every character."""
        never_lose_a_result()
        stop_cleanly()
        return super().main(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        try:
            with errors_as_messages():
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            print_message(" ".join(["[yellow]Interrupted.[/]", *map(str, error.args)]))
            raise typer.Exit(130) from error


@contextlib.contextmanager
def logs_on_stderr() -> Iterator[None]:
    """Whatever libraries print goes to stderr: stdout is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def resume_hint(output_dir: Path) -> Iterator[None]:
    """Let an interruption of a run in here end in how the run is resumed."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        begun = output_dir / "checkpoints"
        if any(begun.glob("checkpoint-*/complete")):
            how = "The same command with --resume resumes from the last checkpoint."
        elif (begun / "run.json").exists():
            how = "There is no checkpoint yet: the same command with --resume starts from the beginning."
        else:
            how = "Training had not begun: run the same command again."
        raise KeyboardInterrupt(how) from interrupt


def print_result(as_json: bool, result: dict[str, Any], title: str = "") -> None:
    """A command's result on stdout, once where several processes share a run."""
    if int(os.environ.get("RANK", "0")) != 0:
        return
    if as_json:
        as_it_is = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
        print(json_module.dumps(_plain(result), ensure_ascii=not as_it_is, allow_nan=False))
        return
    table = Table(title=escape(title), show_header=False)
    for name, value in _rows(result):
        table.add_row(escape(name), escape(value))
    Console().print(table)


def _rows(result: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested result as rows of name and figure."""
    for name, value in result.items():
        if isinstance(value, dict):
            yield from _rows(value, f"{prefix}{name} ")
        elif value is not None and name not in ("command", "output_dir", "directory"):
            yield prefix + name, figure(value)


def figure(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.2f}" if value == 0 or abs(value) >= 1 else f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(figure, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def _plain(value: Any) -> Any:
    """A result as JSON can hold it: paths as text, and null where a figure is not finite."""
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
