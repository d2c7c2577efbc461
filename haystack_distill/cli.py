"""The command line, `haystack-distill`: every command is one call of the Python API with its options spelt out.

What a command finds out goes to stdout, as a table or with --json as one JSON object; everything else goes to stderr.
Nothing heavy is imported before a command runs, so that help is quick.
"""

import contextlib
import inspect
import json as json_module
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from haystack_distill import __version__
from haystack_distill.config import Option, load_config
from haystack_distill.errors import DistilError
from haystack_distill.settings import PRECISIONS, TrainingSettings

if TYPE_CHECKING:
    import datasets

    from haystack_distill.features import WindowSettings
    from haystack_distill.reader import Reader
    from haystack_distill.runs import RunResult

EMBEDDED = "embedded"
RUN_FILE = "haystack_distill.json"


class _Commands(TyperGroup):
    """Errors that are the user's to mend end in their message and exit code 2; any other keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DistilError as error:
            _say(f"[bold red]Error:[/] {escape(str(error))}")
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            _say(" ".join(["[yellow]Interrupted.[/]", *map(str, error.args)]))
            raise typer.Exit(130) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line on `sys.argv` and exit."""
    app(prog_name="haystack-distill")


# --- options ---------------------------------------------------------------------------------------------------------


def _option(
    name: str, kind: Any, default: Any, explanation: str, panel: str | None = None, flags: str = "", **more: Any
) -> inspect.Parameter:
    """An option as a parameter that typer understands: `name` with dashes, and --no-... for a switch."""
    flag = "--" + name.replace("_", "-")
    if not flags:
        flags = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
    info = typer.Option(flags, help=escape(explanation), rich_help_panel=panel, **more)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def _with_options(*groups: Iterable[inspect.Parameter]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of `groups` besides its own; it takes them by name or in its `**given`."""
    shared = {parameter.name: parameter for group in groups for parameter in group}

    def extend(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in signature.parameters.values()
            if parameter.name not in shared and parameter.kind is not parameter.VAR_KEYWORD
        ]
        command.__signature__ = signature.replace(parameters=[*own, *shared.values()])  # type: ignore[attr-defined]
        return command

    return extend


def _one_of(*words: str) -> dict[str, Any]:
    """For an option that knows these words only."""

    def parse(text: str) -> str:
        if text not in words:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(words)}")
        return text

    return {"parser": parse, "metavar": "|".join(words)}


def _number_or(number: type, *words: str) -> dict[str, Any]:
    """For an option that is a number or one of some words, of which "none" stands for None."""
    metavar = "|".join(["INTEGER" if number is int else "FLOAT", *words])

    def parse(text: str) -> Any:
        text = str(text)  # defaults pass through here too
        if text in words:
            return None if text == "none" else text
        try:
            return number(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not {metavar.replace('|', ' or ')}") from None

    return {"parser": parse, "metavar": metavar}


def _layer_list(*words: str, none: bool = False) -> dict[str, Any]:
    """For an option that is a word or layer numbers with commas between them."""
    example = "2,4,none" if none else "1,3,6"

    def parse(text: str) -> str | list[int | None]:
        if text in words:
            return text
        try:
            return [None if none and part.strip() == "none" else int(part) for part in text.split(",")]
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not {', '.join(words)} or layers like {example}") from None

    return {"parser": parse, "metavar": "|".join([*words, example])}


_COMMA_SEPARATED = ("which", "layer_mapping")
_TAKE_NONE = tuple(name for name, hint in get_type_hints(TrainingSettings).items() if NoneType in get_args(hint))


def _read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Make the file's values the command's defaults, so that what is typed wins."""
    if path is None or ctx.resilient_parsing:
        return path

    def check_of(parameter: Any) -> Callable[[str], Any]:
        def check(text: str) -> Any:
            try:
                return parameter.process_value(ctx, [text] if parameter.multiple else text)
            except typer.BadParameter as error:
                raise ValueError(error.message) from error

        return check

    options = {
        str(parameter.name): Option(
            check_of(parameter),
            repeatable=parameter.multiple,
            comma_separated=parameter.name in _COMMA_SEPARATED,
            optional=parameter.default is None and not parameter.required,
            takes_none=parameter.name in _TAKE_NONE,
        )
        for parameter in ctx.command.params
        if parameter.name not in ("config", "help")
    }
    ctx.default_map = dict(load_config(path, options))
    return path


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"haystack-distill {__version__}")
        raise typer.Exit()


_REQUIRED = inspect.Parameter.empty
_READER = f"A directory, a name on the Hugging Face hub, or '{EMBEDDED}', the small teacher of this package."
_READER_METAVAR = f"NAME|DIRECTORY|{EMBEDDED}"
_FILES = "SQuAD-format JSON, plain or gzip; say it again for more files. Or the name of a data set on the hub: its"

_MODEL = _option("model", str, _REQUIRED, _READER, metavar=_READER_METAVAR)
_TEACHER = _option("teacher", str, _REQUIRED, f"The reader to learn from. {_READER}", metavar=_READER_METAVAR)
_STUDENT = _option(
    "student", str, _REQUIRED, "The reader that learns: a directory or a name.", metavar="NAME|DIRECTORY"
)
_DATA = _option("data", list[str], _REQUIRED, f"{_FILES} train split is taken.", metavar="FILE|NAME")
_TEST_DATA = _option("data", list[str], _REQUIRED, f"{_FILES} validation split is taken.", metavar="FILE|NAME")
_DEV_DATA = _option(
    "dev_data",
    list[str] | None,
    None,
    "Examples to measure on, never trained on: like --data, but the validation split of a data set on the hub.",
    metavar="FILE|NAME",
)
_OUTPUT_DIR = _option(
    "output_dir", Path, _REQUIRED, "Where the reader, its run record and checkpoints go.", metavar="DIRECTORY"
)
_BAD_EXAMPLES = _option(
    "on_bad_example",
    str,
    "error",
    "What to do with a question that is not valid SQuAD data: stop, or leave it out and say how many there were.",
    "Data",
    **_one_of("error", "skip"),
)
_CACHE = _option(
    "cache_dir",
    Path | None,
    None,
    "Where token windows and teacher outputs are kept. Default: $HAYSTACK_DISTILL_CACHE or ~/.cache/haystack-distill.",
    "Run",
    metavar="DIRECTORY",
)
_CONFIG = _option(
    "config",
    Path | None,
    None,
    "A YAML file with options of this command, named with underscores (n_epochs: 3). What is typed wins over it.",
    "Run",
    callback=_read_config,
    is_eager=True,
    metavar="FILE",
)
_JSON = _option("json", bool, False, "Print one JSON object on stdout instead of a table.", "Run", flags="--json")

# The defaults are those of WindowSettings and Reader, whose modules import torch; a test compares them.
_READING = [
    _option("max_seq_len", int, 384, "Tokens of a window at most, question included.", "Reading"),
    _option("doc_stride", int, 128, "Context tokens between the starts of two neighbouring windows.", "Reading"),
    _option("max_query_length", int, 64, "Question tokens at most; a longer question loses its end.", "Reading"),
    _option("max_answer_length", int, 30, "Longest answer, in tokens.", "Reading"),
    _option(
        "no_answer_threshold",
        float,
        0.0,
        "'No answer' wins where its logit exceeds the best span's by more than this.",
        "Reading",
    ),
    _option("device", str, "auto", "auto, cpu, cuda, cuda:1, mps, ...", "Reading"),
]
_INFERENCE = [
    *_READING,
    _option("batch_size", int, 16, "Windows of max_seq_len tokens in a batch, or more shorter ones.", "Reading"),
    _option("precision", str, "auto", "Number format of forward passes.", "Reading", **_one_of(*PRECISIONS)),
]


def _explanations(documented: type) -> dict[str, str]:
    """What the "Args:" of a class's docstring say, by name."""
    arguments = inspect.cleandoc(documented.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", arguments, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _settings_options() -> list[inspect.Parameter]:
    """An option for every field of `TrainingSettings`, explained by its docstring."""
    panels = dict.fromkeys(("keep_best", "early_stopping_patience", "evaluate_every"), "Measuring and keeping")
    panels |= dict.fromkeys(("checkpoint_every", "keep_checkpoints", "resume"), "Measuring and keeping")
    panels |= dict.fromkeys(("log_every", "tensorboard", "progress"), "Showing")
    explanations = _explanations(TrainingSettings)
    defaults, hints = asdict(TrainingSettings()), get_type_hints(TrainingSettings)
    options = []
    for name in TrainingSettings.names():
        kind, more = hints[name], {}
        choices = get_args(kind)
        if choices:
            number = next(choice for choice in choices if choice in (int, float))
            words = [word for choice in choices if get_origin(choice) is Literal for word in get_args(choice)]
            kind, more = Any, _number_or(number, *words, *(["none"] if NoneType in choices else []))
        elif name == "precision":
            more = _one_of(*PRECISIONS)
        panel = panels.get(name, "Learning")
        options.append(_option(name, kind, defaults[name], explanations.get(name, ""), panel, **more))
    return options


_TRAINING = [*_settings_options(), *_READING, _BAD_EXAMPLES, _CACHE, _CONFIG, _JSON]

_LAYERS_LOSS = [
    _option(
        "layer_mapping",
        Any,
        "uniform",
        "Which teacher layer each student layer learns: evenly spread, the last ones, as uniform without the student's "
        "last layer, or for each student layer a teacher layer (from 1) or none.",
        "Distillation",
        **_layer_list("uniform", "last", "skip", none=True),
    ),
    _option("embedding_loss_weight", float, 1.0, "Weight of the embedding loss; 0 leaves it out.", "Distillation"),
    _option("hidden_loss_weight", float, 1.0, "Weight of the hidden-state loss; 0 leaves it out.", "Distillation"),
    _option(
        "attention_loss_weight", float, 0.03, "Weight of the attention-score loss; 0 leaves it out.", "Distillation"
    ),
]
_ANSWERS_LOSS = [
    _option("temperature", float, 1.0, "Softens teacher and student alike; with kl_div only.", "Distillation"),
    _option("distillation_loss_weight", float, 0.5, "From 0 (labels only) to 1 (teacher only).", "Distillation"),
    _option(
        "distillation_loss",
        str,
        "kl_div",
        "How answers are compared: as probabilities, or the logits themselves.",
        "Distillation",
        **_one_of("kl_div", "mse"),
    ),
]

_CUT = "Cut from the teacher"
_FRESH = "Fresh, of the teacher's family"
_SIZES = [
    _option("num_hidden_layers", int | None, None, "Layers of the fresh student.", _FRESH),
    _option("hidden_size", int | None, None, "Width of its hidden states.", _FRESH),
    _option("num_attention_heads", int | None, None, "Attention heads of a layer.", _FRESH),
    _option("intermediate_size", int | None, None, "Width of its feed-forward part.", _FRESH),
]
_MAKING = [
    _option("layers", int | None, None, "How many of the teacher's layers to keep. Default: 3.", _CUT),
    _option(
        "which",
        Any,
        None,
        "Which layers to keep: evenly spread (the default), or these, counted from 1.",
        _CUT,
        **_layer_list("uniform", "first", "last"),
    ),
    *_SIZES,
    _option(
        "shape",
        list[str] | None,
        None,
        "Any other value of the model's configuration, such as embedding_size=64; say it again for more.",
        _FRESH,
        metavar="NAME=VALUE",
    ),
    _option("seed", int | None, None, "Of the fresh student's random weights. Default: 42.", _FRESH),
    _option(
        "overwrite",
        bool,
        False,
        "Write into a directory that is not empty; files of other names stay.",
        "Run",
        flags="--overwrite",
    ),
]
_ASKING = [
    _option("question", str, _REQUIRED, "The question."),
    _option("context", str | None, None, "The text to look for the answer in.", metavar="TEXT"),
    _option("context_file", str | None, None, "A UTF-8 file with that text; - reads it from stdin.", metavar="FILE"),
    _option("top_k", int, 1, "How many answers at most."),
    _option("allow_no_answer", bool, True, "Whether 'no answer' may be among them."),
]


# --- commands --------------------------------------------------------------------------------------------------------


@app.callback()
def _start(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Distil question answering readers for Haystack: a big, slow teacher in; a small, fast student out.

    \b
    The usual way:
      T=deepset/roberta-base-squad2
      haystack-distill student --teacher $T --layers 6 --output-dir cut
      haystack-distill distil-intermediate --teacher $T --student cut \\
          --data train.json --output-dir shown
      haystack-distill distil --teacher $T --student shown \\
          --data train.json --dev-data dev.json --output-dir finished
      haystack-distill ask --model finished --question "Who wrote it?" \\
          --context "Ada Lovelace wrote it in 1843."

    Exit codes: 0 done, 2 something to mend (the message says what), 130 interrupted (the same command with --resume
    goes on), 1 a bug of ours.
    """
    logger = logging.getLogger("haystack_distill")
    if not logger.handlers:
        logger.addHandler(RichHandler(console=Console(stderr=True), show_path=False))
        logger.setLevel(logging.INFO)


@app.command()
@_with_options([_MODEL, _DATA, _OUTPUT_DIR, _DEV_DATA], _TRAINING)
def train(ctx: typer.Context, **given: Any) -> None:
    """Train a reader on labels alone.

    \b
    Example:
      haystack-distill train --model google/electra-small-discriminator \\
          --data train.json --dev-data dev.json --n-epochs 3 --output-dir reader
    """
    _teach(ctx, given, lambda trainer, _, *examples: trainer.train(*examples))


@app.command()
@_with_options([_TEACHER, _STUDENT, _DATA, _OUTPUT_DIR, _DEV_DATA], _LAYERS_LOSS, _TRAINING)
def distil_intermediate(ctx: typer.Context, **given: Any) -> None:
    """Teach a student the teacher's embeddings, hidden states and attention scores (TinyBERT).

    The question answering head learns nothing here: follow with `distil`. Teacher and student need the same tokenizer.

    \b
    Example:
      haystack-distill distil-intermediate \\
          --teacher deepset/roberta-base-squad2 --student cut \\
          --data train-augmented.json --output-dir shown
    """
    loss = {option.name: given[option.name] for option in _LAYERS_LOSS}
    _teach(ctx, given, lambda trainer, *rest: trainer.distil_intermediate_layers_from(*rest, **loss))


@app.command()
@_with_options([_TEACHER, _STUDENT, _DATA, _OUTPUT_DIR, _DEV_DATA], _ANSWERS_LOSS, _TRAINING)
def distil(ctx: typer.Context, **given: Any) -> None:
    """Teach a student the teacher's answers.

    The teacher runs once over the data and what it says is kept on disk. It may have another tokenizer than the
    student, and sees shorter windows where it does not know as many positions.

    \b
    Example:
      haystack-distill distil \\
          --teacher deepset/roberta-base-squad2 --student shown \\
          --data train.json --dev-data dev.json --keep-best \\
          --temperature 2 --distillation-loss-weight 0.75 --output-dir finished
    """
    loss = {option.name: given[option.name] for option in _ANSWERS_LOSS}
    _teach(ctx, given, lambda trainer, *rest: trainer.distil_prediction_layer_from(*rest, **loss))


@app.command()
@_with_options([_TEACHER, _OUTPUT_DIR], _MAKING, [_CONFIG, _JSON])
def student(teacher: str, output_dir: Path, **given: Any) -> None:
    """Make a student: some layers of a teacher, or a narrower model of its family with fresh weights.

    A cut student starts from what the teacher knows and needs less data. A fresh one can be narrower too, and needs
    `distil-intermediate` and much data.

    \b
    Examples:
      haystack-distill student --teacher deepset/roberta-base-squad2 --layers 6 \\
          --output-dir cut
      haystack-distill student --teacher embedded --which 1,3,6 --output-dir cut
      haystack-distill student --teacher embedded --hidden-size 192 \\
          --num-hidden-layers 4 --intermediate-size 768 --output-dir narrow
    """
    layers, which, seed = given["layers"], given["which"], given["seed"]
    changed = {size.name: given[size.name] for size in _SIZES if given[size.name] is not None}
    changed |= _named_values(given["shape"] or [])
    if changed and (layers is not None or which is not None):
        raise DistilError(
            "--layers and --which cut layers from the teacher, the other sizes make a fresh student: give the one "
            "or the other (a fresh student's depth is --num-hidden-layers)"
        )
    if seed is not None and not changed:
        raise DistilError("--seed is for the random weights of a fresh student; one cut from a teacher has none")
    _refuse_to_overwrite(output_dir, teacher, given["overwrite"])
    with _logs_on_stderr():
        from haystack_distill import students
        from haystack_distill.features import WindowSettings
        from haystack_distill.files import write_json
        from haystack_distill.runs import versions
        from haystack_distill.teachers import model_hash

        # The smallest windows fit any teacher; none are cut.
        source = _load(teacher, windows=WindowSettings(max_seq_len=16, doc_stride=1, max_query_length=1), device="cpu")
        arguments: dict[str, Any]
        if changed:
            arguments = changed | {"seed": 42 if seed is None else seed}
            made = students.fresh(source, **arguments)
        else:
            kept = "uniform" if which is None else which
            number = layers if layers is not None else len(kept) if isinstance(kept, list) else 3
            arguments = {"layers": number, "which": kept}
            made = students.from_teacher(source, **arguments)
        made.save(output_dir)
        record = {
            "method": "student",
            "arguments": arguments,
            "seed": arguments.get("seed"),
            "teacher": model_hash(source.model),
            "parameters": made.n_parameters,
            "metrics": {},
            "status": "finished",
            "versions": versions(),
        }
        write_json(output_dir / RUN_FILE, record)
    told = {
        "command": "student",
        "output_dir": output_dir,
        "teacher": teacher,
        "arguments": arguments,
        "parameters": made.n_parameters,
        "teacher_parameters": source.n_parameters,
    }
    _tell(given["json"], told, f"Student in {output_dir}")


_PREDICTIONS = _option(
    "predictions", Path | None, None, "Write the answers here as {id: text}, SQuAD's own format.", metavar="FILE"
)


@app.command()
@_with_options([_MODEL, _TEST_DATA, _PREDICTIONS], _INFERENCE, [_BAD_EXAMPLES, _CACHE, _CONFIG, _JSON])
def evaluate(model: str, data: list[str], predictions: Path | None, **given: Any) -> None:
    """Measure a reader: SQuAD exact match and F1, in per cent.

    "No answer" is allowed where the data holds unanswerable questions (SQuAD 2.0).

    \b
    Example:
      haystack-distill evaluate --model finished --data dev.json \\
          --predictions predictions.json
    """
    with _logs_on_stderr():
        began = time.monotonic()
        examples = _examples(data, "validation", given)
        reader = _load(model, **_reader_settings(given))
        windows = reader.cut(examples, cache_dir=given["cache_dir"])
        metrics = reader.evaluate_windows(windows, predictions_path=predictions)
    told = {
        "command": "evaluate",
        "model": model,
        "data": data,
        "parameters": reader.n_parameters,
        "predictions": predictions,
        "seconds": time.monotonic() - began,
        "metrics": metrics,
    }
    _tell(given["json"], told, f"{model} on {', '.join(data)}")


@app.command()
@_with_options([_MODEL], _ASKING, _INFERENCE, [_CONFIG, _JSON])
def ask(model: str, question: str, context: str | None, context_file: str | None, **given: Any) -> None:
    """Ask a reader a question.

    \b
    Examples:
      haystack-distill ask --model finished --question "Who wrote it?" \\
          --context "Ada Lovelace wrote it in 1843."
      haystack-distill ask --model embedded --question "Who wrote it?" \\
          --context-file book.txt --top-k 3 --json
    """
    if (context is None) == (context_file is None):
        raise DistilError("give the text to look in once: either --context TEXT or --context-file FILE")
    text = context if context is not None else _text_of(str(context_file))
    with _logs_on_stderr():
        reader = _load(model, **_reader_settings(given))
        answers = reader.answer(question, text, given["top_k"], allow_no_answer=given["allow_no_answer"])
    if given["json"]:
        found = [asdict(answer) for answer in answers]
        _tell(True, {"command": "ask", "model": model, "question": question, "answers": found})
        return
    table = Table("Answer", "Score", "From", "To", title=escape(question))
    for answer in answers:
        place = ("", "") if answer.no_answer else (str(answer.start), str(answer.end))
        table.add_row("[dim]no answer[/]" if answer.no_answer else escape(answer.text), f"{answer.score:.3f}", *place)
    Console().print(table)


@app.command()
@_with_options([_JSON])
def info(
    directory: Annotated[Path, typer.Argument(help="A reader: a Hugging Face model directory.")], **given: Any
) -> None:
    """Show what a reader directory holds: architecture, parameters, size on disk, tokenizer, how it was made.

    \b
    Example:
      haystack-distill info finished
    """
    told = _describe(directory)
    if not given["json"] and told["run"]:
        told["run"] = {name: value for name, value in told["run"].items() if name != "history"}
    _tell(given["json"], {"command": "info"} | told, str(directory))


_RECIPE = typer.Typer(cls=_Commands, rich_markup_mode="rich", invoke_without_command=True)
app.add_typer(_RECIPE, name="recipe")


@_RECIPE.callback()
def recipe(
    ctx: typer.Context,
    config: Annotated[Path | None, typer.Option(help="The recipe, a YAML file; `init` writes one.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and do nothing else.")] = False,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload the finished reader to this repository of the hub.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make that repository private.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of a table.")] = False,
) -> None:
    """The whole way in one file: general distillation, layers on augmented data, answers.

    It can be stopped at any time: the same command goes on where it was.

    \b
    Example:
      haystack-distill recipe init --output recipe.yaml
      haystack-distill recipe --config recipe.yaml --dry-run
      haystack-distill recipe --config recipe.yaml
      accelerate launch -m haystack_distill recipe --config recipe.yaml
    """
    if ctx.invoked_subcommand is not None:
        return
    if private and push_to_hub is None:
        raise DistilError("--private is about the repository to upload to: give --push-to-hub too, or leave it out")
    if push_to_hub is not None and dry_run:
        raise DistilError("--dry-run makes no reader to upload: leave out one of the two")
    if config is None:
        raise DistilError("which recipe? Give --config FILE; `haystack-distill recipe init` writes one")
    with _logs_on_stderr():
        from haystack_distill.recipe_file import load_recipe

        read = load_recipe(config)
        if dry_run:
            from haystack_distill.recipe_plan import plan_recipe

            plan = plan_recipe(read)
        else:
            from haystack_distill.recipe import run_recipe

            result = run_recipe(read, progress=progress)
    if dry_run:
        _tell_plan(json, config, read.output_dir, [asdict(step) for step in plan])
        return
    told = {"command": "recipe", "config": config, **asdict(result)}
    if push_to_hub is not None and int(os.environ.get("RANK", "0")) == 0:
        told["repository"] = _push(result.directory, push_to_hub, private)
    _tell(json, told, f"Reader in {result.directory}")


@_RECIPE.command()
def init(
    output: Annotated[Path, typer.Option(help="Where to write it.")] = Path("recipe.yaml"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Write a recipe with every key explained."""
    from haystack_distill.files import write_aside
    from haystack_distill.recipe_file import EXAMPLE

    if output.exists() and not overwrite:
        raise DistilError(f"{output} exists: choose another --output, or add --overwrite to replace it")
    write_aside(output, lambda aside: aside.write_text(EXAMPLE, encoding="utf-8"))
    _say(f"{escape(str(output))} written: edit it, then haystack-distill recipe --config {escape(str(output))}")


def _push(directory: Path, repository: str, private: bool) -> str:
    with _logs_on_stderr():
        from haystack_distill import card

        return card.push_to_hub(directory, repository, private=private or None)


@app.command()
def push(
    directory: Annotated[Path, typer.Argument(help="A reader's directory.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository of the hub; made if absent.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
) -> None:
    """Upload a reader to the Hugging Face hub, without checkpoints and without what quotes the data.

    \b
    Example:
      haystack-distill push distilled/reader me/tiny-reader
    """
    print(_push(directory, repository, private))


@app.command()
@_with_options([_JSON])
def report(
    directories: Annotated[list[Path], typer.Argument(help="Directories with a report.json: finished readers.")],
    output: Annotated[Path, typer.Option(help="Directory for the page and its figures.")] = Path("comparison"),
    **given: Any,
) -> None:
    """Compare several runs in one page; no model is run.

    \b
    Example:
      haystack-distill report distilled/reader other/reader --output comparison
    """
    with _logs_on_stderr():
        from haystack_distill.report import compare_reports

        page = compare_reports(directories, output)
    _tell(given["json"], {"command": "report", "page": page}, str(page))


def _tell_plan(as_json: bool, config: Path, output_dir: str, plan: list[dict[str, Any]]) -> None:
    if as_json:
        _tell(True, {"command": "recipe", "config": config, "output_dir": output_dir, "plan": plan})
        return
    names = ("step", "examples", "windows", "optimiser steps", "time", "caches")
    table = Table(*names, title=escape(f"{config}: what would go to {output_dir}, timed on this machine"))
    for step in plan:
        figures = (_figure(step[name]) for name in ("examples", "windows", "steps"))
        table.add_row(step["name"], *figures, _duration(step["seconds"]), f"{step['cache_megabytes']:,.1f} MB")
    seconds, megabytes = (sum(step[name] for step in plan) for name in ("seconds", "cache_megabytes"))
    table.add_row("all", "", "", "", _duration(seconds), f"{megabytes:,.1f} MB")
    Console().print(table)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"


_DEMO = [
    _option("haystack", int, 1, "Whose pipeline answers at the end: 1 (farm-haystack) or 3 (haystack-ai)."),
    _option("seed", int, 42, "Of the training runs."),
    _option(
        "output_dir",
        Path | None,
        None,
        "Where the distilled reader goes. Default: demo-reader.",
        metavar="DIRECTORY",
    ),
]


@app.command()
@_with_options(_DEMO, [_JSON])
def demo(haystack: int, seed: int, output_dir: Path | None, json: bool) -> None:
    """See it work: distil the embedded teacher on the sample data that comes with this package.

    \b
    Example:
      haystack-distill demo
    """
    if haystack not in (1, 3):
        raise DistilError(f"--haystack is 1 (farm-haystack) or 3 (haystack-ai), not {haystack}")
    with _logs_on_stderr() if json else contextlib.nullcontext():
        from haystack_distill.demo import run_demo

        result = run_demo(haystack=haystack, seed=seed, output_dir=output_dir, json=json)
    if json:
        _tell(True, result)


# --- what commands share ---------------------------------------------------------------------------------------------


def _teach(ctx: typer.Context, given: dict[str, Any], run: Callable[..., "RunResult"]) -> None:
    """One run of a ReaderTrainer: `run` is called with trainer, teacher (or None), examples and dev examples."""
    settings = TrainingSettings(**{name: given[name] for name in TrainingSettings.names()})
    output_dir: Path = given["output_dir"]
    if not given["dev_data"]:
        _require_dev_data(ctx)
    _refuse_to_overwrite(output_dir, given.get("teacher"), overwrite=True)
    begun = output_dir / "checkpoints"
    if (begun / "run.json").exists() and not settings.resume:  # before anything is loaded
        raise DistilError(f"a run in {output_dir} did not finish: add --resume to go on with it, or remove {begun}")
    with _logs_on_stderr():
        from haystack_distill.trainer import ReaderTrainer

        examples = _examples(given["data"], "train", given)
        dev_examples = _examples(given["dev_data"], "validation", given) if given["dev_data"] else None
        reading = _reader_settings(given)
        learner = _load(given["student"] if "student" in given else given["model"], **reading)
        teacher = None
        if "teacher" in given:
            teacher = _load_teacher(given["teacher"], reading, same_windows=ctx.command.name == "distil-intermediate")
        trainer = ReaderTrainer(learner, output_dir, settings, cache_dir=given["cache_dir"])
        with _says_how_to_resume(output_dir):
            result = run(trainer, teacher, examples, dev_examples)
    told = {
        "command": ctx.command.name,
        "output_dir": output_dir,
        "parameters": learner.n_parameters,
        "steps": result.steps,
        "seconds": result.seconds,
        "metrics": result.metrics,
    }
    _tell(given["json"], told, f"Reader in {output_dir}")


def _require_dev_data(ctx: typer.Context) -> None:
    """Options that only measuring uses would otherwise be taken and do nothing."""
    for name in ("evaluate_every", "max_answer_length", "no_answer_threshold"):
        source = ctx.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT" and ctx.params[name] is not None:
            raise DistilError(
                f"--{name.replace('_', '-')} is about measuring the student: give --dev-data too, or leave it out"
            )


def _load(name: str, **settings: Any) -> "Reader":
    """A reader by directory, hub name or the word "embedded"."""
    from haystack_distill.embedded import named_reader

    _require_device(settings["device"])
    return named_reader(name, **settings)


def _load_teacher(name: str, settings: dict[str, Any], *, same_windows: bool) -> "Reader":
    """A teacher with the student's windows, or with shorter ones where it does not know as many positions."""
    from haystack_distill.reader import position_limit

    if same_windows:
        return _load(name, **settings)
    windows: WindowSettings = settings["windows"]
    shortest = replace(windows, max_seq_len=min(windows.max_seq_len, windows.max_query_length + 5))
    teacher = _load(name, **settings | {"windows": shortest})
    positions = position_limit(teacher.model)
    longest = windows.max_seq_len if positions is None else min(windows.max_seq_len, positions)
    if longest < windows.max_seq_len:
        logging.getLogger(__name__).info(
            "the teacher sees windows of %s tokens, all that it has positions for", longest
        )
    teacher.windows = replace(windows, max_seq_len=longest)
    return teacher


def _require_device(device: str) -> None:
    import torch

    if device == "auto":
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DistilError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error


def _reader_settings(given: dict[str, Any]) -> dict[str, Any]:
    """The constructor's settings of `Reader` out of a command's options."""
    from haystack_distill.features import WindowSettings

    windows = WindowSettings(given["max_seq_len"], given["doc_stride"], given["max_query_length"])
    names = ("max_answer_length", "no_answer_threshold", "batch_size", "precision", "device")
    return {"windows": windows} | {name: given[name] for name in names}


def _examples(data: Sequence[str], split: str, given: dict[str, Any]) -> "datasets.Dataset":
    from haystack_distill.squad import load_examples

    source = data[0] if len(data) == 1 else list(data)
    return load_examples(source, split=split, on_bad_example=given["on_bad_example"], cache_dir=given["cache_dir"])


def _refuse_to_overwrite(output_dir: Path, teacher: str | None, overwrite: bool) -> None:
    if output_dir.exists() and not output_dir.is_dir():
        raise DistilError(f"{output_dir} is a file: choose another --output-dir")
    if teacher is not None and output_dir.exists() and Path(teacher).exists() and output_dir.samefile(teacher):
        raise DistilError(f"{output_dir} is the teacher, which must not be written over: choose another --output-dir")
    if not overwrite and output_dir.exists() and any(output_dir.iterdir()):
        raise DistilError(
            f"{output_dir} is not empty: choose another --output-dir, or add --overwrite to write into it"
        )


def _named_values(pairs: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE, with numbers, true, false and null as in JSON and all else as text."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals and text):
            raise DistilError(f"--shape {pair!r}: write it as NAME=VALUE, like embedding_size=64")
        try:
            values[name] = json_module.loads(text)
        except json_module.JSONDecodeError:
            values[name] = text
    return values


def _text_of(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DistilError(f"cannot read the context from {file}: {error}") from error


# --- info ------------------------------------------------------------------------------------------------------------


# Configuration values worth showing: BERT's names and DistilBERT's.
_SHAPE = (
    *("num_hidden_layers", "n_layers", "hidden_size", "dim", "num_attention_heads", "n_heads"),
    *("intermediate_size", "hidden_dim", "max_position_embeddings", "vocab_size"),
)


def _describe(directory: Path) -> dict[str, Any]:
    """What can be read off a reader's files, without loading it.

    Raises:
        DistilError: It is not a directory with a model in safetensors and its configuration.
    """
    config = _json_in(directory, "config.json")
    if config is None:
        raise DistilError(f"{directory} holds no config.json: give the directory of a reader")
    weights = sorted(directory.glob("*.safetensors"))
    if not weights:
        raise DistilError(f"{directory} holds no weights in safetensors")
    tokenizer = _json_in(directory, "tokenizer_config.json") or {}
    return {
        "directory": directory,
        "architecture": next(iter(config.get("architectures") or []), None),
        "model_type": config.get("model_type"),
        "shape": {name: config[name] for name in _SHAPE if name in config},
        "parameters": sum(_count_parameters(file) for file in weights),
        "weights_megabytes": sum(file.stat().st_size for file in weights) / 1e6,
        "directory_megabytes": sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()) / 1e6,
        "tokenizer": tokenizer.get("tokenizer_class"),
        "fast_tokenizer": (directory / "tokenizer.json").exists(),
        "unfinished_run": (directory / "checkpoints" / "run.json").exists(),
        "run": _json_in(directory, RUN_FILE),
    }


def _json_in(directory: Path, name: str) -> dict[str, Any] | None:
    """The object in a JSON file of a directory, None where there is no such file."""
    try:
        content = json_module.loads((directory / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DistilError(f"{directory / name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DistilError(f"{directory / name} does not hold a JSON object")
    return content


def _count_parameters(file: Path) -> int:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="numpy") as stream:
            names = [name for name in stream.keys() if not name.endswith("position_ids")]  # noqa: SIM118 (not a mapping)
            return sum(math.prod(stream.get_slice(name).get_shape()) for name in names)
    except (SafetensorError, OSError) as error:
        raise DistilError(f"{file} cannot be read: {error}") from error


# --- what is said, and where -----------------------------------------------------------------------------------------


def _say(message: str) -> None:
    """A line on stderr, in rich's markup."""
    Console(stderr=True).print(message, soft_wrap=True, highlight=False)


@contextlib.contextmanager
def _logs_on_stderr() -> Iterator[None]:
    """Whatever libraries print goes to stderr: stdout is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def _says_how_to_resume(output_dir: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as interrupt:
        begun = output_dir / "checkpoints"
        if any(begun.glob("checkpoint-*/complete")):
            how = "The same command with --resume goes on from the last checkpoint."
        elif (begun / "run.json").exists():
            how = "There is no checkpoint yet: the same command with --resume starts from the beginning."
        else:
            how = "Training had not begun: run the same command again."
        raise KeyboardInterrupt(how) from interrupt


def _tell(as_json: bool, result: dict[str, Any], title: str = "") -> None:
    """A command's result on stdout, once where several processes share a run."""
    if int(os.environ.get("RANK", "0")) != 0:
        return
    if as_json:
        print(json_module.dumps(_plain(result), ensure_ascii=False, allow_nan=False))
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
            yield prefix + name, _figure(value)


def _figure(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.2f}" if value == 0 or abs(value) >= 1 else f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_figure, value))
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
