"""The command line of `python -m augment.augment_squad`: its options are the fields of the settings."""

import inspect
import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from augment.augment_squad import COUNTING, OPTIONS, augment_squad, make_statistics
from augment.paths import require_output, require_readable
from augment.settings import AugmentSettings, settings_from
from augment.shards import merge_shards
from augment.show import preview, summary
from haystack_distill.errors import DistilError
from haystack_distill.utils.console import errors_as_messages, never_lose_a_result, stop_cleanly
from haystack_distill.utils.files import expand_user
from haystack_distill.utils.options import argument_help

app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)

_WHAT, _HOW, _RUN, _MORE = "What is edited", "How", "Running", "Several machines"
_PANELS: dict[str, str | None] = {
    "multiplication_factor": None,
    **dict.fromkeys(("augment", "context_ngrams", "drop_labels"), _WHAT),
    **dict.fromkeys(("num_processes", "overwrite", "on_bad_example", "provenance"), _RUN),
    **dict.fromkeys(("shard", "statistics"), _MORE),
}
_FILES = ("glove_path", "statistics")

# Which options each other way of using the script takes.
_USED: dict[str, Collection[str]] = {
    "merge": ("output_path", "overwrite"),
    "statistics_only": ("squad_path", "output_path", *COUNTING),
    "preview": {field.name for field in fields(AugmentSettings)} - {"drop_labels", "provenance"}
    | {"squad_path", "on_bad_example"},
}


def _option(
    name: str, kind: Any, default: Any, explanation: str, panel: str | None = None, **more: Any
) -> inspect.Parameter:
    info = typer.Option(f"--{name}", help=escape(explanation), rich_help_panel=panel, **more)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def _options() -> list[inspect.Parameter]:
    """All options of the script, in the order of its help."""
    paths = argument_help(augment_squad.__doc__)
    options = [_option(name, Path | None, None, paths.get(name, "")) for name in ("squad_path", "output_path")]
    for name, kind, default, explanation in OPTIONS:
        if name in _FILES:
            kind = Path | None
        elif default is None:
            kind = str | None
        options.append(_option(name, kind, default, explanation, _PANELS.get(name, _HOW)))
    return [
        *options,
        _option("preview", int, 0, "Print so many rows beside variants of them, and write nothing.", _RUN, min=0),
        _option("statistics_only", bool, False, "Write the statistics to --output_path and stop.", _MORE),
        _option("merge", list[Path] | None, None, "Join shards to --output_path; once for each shard.", _MORE),
    ]


def _script(ctx: typer.Context, **options: Any) -> None:
    """Multiply a SQuAD-format file by masking, POS-guided replacement and n-gram sampling; answers stay true.

    The methods are those of Tang et al. 2019 and, with --model, of TinyBERT. After an interruption the same command
    resumes.
    """
    console = Console(stderr=True)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=console)])
    never_lose_a_result()
    stop_cleanly()
    try:
        with errors_as_messages():
            _run(options, {name for name in options if _is_given(ctx, name)}, console)
    except KeyboardInterrupt as error:
        console.print("[yellow]Interrupted.[/] The same command resumes from here.")
        raise typer.Exit(130) from error


_context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
_script.__signature__ = inspect.Signature([_context, *_options()])  # type: ignore[attr-defined]
app.command()(_script)


def _is_given(ctx: typer.Context, name: str) -> bool:
    """Whether an option was typed, its default value included."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _run(options: dict[str, Any], given: Collection[str], console: Console) -> None:
    # The shell leaves the ~ of --output_path=~/file as it is.
    options = {name: expand_user(value) if isinstance(value, Path) else value for name, value in options.items()}
    modes = {name: options.pop(name) for name in _USED}
    chosen = [name for name, value in modes.items() if value]
    if len(chosen) > 1:
        raise DistilError(f"--{' and --'.join(chosen)} do not go together: choose one")
    mode = chosen[0] if chosen else "multiply"
    if chosen:
        _require_used(mode, [name for name in options if name in given])
    if mode != "preview" and options["output_path"] is None:
        raise DistilError("--output_path is missing: name the file to write")
    if mode != "merge" and options["squad_path"] is None:
        raise DistilError("--squad_path is missing: name the file to multiply")
    if mode == "merge":
        _merge([expand_user(path) for path in modes["merge"]], options["output_path"], options["overwrite"])
        return
    for settings in settings_from(options):
        settings.require_effect(given)
    if mode == "preview":
        require_readable(options["squad_path"])
        preview(
            options["squad_path"],
            settings_from(options)[0],
            modes["preview"],
            Console(),
            skip=options["on_bad_example"] == "skip",
        )
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as bars:
        progress = _Bars(bars)
        if mode == "statistics_only":
            make_statistics(**{name: options[name] for name in _USED[mode]}, on_progress=progress)
            return
        report = augment_squad(**options, on_progress=progress)
    Console().print(summary(report, options["multiplication_factor"]))


def _require_used(mode: str, given: Sequence[str]) -> None:
    extra = [name for name in given if name not in _USED[mode]]
    if extra:
        verb, them = ("has", "it") if len(extra) == 1 else ("have", "them")
        raise DistilError(f"--{', --'.join(extra)} {verb} no effect with --{mode}: leave {them} out")


def _merge(shards: list[Path], output: Path, overwrite: bool) -> None:
    for path in shards:
        require_readable(path)
    require_output(output, shards, overwrite)
    merge_shards(shards, output)


class _Bars:
    """A progress bar for each stage, with rows a second."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, tuple[Any, float]] = {}

    def __call__(self, stage: str, rows: int, total: int | None) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, rate=""), time.monotonic()
        task, began = self._tasks[stage]
        self._bars.advance(task, rows)
        done = self._bars.tasks[self._bars.task_ids.index(task)].completed
        self._bars.update(task, rate=f"{done / max(time.monotonic() - began, 1e-3):,.0f} rows/s")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script on `arguments` (those of the command line by default) and exit."""
    app(args=arguments, prog_name="python -m augment.augment_squad")
