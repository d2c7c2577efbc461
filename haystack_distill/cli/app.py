"""The command line, `haystack-distill`: every command is one call of the Python API with its options spelt out.

What a command finds out goes to stdout, as a table or with --json as one JSON object; everything else goes to stderr.
Nothing heavy is imported before a command runs, so that help is quick.
"""

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from haystack_distill import __version__
from haystack_distill.cli import recipe as recipe_commands
from haystack_distill.cli import serving as serving_commands
from haystack_distill.cli.inputs import (
    examples_of,
    load_reader,
    load_teacher,
    measured_examples,
    named_values,
    reader_settings,
    refuse_to_overwrite,
    text_of,
)
from haystack_distill.cli.options import (
    ANSWERS_LOSS,
    ASKING,
    BAD_EXAMPLES,
    CACHE,
    CONFIG,
    DATA,
    DEV_DATA,
    INFERENCE,
    JSON,
    LAYERS_LOSS,
    MAKING,
    MODEL,
    OUTPUT_DIR,
    RUNNING,
    SIZES,
    STUDENT,
    TEACHER,
    TEST_DATA,
    TRAINING,
    option,
    path_in_home,
    with_options,
)
from haystack_distill.cli.output import Commands, logs_on_stderr, says_how_to_resume, tell
from haystack_distill.data.squad.validation import replace_lone_surrogates
from haystack_distill.errors import DistilError
from haystack_distill.reporting.inspection import describe
from haystack_distill.training.checkpoints import check_directory
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.utils.console import LogHandler
from haystack_distill.utils.files import require_writable
from haystack_distill.utils.model_files import RUN_FILE

if TYPE_CHECKING:
    from haystack_distill.training.run_directory import RunResult

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.add_typer(recipe_commands.RECIPE, name="recipe")
app.command()(recipe_commands.report)
app.command()(recipe_commands.push)
app.command()(serving_commands.export)
app.command()(serving_commands.prune)
app.command()(serving_commands.suggest)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"haystack-distill {__version__}")
        raise typer.Exit()


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
    for package in ("haystack_distill", "augment"):
        logger = logging.getLogger(package)
        if not logger.handlers:
            logger.addHandler(LogHandler())
            logger.setLevel(logging.INFO)


@app.command()
@with_options([MODEL, DATA, OUTPUT_DIR, DEV_DATA], TRAINING)
def train(ctx: typer.Context, **given: Any) -> None:
    """Train a reader on labels alone.

    \b
    Example:
      haystack-distill train --model google/electra-small-discriminator \\
          --data train.json --dev-data dev.json --n-epochs 3 --output-dir reader
    """
    _teach(ctx, given, lambda trainer, _, *examples: trainer.train(*examples))


@app.command()
@with_options([TEACHER, STUDENT, DATA, OUTPUT_DIR, DEV_DATA], LAYERS_LOSS, TRAINING)
def distil_intermediate(ctx: typer.Context, **given: Any) -> None:
    """Teach a student the teacher's embeddings, hidden states and attention scores (TinyBERT).

    The question answering head learns nothing here: follow with `distil`. Teacher and student need the same tokenizer.

    \b
    Example:
      haystack-distill distil-intermediate \\
          --teacher deepset/roberta-base-squad2 --student cut \\
          --data train-augmented.json --output-dir shown
    """
    loss = {option.name: given[option.name] for option in LAYERS_LOSS}
    _teach(ctx, given, lambda trainer, *rest: trainer.distil_intermediate_layers_from(*rest, **loss))


@app.command()
@with_options([TEACHER, STUDENT, DATA, OUTPUT_DIR, DEV_DATA], ANSWERS_LOSS, TRAINING)
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
    loss = {option.name: given[option.name] for option in ANSWERS_LOSS}
    _teach(ctx, given, lambda trainer, *rest: trainer.distil_prediction_layer_from(*rest, **loss))


@app.command()
@with_options([TEACHER, OUTPUT_DIR], MAKING, [CONFIG, JSON])
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
    changed = {size.name: given[size.name] for size in SIZES if given[size.name] is not None}
    changed |= named_values(given["shape"] or [])
    if changed and (layers is not None or which is not None):
        raise DistilError(
            "--layers and --which cut layers from the teacher, the other sizes make a fresh student: give the one "
            "or the other (a fresh student's depth is --num-hidden-layers)"
        )
    if seed is not None and not changed:
        raise DistilError("--seed is for the random weights of a fresh student; one cut from a teacher has none")
    refuse_to_overwrite(output_dir, teacher, given["overwrite"])
    with logs_on_stderr():
        from haystack_distill import students
        from haystack_distill.data.window_settings import WindowSettings
        from haystack_distill.training.run_directory import versions
        from haystack_distill.utils.atomic import write_json
        from haystack_distill.utils.model_fingerprint import model_fingerprint

        # The smallest windows fit any teacher; none are cut.
        source = load_reader(
            teacher, window_settings=WindowSettings(max_seq_len=16, doc_stride=1, max_query_length=1), device="cpu"
        )
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
            "teacher": model_fingerprint(source.model),
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
    tell(given["json"], told, f"Student in {output_dir}")


_PREDICTIONS = option(
    "predictions", Path | None, None, "Write the answers here as {id: text}, SQuAD's own format.", metavar="FILE"
)


@app.command()
@with_options([MODEL, TEST_DATA, _PREDICTIONS], RUNNING, INFERENCE, [BAD_EXAMPLES, CACHE, CONFIG, JSON])
def evaluate(model: str, data: list[str], predictions: Path | None, **given: Any) -> None:
    """Measure a reader: SQuAD exact match and F1, in per cent.

    "No answer" is allowed where the data holds unanswerable questions (SQuAD 2.0).

    \b
    Example:
      haystack-distill evaluate --model finished --data dev.json \\
          --predictions predictions.json
    """
    if predictions is not None:
        require_writable(predictions, directory=False)
    with logs_on_stderr():
        began = time.monotonic()
        examples = measured_examples(data, given)
        reader = load_reader(model, **reader_settings(given))
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
    tell(given["json"], told, f"{model} on {', '.join(data)}")


@app.command()
@with_options([MODEL], ASKING, RUNNING, INFERENCE, [CONFIG, JSON])
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
    text = context if context is not None else text_of(str(context_file))
    question = replace_lone_surrogates(question)  # what is no text cannot be shown either
    with logs_on_stderr():
        reader = load_reader(model, **reader_settings(given))
        answers = reader.answer(question, text, given["top_k"], allow_no_answer=given["allow_no_answer"])
    if given["json"]:
        found = [asdict(answer) for answer in answers]
        tell(True, {"command": "ask", "model": model, "question": question, "answers": found})
        return
    table = Table("Answer", "Score", "From", "To", title=escape(question))
    for answer in answers:
        place = ("", "") if answer.no_answer else (str(answer.start), str(answer.end))
        table.add_row("[dim]no answer[/]" if answer.no_answer else escape(answer.text), f"{answer.score:.3f}", *place)
    Console().print(table)


@app.command()
@with_options([JSON])
def info(
    directory: Annotated[
        Path, typer.Argument(parser=path_in_home, metavar="DIRECTORY", help="A reader: a Hugging Face model directory.")
    ],
    **given: Any,
) -> None:
    """Show what a reader directory holds: architecture, parameters, size on disk, tokenizer, how it was made.

    \b
    Example:
      haystack-distill info finished
    """
    told = describe(directory)
    if not given["json"] and told["run"]:
        told["run"] = {name: value for name, value in told["run"].items() if name != "history"}
    tell(given["json"], {"command": "info"} | told, str(directory))


_DEMO = [
    option("haystack", int, 1, "Whose pipeline answers at the end: 1 (farm-haystack) or 3 (haystack-ai)."),
    option("seed", int, 42, "Of the training runs."),
    option(
        "output_dir",
        Path | None,
        None,
        "Where the distilled reader goes. Default: demo-reader.",
        metavar="DIRECTORY",
    ),
]


@app.command()
@with_options(_DEMO, [JSON])
def demo(haystack: int, seed: int, output_dir: Path | None, json: bool) -> None:
    """See it work: distil the embedded teacher on the sample data that comes with this package.

    \b
    Example:
      haystack-distill demo
    """
    if haystack not in (1, 3):
        raise DistilError(f"--haystack is 1 (farm-haystack) or 3 (haystack-ai), not {haystack}")
    with logs_on_stderr() if json else contextlib.nullcontext():
        from haystack_distill.cli.demo import run_demo

        result = run_demo(haystack=haystack, seed=seed, output_dir=output_dir, json=json)
    if json:
        tell(True, result)


# --- what commands share ---------------------------------------------------------------------------------------------


def _teach(ctx: typer.Context, given: dict[str, Any], run: Callable[..., "RunResult"]) -> None:
    """One run of a ReaderTrainer: `run` is called with trainer, teacher (or None), examples and dev examples."""
    settings = TrainingSettings(**{name: given[name] for name in TrainingSettings.names()})
    output_dir: Path = given["output_dir"]
    if not given["dev_data"]:
        _require_dev_data(ctx)
    refuse_to_overwrite(output_dir, given.get("teacher"), overwrite=True)
    say = ("add --resume", "add --overwrite")
    check_directory(output_dir, resume=settings.resume, overwrite=settings.overwrite, say=say)  # before any loading
    with logs_on_stderr():
        from haystack_distill.training.reader_trainer import ReaderTrainer

        examples = examples_of(given["data"], "train", given)
        dev_examples = measured_examples(given["dev_data"], given) if given["dev_data"] else None
        reading = reader_settings(given)
        learner = load_reader(given["student"] if "student" in given else given["model"], **reading)
        teacher = None
        if "teacher" in given:
            teacher = load_teacher(given["teacher"], reading, same_windows=ctx.command.name == "distil-intermediate")
        trainer = ReaderTrainer(learner, output_dir, settings, cache_dir=given["cache_dir"])
        with says_how_to_resume(output_dir):
            result = run(trainer, teacher, examples, dev_examples)
    told = {
        "command": ctx.command.name,
        "output_dir": output_dir,
        "parameters": learner.n_parameters,
        "steps": result.steps,
        "seconds": result.seconds,
        "metrics": result.metrics,
    }
    tell(given["json"], told, f"Reader in {output_dir}")


def _require_dev_data(ctx: typer.Context) -> None:
    """Options that only measuring uses would otherwise be taken and do nothing."""
    for name in ("evaluate_every", "max_answer_length", "no_answer_threshold"):
        source = ctx.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT" and ctx.params[name] is not None:
            raise DistilError(
                f"--{name.replace('_', '-')} is about measuring the student: give --dev-data too, or leave it out"
            )
