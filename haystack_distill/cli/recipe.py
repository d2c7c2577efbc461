"""The commands `recipe`, `report` and `push`: a whole distillation, and what is done with its result."""

import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from haystack_distill.cli.options import flag_of, is_given, path_in_home, with_options
from haystack_distill.cli.output import Commands, figure, logs_on_stderr, print_result
from haystack_distill.cli.shared import JSON
from haystack_distill.errors import DistilError
from haystack_distill.utils.console import print_message

RECIPE = typer.Typer(cls=Commands, rich_markup_mode="rich", invoke_without_command=True)


@RECIPE.callback()
def recipe(
    ctx: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(parser=path_in_home, metavar="FILE", help="The recipe, a YAML file; `init` writes one."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and do nothing else.")] = False,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload the finished reader to this repository of the hub.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make that repository private.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of a table.")] = False,
) -> None:
    """A whole distillation from one file: a list of stages, such as layers on augmented data, then answers.

    It can be stopped at any time: the same command resumes it.

    \b
    Example:
      haystack-distill recipe init --output recipe.yaml
      haystack-distill recipe --config recipe.yaml --dry-run
      haystack-distill recipe --config recipe.yaml
      accelerate launch -m haystack_distill recipe --config recipe.yaml
    """
    if ctx.invoked_subcommand is not None:
        for name in ctx.params:
            if is_given(ctx, name):
                raise DistilError(
                    f"{flag_of(name)} has no effect before {ctx.invoked_subcommand}, which has options of its own; "
                    "leave it out"
                )
        return
    if private and push_to_hub is None:
        raise DistilError("--private is about the repository to upload to; give --push-to-hub too, or leave it out")
    if push_to_hub is not None and dry_run:
        raise DistilError("--dry-run makes no reader to upload; leave out one of the two")
    if config is None:
        raise DistilError("no recipe is given; give --config FILE, `haystack-distill recipe init` writes one")
    with logs_on_stderr():
        from haystack_distill.recipes.schema import load_recipe

        read = load_recipe(config)
        last = read.stages[-1].adaptation
        if push_to_hub is not None and (last.save_only_trained or last.keeps_parts):
            raise DistilError(
                "a reader on the hub needs all weights, and the last stage leaves those that were trained: set "
                "save_only_trained: false there, choose another adaptation than adapters, or leave out --push-to-hub"
            )
        if dry_run:
            from haystack_distill.recipes.plan import plan_recipe

            plan = plan_recipe(read)
        else:
            from haystack_distill.recipes.runner import run_recipe

            result = run_recipe(read, progress=progress)
    if dry_run:
        _print_plan(json, config, read.output_dir, [asdict(stage) for stage in plan])
        return
    summary = {"command": "recipe", "config": config, **asdict(result)}
    if push_to_hub is not None and int(os.environ.get("RANK", "0")) == 0:
        summary["repository"] = _push(result.directory, push_to_hub, private)
    print_result(json, summary, f"Reader in {result.directory}")


@RECIPE.command()
def init(
    data: Annotated[
        str | None,
        typer.Option(
            parser=os.path.expanduser,
            metavar="FILE|NAME",
            help="Training data to look at: number of questions, labels, lengths.",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            parser=os.path.expanduser,
            metavar="DIRECTORY|NAME",
            help="Teacher to look at: layers, attention scores, positions.",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(parser=path_in_home, metavar="FILE", help="Where to write it.")] = Path(
        "recipe.yaml"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Write a recipe of three stages with comments; with --data and --teacher, values that fit them and this machine.

    \b
    Example:
      haystack-distill recipe init --data train.json --teacher deepset/roberta-base-squad2
    """
    from haystack_distill.recipes.template import template
    from haystack_distill.utils.atomic import write_atomically
    from haystack_distill.utils.files import is_stream

    if output.exists() and not is_stream(output) and not overwrite:
        raise DistilError(f"{output} exists; choose another --output, or add --overwrite to replace it")
    with logs_on_stderr():
        text = template(data, teacher)
    write_atomically(output, lambda aside: aside.write_text(text, encoding="utf-8"))
    command = f"haystack-distill recipe --config {shlex.quote(str(output))}"
    print_message(f"{escape(str(output))} written: edit it, then {escape(command)}")


def _push(directory: Path, repository: str, private: bool) -> str:
    with logs_on_stderr():
        from haystack_distill.reporting import model_card as card

        return card.push_to_hub(directory, repository, private=private or None)


def push(
    directory: Annotated[Path, typer.Argument(parser=path_in_home, metavar="DIRECTORY", help="A reader's directory.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository of the hub; made if absent.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
) -> None:
    """Upload a reader to the Hugging Face hub, without checkpoints and without what quotes the data.

    \b
    Example:
      haystack-distill push distilled/reader me/tiny-reader
    """
    print(_push(directory, repository, private))


@with_options([JSON])
def report(
    directories: Annotated[
        list[Path],
        typer.Argument(
            parser=path_in_home, metavar="DIRECTORY", help="Directories with a report.json: finished readers."
        ),
    ],
    output: Annotated[
        Path, typer.Option(parser=path_in_home, metavar="DIRECTORY", help="Directory for the page and its figures.")
    ] = Path("comparison"),
    **given: Any,
) -> None:
    """Compare several runs in one page; no model is run.

    \b
    Example:
      haystack-distill report distilled/reader other/reader --output comparison
    """
    with logs_on_stderr():
        from haystack_distill.reporting.report import compare_reports

        page = compare_reports(directories, output)
    print_result(given["json"], {"command": "report", "page": page}, str(page))


def _print_plan(as_json: bool, config: Path, output_dir: str, plan: list[dict[str, Any]]) -> None:
    if as_json:
        print_result(True, {"command": "recipe", "config": config, "output_dir": output_dir, "plan": plan})
        return
    names = ("stage", "examples", "windows", "optimiser steps", "time", "caches")
    table = Table(*names, title=escape(f"{config}: what would go to {output_dir}, timed on this machine"))
    for stage in plan:
        figures = (figure(stage[name]) for name in ("examples", "windows", "steps"))
        table.add_row(stage["name"], *figures, _duration(stage["seconds"]), f"{stage['cache_megabytes']:,.1f} MB")
    seconds, megabytes = (sum(stage[name] for stage in plan) for name in ("seconds", "cache_megabytes"))
    table.add_row("all", "", "", "", _duration(seconds), f"{megabytes:,.1f} MB")
    Console().print(table)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"
