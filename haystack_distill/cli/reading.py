"""The commands `evaluate`, `ask` and `info`: a reader measured, asked and looked at."""

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from haystack_distill.cli.inputs import load_reader, measured_examples, reader_settings, text_of
from haystack_distill.cli.options import (
    CONFIG,
    REQUIRED,
    is_given,
    option,
    path_in_home,
    refuse_without_effect,
    with_options,
)
from haystack_distill.cli.output import logs_on_stderr, print_result
from haystack_distill.cli.shared import BAD_EXAMPLES, CACHE, INFERENCE, JSON, MODEL, RUNNING, SPEED, TEST_DATA
from haystack_distill.data.squad.validation import replace_lone_surrogates
from haystack_distill.errors import DistilError
from haystack_distill.reporting.inspection import describe
from haystack_distill.utils.files import require_writable

logger = logging.getLogger(__name__)

_PREDICTIONS = option(
    "predictions", Path | None, None, "Write the answers here as {id: text}, SQuAD's own format.", metavar="FILE"
)
_ASKING = [
    option("question", str, REQUIRED, "The question."),
    option("context", str | None, None, "The text to look for the answer in.", metavar="TEXT"),
    option("context_file", str | None, None, "A UTF-8 file with that text; - reads it from stdin.", metavar="FILE"),
    option("top_k", int, 1, "How many answers at most."),
    option("allow_no_answer", bool, True, "Whether 'no answer' may be among them."),
]


@with_options([MODEL, TEST_DATA, _PREDICTIONS], RUNNING, INFERENCE, [SPEED, BAD_EXAMPLES, CACHE, CONFIG, JSON])
def evaluate(ctx: typer.Context, model: str, data: list[str], predictions: Path | None, **given: Any) -> None:
    """Measure a reader: SQuAD exact match and F1, in per cent.

    "No answer" is allowed where the data holds unanswerable questions (SQuAD 2.0).

    \b
    Example:
      haystack-distill evaluate --model finished --data dev.json \\
          --predictions predictions.json
    """
    if predictions is not None:
        if predictions.exists() and any(Path(one).exists() and predictions.samefile(one) for one in data):
            raise DistilError(f"--predictions {predictions} is the data, which it would replace; name another file")
        require_writable(predictions, directory=False)
    with logs_on_stderr():
        began = time.monotonic()
        examples = measured_examples(data, given)
        if is_given(ctx, "no_answer_threshold") and not any(examples["is_impossible"]):
            logger.warning("--no-answer-threshold has no effect: all questions of the data have answers")
        reader = load_reader(model, **reader_settings(given, passages=1000))
        windows = reader.cut(examples, cache_dir=given["cache_dir"])
        layers: list[int] = []  # that ran for each window, of a reader that leaves early
        metrics = reader.evaluate_windows(
            windows,
            predictions_path=predictions,
            observe=lambda batch, *_: layers.extend(batch["layers"].tolist() if reader.speed else ()),
        )
    report = {
        "command": "evaluate",
        "model": model,
        "data": data,
        "parameters": reader.n_parameters,
        "predictions": predictions,
        "seconds": time.monotonic() - began,
        "metrics": metrics,
    }
    if given["backend"] == "auto":
        report["backend"] = reader.backend
    if layers:
        report["layers_per_window"] = sum(layers) / len(layers)
    print_result(given["json"], report, f"{model} on {', '.join(data)}")


@with_options([MODEL], _ASKING, RUNNING, INFERENCE, [SPEED, CONFIG, JSON])
def ask(
    ctx: typer.Context, model: str, question: str, context: str | None, context_file: str | None, **given: Any
) -> None:
    """Ask a reader a question.

    \b
    Examples:
      haystack-distill ask --model finished --question "Who wrote it?" \\
          --context "Ada Lovelace wrote it in 1843."
      haystack-distill ask --model embedded --question "Who wrote it?" \\
          --context-file book.txt --top-k 3 --json
    """
    if (context is None) == (context_file is None):
        raise DistilError("the text to look in is given once; use either --context TEXT or --context-file FILE")
    if not given["allow_no_answer"]:
        refuse_without_effect(ctx, ["no_answer_threshold"], "with --no-allow-no-answer")
    text = context if context is not None else text_of(str(context_file))
    question = replace_lone_surrogates(question)  # what is no text cannot be printed either
    with logs_on_stderr():
        reader = load_reader(model, **reader_settings(given, passages=1))
        answers = reader.answer(question, text, given["top_k"], allow_no_answer=given["allow_no_answer"])
    if given["json"]:
        found = [asdict(answer) for answer in answers]
        print_result(True, {"command": "ask", "model": model, "question": question, "answers": found})
        return
    table = Table("Answer", "Score", "From", "To", title=escape(question))
    for answer in answers:
        place = ("", "") if answer.no_answer else (str(answer.start), str(answer.end))
        table.add_row("[dim]no answer[/]" if answer.no_answer else escape(answer.text), f"{answer.score:.3f}", *place)
    Console().print(table)


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
    report = describe(directory)
    if not given["json"] and report["run"]:
        report["run"] = {name: value for name, value in report["run"].items() if name != "history"}
    print_result(given["json"], {"command": "info"} | report, str(directory))
