"""The commands `train` and `distil`: one run of a ReaderTrainer."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import typer

from haystack_distill.cli.inputs import (
    examples_of,
    load_reader,
    load_teacher,
    measured_examples,
    reader_settings,
    refuse_to_overwrite,
)
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
from haystack_distill.cli.options import (
    CONFIG,
    REQUIRED,
    one_of,
    option,
    option_from,
    refuse_without_effect,
    with_options,
)
from haystack_distill.cli.output import logs_on_stderr, print_result, resume_hint
from haystack_distill.cli.shared import BAD_EXAMPLES, CACHE, DATA, JSON, MODEL, READER_METAVAR, READING
from haystack_distill.errors import DistilError
from haystack_distill.models.backends.exported import BACKENDS
from haystack_distill.training.checkpoints import check_directory
from haystack_distill.training.methods import METHODS
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.utils.options import options_of, read_dataclass

if TYPE_CHECKING:
    from haystack_distill.data.transfer import TransferSet
    from haystack_distill.models.reader import Reader
    from haystack_distill.objectives.method import Method
    from haystack_distill.teachers.ensemble import EnsembleTeacher

WeightedName: TypeAlias = tuple[float | None, str]

_TEACHERS = option(
    "teacher",
    list[str] | None,
    None,
    "The reader to learn from, for a method that needs one; give the option again for an ensemble, the "
    "average of several, with weights if they differ: --teacher 0.7*NAME --teacher 0.3*NAME. A directory, a name on "
    "the Hugging Face hub, or 'embedded', the small teacher of this package.",
    metavar=f"[WEIGHT*]{READER_METAVAR}",
)
_TEACHER_AVERAGE = option(
    "teacher_average",
    str,
    "probabilities",
    "What is averaged of several teachers: their probabilities, or their logits where all have the same tokenizer and "
    "windows.",
    **one_of("probabilities", "logits"),
)
_TEACHER_BACKEND = option(
    "teacher_backend",
    str,
    "torch",
    "What runs a teacher whose predictions alone are learnt: torch, or what its directory was exported for, which may "
    "be faster on a processor.",
    **one_of(*BACKENDS),
)
_STUDENT = option("student", str, REQUIRED, "The reader that learns: a directory or a name.", metavar="NAME|DIRECTORY")
_DEV_DATA = option(
    "dev_data",
    list[str] | None,
    None,
    "Examples to measure on, never trained on: like --data, but the validation split of a data set on the hub.",
    metavar="FILE|NAME",
)
_DEV_SPLIT = option(
    "dev_split",
    float | None,
    None,
    "Without --dev-data: the share of the articles of --data to measure on and not to train on, such as 0.1.",
)
_OUTPUT_DIR = option(
    "output_dir", Path, REQUIRED, "Where the reader, its run record and checkpoints go.", metavar="DIRECTORY"
)
_PANELS = {
    **dict.fromkeys(("keep_best", "best_by", "early_stopping_patience", "evaluate_every"), "Measuring and keeping"),
    **dict.fromkeys(("checkpoint_every", "keep_checkpoints", "resume", "overwrite"), "Measuring and keeping"),
    **dict.fromkeys(("log_every", "tensorboard", "progress"), "Logging"),
}
_SETTINGS = [option_from(source, _PANELS.get(source.name, "Learning")) for source in options_of(TrainingSettings)]
# The module of the transfer set imports datasets, so its options are read from the source.
_OF_TRANSFER = {source.name: source for source in read_dataclass("haystack_distill.data.transfer", "TransferSet")[1]}
_TRANSFER = [
    option(
        "transfer_data",
        list[str] | None,
        None,
        "Unlabelled examples to mix into the steps beside --data, which the student learns from its teacher. "
        "SQuAD-format JSON or a table with the columns question and context; with --question-pool, a column context is "
        "enough. Labels are ignored. Give the option again for more files, or name a data set on the hub.",
        "Transfer set",
        metavar="FILE|NAME",
    ),
    option_from(_OF_TRANSFER["proportion"]._replace(name="transfer_proportion", type=float), "Transfer set"),
    option("question_pool", Path | None, None, _OF_TRANSFER["question_pool"].help, "Transfer set", metavar="FILE"),
    option_from(_OF_TRANSFER["questions_per_context"], "Transfer set"),
    option_from(_OF_TRANSFER["same_title"], "Transfer set"),
]
_RUN = [*_SETTINGS, *READING, BAD_EXAMPLES, CACHE, CONFIG, JSON]
_MEASURING = (
    *("evaluate_every", "keep_best", "best_by", "early_stopping_patience"),
    *("max_answer_length", "no_answer_threshold"),
)


@with_options([MODEL, DATA, _OUTPUT_DIR, _DEV_DATA, _DEV_SPLIT, ADAPTATION], ADAPTATION_OPTIONS, _RUN)
def train(ctx: typer.Context, **given: Any) -> None:
    """Train a reader on labels alone.

    \b
    Example:
      haystack-distill train --model google/electra-small-discriminator \\
          --data train.json --dev-data dev.json --n-epochs 3 --output-dir reader
    """
    _run(ctx, given, given["model"], [], lambda: "labels")


@with_options(
    [_TEACHERS, _TEACHER_AVERAGE, _TEACHER_BACKEND],
    [_STUDENT, DATA, _OUTPUT_DIR, _DEV_DATA, _DEV_SPLIT, METHOD, ADAPTATION],
    _TRANSFER,
    METHOD_OPTIONS,
    ADAPTATION_OPTIONS,
    _RUN,
)
def distil(ctx: typer.Context, **given: Any) -> None:
    """Distil a teacher, or several, into a student: its predictions, its layers, or a weighted sum of methods.

    Where the predictions alone are learnt, the teacher runs once over the data and its logits are kept on disk; it may
    have another tokenizer than the student, and fewer positions. Where layers are learnt it runs in every step, on the
    student's windows.

    \b
    Examples:
      haystack-distill distil --teacher deepset/roberta-base-squad2 \\
          --student cut --data train-augmented.json \\
          --method intermediate_layers --output-dir middle
      haystack-distill distil --teacher deepset/roberta-base-squad2 \\
          --student middle --data train.json --dev-data dev.json --keep-best \\
          --temperature 2 --distillation-loss-weight 0.75 --output-dir finished
    """
    names = [method.name for method in chosen_methods(ctx)]  # before torch is imported
    if set(names) == {"labels"}:
        raise DistilError("the method labels needs no teacher; use `haystack-distill train`")
    for name in names:
        if METHODS.constant(name, "needs_corpus"):
            raise DistilError(
                f"the method {name} needs a corpus to train on; use a recipe with a stage that has a `corpus` "
                "(`haystack-distill recipe init`)"
            )
    alone = not any(needs_teacher(name) for name in names)
    if alone and given["teacher"]:
        raise DistilError(
            f"the method {' + '.join(names)} learns without a teacher, so --teacher would have no effect; leave it out"
        )
    if not alone and not given["teacher"]:
        raise DistilError(f"the method {' + '.join(names)} learns from a teacher; give one with --teacher")
    teachers = [_weight_and_teacher(text) for text in given["teacher"] or ()]
    names = [name for _, name in teachers]
    for name in names:
        if names.count(name) > 1:
            raise DistilError(f"--teacher {name} is given twice; an ensemble needs different teachers")
    if not teachers:
        refuse_without_effect(ctx, ["teacher_backend"], "without a teacher")
    if len(teachers) < 2:
        refuse_without_effect(ctx, ["teacher_average"], "with a single teacher", "give several")
        if teachers and teachers[0][0] is not None:
            raise DistilError(
                f"--teacher {given['teacher'][0]}: the weight of a single teacher has no effect; leave it out"
            )
    _run(ctx, given, given["student"], teachers, lambda: method_from(ctx))


def distil_intermediate() -> None:
    """Refuse the command's former name, whatever its options."""
    raise DistilError(
        "there is no command distil-intermediate any more; use `haystack-distill distil --method intermediate_layers`, "
        "which takes its options"
    )


def _run(
    ctx: typer.Context,
    given: dict[str, Any],
    student: str,
    teachers: list[WeightedName],
    method: "Callable[[], Method | str]",
) -> None:
    """One run of a ReaderTrainer.

    Args:
        ctx: The command's context.
        given: The command's options.
        student: The student, as it was given.
        teachers: The weights of the teachers, None where none was given, and their names.
        method: Makes the method, which imports torch.
    """
    _require_effects(ctx)
    settings = TrainingSettings(**{name: given[name] for name in TrainingSettings.names()})
    output_dir: Path = given["output_dir"]
    refuse_to_overwrite(output_dir, [name for _, name in teachers], overwrite=True)
    remedies = ("add --resume", "add --overwrite")
    check_directory(
        output_dir, resume=settings.resume, overwrite=settings.overwrite, remedies=remedies
    )  # before loading
    with logs_on_stderr():
        from haystack_distill.training.reader_trainer import ReaderTrainer

        chosen, adaptation = method(), adaptation_from(ctx)
        examples = examples_of(given["data"], "train", given)
        dev_examples = measured_examples(given["dev_data"], given) if given["dev_data"] else None
        transfer = _transfer_set(given, settings.seed)
        reading = reader_settings(given)
        learner = load_reader(student, **reading)
        backend = {"backend": given["teacher_backend"]} if teachers else {}
        loaded = _loaded(teachers, reading | backend, given.get("teacher_average"))
        trainer = ReaderTrainer(learner, output_dir, settings, cache_dir=given["cache_dir"])
        with resume_hint(output_dir):
            result = trainer.distil(
                loaded,
                examples,
                chosen,
                dev_examples,
                dev_split=given["dev_split"],
                transfer=transfer,
                adaptation=adaptation,
            )
    report = {
        "command": ctx.command.name,
        "output_dir": output_dir,
        "parameters": learner.n_parameters,
        "steps": result.steps,
        "seconds": result.seconds,
        "metrics": result.metrics,
    }
    print_result(given["json"], report, f"Reader in {output_dir}")


def _weight_and_teacher(text: str) -> "WeightedName":
    """`0.7*NAME` as a weight and a name; the weight is None where there is none."""
    weight, star, name = text.partition("*")
    if not star:
        return None, text
    try:
        return float(weight), os.path.expanduser(name.strip())
    except ValueError:
        raise DistilError(f"--teacher {text}: write it as NAME or WEIGHT*NAME, like 0.7*{name.strip()}") from None


def _loaded(teachers: list[WeightedName], reading: dict[str, Any], average: Any) -> "Reader | EnsembleTeacher | None":
    """The teacher; of several an ensemble, whose readers are loaded one at a time."""
    if not teachers:
        return None
    if len(teachers) == 1:
        return load_teacher(teachers[0][1], reading)
    from haystack_distill.teachers.cached import CachedTeacher
    from haystack_distill.teachers.ensemble import EnsembleTeacher

    members = [CachedTeacher(partial(load_teacher, name, reading)) for _, name in teachers]
    return EnsembleTeacher(members, [1.0 if weight is None else weight for weight, _ in teachers], average=average)


def _transfer_set(given: dict[str, Any], seed: int) -> "TransferSet | None":
    """The transfer set that was given, its examples read as `--on-bad-example` has it."""
    if not given.get("transfer_data"):
        return None
    from haystack_distill.data.transfer import TransferSet

    data, pool = given["transfer_data"], given["question_pool"]
    source = TransferSet(
        data[0] if len(data) == 1 else data,
        given["transfer_proportion"],
        pool,
        given["questions_per_context"],
        given["same_title"],
    )
    examples = source.load(seed, on_bad_example=given["on_bad_example"], cache_dir=given["cache_dir"])
    return TransferSet(examples, source.proportion)


def _require_effects(ctx: typer.Context) -> None:
    """Refuse options that were given and can have no effect beside the others."""
    if ctx.params["dev_data"]:
        refuse_without_effect(ctx, ["dev_split"], "with --dev-data, which is measured on")
    elif ctx.params["dev_split"] is None:
        refuse_without_effect(ctx, _MEASURING, "without data to measure on", "add --dev-data or --dev-split")
    if not ctx.params.get("transfer_data", True):
        names = ("transfer_proportion", "question_pool", "questions_per_context", "same_title")
        refuse_without_effect(ctx, names, "without a transfer set", "add --transfer-data")
    if ctx.params["max_steps"] is not None:
        refuse_without_effect(ctx, ["n_epochs"], "with --max-steps, which sets the length of the run")
    if ctx.params["checkpoint_every"] is None and not ctx.params["keep_best"]:
        refuse_without_effect(ctx, ["keep_checkpoints"], "with --checkpoint-every none")
