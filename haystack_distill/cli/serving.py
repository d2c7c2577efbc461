"""The commands `export`, `prune` and `suggest`, which prepare a reader for serving and choose its size."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from haystack_distill.cli.inputs import (
    corpus_texts,
    examples_of,
    is_squad,
    load_reader,
    measured_examples,
    reader_settings,
    refuse_to_overwrite,
)
from haystack_distill.cli.options import (
    CONFIG,
    REQUIRED,
    option,
    option_from,
    refuse_without_effect,
    with_options,
)
from haystack_distill.cli.output import figure, logs_on_stderr, print_result
from haystack_distill.cli.shared import BAD_EXAMPLES, CACHE, INFERENCE, JSON, MODEL, OVERWRITE, RUNNING, TEACHER
from haystack_distill.errors import DistilError
from haystack_distill.utils.files import require_writable
from haystack_distill.utils.options import read_dataclass, read_keywords

_MEASURED = option(
    "data", list[str] | None, None, "SQuAD files to evaluate on, or a dataset on the hub.", metavar="FILE|NAME"
)

_WORDS = {"int8": Literal["dynamic", "static", "auto", "none"], "runtime": Literal["onnx", "openvino", "all"]}
_MEASURING = ("max_answer_length", "no_answer_threshold")
_SETTINGS = {
    source.name: option_from(source, "Export", **{"type": _WORDS[source.name]} if source.name in _WORDS else {})
    for source in read_dataclass("haystack_distill.export.exporting", "ExportSettings")[1]
}

_EXPORT = [
    option(
        "output_dir",
        Path | None,
        None,
        "The directory for the reader and its exported models. Default: the directory of the model.",
        metavar="DIRECTORY",
    ),
    *_SETTINGS.values(),
    option(
        "calibration_data",
        list[str] | None,
        None,
        "For --int8 static and auto: training examples, never evaluation data.",
        "Export",
        metavar="FILE|NAME",
    ),
]


@with_options([MODEL, _MEASURED], _EXPORT, INFERENCE, [BAD_EXAMPLES, CACHE, CONFIG, JSON])
def export(ctx: typer.Context, model: str, data: list[str] | None, output_dir: Path | None, **given: Any) -> None:
    """Export a reader for ONNX Runtime and OpenVINO, in fp32 and int8, which CPUs run faster (--backend).

    The exported models are compared with the original and, with --data, evaluated; export.json in the directory's
    folder onnx or openvino has the results.

    \b
    Examples:
      haystack-distill export --model finished --data dev.json
      haystack-distill export --model finished --runtime openvino
      haystack-distill export --model finished --runtime all --int8 auto \\
          --data dev.json --calibration-data train.json
      haystack-distill ask --model finished --backend openvino \\
          --question "Who wrote it?" --context "Ada Lovelace wrote it in 1843."
    """
    if not data:
        refuse_without_effect(ctx, _MEASURING, "without data to measure on", "add --data")
        if not given["calibration_data"]:
            refuse_without_effect(ctx, ["on_bad_example"], "without data", "add --data")
    if given["int8"] != "auto":
        refuse_without_effect(ctx, ["max_f1_drop"], f"with --int8 {given['int8']}", "use --int8 auto")
    if given["int8"] == "none":
        refuse_without_effect(ctx, ["per_channel", "reduce_range"], "with --int8 none", "leave that out")
    if given["runtime"] == "openvino":
        refuse_without_effect(ctx, ["per_channel", "reduce_range"], "on OpenVINO's int8", "add --runtime onnx or all")
    if output_dir is None:
        if not Path(model).is_dir():
            raise DistilError(f"{model} is not a directory to write to; give --output-dir")
        output_dir = Path(model)
    require_writable(output_dir)
    with logs_on_stderr():
        from haystack_distill.export.exporting import ExportSettings, export_reader
        from haystack_distill.reporting.card_sections import add_section, read_card
        from haystack_distill.reporting.int8 import COLUMNS, int8_rows, int8_section

        settings = ExportSettings(**{name: given[name] for name in _SETTINGS})
        calibration = None
        if given["calibration_data"]:
            calibration = examples_of(given["calibration_data"], "train", given)
        measured = measured_examples(data, given) if data else None
        reader = load_reader(model, **reader_settings(given))
        card = read_card(Path(model))
        record = export_reader(reader, output_dir, settings, calibration=calibration, data=measured)
        if card is not None and "tried" in record:
            add_section(output_dir, card, "int8", int8_section(record))
    if given["json"]:
        result = {"command": "export", "output_dir": output_dir, "backends": record["backends"]}
        print_result(True, result | {name: record[name] for name in ("tried",) if name in record})
        return
    if "tried" in record:
        title = escape(f"int8, F1 at most {settings.max_f1_drop:g} below fp32's")
        tried = Table(*COLUMNS, title=title)
        for row in int8_rows(record):
            tried.add_row(*row)
        Console().print(tried)
    table = Table("backend", "MB", "same answer", "EM", "F1", title=escape(f"{model} exported to {output_dir}"))
    for backend, found in record["backends"].items():
        size = f"{found['megabytes']:.1f}" if "megabytes" in found else ""
        same = f"{found['same_answer']:.1%}" if "same_answer" in found else ""
        metrics = (f"{found['metrics'][name]:.2f}" if "metrics" in found else "" for name in ("exact", "f1"))
        table.add_row(backend, size, same, *metrics)
    Console().print(table)


_PRUNE = [
    option(
        "corpus",
        list[str],
        REQUIRED,
        "Texts of the domain: SQuAD files (their questions and contexts), or text, JSON lines or Parquet. Can be "
        "repeated.",
        metavar="FILE|DIRECTORY",
    ),
    option("text_column", str, "text", "The column with the text in JSON lines or Parquet."),
    *map(option_from, read_keywords("haystack_distill.students.vocabulary", "prune_vocabulary")),
    option("output_dir", Path, REQUIRED, "The directory for the smaller reader.", metavar="DIRECTORY"),
    OVERWRITE,
]


@with_options([MODEL, _MEASURED], _PRUNE, INFERENCE, [BAD_EXAMPLES, CACHE, CONFIG, JSON])
def prune(ctx: typer.Context, model: str, data: list[str] | None, output_dir: Path, **given: Any) -> None:
    """Drop the tokens that a domain never uses from a reader's vocabulary, which is half of a small model.

    With --data, the reader is evaluated before and after.

    \b
    Example:
      haystack-distill prune --model finished --corpus train.json --corpus documents/ \\
          --data dev.json --output-dir pruned
    """
    if not data:
        refuse_without_effect(ctx, (*_MEASURING, "batch_size"), "without data to measure on", "add --data")
    if not data and not any(map(is_squad, given["corpus"])):
        refuse_without_effect(ctx, ["on_bad_example"], "without questions", "add --data")
    if all(map(is_squad, given["corpus"])):
        refuse_without_effect(ctx, ["text_column"], "on SQuAD files", "add a --corpus that has columns")
    refuse_to_overwrite(output_dir, [model], given["overwrite"])
    with logs_on_stderr():
        from haystack_distill.students.vocabulary import prune_vocabulary

        examples = measured_examples(data, given) if data else None
        reader = load_reader(model, **reader_settings(given))
        texts = (text for source in given["corpus"] for text in corpus_texts(source, given))
        pruned = prune_vocabulary(reader, texts, keep=given["keep"])
        result: dict[str, Any] = {
            "command": "prune",
            "output_dir": output_dir,
            "tokens": len(pruned.tokenizer),
            "tokens_before": len(reader.tokenizer),
            "parameters": pruned.n_parameters,
            "parameters_before": reader.n_parameters,
        }
        if examples is not None:
            result["metrics"], result["metrics_before"] = pruned.evaluate(examples), reader.evaluate(examples)
        pruned.save(output_dir)
    print_result(given["json"], result, f"Reader in {output_dir}")


_SUGGEST = [
    option(
        "budget",
        str,
        REQUIRED,
        "The budget of a student: '20 ms/question' (a single question and context) or '10 MB' (its model file).",
        metavar="TEXT",
    ),
    option(
        "data",
        list[str] | None,
        None,
        "SQuAD files with the questions for timing. Default: the sample of this package.",
        metavar="FILE|NAME",
    ),
    option("questions", int, 30, "The number of questions per candidate."),
]


@with_options([TEACHER], _SUGGEST, RUNNING, INFERENCE, [BAD_EXAMPLES, CACHE, CONFIG, JSON])
def suggest(teacher: str, budget: str, backend: str, num_threads: int | None, **given: Any) -> None:
    """Measure students of several sizes on this machine, and suggest the largest one within a budget.

    \b
    Example:
      haystack-distill suggest --teacher deepset/roberta-base-squad2 \\
          --budget "20 ms/question" --backend onnx-int8
    """
    if given["questions"] < 1:
        raise DistilError(f"--questions must be at least 1, not {given['questions']}")
    with logs_on_stderr():
        from haystack_distill.data.sample import sample_path
        from haystack_distill.evaluation.measurements import question_context_pairs
        from haystack_distill.export.budget import Budget, suggest_students

        wanted = Budget.parse(budget)
        data = given["data"] or [str(sample_path("dev"))]
        pairs = question_context_pairs(examples_of(data, "validation", given), given["questions"])
        found = suggest_students(
            load_reader(teacher, **reader_settings(given)),
            wanted,
            pairs,
            backend=backend,  # of the students; the teacher itself is not run
            num_threads=num_threads,
        )
    best = next((one for one in found if one.fits), None)
    if given["json"]:
        result = {"candidates": [asdict(one) for one in found], "suggested": asdict(best) if best else None}
        print_result(True, {"command": "suggest", "teacher": teacher, "budget": budget} | result)
    else:
        table = Table(
            "layers",
            "width",
            "feed-forward",
            "parameters",
            "MB",
            "ms/question",
            "",
            title=escape(f"{teacher}: {budget}"),
        )
        for one in found:
            mark = "[bold green]this one[/]" if one is best else "fits" if one.fits else ""
            neurons = "" if one.intermediate_size is None else figure(one.intermediate_size)
            figures = [figure(one.layers), figure(one.hidden_size), neurons, figure(one.parameters)]
            table.add_row(*figures, f"{one.megabytes:.1f}", f"{one.milliseconds:.1f}", mark)
        Console().print(table)
    if best is None:
        raise DistilError(f"no student of {teacher} is within {budget}: allow more, or try another --backend")
    if not given["json"]:
        arguments = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in best.making.items())
        print(f"haystack-distill student --teacher {teacher} {arguments} --output-dir student")
