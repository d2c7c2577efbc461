"""The command `compare`: ways of teaching the same student, with equal optimiser steps."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from haystack_distill.cli.options import (
    CONFIG,
    REQUIRED,
    is_given,
    option,
    option_from,
    refuse_without_effect,
    with_options,
)
from haystack_distill.cli.output import logs_on_stderr, print_result
from haystack_distill.cli.shared import CACHE, DATA, JSON, TEACHER
from haystack_distill.data.window_settings import WindowSettings
from haystack_distill.errors import DistilError
from haystack_distill.recipes.comparison import Comparison, arms_from_text, load_arms
from haystack_distill.training.methods import METHODS
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.utils.options import options_of

_LENGTH = ("n_epochs", "max_steps")
_OF_ALL = ("seed", "precision")
_NOT_SHARED = (
    *("resume", "overwrite", "progress", "tensorboard"),
    *("keep_best", "best_by", "early_stopping_patience", "evaluate_every"),
)
_SETTINGS = {source.name: source for source in options_of(TrainingSettings)}
_SHARED = [name for name in _SETTINGS if name not in (*_LENGTH, *_OF_ALL, *_NOT_SHARED)]
_COMPARISON = {source.name: source for source in options_of(Comparison)}

_SAME = (  # options of the command that are the comparison's own
    *("teacher", "data", "dev_data", "student", "layers", "seed", "max_steps", "n_epochs", "questions"),
    *("dev_questions", "held_out", "baseline", "time_steps", "parallel", "int8", "keep_readers", "precision", "device"),
)


def _of_comparison(name: str, panel: str | None = None, **changes: Any) -> Any:
    return option_from(_COMPARISON[name], panel, **changes)


_DEV_DATA = option(
    "dev_data",
    list[str],
    REQUIRED,
    "Examples that all readers are measured on, never trained on: like --data, but the validation split of a data set "
    "on the hub.",
    metavar="FILE|NAME",
)
_OUTPUT_DIR = option("output_dir", Path, REQUIRED, "Where students, records, table and page go.", metavar="DIRECTORY")
_ARMS = [
    option(
        "methods",
        str | None,
        None,
        f"What is compared, with commas between: methods ({', '.join(METHODS)}), methods with options like "
        "prediction_layer(temperature=2), weighted sums like 0.8*prediction_layer+0.2*intermediate_layers, and recipe "
        "files (.yaml), whose stages are scaled to the steps of the others.",
        "Arms",
        metavar="METHOD,METHOD",
    ),
    option(
        "arms",
        Path | None,
        None,
        "A YAML file with more arms by name: each a method as in --methods, or a list of stages as in a recipe, with "
        "`share` (of the steps) in place of their length.",
        "Arms",
        metavar="FILE",
    ),
    _of_comparison("baseline", "Arms"),
    option(
        "grid",
        list[str] | None,
        None,
        "Values to choose from on held-out articles of the training data, for each arm that has the option and does "
        "not set it: temperature=1,2,5 or learning_rate=1e-4,3e-4. Give the option again for more; all combinations "
        "are tried.",
        "Arms",
        metavar="OPTION=VALUE,VALUE",
    ),
    _of_comparison("held_out", "Arms"),
]
_STUDENT = [
    option("student", str | None, None, _COMPARISON["student"].help, metavar="NAME|DIRECTORY"),
    _of_comparison("layers"),
]
_RUN = [
    option("seeds", int, 1, _COMPARISON["n_seeds"].help, "Length and seeds"),
    _of_comparison("seed", "Length and seeds", type=int, default=TrainingSettings.seed),
    _of_comparison("max_steps", "Length and seeds"),
    _of_comparison("n_epochs", "Length and seeds"),
    _of_comparison("questions", "Length and seeds"),
    _of_comparison("dev_questions", "Length and seeds"),
    *(option_from(_SETTINGS[name], "Learning") for name in _SHARED),
    *(option_from(source, "Reading") for source in options_of(WindowSettings)),
    option_from(_SETTINGS["precision"], "Reading"),
    _of_comparison("device", "Reading", type=str, default="auto"),
    _of_comparison("time_steps", "Run"),
    _of_comparison("parallel", "Run"),
    _of_comparison("int8", "Run"),
    _of_comparison("keep_readers", "Run"),
    option_from(_SETTINGS["progress"], "Run"),
    option("dry_run", bool, False, "Print the arms with their steps and do nothing else.", "Run", flags="--dry-run"),
    CACHE,
    CONFIG,
    JSON,
]


@with_options([TEACHER], _STUDENT, [DATA, _DEV_DATA, _OUTPUT_DIR], _ARMS, _RUN)
def compare(ctx: typer.Context, **given: Any) -> None:
    """Train the same student by several methods with equal optimiser steps, and compare what comes out.

    One row a method: EM and F1 with their spread over seeds, seconds, peak memory, parameters trained; beside them the
    teacher, and the teacher in int8. It can be stopped at any time: the same command resumes it. Exit code 2 also where
    one of the arms failed; the table then has the others.

    \b
    Example:
      haystack-distill compare --teacher deepset/roberta-base-squad2 --layers 6 \\
          --methods labels,prediction_layer,intermediate_layers+prediction_layer \\
          --data train.json --dev-data dev.json --seeds 3 --max-steps 1000 \\
          --grid learning_rate=1e-4,3e-4 --output-dir compared
    """
    if given["max_steps"] is not None:
        refuse_without_effect(ctx, ["n_epochs"], "with --max-steps, which sets the length")
    if not given["methods"] and given["arms"] is None:
        raise DistilError("there is nothing to compare; give --methods, or a file of --arms")
    with logs_on_stderr():
        arms = arms_from_text(given["methods"] or "") + (load_arms(given["arms"]) if given["arms"] else [])
        comparison = Comparison(
            **{name: given[name] for name in _SAME},
            arms=arms,
            n_seeds=given["seeds"],
            output_dir=str(given["output_dir"]),
            settings={name: _typed(given[name]) for name in _SHARED if is_given(ctx, name)},
            grid=_grid(given["grid"] or []),
            windows=WindowSettings(given["max_seq_len"], given["doc_stride"], given["max_query_length"]),
            cache_dir=None if given["cache_dir"] is None else str(given["cache_dir"]),
        )
        if given["dry_run"]:
            from haystack_distill.recipes.compare import plan_comparison

            plan = [asdict(arm) for arm in plan_comparison(comparison)]
        else:
            from haystack_distill.recipes.compare import run_comparison

            try:
                result = run_comparison(comparison, progress=given["progress"])
            except KeyboardInterrupt as interrupt:
                raise KeyboardInterrupt("The same command resumes the comparison.") from interrupt
    if given["dry_run"]:
        _print_plan(given["json"], given["output_dir"], comparison.n_seeds, plan)
        return
    if given["json"]:
        summary = {"command": "compare", "output_dir": given["output_dir"], "failed": result.failed}
        print_result(True, summary | result.content)
    else:
        from haystack_distill.reporting.comparison import PAGE_FILE, table_of

        titles, lines = table_of(result.content)
        _print_table(titles, lines, f"{result.directory / PAGE_FILE}")
        for note in result.content["notes"]:
            print(note)
    if result.failed:
        raise DistilError(
            f"{'; '.join(result.failed)} failed, with the messages above; the same command tries again what is missing"
        )


def _print_table(titles: Sequence[str], lines: Sequence[Sequence[str]], title: str) -> None:
    table = Table(title=escape(title))
    for number, name in enumerate(titles):
        table.add_column(escape(name), justify="right" if number else "left")
    for line in lines:
        table.add_row(*map(escape, line))
    console = Console()
    if not console.is_terminal:  # a file or a pipe has room for long lines
        console.width = max(console.width, 240)
    console.print(table)


def _print_plan(as_json: bool, output_dir: Path, seeds: int, plan: list[dict[str, Any]]) -> None:
    if as_json:
        print_result(True, {"command": "compare", "output_dir": output_dir, "seeds": seeds, "plan": plan})
        return
    lines = [
        [
            arm["name"],
            ", ".join(f"{name} {steps:,}" for name, steps in arm["stages"].items()),
            f"{sum(arm['stages'].values()):,}",
            str(len(arm["candidates"]) + seeds),
        ]
        for arm in plan
    ]
    _print_table(["method", "stages", "optimiser steps", "students"], lines, f"What would go to {output_dir}")


def _grid(entries: Sequence[str]) -> dict[str, list[str]]:
    """`temperature=1,2,5` as a name and its values."""
    grid: dict[str, list[str]] = {}
    for entry in entries:
        name, _, values = entry.partition("=")
        name = name.strip().replace("-", "_")
        found = [value.strip() for value in values.split(",") if value.strip()]
        if not found:
            raise DistilError(f"--grid {entry} has another form; write OPTION=VALUE,VALUE, like temperature=1,2,5")
        if name in grid:
            raise DistilError(f"--grid {name} is given twice; give it once with all values")
        grid[name] = found
    return grid


def _typed(value: Any) -> str:
    """A setting's value as it is typed."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
