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
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args, get_origin, get_type_hints

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
    from haystack_distill.trainer import ReaderTrainer, RunResult

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
            _say("[yellow]Interrupted.[/]")
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
    name: str, kind: Any, default: Any, explanation: str, panel: str | None = None, *, flags: str | None = None, **more: Any
) -> inspect.Parameter:
    """An option as a parameter that typer understands: `name` with dashes, and --no-... for a switch."""
    flag = "--" + name.replace("_", "-")
    if flags is None:
        flags = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
    info = typer.Option(flags, help=escape(explanation), rich_help_panel=panel, **more)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def _with_options(*groups: Iterable[inspect.Parameter]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command that takes `**given` the options of `groups` besides its own."""

    def extend(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        shared = [parameter for group in groups for parameter in group]
        keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        command.__signature__ = signature.replace(parameters=keyword + shared)  # type: ignore[attr-defined]
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
                return parameter.type.convert(text, parameter, ctx)
            except typer.BadParameter as error:
                raise ValueError(error.message) from error

        return check

    options = {
        parameter.name: Option(
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


_RUN = [
    _option(
        "config",
        Path | None,
        None,
        "A YAML file with options of this command, named with underscores (n_epochs: 3). What is typed wins over the file.",
        "Run",
        callback=_read_config,
        is_eager=True,
        metavar="FILE",
    ),
    _option("json", bool, False, "Print one JSON object on stdout instead of a table.", "Run", flags="--json"),
]
_CACHE = _option(
    "cache_dir",
    Path | None,
    None,
    "Where token windows and teacher outputs are kept. Default: $HAYSTACK_DISTILL_CACHE or ~/.cache/haystack-distill.",
    "Run",
    metavar="DIRECTORY",
)
_BAD_EXAMPLES = _option(
    "on_bad_example",
    str,
    "error",
    "What to do with a question that is not valid SQuAD data: stop, or leave it out and say how many there were.",
    "Data",
    **_one_of("error", "skip"),
)
# The defaults are those of WindowSettings and Reader, which only a module that imports torch could tell; a test compares them.
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
    _option("batch_size", int, 16, "Windows of max_seq_len tokens in a batch; shorter ones come in larger batches.", "Reading"),
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
        options.append(_option(name, kind, defaults[name], explanations.get(name, ""), panels.get(name, "Learning"), **more))
    return options


_TRAINING = [*_settings_options(), *_READING, _BAD_EXAMPLES, _CACHE, *_RUN]

_READER_HELP = f"A directory, a name on the Hugging Face hub, or '{EMBEDDED}' for the small teacher that comes with this package"
_Data = Annotated[
    list[str],
    typer.Option(
        "--data",
        help="SQuAD-format JSON, plain or gzip; say it again for more files. Or the name of a data set on the hub: its "
        "train split is taken.",
        metavar="FILE|NAME",
    ),
]
_EvaluationData = Annotated[
    list[str],
    typer.Option(
        "--data",
        help="SQuAD-format JSON, plain or gzip; say it again for more files. Or the name of a data set on the hub: its "
        "validation split is taken.",
        metavar="FILE|NAME",
    ),
]
_DevData = Annotated[
    list[str] | None,
    typer.Option(
        "--dev-data",
        help="Examples to measure on, never trained on. Files, or a name on the hub: its validation split is taken.",
        metavar="FILE|NAME",
    ),
]
_OutputDir = Annotated[
    Path, typer.Option("--output-dir", help="Where the reader, its run record and checkpoints go.", metavar="DIRECTORY")
]
_Teacher = Annotated[
    str, typer.Option("--teacher", help=f"The reader to learn from. {_READER_HELP}.", metavar=f"NAME|DIRECTORY|{EMBEDDED}")
]
_Student = Annotated[
    str,
    typer.Option(
        "--student",
        help="The reader that learns: a directory (see `haystack-distill student`) or a name on the hub.",
        metavar="NAME|DIRECTORY",
    ),
]
_Model = Annotated[str, typer.Option("--model", help=f"{_READER_HELP}.", metavar=f"NAME|DIRECTORY|{EMBEDDED}")]


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
      haystack-distill student --teacher deepset/roberta-base-squad2 --layers 6 --output-dir student
      haystack-distill distil-intermediate --teacher deepset/roberta-base-squad2 --student student --data train.json \\
          --output-dir shown
      haystack-distill distil --teacher deepset/roberta-base-squad2 --student shown --data train.json --dev-data dev.json \\
          --output-dir finished
      haystack-distill ask --model finished --question "Who wrote it?" --context "Ada Lovelace wrote it in 1843."

    Exit codes: 0 done, 2 something to mend (the message says what), 130 interrupted (the same command with --resume
    goes on), 1 a bug of ours.
    """
    logger = logging.getLogger("haystack_distill")
    if not logger.handlers:
        logger.addHandler(RichHandler(console=Console(stderr=True), show_path=False))
        logger.setLevel(logging.INFO)


@app.command()
@_with_options(_TRAINING)
def train(
    ctx: typer.Context, model: _Model, data: _Data, output_dir: _OutputDir, dev_data: _DevData = None, **given: Any
) -> None:
    """Train a reader on labels alone.

    \b
    Example:
      haystack-distill train --model google/electra-small-discriminator --data train.json --dev-data dev.json \\
          --n-epochs 3 --learning-rate 1e-4 --output-dir reader
    """
    _teach(ctx, model, None, data, dev_data, output_dir, given, lambda trainer, _, *examples: trainer.train(*examples))


@app.command()
@_with_options(_TRAINING)
def distil_intermediate(
    ctx: typer.Context,
    teacher: _Teacher,
    student: _Student,
    data: _Data,
    output_dir: _OutputDir,
    dev_data: _DevData = None,
    layer_mapping: Annotated[
        Any,
        typer.Option(
            help="Which teacher layer each student layer learns: evenly spread, the last ones, as uniform without the "
            "student's last layer, or a teacher layer (from 1) or none for each student layer.",
            rich_help_panel="Distillation",
            **_layer_list("uniform", "last", "skip", none=True),
        ),
    ] = "uniform",
    embedding_loss_weight: Annotated[
        float, typer.Option(help="Weight of the embedding loss; 0 leaves it out.", rich_help_panel="Distillation")
    ] = 1.0,
    hidden_loss_weight: Annotated[
        float, typer.Option(help="Weight of the hidden-state loss; 0 leaves it out.", rich_help_panel="Distillation")
    ] = 1.0,
    attention_loss_weight: Annotated[
        float, typer.Option(help="Weight of the attention-score loss; 0 leaves it out.", rich_help_panel="Distillation")
    ] = 1.0,
    **given: Any,
) -> None:
    """Teach a student the teacher's embeddings, hidden states and attention scores (TinyBERT).

    The question answering head learns nothing here: follow with `distil`. Teacher and student need the same tokenizer.

    \b
    Example:
      haystack-distill distil-intermediate --teacher deepset/roberta-base-squad2 --student student \\
          --data train-augmented.json --output-dir shown
    """

    def run(trainer: "ReaderTrainer", reader: "Reader", *examples: Any) -> "RunResult":
        return trainer.distil_intermediate_layers_from(
            reader,
            *examples,
            layer_mapping=layer_mapping,
            embedding_loss_weight=embedding_loss_weight,
            hidden_loss_weight=hidden_loss_weight,
            attention_loss_weight=attention_loss_weight,
        )

    _teach(ctx, student, teacher, data, dev_data, output_dir, given, run)


@app.command()
@_with_options(_TRAINING)
def distil(
    ctx: typer.Context,
    teacher: _Teacher,
    student: _Student,
    data: _Data,
    output_dir: _OutputDir,
    dev_data: _DevData = None,
    temperature: Annotated[
        float,
        typer.Option(help="Softens teacher and student alike; with kl_div only.", rich_help_panel="Distillation"),
    ] = 1.0,
    distillation_loss_weight: Annotated[
        float, typer.Option(help="From 0 (labels only) to 1 (teacher only).", rich_help_panel="Distillation")
    ] = 0.5,
    distillation_loss: Annotated[
        str,
        typer.Option(
            help="How answers are compared: as probabilities, or the logits themselves.",
            rich_help_panel="Distillation",
            **_one_of("kl_div", "mse"),
        ),
    ] = "kl_div",
    **given: Any,
) -> None:
    """Teach a student the teacher's answers.

    The teacher runs once over the data and what it says is kept on disk. It may have another tokenizer than the student,
    and sees shorter windows where it does not know as many positions.

    \b
    Example:
      haystack-distill distil --teacher deepset/roberta-base-squad2 --student shown --data train.json \\
          --dev-data dev.json --temperature 2 --distillation-loss-weight 0.75 --keep-best --output-dir finished
    """

    def run(trainer: "ReaderTrainer", reader: "Reader", *examples: Any) -> "RunResult":
        return trainer.distil_prediction_layer_from(
            reader,
            *examples,
            temperature=temperature,
            distillation_loss_weight=distillation_loss_weight,
            distillation_loss=distillation_loss,
        )

    _teach(ctx, student, teacher, data, dev_data, output_dir, given, run)


@app.command()
@_with_options(_RUN)
def student(
    teacher: _Teacher,
    output_dir: Annotated[Path, typer.Option("--output-dir", help="Where the student goes.", metavar="DIRECTORY")],
    layers: Annotated[
        int | None,
        typer.Option(help="How many of the teacher's layers to keep. Default: 3.", rich_help_panel="Cut from the teacher"),
    ] = None,
    which: Annotated[
        Any,
        typer.Option(
            help="Which layers to keep: evenly spread (the default), or these, counted from 1.",
            rich_help_panel="Cut from the teacher",
            **_layer_list("uniform", "first", "last"),
        ),
    ] = None,
    num_hidden_layers: Annotated[
        int | None, typer.Option(help="Layers of the fresh student.", rich_help_panel="Fresh, of the teacher's family")
    ] = None,
    hidden_size: Annotated[
        int | None, typer.Option(help="Width of its hidden states.", rich_help_panel="Fresh, of the teacher's family")
    ] = None,
    num_attention_heads: Annotated[
        int | None, typer.Option(help="Attention heads of a layer.", rich_help_panel="Fresh, of the teacher's family")
    ] = None,
    intermediate_size: Annotated[
        int | None, typer.Option(help="Width of its feed-forward part.", rich_help_panel="Fresh, of the teacher's family")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="Any other value of the model's configuration, such as embedding_size=64; say it again for more.",
            rich_help_panel="Fresh, of the teacher's family",
            metavar="NAME=VALUE",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Of the fresh student's random weights. Default: 42.", rich_help_panel="Fresh, of the teacher's family"
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Write into a directory that is not empty; other files stay.", rich_help_panel="Run"
        ),
    ] = False,
    json: bool = False,
    **_: Any,
) -> None:
    """Make a student: some layers of a teacher, or a narrower model of its family with fresh weights.

    A cut student starts from what the teacher knows and needs less data. A fresh one can be narrower too, and needs
    `distil-intermediate` and much data.

    \b
    Examples:
      haystack-distill student --teacher deepset/roberta-base-squad2 --layers 6 --output-dir student
      haystack-distill student --teacher embedded --which 1,3,6 --output-dir student
      haystack-distill student --teacher bert-large --hidden-size 256 --num-attention-heads 16 --output-dir student
    """
    sizes = {
        "num_hidden_layers": num_hidden_layers,
        "hidden_size": hidden_size,
        "num_attention_heads": num_attention_heads,
        "intermediate_size": intermediate_size,
    }
    changed: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None}
    changed |= _named_values(shape or [])
    if changed and (layers is not None or which is not None):
        raise DistilError(
            "--layers and --which cut layers from the teacher, the other sizes make a fresh student: give the one or the "
            "other (a fresh student's depth is --num-hidden-layers)"
        )
    if seed is not None and not changed:
        raise DistilError("--seed is for the random weights of a fresh student; one cut from a teacher has none")
    _refuse_to_overwrite(output_dir, teacher, overwrite)
    with _logs_on_stderr():
        from haystack_distill import students
        from haystack_distill.features import WindowSettings
        from haystack_distill.store import write_json
        from haystack_distill.teachers import model_hash
        from haystack_distill.trainer import versions

        # The smallest windows fit any teacher; none are cut.
        source = _load(teacher, windows=WindowSettings(max_seq_len=16, doc_stride=1, max_query_length=1), device="cpu")
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
    told = {"command": "student", "output_dir": output_dir, "teacher": teacher, "arguments": arguments}
    told |= {"parameters": made.n_parameters, "teacher_parameters": source.n_parameters}
    _tell(json, told, f"Student in {output_dir}")


@app.command()
@_with_options(_INFERENCE, [_BAD_EXAMPLES, _CACHE], _RUN)
def evaluate(
    model: _Model,
    data: _EvaluationData,
    predictions: Annotated[
        Path | None,
        typer.Option(help="Write the answers here as {id: text}, the official SQuAD format.", metavar="FILE"),
    ] = None,
    json: bool = False,
    **given: Any,
) -> None:
    """Measure a reader: SQuAD exact match and F1, in per cent.

    "No answer" is allowed where the data holds unanswerable questions (SQuAD 2.0).

    \b
    Example:
      haystack-distill evaluate --model finished --data dev.json --predictions predictions.json
    """
    with _logs_on_stderr():
        began = time.monotonic()
        examples = _examples(data, "validation", given)
        reader = _load(model, **_reader_settings(given))
        windows = reader.cut(examples, cache_dir=given["cache_dir"])
        metrics = reader.evaluate_windows(windows, predictions_path=predictions)
    told = {"command": "evaluate", "model": model, "data": data, "parameters": reader.n_parameters}
    told |= {"predictions": predictions, "seconds": time.monotonic() - began, "metrics": metrics}
    _tell(json, told, f"{model} on {', '.join(data)}")


@app.command()
@_with_options(_INFERENCE, _RUN)
def ask(
    model: _Model,
    question: Annotated[str, typer.Option(help="The question.")],
    context: Annotated[str | None, typer.Option(help="The text to look for the answer in.", metavar="TEXT")] = None,
    context_file: Annotated[
        str | None, typer.Option(help="A UTF-8 file with that text; - reads it from stdin.", metavar="FILE")
    ] = None,
    top_k: Annotated[int, typer.Option(help="How many answers at most.")] = 1,
    allow_no_answer: Annotated[bool, typer.Option(help="Whether 'no answer' may be among them.")] = True,
    json: bool = False,
    **given: Any,
) -> None:
    """Ask a reader a question.

    \b
    Examples:
      haystack-distill ask --model finished --question "Who wrote it?" --context "Ada Lovelace wrote it in 1843."
      haystack-distill ask --model embedded --question "Who wrote it?" --context-file book.txt --top-k 3 --json
    """
    if (context is None) == (context_file is None):
        raise DistilError("give the text to look in once: either --context TEXT or --context-file FILE")
    text = context if context is not None else _text_of(cast(str, context_file))
    with _logs_on_stderr():
        answers = _load(model, **_reader_settings(given)).answer(question, text, top_k, allow_no_answer=allow_no_answer)
    if json:
        _tell(True, {"command": "ask", "model": model, "question": question, "answers": [asdict(a) for a in answers]})
        return
    table = Table("Answer", "Score", "From", "To", title=escape(question))
    for answer in answers:
        place = ("", "") if answer.no_answer else (str(answer.start), str(answer.end))
        table.add_row("[dim]no answer[/]" if answer.no_answer else escape(answer.text), f"{answer.score:.3f}", *place)
    Console().print(table)


@app.command()
def info(
    directory: Annotated[Path, typer.Argument(help="A reader: a Hugging Face model directory.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of a table.")] = False,
) -> None:
    """Show what a reader directory holds: architecture, parameters, size on disk, tokenizer, how it was made.

    \b
    Example:
      haystack-distill info finished
    """
    told = _describe(directory)
    if not json and told["run"]:
        told["run"] = {name: value for name, value in told["run"].items() if name != "history"}
    _tell(json, {"command": "info"} | told, str(directory))


@app.command()
def demo(
    haystack: Annotated[int, typer.Option(help="Major version of Haystack that the student is put into.")] = 1,
    seed: Annotated[int, typer.Option(help="Of everything that is random.")] = 42,
    output_dir: Annotated[
        Path | None,
        typer.Option(help="Keep what the demo makes. Default: a directory that goes with it.", metavar="DIRECTORY"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """See it work: distil the embedded teacher on the sample data that comes with this package.

    \b
    Example:
      haystack-distill demo
    """
    with _logs_on_stderr() if json else contextlib.nullcontext():
        from haystack_distill.demo import run_demo

        result = run_demo(haystack=haystack, seed=seed, output_dir=output_dir, json=json)
    if json:
        _tell(True, result)


# --- what commands share ---------------------------------------------------------------------------------------------


def _teach(
    ctx: typer.Context,
    student_name: str,
    teacher_name: str | None,
    data: list[str],
    dev_data: list[str] | None,
    output_dir: Path,
    given: dict[str, Any],
    run: Callable[..., "RunResult"],
) -> None:
    """One run of a ReaderTrainer: `run` is called with trainer, teacher, examples and dev examples."""
    settings = TrainingSettings(**{name: given[name] for name in TrainingSettings.names()})
    if not dev_data:
        _require_dev_data(ctx)
    _refuse_to_overwrite(output_dir, teacher_name, overwrite=True)
    with _logs_on_stderr():
        from haystack_distill.trainer import ReaderTrainer

        examples = _examples(data, "train", given)
        dev_examples = _examples(dev_data, "validation", given) if dev_data else None
        reading = _reader_settings(given)
        learner = _load(student_name, **reading)
        teacher = None
        if teacher_name is not None:
            teacher = _load_teacher(teacher_name, reading, same_windows=ctx.command.name == "distil-intermediate")
        trainer = ReaderTrainer(learner, output_dir, settings, cache_dir=given["cache_dir"])
        with _says_how_to_resume(output_dir):
            result = run(trainer, teacher, examples, dev_examples)
    told = {"command": ctx.command.name, "output_dir": output_dir, "parameters": learner.n_parameters}
    told |= {"steps": result.steps, "seconds": result.seconds, "metrics": result.metrics}
    _tell(given["json"], told, f"Reader in {output_dir}")


def _require_dev_data(ctx: typer.Context) -> None:
    """Options that only measuring uses would otherwise be taken and do nothing."""
    for name in ("evaluate_every", "max_answer_length", "no_answer_threshold"):
        source = ctx.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT" and ctx.params[name] is not None:
            raise DistilError(f"--{name.replace('_', '-')} is about measuring the student: give --dev-data too, or leave it out")


def _load(name: str, **settings: Any) -> "Reader":
    """A reader by directory, hub name or the word "embedded"."""
    _require_device(settings["device"])
    if name == EMBEDDED:
        from haystack_distill.embedded import embedded_teacher

        return embedded_teacher(**settings)
    from haystack_distill.reader import Reader

    return Reader.load(name, **settings)


def _load_teacher(name: str, settings: dict[str, Any], *, same_windows: bool) -> "Reader":
    """A teacher with the student's windows, or with shorter ones where it does not know as many positions."""
    from haystack_distill.reader import _position_limit

    if same_windows:
        return _load(name, **settings)
    windows: WindowSettings = settings["windows"]
    shortest = replace(windows, max_seq_len=min(windows.max_seq_len, windows.max_query_length + 5))
    teacher = _load(name, **settings | {"windows": shortest})
    positions = _position_limit(teacher.model)
    longest = windows.max_seq_len if positions is None else min(windows.max_seq_len, positions)
    if longest < windows.max_seq_len:
        logging.getLogger(__name__).info("the teacher sees windows of %s tokens, all that it has positions for", longest)
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
        raise DistilError(f"{output_dir} is not empty: choose another --output-dir, or add --overwrite to write into it")


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
    shown = ("num_hidden_layers", "n_layers", "hidden_size", "dim", "num_attention_heads", "n_heads", "intermediate_size")
    shown += ("hidden_dim", "max_position_embeddings", "vocab_size")
    return {
        "directory": directory,
        "architecture": next(iter(config.get("architectures") or []), None),
        "model_type": config.get("model_type"),
        "shape": {name: config[name] for name in shown if name in config},
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
    except KeyboardInterrupt:
        begun = output_dir / "checkpoints"
        if any(begun.glob("checkpoint-*/complete")):
            _say("The same command with --resume goes on from the last checkpoint.")
        elif (begun / "run.json").exists():
            _say("There is no checkpoint yet: the same command with --resume starts from the beginning.")
        else:
            _say("Training had not begun: run the same command again.")
        raise


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
        return f"{value:,.2f}"
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
