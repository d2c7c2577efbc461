"""The recipe that `recipe init` writes: three stages with comments, its values fitted to data, teacher and machine."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from haystack_distill.data.window_settings import default_stride
from haystack_distill.errors import DistilError
from haystack_distill.utils.files import expand_user

if TYPE_CHECKING:
    import datasets

    from haystack_distill.models.reader import Reader

_CONTEXTS = 1000  # contexts whose tokens are counted
_SIZES = (128, 256, 384, 512)  # windows to choose from
_QUESTION = 32  # tokens left for the question and special tokens when a window is chosen
_AUGMENTED = {"cpu": 20_000, "gpu": 400_000}  # questions after augmentation that an afternoon has room for
_FACTOR = 20  # of TinyBERT and of Tang et al.
_TOKENS_PER_STEP = 32 * 128  # of the stage on a corpus
_COLUMN = 36  # where comments stand, where there is room
_PASSES = 3  # over the corpus, as TinyBERT reads it


def _student_of(layers: int, neurons: int | None, shape: tuple[int, int] | None) -> str:
    """The lines of a pruned student, with a cut of half the layers as what could stand instead; or of the cut alone."""
    half = max(1, layers // 2)
    if neurons is None or shape is None:
        return f"layers: {half}  # half of the teacher's {layers}, evenly spread from the first ..."
    kept, fewer = shape
    return (
        f"pruned: {{layers: {kept}, intermediate_size: {fewer}}}  # of {layers} layers and {neurons:,} neurons "
        "of each, those that matter most\n"
        f"  # layers: {half}  # or, about as fast and less good: whole layers, evenly spread from the first ..."
    )


@dataclass(frozen=True)
class Draft:
    """The values of the template; each text is a value and, behind a #, why it is that."""

    teacher: str = (
        "deepset/roberta-base-squad2  # a reader: directory, hub name, or 'embedded', the small one of this package"
    )
    data: str = "train.json  # SQuAD-format JSON or a table (or a list), a data set on the hub, or 'sample'"
    dev_data: str = "dev_data: dev.json  # likewise: what teacher and student are measured on; never trained on"
    max_seq_len: str = "384  # tokens of a window"
    precision: str = "auto  # bf16 where the hardware is fast at it"
    student: str = (
        _student_of(12, 3072, (10, 896)) + "\n  # pruned: {layers: 5, intermediate_size: 384}  # of 'embedded'"
    )
    general_steps: str = "1000  # far more for a large corpus and a student with random layers"
    method: str = "intermediate_layers"
    multiplication_factor: str = "5  # versions of each question; TinyBERT has 20"
    p_mask: str = ""
    layers_epochs: str = "2  # most of the epochs belong here"
    distillation_loss_weight: str = "1.0  # 1: teacher only, 0: labels only"
    answers_rate: str = "2e-4  # for a width of 768; narrower ones had 3e-4"
    notes: str = ""


def template(data: str | None = None, teacher: str | None = None) -> str:
    """A recipe with comments.

    Args:
        data: Training data to look at, as a recipe names it; None for a placeholder.
        teacher: A teacher to look at, likewise.

    Raises:
        DistilError: The teacher cannot be loaded, or has no trained head.
        DataError: The data cannot be read.
    """
    draft = Draft()
    if data is None and teacher is None:
        return _rendered(draft)
    from haystack_distill.utils.devices import resolve_device, resolve_precision

    device = resolve_device("auto")
    machine = f"{os.cpu_count()} CPU cores" if device.type == "cpu" else f"a GPU ({device.type})"
    precision = resolve_precision("auto", device)
    draft = replace(draft, precision=f"auto  # {precision} on this machine: {machine}")
    reader = None
    if teacher is not None:
        from haystack_distill.data.window_settings import WindowSettings
        from haystack_distill.models.embedded_teacher import named_reader

        small = WindowSettings(32, max_query_length=16)  # any teacher has positions for these
        reader = named_reader(teacher, device="cpu", window_settings=small)
        reader.require_trained()
        draft = _for_teacher(draft, teacher, reader)
    if data is not None:
        draft = _for_data(draft, data, reader, "cpu" if device.type == "cpu" else "gpu", machine)
    return _rendered(draft)


def _rendered(draft: Draft) -> str:
    """The text, with its comments below each other."""
    lines = []
    for line in _TEXT.format(**vars(draft), doc_stride=default_stride(int(draft.max_seq_len.split()[0]))).splitlines():
        key, behind, why = line.partition("  # ")
        lines.append(f"{key:<{_COLUMN}}  # {why}" if behind and key.strip() else line)
    return "\n".join(lines) + "\n"


def _for_teacher(draft: Draft, name: str, reader: "Reader") -> Draft:
    from haystack_distill.models.outputs import require_attention_scores
    from haystack_distill.models.reader import position_limit
    from haystack_distill.students.parts import feed_forward_size
    from haystack_distill.students.pruning import WIDE, half_shape

    config = reader.model.config
    layers = int(config.num_hidden_layers)
    positions = position_limit(reader.model)
    heads = getattr(config, "num_attention_heads", "?")
    draft = replace(
        draft,
        teacher=f"{_quoted(name)}  # {config.model_type}, {layers} layers, {heads} heads, "
        f"{reader.n_parameters / 1e6:.0f} M weights",
        student=_student_of(layers, feed_forward_size(reader.model), half_shape(reader)),
    )
    wide = config.hidden_size >= WIDE
    rate = f"2e-4  # for a width of {config.hidden_size}; narrower ones had 3e-4" if wide else "3e-4"
    draft = replace(draft, answers_rate=rate)
    if positions is not None and positions < 384:
        draft = replace(draft, max_seq_len=f"{positions}  # the teacher has no more positions")
    try:
        require_attention_scores(config)
    except DistilError:
        draft = replace(
            draft,
            method="{name: intermediate_layers, attention_loss_weight: 0}  # this architecture's attention scores "
            "are not available",
        )
    if reader.tokenizer.mask_token is None:
        draft = replace(draft, p_mask="\n      p_mask: 0  # the teacher's tokenizer has no mask token")
    return draft


def _for_data(draft: Draft, name: str, reader: "Reader | None", kind: str, machine: str) -> Draft:
    from haystack_distill.data.sample import sample_path
    from haystack_distill.data.squad.load import load_examples

    examples = load_examples(sample_path("train") if name == "sample" else name)
    questions = len(examples)
    labelled = sum(examples["labelled"])
    unanswerable = sum(examples["is_impossible"])
    on_hub = name == "sample" or not expand_user(name).exists()
    absolute = name if on_hub else str(expand_user(name))
    draft = replace(
        draft,
        data=f"{_quoted(absolute)}  # {questions:,} questions, {labelled / questions:.0%} labelled, "
        f"{unanswerable / questions:.0%} unanswerable",
        dev_data=(
            f"dev_data: {_quoted(name)}  # its other part: what teacher and student are measured on; never trained on"
            if on_hub
            else "# dev_data: dev.json  # other questions, to measure teacher and student on; never trained on"
        ),
    )
    if not labelled:
        draft = replace(draft, distillation_loss_weight="1.0  # none of the data is labelled: the teacher only")
    elif unanswerable:
        draft = replace(
            draft,
            notes="# Some questions have no answer: take a teacher that was trained on such questions (SQuAD 2.0).\n",
        )
    draft = _for_size(draft, questions, kind, machine)
    longest, tokens, looked_at = _contexts(examples, reader)
    steps = min(10_000, max(100, _PASSES * tokens // _TOKENS_PER_STEP))
    passes = max(1, round(steps * _TOKENS_PER_STEP / max(1, tokens)))
    draft = replace(draft, general_steps=f"{steps}  # about {passes} passes over the contexts")
    limit = int(draft.max_seq_len.split()[0])
    fitting = [size for size in _SIZES if size <= limit and longest + _QUESTION <= size]
    if reader is not None and fitting and fitting[0] < limit:
        why = f"the longest of {looked_at:,} contexts has {longest} tokens: one window holds it"
        draft = replace(draft, max_seq_len=f"{fitting[0]}  # {why}")
    return draft


def _for_size(draft: Draft, questions: int, kind: str, machine: str) -> Draft:
    """How often each question comes, by what the machine can do in an afternoon; with few, more epochs."""
    factor = max(2, min(_FACTOR, _AUGMENTED[kind] // questions))
    why = "TinyBERT's" if factor == _FACTOR else f"{factor * questions:,} questions for {machine}; TinyBERT has 20"
    return replace(draft, multiplication_factor=f"{factor}  # versions of each question: {why}")


def _contexts(examples: "datasets.Dataset", reader: "Reader | None") -> tuple[int, int, int]:
    """Tokens of the longest of some contexts, and of all contexts together, estimated; how many were looked at."""
    some = list(_distinct(examples.select(range(min(len(examples), 20 * _CONTEXTS)))))
    chosen = some[:: max(1, len(some) // _CONTEXTS)][:_CONTEXTS]
    if reader is None:
        lengths = [len(text.split()) * 4 // 3 for text in chosen]
    else:
        lengths = [len(ids) for ids in reader.tokenizer(chosen, add_special_tokens=False, verbose=False)["input_ids"]]
    share = len(some) / min(len(examples), 20 * _CONTEXTS)
    return max(lengths), int(sum(lengths) / len(lengths) * share * len(examples)), len(lengths)


def _distinct(examples: "datasets.Dataset") -> Iterator[str]:
    for context, _ in groupby(examples.select_columns(["context"]), lambda row: row["context"]):
        yield context


def _quoted(text: str | Path) -> str:
    """A text as YAML reads it back."""
    text = str(text)
    return text if re.fullmatch(r"[\w./~-]+", text) else "'" + text.replace("'", "''") + "'"


_TEXT = """\
# A recipe for haystack-distill: run it with
#   haystack-distill recipe --config recipe.yaml
# It can be stopped at any time; the same command resumes it. --dry-run prints the plan.
# Behind a # stand defaults and, where there is none, examples; docs/recipe.md has every key.

teacher: {teacher}
data: {data}
{dev_data}
output_dir: distilled  # the finished reader will be in distilled/reader, with a report and a model card
max_seq_len: {max_seq_len}
precision: {precision}
# labels_only: false  # true: also train the student on labels alone for as many steps, to compare
# seed: 42
# doc_stride: {doc_stride}  # tokens between the starts of two windows; by default a third of max_seq_len
# max_query_length: 64
# device: auto
# cache_dir:  # of windows and teacher outputs; ~/.cache/haystack-distill
# license:  # for the model card, as the hub calls it; teacher and data may bind you
# language:  # likewise, such as en
{notes}
student:
  {student}
  # which: block_starts  # ... or uniform (with the last layer), first, last, importance, or a list like [2, 4, 6]
  # hidden_size: 192  # instead of layers: any values of the teacher's configuration, for a student
  # num_hidden_layers: 3  # with random layers (the first stage is for these)
  # start_from: general-student  # or one that exists: a reader, or what a stage on a corpus made before

# The student goes through the stages in this order; leave out what you do not want. Each takes the settings of
# training (n_epochs or max_steps, learning_rate, batch_size, ...), and may have a teacher of its own: a name, a list of
# readers, or the name of an earlier stage.
stages:
  # General distillation: the student learns the language from plain text. A student that is cut from its teacher knows
  # it already and can do without; one with random layers needs it, with a large corpus.
  # (TinyBERT, arXiv 1909.10351; DistilBERT, arXiv 1910.01108)
  - name: general
    corpus: contexts  # of the data; or .txt, .jsonl, .parquet files, a directory, a data set on the hub
    # teacher: FacebookAI/roberta-base  # a language model; without one, the encoder of the teacher above
    method: {method}
    max_steps: {general_steps}
    learning_rate: 3e-4
    batch_size: 32
    checkpoint_every: 200

  # Intermediate layers: the student learns what happens inside the teacher, on augmented data.
  - name: layers
    method:
      name: intermediate_layers
      attention_loss_weight: 0  # measured: attention scores cost time and gain nothing
    augment:  # leave it out to train on the data as it is
      multiplication_factor: {multiplication_factor}{p_mask}
      # augment: context  # edit question, context or both
      # model: FacebookAI/roberta-base  # words that a masked language model proposes, as TinyBERT's
    n_epochs: {layers_epochs}
    learning_rate: 1e-3
    checkpoint_every: 200

  # Prediction layer: the student learns the teacher's answers, on the original data.
  - name: answers
    method:
      name: prediction_layer
      temperature: 2.0
      distillation_loss_weight: {distillation_loss_weight}
    n_epochs: 1
    learning_rate: {answers_rate}
    checkpoint_every: 200
"""
