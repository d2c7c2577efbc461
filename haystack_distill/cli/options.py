"""The options of the command line: how one is made, those that commands share, and YAML files that say them."""

import inspect
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from rich.markup import escape

from haystack_distill.errors import DistilError
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.utils.checks import PRECISIONS
from haystack_distill.utils.files import expand_user
from haystack_distill.utils.yaml_config import Option, load_config

EMBEDDED = "embedded"


def path_in_home(text: str) -> Path:
    """A path as it is typed; the shell leaves the `~` of --output-dir=~/reader as it is."""
    try:
        return expand_user(str(text))
    except DistilError as error:
        raise typer.BadParameter(str(error)) from error


def option(
    name: str, kind: Any, default: Any, explanation: str, panel: str | None = None, flags: str = "", **more: Any
) -> inspect.Parameter:
    """An option as a parameter that typer understands: `name` with dashes, and --no-... for a switch."""
    flag = "--" + name.replace("_", "-")
    if any(word in more.get("metavar", "") for word in ("FILE", "DIRECTORY")):
        more["parser"] = path_in_home if Path in (kind, *get_args(kind)) else lambda text: os.path.expanduser(str(text))
    if not flags:
        flags = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
    info = typer.Option(flags, help=escape(explanation), rich_help_panel=panel, **more)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def with_options(*groups: Iterable[inspect.Parameter]) -> Callable[[Callable[..., None]], Callable[..., None]]:
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


def one_of(*words: str) -> dict[str, Any]:
    """For an option that knows these words only."""

    def parse(text: str) -> str:
        if text not in words:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(words)}")
        return text

    return {"parser": parse, "metavar": "|".join(words)}


def number_or(number: type, *words: str) -> dict[str, Any]:
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


def layer_list(*words: str, none: bool = False) -> dict[str, Any]:
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


REQUIRED = inspect.Parameter.empty
_READER = f"A directory, a name on the Hugging Face hub, or '{EMBEDDED}', the small teacher of this package."
READER_METAVAR = f"NAME|DIRECTORY|{EMBEDDED}"
_FILES = (
    "SQuAD-format JSON or a table (CSV, JSON lines, Parquet); say it again for more files. Or the name of a data set "
    "on the hub: its"
)

MODEL = option("model", str, REQUIRED, _READER, metavar=READER_METAVAR)
TEACHER = option("teacher", str, REQUIRED, f"The reader to learn from. {_READER}", metavar=READER_METAVAR)
STUDENT = option("student", str, REQUIRED, "The reader that learns: a directory or a name.", metavar="NAME|DIRECTORY")
DATA = option("data", list[str], REQUIRED, f"{_FILES} train split is taken.", metavar="FILE|NAME")
TEST_DATA = option("data", list[str], REQUIRED, f"{_FILES} validation split is taken.", metavar="FILE|NAME")
DEV_DATA = option(
    "dev_data",
    list[str] | None,
    None,
    "Examples to measure on, never trained on: like --data, but the validation split of a data set on the hub.",
    metavar="FILE|NAME",
)
OUTPUT_DIR = option(
    "output_dir", Path, REQUIRED, "Where the reader, its run record and checkpoints go.", metavar="DIRECTORY"
)
BAD_EXAMPLES = option(
    "on_bad_example",
    str,
    "error",
    "What to do with a question that is not valid SQuAD data: stop, or leave it out and say how many there were.",
    "Data",
    **one_of("error", "skip"),
)
CACHE = option(
    "cache_dir",
    Path | None,
    None,
    "Where token windows and teacher outputs are kept. Default: $HAYSTACK_DISTILL_CACHE or ~/.cache/haystack-distill.",
    "Run",
    metavar="DIRECTORY",
)
CONFIG = option(
    "config",
    Path | None,
    None,
    "A YAML file with options of this command, named with underscores (n_epochs: 3). What is typed wins over it.",
    "Run",
    callback=_read_config,
    is_eager=True,
    metavar="FILE",
)
JSON = option("json", bool, False, "Print one JSON object on stdout instead of a table.", "Run", flags="--json")

RUNNING = [
    option(
        "backend",
        str,
        "torch",
        "What runs the model: the two onnx ones, faster on the processor, need a reader that `export` wrote.",
        "Reading",
        **one_of("torch", "onnx", "onnx-int8"),
    ),
    option("num_threads", int | None, None, "Processor threads of a forward pass. Default: all.", "Reading"),
]

# The defaults are those of WindowSettings and Reader, whose modules import torch; a test compares them.
_READING = [
    option("max_seq_len", int, 384, "Tokens of a window at most, question included.", "Reading"),
    option(
        "doc_stride",
        int | None,
        None,
        "Context tokens between the starts of two neighbouring windows. Default: a third of --max-seq-len.",
        "Reading",
    ),
    option("max_query_length", int, 64, "Question tokens at most; a longer question loses its end.", "Reading"),
    option("max_answer_length", int, 30, "Longest answer, in tokens.", "Reading"),
    option(
        "no_answer_threshold",
        float,
        0.0,
        "'No answer' wins where its logit exceeds the best span's by more than this.",
        "Reading",
    ),
    option("device", str, "auto", "auto, cpu, cuda, cuda:1, mps, ...", "Reading"),
]
INFERENCE = [
    *_READING,
    option("batch_size", int, 16, "Windows of max_seq_len tokens in a batch, or more shorter ones.", "Reading"),
    option("precision", str, "auto", "Number format of forward passes.", "Reading", **one_of(*PRECISIONS)),
]


def _explanations(documented: type) -> dict[str, str]:
    """What the "Args:" of a class's docstring say, by name."""
    arguments = inspect.cleandoc(documented.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", arguments, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _settings_options() -> list[inspect.Parameter]:
    """An option for every field of `TrainingSettings`, explained by its docstring."""
    panels = dict.fromkeys(("keep_best", "early_stopping_patience", "evaluate_every"), "Measuring and keeping")
    panels |= dict.fromkeys(("checkpoint_every", "keep_checkpoints", "resume", "overwrite"), "Measuring and keeping")
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
            kind, more = Any, number_or(number, *words, *(["none"] if NoneType in choices else []))
        elif name == "precision":
            more = one_of(*PRECISIONS)
        panel = panels.get(name, "Learning")
        options.append(option(name, kind, defaults[name], explanations.get(name, ""), panel, **more))
    return options


TRAINING = [*_settings_options(), *_READING, BAD_EXAMPLES, CACHE, CONFIG, JSON]

LAYERS_LOSS = [
    option(
        "layer_mapping",
        Any,
        "uniform",
        "Which teacher layer each student layer learns: evenly spread, the last ones, as uniform without the student's "
        "last layer, or for each student layer a teacher layer (from 1) or none.",
        "Distillation",
        **layer_list("uniform", "last", "skip", none=True),
    ),
    option("embedding_loss_weight", float, 1.0, "Weight of the embedding loss; 0 leaves it out.", "Distillation"),
    option("hidden_loss_weight", float, 1.0, "Weight of the hidden-state loss; 0 leaves it out.", "Distillation"),
    option(
        "attention_loss_weight", float, 0.03, "Weight of the attention-score loss; 0 leaves it out.", "Distillation"
    ),
]
ANSWERS_LOSS = [
    option("temperature", float, 1.0, "Softens teacher and student alike; with kl_div only.", "Distillation"),
    option("distillation_loss_weight", float, 0.5, "From 0 (labels only) to 1 (teacher only).", "Distillation"),
    option(
        "distillation_loss",
        str,
        "kl_div",
        "How answers are compared: as probabilities, or the logits themselves.",
        "Distillation",
        **one_of("kl_div", "mse"),
    ),
]

_CUT = "Cut from the teacher"
_FRESH = "Fresh, of the teacher's family"
SIZES = [
    option("num_hidden_layers", int | None, None, "Layers of the fresh student.", _FRESH),
    option("hidden_size", int | None, None, "Width of its hidden states.", _FRESH),
    option("num_attention_heads", int | None, None, "Attention heads of a layer.", _FRESH),
    option("intermediate_size", int | None, None, "Width of its feed-forward part.", _FRESH),
]
OVERWRITE = option(
    "overwrite",
    bool,
    False,
    "Write into a directory that is not empty; files of other names stay.",
    "Run",
    flags="--overwrite",
)
MAKING = [
    option("layers", int | None, None, "How many of the teacher's layers to keep. Default: 3.", _CUT),
    option(
        "which",
        Any,
        None,
        "Which layers to keep: evenly spread (the default), or these, counted from 1.",
        _CUT,
        **layer_list("uniform", "first", "last"),
    ),
    *SIZES,
    option(
        "shape",
        list[str] | None,
        None,
        "Any other value of the model's configuration, such as embedding_size=64; say it again for more.",
        _FRESH,
        metavar="NAME=VALUE",
    ),
    option("seed", int | None, None, "Of the fresh student's random weights. Default: 42.", _FRESH),
    OVERWRITE,
]
ASKING = [
    option("question", str, REQUIRED, "The question."),
    option("context", str | None, None, "The text to look for the answer in.", metavar="TEXT"),
    option("context_file", str | None, None, "A UTF-8 file with that text; - reads it from stdin.", metavar="FILE"),
    option("top_k", int, 1, "How many answers at most."),
    option("allow_no_answer", bool, True, "Whether 'no answer' may be among them."),
]
