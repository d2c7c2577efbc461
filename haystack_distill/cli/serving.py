"""The commands `export`, `prune` and `suggest`, which prepare a reader for serving and choose its size."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
from haystack_distill.cli.shared import (
    BAD_EXAMPLES,
    BATCHES,
    CACHE,
    INFERENCE,
    JSON,
    MODEL,
    OVERWRITE,
    RUNNING,
    TEACHER,
    TIMED,
)
from haystack_distill.errors import DistilError
from haystack_distill.utils.files import require_writable
from haystack_distill.utils.options import read_dataclass, read_keywords

if TYPE_CHECKING:
    from haystack_distill.export.budget import Budget
    from haystack_distill.models.reader import Reader

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
    OVERWRITE,
]


@with_options([MODEL, _MEASURED], _EXPORT, BATCHES, [BAD_EXAMPLES, CACHE, CONFIG, JSON])
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
        refuse_without_effect(ctx, ["per_channel", "reduce_range"], "with --int8 none", "choose another --int8")
    if given["runtime"] == "openvino":
        refuse_without_effect(ctx, ["per_channel"], "on OpenVINO's int8", "add --runtime onnx or all")
        if given["int8"] == "dynamic":
            refuse_without_effect(ctx, ["reduce_range"], "on OpenVINO's dynamic int8", "use --int8 static")
    if output_dir is None:
        if not Path(model).is_dir():
            raise DistilError(f"{model} is not a directory to write to; give --output-dir")
        output_dir = Path(model)
    require_writable(output_dir)
    with logs_on_stderr():
        from haystack_distill.export.exporting import ExportSettings, export_reader, holds_reader
        from haystack_distill.reporting.card_sections import add_section, read_card, without_section, write_card
        from haystack_distill.reporting.int8 import COLUMNS, exported_int8, int8_rows, int8_section

        settings = ExportSettings(**{name: given[name] for name in _SETTINGS})
        calibration = None
        if given["calibration_data"]:
            calibration = examples_of(given["calibration_data"], "train", given)
        measured = measured_examples(data, given) if data else None
        reader = load_reader(model, **reader_settings(given))
        in_place = Path(model).is_dir() and output_dir.exists() and output_dir.samefile(model)
        occupied = not in_place and (output_dir / "config.json").exists()
        if occupied and not given["overwrite"] and not holds_reader(output_dir, reader):
            raise DistilError(
                f"{output_dir} holds another reader, which would be replaced by {model}; choose another --output-dir, "
                "or add --overwrite"
            )
        card = read_card(Path(model))
        record = export_reader(reader, output_dir, settings, calibration=calibration, data=measured)
        kept = exported_int8(output_dir)  # another runtime's too, which an earlier export made of the same reader
        if card is not None and kept:
            add_section(output_dir, card, "int8", int8_section(kept))
        elif card is not None and in_place and (plain := without_section(card, "int8")) != card:
            write_card(output_dir, plain)
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
        refuse_without_effect(ctx, (*_MEASURING, "batch_size", "precision"), "without data to measure on", "add --data")
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
            for name, one in (("metrics", pruned), ("metrics_before", reader)):
                result[name] = one.evaluate_windows(one.cut(examples, cache_dir=given["cache_dir"]))
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
        "SQuAD files with the questions for timing, and for the F1 of speeds. Default: the sample of this package.",
        metavar="FILE|NAME",
    ),
    option("questions", int | None, None, "The number of questions per candidate. Default: 30; 200 for speeds."),
    option(
        "passages",
        int,
        1,
        "Of a reader with early exits: with how many passages each question comes, its own and others of its article.",
    ),
]


@with_options([TEACHER], _SUGGEST, RUNNING, TIMED, [BAD_EXAMPLES, CACHE, CONFIG, JSON])
def suggest(ctx: typer.Context, teacher: str, budget: str, backend: str, num_threads: int | None, **given: Any) -> None:
    """Measure students of several sizes on this machine, and suggest the best one within a budget.

    Of a reader with early exits it measures speeds, and suggests the one with the highest F1 within the budget.

    \b
    Examples:
      haystack-distill suggest --teacher deepset/roberta-base-squad2 \\
          --budget "20 ms/question" --backend onnx-int8
      haystack-distill suggest --teacher fast --budget "100 ms/question" \\
          --data dev.json --passages 10
    """
    for name in ("questions", "passages"):
        if given[name] is not None and given[name] < 1:
            raise DistilError(f"--{name} must be at least 1, not {given[name]}")
    with logs_on_stderr():
        from haystack_distill.data.sample import sample_path
        from haystack_distill.evaluation.measurements import question_context_pairs
        from haystack_distill.export.budget import Budget, best_student, suggest_students
        from haystack_distill.models.early_exit import EarlyExitModel

        wanted = Budget.parse(budget)
        data = given["data"] or [str(sample_path("dev"))]
        reader = load_reader(teacher, **reader_settings(given))
        exits = isinstance(reader.model, EarlyExitModel)
        if exits:
            refuse_without_effect(ctx, ["backend"], "on a reader with early exits, which runs in torch")
        else:
            refuse_without_effect(ctx, ["passages"], "on a reader without early exits")
            if backend.startswith("onnx"):
                refuse_without_effect(ctx, ["precision"], f"with --backend {backend}", "use torch or openvino")
            pairs = question_context_pairs(examples_of(data, "validation", given), given["questions"] or 30)
            # The backend is that of the students; the teacher itself is not run.
            found = suggest_students(reader, wanted, pairs, backend=backend, num_threads=num_threads)
    if exits:
        _suggest_speed(teacher, reader, wanted, budget, num_threads, given | {"data": data})
        return
    best = best_student(found, wanted)
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
        print(f"haystack-distill student --teacher {shlex.quote(teacher)} {arguments} --output-dir student")


def _suggest_speed(
    name: str, reader: "Reader", wanted: "Budget", budget: str, num_threads: int | None, given: dict[str, Any]
) -> None:
    """`suggest` of a reader with early exits."""
    with logs_on_stderr():
        from haystack_distill.export.budget import best_speed, suggest_speed

        examples = measured_examples(given["data"], given)
        if num_threads is not None:
            reader = load_reader(name, **reader_settings(given | {"num_threads": num_threads}))
        sizes = {"questions": given["questions"] or 200, "passages": given["passages"]}
        found = suggest_speed(reader, wanted, examples, **sizes)
    best = best_speed(found)
    if given["json"]:
        result = {"candidates": [asdict(one) for one in found], "suggested": asdict(best) if best else None}
        print_result(True, {"command": "suggest", "teacher": name, "budget": budget} | result)
    else:
        table = Table("speed", "F1", "exact", "layers/window", "ms/question", "", title=escape(f"{name}: {budget}"))
        for one in found:
            mark = "[bold green]this one[/]" if one is best else "fits" if one.fits else ""
            figures = (one.f1, one.exact, one.layers_per_window, one.milliseconds)
            table.add_row(f"{one.speed:g}", *(f"{number:.1f}" for number in figures), mark)
        Console().print(table)
    if best is None:
        raise DistilError(f"no speed of {name} is within {budget}: allow more, or give a smaller reader early exits")
    if not given["json"]:
        print(f"haystack-distill ask --model {shlex.quote(name)} --speed {best.speed:g} --question ... --context ...")
