"""The recipe as data: a YAML file, checked when it is loaded, with what is wrong about it said by name."""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from augment.settings import AugmentSettings
from haystack_distill.data.window_settings import default_stride
from haystack_distill.errors import DistilError
from haystack_distill.reporting.licences import require_language, require_licence
from haystack_distill.training.settings import Interval, TrainingSettings
from haystack_distill.utils.checks import require_seed
from haystack_distill.utils.yaml_config import read_mapping, suggestion

Section = TypeVar("Section")
LayerMapping = list[int | None] | str


@dataclass(frozen=True)
class StudentShape:
    """How the student is made: cut from the teacher (the default: 3 layers), fresh, or one that is there already.

    Attributes:
        start_from: A reader or language model, directory or hub name, such as a general student made before.
        layers: Layers to keep of the teacher.
        which: Which of them: "uniform", "first", "last" or a list, counted from 1.
        num_hidden_layers: Layers of a fresh student.
        hidden_size: Its width.
        num_attention_heads: Attention heads of a layer.
        intermediate_size: Width of its feed-forward part.
    """

    start_from: str | None = None
    layers: int | None = None
    which: list[int] | str = "uniform"
    num_hidden_layers: int | None = None
    hidden_size: int | None = None
    num_attention_heads: int | None = None
    intermediate_size: int | None = None

    def __post_init__(self) -> None:
        ways = [self.start_from is not None, self.layers is not None, bool(self.fresh_shape)]
        if sum(ways) > 1:
            raise DistilError(
                "say one of: start_from (a student that is there), layers (cut from the teacher), or sizes such as "
                "hidden_size (a fresh student; its depth is num_hidden_layers)"
            )
        if self.which != "uniform" and self.layers is None:
            raise DistilError("which chooses among layers that are cut from the teacher: say how many (layers)")

    @property
    def fresh_shape(self) -> dict[str, int]:
        """The sizes of a fresh student; empty for one that is not fresh."""
        names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class Training:
    """What every step may say of its training, named and meant as in `TrainingSettings`."""

    n_epochs: int = 2
    max_steps: int | None = None
    learning_rate: float = 3e-4
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    warmup_proportion: float = 0.1
    weight_decay: float = 0.01
    dropout: float | None = 0.0
    checkpoint_every: Interval = 200

    def __post_init__(self) -> None:
        self.settings(seed=0)

    def settings(self, **run: Any) -> TrainingSettings:
        """The settings of the step's run; `run` has those that belong to the whole recipe."""
        own = {name.name: getattr(self, name.name) for name in fields(Training)}
        return TrainingSettings(**own, evaluate_every=None, **run)


@dataclass(frozen=True)
class LayersLoss:
    """TinyBERT's losses, named and meant as in `IntermediateLayersObjective`."""

    layer_mapping: LayerMapping = "uniform"
    embedding_loss_weight: float = 1.0
    hidden_loss_weight: float = 1.0
    attention_loss_weight: float = 0.03


@dataclass(frozen=True)
class GeneralStep(LayersLoss, Training):
    """Step 1: the student learns the language on plain text.

    Attributes:
        corpus: Files, directories or a data set on the hub; see `Corpus`. Without one the contexts of the recipe's data
            are taken.
        text_column: Which column holds the text.
        corpus_split: Which split of a data set on the hub.
        corpus_config: Which configuration of a data set on the hub.
        teacher: A language model to learn from. Without one the encoder of the recipe's teacher is taken.
        objective: "layers" (TinyBERT) or "predictions" (DistilBERT, needs masked language models).
        temperature: DistilBERT's.
        soft_target_weight: DistilBERT's.
        masked_word_weight: DistilBERT's.
        cosine_weight: DistilBERT's.
        max_seq_len: Tokens of a window of text.
        mask_probability: Share of the tokens that are masked.
        buffer_windows: Windows that are shuffled together.
    """

    corpus: list[str] = field(default_factory=list)
    text_column: str = "text"
    corpus_split: str = "train"
    corpus_config: str | None = None
    teacher: str | None = None
    objective: Literal["layers", "predictions"] = "layers"
    temperature: float = 2.0
    soft_target_weight: float = 5.0
    masked_word_weight: float = 2.0
    cosine_weight: float = 1.0
    max_seq_len: int = 128
    mask_probability: float = 0.15
    buffer_windows: int = 4096
    max_steps: int | None = 10_000
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_steps is None or self.n_epochs != Training.n_epochs:
            raise DistilError("a corpus is a stream without an end: say max_steps, not n_epochs")
        if not self.corpus:
            _refuse_unused(self, ("text_column", "corpus_split", "corpus_config"), "without a corpus")
        others = _TRIPLE_LOSS if self.objective == "layers" else [part.name for part in fields(LayersLoss)]
        _refuse_unused(self, others, f"to the objective {self.objective!r}")

    def losses(self) -> dict[str, Any]:
        """The arguments of the objective."""
        if self.objective == "layers":
            return layers_losses(self)
        return {name: getattr(self, name) for name in _TRIPLE_LOSS}


def _refuse_unused(step: Any, names: Iterable[str], why: str) -> None:
    """An error where one of the fields that mean nothing here differs from its default."""
    defaults = {part.name: part.default for part in fields(step)}
    unused = [name for name in names if getattr(step, name) != defaults[name]]
    if unused:
        raise DistilError(f"{', '.join(unused)} means nothing {why}")


_TRIPLE_LOSS = ("temperature", "soft_target_weight", "masked_word_weight", "cosine_weight")


def layers_losses(step: LayersLoss) -> dict[str, Any]:
    """The arguments of `IntermediateLayersObjective` that a step says."""
    return {part.name: getattr(step, part.name) for part in fields(LayersLoss)}


@dataclass(frozen=True)
class LayersStep(LayersLoss, Training):
    """Step 2: the student learns the teacher's layers, on augmented data.

    Attributes:
        data: Other data than the recipe's, such as a file made by `augment_squad`; it is taken as it is.
        multiplication_factor: Versions of each question, the original included, made before training; 1 augments
            nothing.
        augment: Which text is edited: "question", "context" or "both".
        p_mask: Probability that a word is masked.
        p_pos: Probability that a word is replaced by one of its part of speech.
        p_ng: Probability that a text is cut to one of its n-grams.
        tagger: Who says what part of speech a word is: "auto", "nltk", "textblob" or "none".
    """

    data: list[str] | None = None
    multiplication_factor: int = 1
    augment: Literal["question", "context", "both"] = "context"
    p_mask: float = 0.1
    p_pos: float = 0.1
    p_ng: float = 0.25
    tagger: Literal["auto", "nltk", "textblob", "none"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.augmentation(AugmentSettings.seed)
        if self.data is not None and self.multiplication_factor != 1:
            raise DistilError("data of its own is taken as it is: leave multiplication_factor out, or data")

    def augmentation(self, seed: int, mask_token: str | None = None) -> AugmentSettings:
        """How the data is multiplied."""
        return AugmentSettings(
            multiplication_factor=self.multiplication_factor,
            augment=self.augment,
            p_mask=self.p_mask,
            p_pos=self.p_pos,
            p_ng=self.p_ng,
            tagger=self.tagger,
            mask_token=mask_token if self.p_mask else None,
            seed=seed,
        )


@dataclass(frozen=True)
class AnswersStep(Training):
    """Step 3: the student learns the teacher's answers, on the original data."""

    n_epochs: int = 1
    temperature: float = 2.0
    distillation_loss_weight: float = 0.8
    distillation_loss: Literal["kl_div", "mse"] = "kl_div"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distillation_loss == "mse":
            _refuse_unused(self, ("temperature",), "to mse, which compares the logits as they are")

    def losses(self) -> dict[str, Any]:
        """The arguments of `ReaderTrainer.distil_prediction_layer_from`."""
        return {
            "temperature": self.temperature if self.distillation_loss == "kl_div" else 1.0,
            "distillation_loss_weight": self.distillation_loss_weight,
            "distillation_loss": self.distillation_loss,
        }


@dataclass(frozen=True)
class Recipe:
    """The whole recipe.

    Attributes:
        teacher: The reader to learn from: a directory, a hub name or "embedded".
        data: Training data: SQuAD-format files, tables, a data set on the hub or "sample", the one of this package.
        output_dir: Where everything goes; the finished reader is in `reader` in it.
        dev_data: What teacher and student are measured on at the end; never trained on.
        student: How the student is made.
        general: Step 1; None leaves it out.
        layers: Step 2; None leaves it out.
        answers: Step 3; None leaves it out.
        labels_only: Also train the same student on labels alone for as many steps, to compare with.
        seed: Of everything that is random.
        max_seq_len: Tokens of a window.
        doc_stride: Context tokens between the starts of two neighbouring windows; by default a third of `max_seq_len`.
        max_query_length: Question tokens at most.
        precision: "auto", "fp32", "bf16" or "fp16".
        device: "auto", "cpu", "cuda", ...
        cache_dir: Where windows and teacher outputs are kept.
        license: Licence for the model card, as the hub calls it, such as "apache-2.0".
        language: Language code for the model card, such as "en".
    """

    teacher: str
    data: list[str]
    output_dir: str
    dev_data: list[str] | None = None
    student: StudentShape = StudentShape()
    general: GeneralStep | None = None
    layers: LayersStep | None = LayersStep()
    answers: AnswersStep | None = AnswersStep()
    labels_only: bool = False
    seed: int = 42
    max_seq_len: int = 384
    doc_stride: int = None  # type: ignore[assignment]  # a number as soon as the recipe is made
    max_query_length: int = 64
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: str = "auto"
    cache_dir: str | None = None
    license: str | None = None
    language: str | None = None

    def __post_init__(self) -> None:
        if self.doc_stride is None:
            object.__setattr__(self, "doc_stride", default_stride(self.max_seq_len))
        if not (self.general or self.layers or self.answers):
            raise DistilError("every step is left out: a recipe has at least one of general, layers and answers")
        if self.labels_only and not self.dev_data:
            raise DistilError("labels_only is there to compare with: give dev_data, or leave it out")
        require_seed(self.seed)
        require_licence(self.license)
        require_language(self.language)

    def as_dict(self) -> dict[str, Any]:
        """The recipe as nested dictionaries, every default spelt out."""
        return asdict(self)


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        DistilError: No such file, no YAML, a key that is unknown, misspelt or missing, or a value that is not right.
            The message begins with the file's name and says the section and the key.
    """
    content = read_mapping(Path(path))
    try:
        return _section(Recipe, content)
    except DistilError as error:
        raise DistilError(f"{path}: {error}") from error


def _section(kind: type[Section], content: Mapping[str, Any]) -> Section:
    """A dataclass from what a section of the file says."""
    hints = get_type_hints(kind)
    values = {}
    for key, value in content.items():
        if key not in hints:
            raise DistilError(f"unknown key {key!r}; {suggestion(str(key), hints)}")
        try:
            values[key] = _value(value, hints[key])
        except ValueError as error:  # a DistilError of a section inside is one, too
            raise DistilError(f"{key}: {error}") from error
    for part in fields(kind):  # type: ignore[arg-type]
        if part.name not in values and part.default is MISSING and part.default_factory is MISSING:
            raise DistilError(f"{part.name} is missing")
    return kind(**values)


def _value(value: Any, hint: Any) -> Any:
    """A value of the file as its type has it.

    Raises:
        ValueError: It is not of that type.
    """
    choices = get_args(hint) if get_origin(hint) not in (list, Literal) else ()
    if value is None or (value == "none" and NoneType in choices):
        if value is None and any(is_dataclass(kind) for kind in choices):
            raise ValueError("the section is empty: write none to leave the step out, {} for its defaults, or keys")
        if NoneType in choices:
            return None
        raise ValueError("a value is missing; give one, or leave the key out for the default")
    problems = []
    for kind in choices or (hint,):
        if kind is not NoneType:
            try:
                return _one(value, kind)
            except ValueError as error:
                problems.append(str(error))
    raise ValueError(" or ".join(dict.fromkeys(problems)))


def _one(value: Any, kind: Any) -> Any:
    """A value as one type, not a union, has it."""
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ValueError("must be a section with keys of its own")
        return _section(kind, value)  # type: ignore[arg-type]
    if get_origin(kind) is list:
        entry = get_args(kind)[0]
        if isinstance(value, list):
            return [_value(part, entry) for part in value]
        if entry is str and isinstance(value, str):
            return [value]
        raise ValueError("must be a list")
    if isinstance(value, (list, Mapping)):
        raise ValueError("must be a single value")
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{value!r} is not one of {', '.join(get_args(kind))}")
    elif kind is bool:
        if value.lower() not in ("true", "false"):
            raise ValueError(f"{value!r} is neither true nor false")
        return value.lower() == "true"
    elif kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            raise ValueError(f"{value!r} is not a {'whole ' if kind is int else ''}number") from None
    return value


EXAMPLE = """\
# A recipe for haystack-distill: run it with
#   haystack-distill recipe --config recipe.yaml
# It can be stopped at any time; the same command goes on where it was. --dry-run shows the plan.
# Behind a # stand defaults and, where there is none, examples; docs/recipe.md has every key.

teacher: deepset/roberta-base-squad2  # a reader: directory, hub name, or 'embedded', the small one of this package
data: train.json                      # SQuAD-format JSON or a table (or a list), a data set on the hub, or 'sample'
dev_data: dev.json                    # likewise: what teacher and student are measured on; never trained on
output_dir: distilled                 # the finished reader will be in distilled/reader, with a report and a model card
# labels_only: false                  # true: also train the student on labels alone for as many steps, to compare
# seed: 42
# max_seq_len: 384                    # tokens of a window
# doc_stride: 128                     # tokens between the starts of two windows; by default a third of max_seq_len
# max_query_length: 64
# precision: auto                     # bf16 where the hardware is fast at it
# device: auto
# cache_dir:                          # of windows and teacher outputs; ~/.cache/haystack-distill
# license:                            # for the model card, as the hub calls it; teacher and data may bind you
# language:                           # likewise, such as en

student:
  layers: 3                           # cut from the teacher, evenly spread ...
  # which: uniform                    # ... or first, last, or a list like [2, 4, 6]
  # hidden_size: 192                  # instead of layers: a fresh, narrower student (step 1 is for these)
  # num_hidden_layers: 3
  # start_from: general-student       # or one that is there: a reader, or what a step 1 made before

# Step 1, general distillation: the student learns the language from plain text. Leave it out for a student that
# is cut from its teacher; a fresh one needs it. (TinyBERT, arXiv 1909.10351; DistilBERT, arXiv 1910.01108)
# general:
#   corpus: texts/                    # .txt, .jsonl or .parquet files, a directory, or a data set on the hub;
#                                     # without one, the contexts of the data
#   teacher: FacebookAI/roberta-base  # a language model; without one, the encoder of the teacher above
#   objective: layers                 # or predictions: DistilBERT's triple loss
#   max_steps: 10000
#   learning_rate: 3e-4
#   batch_size: 32
#   max_seq_len: 128

# Step 2, intermediate layers: the student learns what happens inside the teacher.
layers:
  # multiplication_factor: 1          # versions of each question, made before training (Tang et al. 2019)
  # augment: context                  # edit question, context or both
  # data: augmented.json              # or a file that augment_squad made
  n_epochs: 2                         # most of the epochs belong here
  # learning_rate: 3e-4
  # layer_mapping: uniform            # or last, skip, or a list
  # attention_loss_weight: 0.03       # 0 where student and teacher differ in their number of heads

# Step 3, prediction layer: the student learns the teacher's answers.
answers:
  n_epochs: 1
  # learning_rate: 3e-4
  # temperature: 2.0
  # distillation_loss_weight: 0.8     # 1: teacher only, 0: labels only

# Each step also takes max_steps, batch_size, gradient_accumulation_steps, warmup_proportion, weight_decay,
# max_grad_norm, dropout, checkpoint_every. To leave a step out, write `layers: none`.
"""
