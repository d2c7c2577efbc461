"""The command `student`: make a student of a teacher."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from haystack_distill.cli.inputs import (
    corpus_texts,
    examples_of,
    is_squad,
    load_reader,
    load_teacher,
    named_values,
    refuse_to_overwrite,
)
from haystack_distill.cli.options import (
    CONFIG,
    REQUIRED,
    list_of,
    option,
    option_from,
    refuse_without_effect,
    with_options,
)
from haystack_distill.cli.output import logs_on_stderr, print_result
from haystack_distill.cli.shared import BAD_EXAMPLES, CACHE, JSON, OVERWRITE, TEACHER
from haystack_distill.errors import DistilError
from haystack_distill.utils.layer_mapping import BLOCK_STARTS, IMPORTANCE
from haystack_distill.utils.model_files import RUN_FILE
from haystack_distill.utils.options import read_keywords

if TYPE_CHECKING:
    from haystack_distill.models.reader import Reader

_EXITS = "With early exits"
_EXIT_SIZES = [one for one in read_keywords("haystack_distill.students.exits", "early_exit") if one.name != "seed"]
_CUT = "Cut from the teacher"
_PRUNED = "Pruned by importance"
_FRESH = "From a configuration, with fresh weights"
_BILSTM = "A BiLSTM reader"
_TOKENIZER = "With a tokenizer of its own"
_OF_TOKENIZER = read_keywords("haystack_distill.students.tokenizer", "with_tokenizer")
_VOCAB_SIZE = next(source.default for source in _OF_TOKENIZER if source.name == "vocab_size")
_FEED_FORWARD = "Width of its feed-forward part. With --data: how many of the teacher's neurons remain in each layer."
_SIZES = [
    option("model_type", str | None, None, "Another architecture, such as mobilebert. Default: the teacher's.", _FRESH),
    option("num_hidden_layers", int | None, None, "Layers of the fresh student.", _FRESH),
    option("hidden_size", int | None, None, "Width of its hidden states.", _FRESH),
    option("num_attention_heads", int | None, None, "Attention heads of a layer.", _FRESH),
    option("intermediate_size", int | None, None, _FEED_FORWARD, _FRESH),
]
# The module imports torch, so its options are read from the source. Seed and depth are those of any fresh student.
_OF_BILSTM = {source.name: source for source in read_keywords("haystack_distill.students.recurrent", "bilstm")}
_BILSTM_OPTIONS = [
    option_from(source, _BILSTM, **({"type": str} if name == "embeddings" else {}))
    for name, source in _OF_BILSTM.items()
    if name not in ("num_hidden_layers", "seed")
]
_OF_PRUNED = {source.name: source for source in read_keywords("haystack_distill.students.pruning", "pruned")}
_OPTIONS = [
    option("output_dir", Path, REQUIRED, "Where the student goes.", metavar="DIRECTORY"),
    option("layers", int | None, None, "How many of the teacher's layers to keep. Default: 3.", _CUT),
    option(
        "which",
        Any,
        None,
        "Which layers to keep, counted from 1: evenly spread with the first (block_starts, the default) or the last "
        "(uniform), the first, the last, those that cost most to leave out (importance, the default with --data), or "
        "a list.",
        _CUT,
        **list_of(int, "block_starts", "uniform", "first", "last", "importance"),
    ),
    option(
        "data",
        list[str] | None,
        None,
        "Questions on which importance is measured, labelled or not. At least one of --layers, --heads and "
        "--intermediate-size is needed with it.",
        _PRUNED,
        metavar="FILE|NAME",
    ),
    *(
        option_from(_OF_PRUNED[name], _PRUNED, **changes)
        for name, changes in (("heads", {}), ("importance_sample", {"default": None, "type": int}))
    ),
    *_SIZES,
    option(
        "shape",
        list[str] | None,
        None,
        "Any other value of the model's configuration, such as embedding_size=64; give the option again for more.",
        _FRESH,
        metavar="NAME=VALUE",
    ),
    option(
        "seed",
        int | None,
        None,
        "Seed of the random weights of a fresh student or of branches, or of the questions drawn from --data. "
        "Default: 42.",
        "Run",
    ),
    option(
        "bilstm",
        bool,
        False,
        "A recurrent reader with the teacher's tokenizer; its depth is --num-hidden-layers.",
        _BILSTM,
        flags="--bilstm",
    ),
    *_BILSTM_OPTIONS,
    option(
        "tokenizer",
        Literal["wordpiece", "bpe", "unigram"] | None,
        None,
        "Train a tokenizer on --corpus, and begin with the means of the old embeddings. Default: the teacher's.",
        _TOKENIZER,
    ),
    option("vocab_size", int | None, None, f"Tokens of the new vocabulary. Default: {_VOCAB_SIZE}.", _TOKENIZER),
    option(
        "corpus",
        list[str] | None,
        None,
        "Texts of the domain: SQuAD files (their questions and contexts), or text, JSON lines or Parquet. Can be "
        "repeated.",
        _TOKENIZER,
        metavar="FILE|DIRECTORY",
    ),
    option("text_column", str, "text", "The column with the text in JSON lines or Parquet.", _TOKENIZER),
    option("early_exit", bool, False, "Give the student early exits: a branch on every layer but the last.", _EXITS),
    *(option_from(source, _EXITS, default=None) for source in _EXIT_SIZES),
    OVERWRITE,
]


@with_options([TEACHER], _OPTIONS, [BAD_EXAMPLES, CACHE, CONFIG, JSON])
def student(ctx: typer.Context, teacher: str, output_dir: Path, **given: Any) -> None:
    """Make a student: some layers of a teacher, a pruned teacher, a narrower model with fresh weights, or a BiLSTM.

    A cut or pruned student keeps the teacher's weights and needs less data. A fresh one can be narrower too, and needs
    `distil --method intermediate_layers` and much data. Each can have a tokenizer of its own, trained on the texts of
    its domain. With --early-exit, the student (without other options the whole teacher) gets branches, which learn by
    `distil --method self_distillation`.

    \b
    Examples:
      haystack-distill student --teacher deepset/roberta-base-squad2 --layers 6 \\
          --output-dir cut
      haystack-distill student --teacher embedded --which 1,3,6 --output-dir cut
      haystack-distill student --teacher embedded --layers 4 --intermediate-size 768 \\
          --data train.json --output-dir pruned
      haystack-distill student --teacher embedded --hidden-size 192 \\
          --num-hidden-layers 4 --intermediate-size 768 --output-dir narrow
      haystack-distill student --teacher embedded --tokenizer bpe --vocab-size 4000 \\
          --corpus train.json --output-dir own-words
      haystack-distill student --teacher embedded --bilstm --output-dir bilstm
      haystack-distill student --teacher deepset/roberta-base-squad2 --early-exit \\
          --output-dir fast
    """
    changed = {size.name: given[size.name] for size in _SIZES if given[size.name] is not None}
    shape = named_values(given["shape"] or [])
    for name in sorted(shape.keys() & {"seed", "teacher", "model_type"}):
        raise DistilError(f"--shape gives values of the model's configuration; give --{name.replace('_', '-')} instead")
    changed |= shape
    if given["bilstm"]:
        changed = _of_bilstm(given, changed)
    else:
        refuse_without_effect(ctx, [one.name for one in _BILSTM_OPTIONS], "without --bilstm", "add it")
    _check_shape(ctx, changed)
    _check_tokenizer(ctx)
    if not given["data"] and not any(map(is_squad, given["corpus"] or ())):
        refuse_without_effect(ctx, ["on_bad_example", "cache_dir"], "without data", "add --data")
    sizes = {one.name: given[one.name] for one in _EXIT_SIZES if given[one.name] is not None}
    if sizes and not given["early_exit"]:
        name = "--" + next(iter(sizes)).replace("_", "-")
        raise DistilError(f"{name} has no effect without --early-exit; add that, or leave it out")
    refuse_to_overwrite(output_dir, [teacher], given["overwrite"])
    with logs_on_stderr():
        from haystack_distill import students
        from haystack_distill.training.run_record import versions
        from haystack_distill.utils.atomic import write_json
        from haystack_distill.utils.model_fingerprint import model_fingerprint

        source, made, arguments = _make(teacher, given, changed)
        if given["tokenizer"] is not None:
            texts = (text for one in given["corpus"] for text in corpus_texts(one, given))
            vocab_size = _VOCAB_SIZE if given["vocab_size"] is None else given["vocab_size"]
            own_tokenizer = {"algorithm": given["tokenizer"], "vocab_size": vocab_size}
            made = students.with_tokenizer(made, texts, **own_tokenizer)
            arguments["tokenizer"] = own_tokenizer | {"corpus": given["corpus"]}
        if given["early_exit"]:
            made = students.early_exit(made, seed=_seed(given), **sizes)
            made_sizes = {one.name: getattr(made.model.config, one.name) for one in _EXIT_SIZES}
            arguments |= {"early_exit": True, **made_sizes, "seed": _seed(given)}
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
    report = {
        "command": "student",
        "output_dir": output_dir,
        "teacher": teacher,
        "arguments": arguments,
        "parameters": made.n_parameters,
        "teacher_parameters": source.n_parameters,
    }
    print_result(given["json"], report, f"Student in {output_dir}")


def _make(teacher: str, given: dict[str, Any], changed: dict[str, Any]) -> tuple["Reader", "Reader", dict[str, Any]]:
    """Make the student, but for a tokenizer and early exits of its own.

    Args:
        teacher: As on the command line.
        given: The options.
        changed: What a student with fresh weights has of its own: values of a configuration, or what `bilstm` takes.

    Returns:
        The teacher, the student, and the arguments that the student was made with.
    """
    from haystack_distill import students
    from haystack_distill.data.window_settings import WindowSettings

    if given["data"]:
        source = load_teacher(teacher, {"window_settings": WindowSettings(), "device": "auto"})
        arguments = _of_pruned(given) | {"seed": _seed(given)}
        made = students.pruned(source, examples_of(given["data"], "train", given), **arguments)
        return source, made, {"data": given["data"]} | arguments
    # The smallest windows fit any teacher; none are cut.
    smallest = WindowSettings(max_seq_len=16, doc_stride=1, max_query_length=1)
    source = load_reader(teacher, window_settings=smallest, device="cpu")
    if changed:
        arguments = changed | {"seed": _seed(given)}
        made = (students.bilstm if given["bilstm"] else students.from_config)(source, **arguments)
        return source, made, arguments
    if given["early_exit"] and _number_of_layers(given) is None and given["which"] is None:
        return source, source, {}
    kept = BLOCK_STARTS if given["which"] is None else given["which"]
    number = _number_of_layers(given)
    arguments = {"layers": 3 if number is None else number, "which": kept}
    return source, students.from_teacher(source, **arguments), arguments


def _seed(given: dict[str, Any]) -> int:
    return 42 if given["seed"] is None else given["seed"]


def _check_shape(ctx: typer.Context, changed: dict[str, Any]) -> None:
    """Check that the options of the student's shape are those of one kind of student.

    Args:
        ctx: The command's context.
        changed: Values of a configuration.
    """
    given = ctx.params
    cut = given["layers"] is not None or given["which"] is not None
    if given["data"]:
        fresh = sorted(changed.keys() - {"intermediate_size"})
        if fresh:
            raise DistilError(
                f"--data is for a student that is pruned, and {', '.join(fresh)} for one with fresh weights; give one "
                "or the other"
            )
        return
    refuse_without_effect(ctx, ["heads", "importance_sample"], "without data", "add --data")
    if given["which"] == IMPORTANCE:
        raise DistilError("--which importance is measured on questions; add --data, or choose another --which")
    if changed and cut:
        raise DistilError(
            "--layers and --which cut layers from the teacher, and the other sizes make a fresh student; give one or "
            "the other (a fresh student's depth is --num-hidden-layers), or add --data to prune the teacher"
        )
    if given["seed"] is not None and not (changed or given["early_exit"]):
        raise DistilError(
            "--seed is for the random weights of a fresh student or of early exits; leave it out for one that is cut"
        )


def _check_tokenizer(ctx: typer.Context) -> None:
    """Check the options of a tokenizer of the student's own."""
    given = ctx.params
    if given["tokenizer"] is None:
        own = ["vocab_size", "corpus", "text_column"]
        refuse_without_effect(ctx, own, "with the teacher's tokenizer", "add --tokenizer")
    elif not given["corpus"]:
        raise DistilError("--tokenizer needs texts to train one on; add --corpus")
    elif all(map(is_squad, given["corpus"])):
        refuse_without_effect(ctx, ["text_column"], "on SQuAD files", "add a --corpus that has columns")


def _of_bilstm(given: dict[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `students.bilstm`, defaults included, but for the seed."""
    if given["data"]:
        raise DistilError("--data is for a student that is pruned, which a BiLSTM reader is not; give one or the other")
    own = {name for pair in given["shape"] or () if (name := pair.partition("=")[0]) in _OF_BILSTM}
    if own:
        name = sorted(own)[0]
        raise DistilError(f"--shape is for models of transformers; give {name} as --{name.replace('_', '-')}")
    foreign = sizes.keys() - _OF_BILSTM.keys()
    if foreign:
        raise DistilError(
            f"a BiLSTM reader has no {sorted(foreign)[0]}; leave it out (its width is --units, its depth "
            "--num-hidden-layers)"
        )
    depth = sizes.get("num_hidden_layers", _OF_BILSTM["num_hidden_layers"].default)
    return {one.name: given[one.name] for one in _BILSTM_OPTIONS} | {"num_hidden_layers": depth}


def _of_pruned(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `students.pruned` that were given."""
    names = ("which", "heads", "intermediate_size", "importance_sample")
    values = {"layers": _number_of_layers(given)} | {name: given[name] for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _number_of_layers(given: dict[str, Any]) -> int | None:
    """How many layers remain, if that was given; a list of layers has the number itself."""
    listed = len(given["which"]) if isinstance(given["which"], list) else None
    return given["layers"] if given["layers"] is not None else listed
