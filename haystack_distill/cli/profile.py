"""The command `profile`: where the time of a reader, or of its training, goes."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from haystack_distill.cli.inputs import load_reader, load_teacher, reader_settings
from haystack_distill.cli.methods import (
    ADAPTATION,
    ADAPTATION_OPTIONS,
    METHOD,
    METHOD_OPTIONS,
    adaptation_from,
    chosen_methods,
    method_from,
    needs_teacher,
)
from haystack_distill.cli.options import CONFIG, option, option_from, refuse_without_effect, with_options
from haystack_distill.cli.output import logs_on_stderr, print_result
from haystack_distill.cli.shared import BAD_EXAMPLES, JSON, MODEL, READER_METAVAR, RUNNING, SPEED, TIMED
from haystack_distill.utils.options import read_keywords

if TYPE_CHECKING:
    from haystack_distill.evaluation.profile import Profile
    from haystack_distill.models.reader import Reader

_SERVING = {source.name: source for source in read_keywords("haystack_distill.evaluation.profile", "profile_reader")}
_TRAINING = {source.name: source for source in read_keywords("haystack_distill.training.profile", "profile_training")}
_PROFILE = [
    option(
        "data",
        list[str] | None,
        None,
        "Questions: SQuAD-format JSON or a table, or a data set on the hub. Default: the sample of this package.",
        metavar="FILE|NAME",
    ),
    option("questions", int | None, None, "How many of them, spread evenly. Default: 100; 200 to train on."),
    option_from(_SERVING["passages"]),
    option(
        "training",
        bool,
        False,
        "Measure a training step of the model in place of its answers.",
        "Training",
        flags="--training",
    ),
    option(
        "teacher",
        str | None,
        None,
        "The reader that it learns from, for a method that needs one.",
        "Training",
        metavar=READER_METAVAR,
    ),
    METHOD,
    ADAPTATION,
    option_from(_TRAINING["steps"], "Training"),
]
_FOR_SERVING = ("backend", "passages", "speed", "max_answer_length")
_FOR_TRAINING = (
    *("teacher", "method", "adaptation", "steps"),
    *(parameter.name for parameter in (*METHOD_OPTIONS, *ADAPTATION_OPTIONS)),
)


@with_options(
    [MODEL], _PROFILE, METHOD_OPTIONS, ADAPTATION_OPTIONS, RUNNING, TIMED, [SPEED, BAD_EXAMPLES, CONFIG, JSON]
)
def profile(ctx: typer.Context, model: str, data: list[str] | None, **given: Any) -> None:
    """Measure where the time goes: in a reader's answers, or in a step of its training.

    Answers are asked for one question at a time, as a pipeline does. A training step has --batch-size windows; the
    model on disk is not changed.

    \b
    Examples:
      haystack-distill profile --model finished --data dev.json --passages 10
      haystack-distill profile --model cut --data train.json --training \\
          --teacher deepset/roberta-base-squad2 --method intermediate_layers
    """
    training = given["training"]
    if training:
        refuse_without_effect(ctx, _FOR_SERVING, "with --training")
        if not any(needs_teacher(method.name) for method in chosen_methods(ctx)):
            refuse_without_effect(ctx, ["teacher"], "on this method")
    else:
        refuse_without_effect(ctx, _FOR_TRAINING, "on answers", "add --training")
    passages: int = given["passages"]
    options = {"on_bad_example": given["on_bad_example"]}
    if given["questions"] is not None:
        options["questions"] = given["questions"]
    with logs_on_stderr():
        from haystack_distill.data.sample import sample_path

        source: Any = str(sample_path("train" if training else "dev"))
        if data:
            source = data[0] if len(data) == 1 else data
        reader = load_reader(model, **reader_settings(given, passages))
        if training:
            found = _of_training(ctx, reader, source, given, options)
        else:
            from haystack_distill.evaluation.profile import profile_reader

            found = profile_reader(reader, source, passages=passages, **options)
    if given["json"]:
        backend = {"backend": reader.backend, "seconds": found.seconds}
        print_result(True, {"command": "profile", "model": model} | backend | asdict(found))
        return
    _print(found, model, reader.backend)


def _of_training(
    ctx: typer.Context, student: "Reader", data: Any, given: dict[str, Any], options: dict[str, Any]
) -> "Profile":
    from haystack_distill.training.profile import profile_training
    from haystack_distill.training.settings import TrainingSettings

    settings = reader_settings(given)
    for name in ("backend", "num_threads", "speed"):  # of answers alone
        settings.pop(name)
    return profile_training(
        student,
        None if given["teacher"] is None else load_teacher(given["teacher"], settings),
        data,
        method_from(ctx),
        TrainingSettings(batch_size=given["batch_size"], precision=given["precision"]),
        steps=given["steps"],
        adaptation=adaptation_from(ctx),
        **options,
    )


def _print(found: "Profile", model: str, backend: str) -> None:
    """The parts with their times and shares."""
    name = found.unit
    table = Table("part", "once, s", f"ms per {name}", "share")
    for part in dict.fromkeys((*found.once, *found.each)):
        once = f"{found.once[part]:.2f}" if part in found.once else ""
        own = found.each.get(part)
        each = () if own is None else (f"{1000 * own:.2f}", f"{own / found.seconds:.1%}")
        table.add_row(part, once, *each)
    table.add_row("together", "", f"{1000 * found.seconds:.2f}", "", style="bold")
    console = Console()
    console.print(
        escape(f"{model}, {backend}, {found.device}; mean of {found.n} {name}s of {found.windows:.1f} windows")
    )
    console.print(table)
