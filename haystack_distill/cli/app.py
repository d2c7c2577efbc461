"""The command line, `haystack-distill`: every command is one call of the Python API with its options spelt out.

A command's result goes to stdout, as a table or with --json as one JSON object; everything else goes to stderr.
Nothing heavy is imported before a command runs, so that help is quick.
"""

import logging
from typing import Annotated

import typer

from haystack_distill import __version__
from haystack_distill.cli import compare, demo_command, profile, reading, recipe, serving, student, training, trust
from haystack_distill.cli.output import Commands
from haystack_distill.utils.console import LogHandler

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.add_typer(recipe.RECIPE, name="recipe")
for command in (
    *(training.train, training.distil, student.student),
    *(reading.evaluate, reading.ask, reading.info),
    *(serving.export, serving.prune, serving.suggest, profile.profile),
    *(trust.calibrate, trust.agree),
    *(compare.compare, recipe.report, recipe.push, demo_command.demo),
):
    app.command()(command)
app.command(
    hidden=True, add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
)(training.distil_intermediate)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"haystack-distill {__version__}")
        raise typer.Exit()


@app.callback()
def _start(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Distil question answering readers for Haystack: a big, slow teacher in; a small, fast student out.

    \b
    The usual way (`haystack-distill recipe init` writes it as one file):
      T=deepset/roberta-base-squad2
      haystack-distill student --teacher $T --layers 10 \\
          --intermediate-size 896 --data train.json --output-dir start
      haystack-distill distil --teacher $T --student start \\
          --data train.json --method intermediate_layers \\
          --attention-loss-weight 0 --learning-rate 1e-3 --n-epochs 2 \\
          --output-dir middle
      haystack-distill distil --teacher $T --student middle \\
          --data train.json --dev-data dev.json --temperature 2 \\
          --distillation-loss-weight 1 --learning-rate 2e-4 \\
          --output-dir finished
      haystack-distill ask --model finished --question "Who wrote it?" \\
          --context "Ada Lovelace wrote it in 1843."

    Exit codes: 0 done, 2 an error of yours (the message has the remedy), 130 interrupted (the same command with
    --resume resumes), 1 an agreement below --at-least (agree), or a bug of ours.
    """
    for package in ("haystack_distill", "augment"):
        logger = logging.getLogger(package)
        if not logger.handlers:
            logger.addHandler(LogHandler())
            logger.setLevel(logging.INFO)
