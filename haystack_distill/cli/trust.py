"""The commands `calibrate` and `agree`: how far a reader can be trusted before it goes live."""

from pathlib import Path
from typing import Any

import typer

from haystack_distill.cli.inputs import (
    load_reader,
    load_teacher,
    measured_examples,
    reader_settings,
    refuse_to_overwrite,
)
from haystack_distill.cli.options import (
    CONFIG,
    REQUIRED,
    one_of,
    option,
    option_from,
    refuse_without_effect,
    with_options,
)
from haystack_distill.cli.output import logs_on_stderr, print_result
from haystack_distill.cli.shared import (
    BAD_EXAMPLES,
    CACHE,
    INFERENCE,
    JSON,
    MODEL,
    OVERWRITE,
    READER_METAVAR,
    RUNNING,
    SPEED,
)
from haystack_distill.errors import DistilError
from haystack_distill.utils.checks import check_argument, is_number
from haystack_distill.utils.console import print_message
from haystack_distill.utils.files import require_writable
from haystack_distill.utils.model_files import TRAINED_RECORD
from haystack_distill.utils.options import read_keywords

_CALIBRATING = {source.name: source for source in read_keywords("haystack_distill.evaluation.calibration", "calibrate")}
_CALIBRATE = [
    option(
        "dev_data",
        list[str],
        REQUIRED,
        "Labelled questions on several articles that the reader was not trained on: SQuAD-format JSON or a table (CSV, "
        "JSON lines, Parquet), or a data set on the hub, whose validation split is taken. Can be repeated.",
        metavar="FILE|NAME",
    ),
    option("output_dir", Path | None, None, "The directory for the calibrated reader.", metavar="DIRECTORY"),
    option(
        "in_place",
        bool,
        False,
        "Replace the reader in its own directory. What was exported from it is removed.",
        flags="--in-place",
    ),
    *(option_from(_CALIBRATING[name]) for name in ("held_out", "seed", "threshold_for")),
    OVERWRITE,
]


@with_options([MODEL], _CALIBRATE, INFERENCE, [BAD_EXAMPLES, CACHE, CONFIG, JSON])
def calibrate(model: str, dev_data: list[str], output_dir: Path | None, in_place: bool, **given: Any) -> None:
    """Make a reader's score the chance that its answer is right, and store its best no-answer threshold.

    One temperature is fitted on some articles of dev data, judged on the others and folded into the weights, so that
    every framework that loads the reader honours it. The answers stay. calibration.html has the reliability diagram.

    \b
    Examples:
      haystack-distill calibrate --model finished --dev-data dev.json \\
          --output-dir calibrated
      haystack-distill calibrate --model finished --dev-data dev-v2.0.json \\
          --threshold-for exact --in-place
    """
    target = _target(model, output_dir, in_place, given["overwrite"])
    with logs_on_stderr():
        from haystack_distill.evaluation import calibration
        from haystack_distill.reporting.calibration import calibration_section, summary_of, write_calibration
        from haystack_distill.reporting.card_sections import add_section, read_card, without_results, without_section
        from haystack_distill.reporting.report import short_names

        examples = measured_examples(dev_data, given)
        reader = load_reader(model, **reader_settings(given))
        result = calibration.calibrate(
            reader,
            examples,
            held_out=given["held_out"],
            seed=given["seed"],
            threshold_for=given["threshold_for"],
            cache_dir=given["cache_dir"],
        )
        card = read_card(Path(model))
        result.reader.save(target, only_trained=(Path(model) / TRAINED_RECORD).exists())
        if card is not None:  # what was exported had the weights from before
            card = without_section(card, "int8")
            if result.threshold_for is not None:  # other answers are given than when its figures were measured
                card = without_results(card)
            add_section(target, card, "Calibration", calibration_section(summary_of(result)))
        (name,) = short_names([Path(model)])
        page = write_calibration(target, result, model=name, data=[Path(one).name for one in dev_data])
        summary = {"command": "calibrate", "model": model, "output_dir": target, "page": page} | summary_of(result)
    print_result(given["json"], summary, f"{model} calibrated, in {target}")


_AGREEMENT = read_keywords("haystack_distill.evaluation.agreement", "measure_agreement")
_AGREE = [
    option("against", str, REQUIRED, "The reader to judge it by: its teacher.", metavar=READER_METAVAR),
    option(
        "data",
        list[str],
        REQUIRED,
        "Questions with contexts; labels are not needed. SQuAD-format JSON or a table (CSV, JSON lines, Parquet), or a "
        "data set on the hub, whose validation split is taken. Can be repeated.",
        metavar="FILE|NAME",
    ),
    option(
        "at_least",
        float | None,
        None,
        "The gate: exit code 1 where the agreement is below this, 0 to 1. See --by for what is compared.",
    ),
    option(
        "by",
        str,
        "f1",
        "What --at-least is compared with: mean F1 between the two answers, or the share of the same answers (exact).",
        **one_of("f1", "exact"),
    ),
    *(option_from(source) for source in _AGREEMENT if source.name == "allow_no_answer"),
    option("output_dir", Path | None, None, "Where agreement.html and agreement.json go.", metavar="DIRECTORY"),
]


@with_options([MODEL], _AGREE, RUNNING, INFERENCE, [SPEED, BAD_EXAMPLES, CACHE, CONFIG, JSON])
def agree(ctx: typer.Context, model: str, against: str, data: list[str], output_dir: Path | None, **given: Any) -> None:
    """Compare a student's answers with its teacher's on questions without labels: the gate before a release.

    --backend, --num-threads and --speed are those of --model. Exit code 0 at or above --at-least (or without it), 1
    below.

    \b
    Example:
      haystack-distill agree --model finished --against deepset/roberta-base-squad2 \\
          --data questions.jsonl --at-least 0.9 --output-dir agreement
    """
    least, by = given["at_least"], given["by"]
    if least is None:
        refuse_without_effect(ctx, ["by"], "without a gate", "add --at-least")
    check_argument("--at-least", least, least is None or (is_number(least) and 0 <= least <= 1), "a number from 0 to 1")
    if not given["allow_no_answer"]:
        refuse_without_effect(ctx, ["no_answer_threshold"], "with --no-allow-no-answer")
    if output_dir is not None:
        require_writable(output_dir)
    with logs_on_stderr():
        from haystack_distill.data.squad.load import load_examples
        from haystack_distill.evaluation.agreement import measure_agreement
        from haystack_distill.reporting.agreement import summary_of, write_agreement
        from haystack_distill.reporting.report import short_names

        examples = load_examples(
            data[0] if len(data) == 1 else data,
            split="validation",
            only="questions",
            on_bad_example=given["on_bad_example"],
            cache_dir=given["cache_dir"],
        )
        settings = reader_settings(given)
        student = load_reader(model, **settings)
        for name in ("backend", "num_threads", "speed"):
            settings.pop(name, None)
        found = measure_agreement(
            student,
            load_teacher(against, settings),
            examples,
            allow_no_answer=given["allow_no_answer"],
            cache_dir=given["cache_dir"],
        )
        page = None
        if output_dir is not None:
            student_name, teacher_name = short_names([Path(model), Path(against)])
            page = write_agreement(output_dir, found, examples, student=student_name, teacher=teacher_name)
    reached = getattr(found, by)
    passed = None if least is None else reached >= least
    result = {"command": "agree", "model": model, "against": against, "page": page} | summary_of(found)
    print_result(given["json"], result | {"passed": passed}, f"{model} against {against}")
    if passed is False:
        print_message(f"[yellow]The agreement in {by}, {reached:.4f}, is below --at-least {least:g}.[/]")
        raise typer.Exit(1)


def _target(model: str, output_dir: Path | None, in_place: bool, overwrite: bool) -> Path:
    """Where a calibrated reader goes, checked.

    Raises:
        DistilError: It is not given or given twice, cannot be written to, or holds other things.
    """
    if in_place:
        if output_dir is not None:
            raise DistilError("--in-place and --output-dir are two places for one reader; give one of them")
        if overwrite:
            raise DistilError("--overwrite has no effect with --in-place, which replaces the reader; leave it out")
        if not Path(model).is_dir():
            raise DistilError(f"{model} is not a directory to write to; give --output-dir in place of --in-place")
        require_writable(Path(model))
        return Path(model)
    if output_dir is None:
        raise DistilError("there is no place for the calibrated reader; give --output-dir, or --in-place")
    if Path(model).exists() and output_dir.exists() and output_dir.samefile(model):
        raise DistilError(f"{output_dir} is the reader itself; add --in-place in place of --output-dir to replace it")
    refuse_to_overwrite(output_dir, [], overwrite)
    return output_dir
