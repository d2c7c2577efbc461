"""The recipe as data: a YAML file with a list of stages, checked when it is loaded; errors name the place.

Its keys, defaults and help are those of the dataclasses that it is made of: `TrainingSettings`, `WindowSettings`,
`AugmentSettings`, `TextSettings`, the methods in `METHODS` and the adaptations in `ADAPTATIONS`.
"""

import collections.abc
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from augment.settings import AugmentSettings
from haystack_distill.data.corpus import Corpus
from haystack_distill.data.squad.held_out import check_share
from haystack_distill.data.text_windows import TextSettings
from haystack_distill.data.transfer import TransferSet
from haystack_distill.data.window_settings import WindowSettings
from haystack_distill.errors import DistilError
from haystack_distill.objectives.method import Method, MethodSum, parts_of
from haystack_distill.objectives.schedule import Linear, Weight
from haystack_distill.reporting.licences import require_language, require_licence
from haystack_distill.teachers.by_data import Sources, check_heads
from haystack_distill.training.adaptation import ADAPTATIONS, Adaptation, AllWeights
from haystack_distill.training.methods import METHODS
from haystack_distill.training.run import adaptation_record, method_name, method_record
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.utils.checks import PRECISIONS, Precision, check_argument, is_integer, is_number, require_seed
from haystack_distill.utils.layer_mapping import BLOCK_STARTS, IMPORTANCE
from haystack_distill.utils.options import options_of, read_keywords
from haystack_distill.utils.yaml_config import read_mapping, suggestion

Made = TypeVar("Made")

START, TEACHER = "start", "teacher"  # as the student of a stage: as the recipe makes it, or a copy of the teacher
CONTEXTS = "contexts"  # as a corpus: the contexts of the recipe's data
LABELS_ONLY, READER = "labels-only", "reader"  # directories beside those of the stages
_OF_THE_RECIPE = ("seed", "precision")  # settings of a run that are one for all stages
_OF_THE_RUN = ("resume", "overwrite", "progress")  # settings of a run that a recipe decides itself
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_LATER = ("pruned", "bilstm", "tokenizer", "early_exit", "branch_size", "match_size")  # not recorded where not given
_IN_CONFIG = 0.88  # how like one of our own keys a key must be not to count as one of a model's configuration


@dataclass(frozen=True)
class OwnTokenizer:
    """A tokenizer of the student's own, trained on the questions and contexts of the recipe's data.

    Args:
        algorithm: `"wordpiece"`, byte-level `"bpe"` or `"unigram"`.
        vocab_size: Its tokens, special ones included.
    """

    algorithm: Literal["wordpiece", "bpe", "unigram"] = "unigram"
    vocab_size: int = 8000


@dataclass(frozen=True)
class Pruning:
    """What remains of a pruned teacher, see `students.pruned`; the sample is drawn with the recipe's seed.

    Args:
        layers: The number of layers that remain; None for all.
        which: Which layers remain, as for a student that is cut, or "importance".
        heads: The number of attention heads of each layer that remain; None for all.
        intermediate_size: The number of neurons of each feed-forward layer that remain; None for all.
        importance_sample: How many questions are drawn to measure importance on.
        data: Questions to draw from; None for the recipe's.
    """

    layers: int | None = None
    which: list[int] | str = "importance"
    heads: int | None = None
    intermediate_size: int | None = None
    importance_sample: int = 100
    data: list[str] | None = None

    def __post_init__(self) -> None:
        if self.layers is None and self.heads is None and self.intermediate_size is None:
            raise DistilError("nothing is pruned; give layers, heads or intermediate_size")
        if self.layers is None and self.which != IMPORTANCE:
            raise DistilError("which chooses among the layers; give their number (layers), or leave it out")


@dataclass(frozen=True)
class StudentShape:
    """How the student is made: cut from the teacher (the default: 3 layers), pruned, configured, or one that exists.

    Args:
        start_from: A reader or language model, directory or hub name, such as what a corpus stage of another recipe
            made.
        layers: Layers to keep of the teacher.
        which: Which of them: "block_starts", "uniform", "first", "last", "importance" (measured on the recipe's data)
            or a list, counted from 1.
        pruned: What remains of a pruned teacher.
        configured: Changed values of the teacher's configuration, for a student with random layers:
            `num_hidden_layers`, `hidden_size`, `num_attention_heads`, `intermediate_size`, ... In the file they are
            keys beside the others.
        bilstm: Options of `students.bilstm` other than the seed, for a BiLSTM reader; {} for its defaults.
        tokenizer: One of the student's own, or None for the teacher's.
        early_exit: Whether it gets early exits, see `students.early_exit`; where nothing else is given, all layers of
            the teacher are kept.
        branch_size: Width of their branches; None for the default.
        match_size: Width in which they compare question and context; None for the default.
    """

    start_from: str | None = None
    layers: int | None = None
    which: list[int] | str = BLOCK_STARTS
    pruned: Pruning | None = None
    configured: dict[str, Any] = field(default_factory=dict)
    bilstm: dict[str, Any] | None = None
    tokenizer: OwnTokenizer | None = None
    early_exit: bool = False
    branch_size: int | None = None
    match_size: int | None = None

    def __post_init__(self) -> None:
        others = [self.start_from, self.layers, self.pruned, self.bilstm]
        if sum(one is not None for one in others) + bool(self.configured) > 1:
            raise DistilError(
                "give one of: start_from (a student that exists), layers (cut from the teacher), pruned, bilstm, or "
                "values of a configuration such as hidden_size (its depth is num_hidden_layers)"
            )
        if self.which != BLOCK_STARTS and self.layers is None:
            raise DistilError("which chooses among layers that are cut from the teacher; give their number (layers)")
        for name in ("branch_size", "match_size"):
            if getattr(self, name) is not None and not self.early_exit:
                raise DistilError(f"{name} has no effect without early_exit; set early_exit: true, or leave it out")
        if self.tokenizer is not None and self.start_from is not None:
            raise DistilError("tokenizer is for a student that the recipe makes; leave out tokenizer or start_from")

    @property
    def by_importance(self) -> bool:
        """Whether the teacher has to answer questions before the student can be made."""
        return self.pruned is not None or self.which == IMPORTANCE

    def as_dict(self) -> dict[str, Any]:
        """The student as JSON can hold it."""
        return {name: value for name, value in asdict(self).items() if value not in (None, False) or name not in _LATER}


@dataclass(frozen=True)
class StageResult:
    """The result of an earlier stage, as a teacher.

    Args:
        stage: The stage's name.
    """

    stage: str


@dataclass(frozen=True)
class MadeFrom:
    """A student that is made of the result of an earlier stage, as the recipe's is made of the teacher.

    Args:
        made_from: The stage's name.
        layers: Instead, how many of that result's layers are kept, as `students.from_teacher` chooses them.
    """

    made_from: str
    layers: int | None = None

    def __post_init__(self) -> None:
        layers = self.layers
        check_argument("layers", layers, layers is None or is_integer(layers, 1), "a whole number of at least 1")


@dataclass(frozen=True)
class CorpusText:
    """The text of a stage, and how it becomes windows.

    Args:
        source: Files, directories or the name of a data set on the hub, as `Corpus` takes them; empty for the contexts
            of the recipe's data.
        options: Options of `Corpus` that are not its defaults: `text_column`, `split`, `config`.
        text: How text becomes windows.
    """

    source: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    text: TextSettings = field(default_factory=TextSettings)


@dataclass(frozen=True)
class StageSource:
    """A part of the questions of a stage, with teachers of its own.

    Args:
        data: Questions, as for the recipe.
        teacher: As for a stage; None for labels alone.
        teacher_weights: As for a stage.
        head: The name of the student's head that it trains; None for the one that all sources without a name share.
    """

    data: list[str]
    teacher: list[str | StageResult] | None
    teacher_weights: list[float] | None = None
    head: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The source as JSON can hold it."""
        return {name: value for name, value in asdict(self).items() if name != "head" or value is not None}


@dataclass(frozen=True)
class Stage:
    """One stage: the student learns from a teacher by a method, on questions or on a corpus.

    Args:
        name: Its name; with its number before it also that of its directory.
        method: What the student learns.
        data: Questions to train on, as for the recipe; None for the recipe's.
        corpus: Text to train on instead of questions.
        augment: How the questions are multiplied before training; None for not at all.
        transfer: Unlabelled examples that are mixed into every step; None for none.
        teacher: Names or earlier stages' results: readers (several are averaged) or, for a corpus, a language model.
            None for the recipe's teacher.
        teacher_weights: A weight for each of several teachers; None for equal ones. In the file they stand beside the
            names: {name: ..., weight: ...}.
        teacher_average: What is averaged of several teachers, "probabilities" or "logits".
        sources: Parts of the questions with teachers of their own, instead of `data` and `teacher`; None for none.
        sampling_exponent: The power of the sizes of the sources in proportion to which they are drawn.
        student: What the stage trains: None for the result of the stage before it; "start" for the student as the
            recipe makes it, "teacher" for a copy of the recipe's teacher, or the result of an earlier stage. Stages
            that train a teacher first begin with "teacher"; the first one that teaches the student then has "start".
        adaptation: Which weights learn.
        settings: How the stage trains. Seed and precision are the recipe's. In the file its fields are keys beside the
            others, and a stage is only measured where it has `evaluate_every` or `keep_best`: the finished reader
            always is.
    """

    name: str
    method: Method
    data: list[str] | None = None
    corpus: CorpusText | None = None
    augment: AugmentSettings | None = None
    transfer: TransferSet | None = None
    teacher: list[str | StageResult] | None = None
    teacher_weights: list[float] | None = None
    teacher_average: Literal["probabilities", "logits"] = "probabilities"
    sources: list[StageSource] | None = None
    sampling_exponent: float = Sources.sampling_exponent
    student: str | StageResult | MadeFrom | None = None
    adaptation: Adaptation = field(default_factory=AllWeights)
    settings: TrainingSettings = field(default_factory=lambda: TrainingSettings(evaluate_every=None))

    def __post_init__(self) -> None:
        check_argument(
            "name",
            self.name,
            isinstance(self.name, str) and _NAME.fullmatch(self.name) is not None,
            "letters, digits, dots, dashes and underscores, because a directory is named so",
        )
        self._check_sources()
        if self.sources is None and (self.teacher is None or len(self.teacher) == 1):
            for name in ("weight",) * (self.teacher_weights is not None) + ("teacher_average",) * (
                self.teacher_average != "probabilities"
            ):
                raise DistilError(f"{name} has no effect with a single teacher; give several, or leave it out")
        if isinstance(self.student, str) and self.student not in (START, TEACHER):
            raise DistilError(
                f"student must be {START}, {TEACHER} or an earlier stage, not {self.student!r}; correct it"
            )
        if self.corpus is None:
            return
        for name in ("data", "augment", "transfer"):
            if getattr(self, name) is not None:
                raise DistilError(f"{name} has no effect in a stage on a corpus; leave out {name} or corpus")
        if self.settings.max_steps is None:
            raise DistilError("a corpus is a stream without an end; set max_steps to the length of the stage")
        if self.teacher is not None and len(self.teacher) > 1:
            raise DistilError("a stage on a corpus learns from one language model; give one teacher")

    def _check_sources(self) -> None:
        exponent = self.sampling_exponent
        check_argument(
            "sampling_exponent", exponent, is_number(exponent) and 0 <= exponent <= 1, "a number from 0 (equal) to 1"
        )
        if self.sources is None:
            if exponent != Sources.sampling_exponent:
                raise DistilError("sampling_exponent has no effect without sources; give them, or leave it out")
            return
        if len(self.sources) < 2:
            raise DistilError("sources must be two or more; with a single one give its data and teacher to the stage")
        for name in ("data", "corpus", "augment", "transfer", "teacher", "teacher_weights"):
            if getattr(self, name) is not None:
                raise DistilError(f"{name} has no effect in a stage with sources; leave out {name} or sources")
        if self.teacher_average != "probabilities":
            raise DistilError("teacher_average has no effect in a stage with sources; leave it out")
        check_heads([source.head for source in self.sources])

    @property
    def named_teachers(self) -> list[str | StageResult]:
        """The teachers that the stage names, those of its sources included."""
        return [*(self.teacher or ()), *(one for source in self.sources or () for one in source.teacher or ())]

    def student_record(self) -> str | dict[str, Any] | None:
        """What the stage trains, as JSON can hold it."""
        return asdict(self.student) if isinstance(self.student, (StageResult, MadeFrom)) else self.student

    def as_dict(self) -> dict[str, Any]:
        """The stage as nested dictionaries of what JSON can hold, every default included."""
        method = method_record(self.method)
        return {
            "name": self.name,
            "method": method["method"],
            "arguments": method["arguments"],
            "data": self.data,
            "corpus": None if self.corpus is None else asdict(self.corpus),
            "augment": None if self.augment is None else asdict(self.augment),
            "transfer": None if self.transfer is None else asdict(self.transfer),
            "teacher": self.teacher and [one if isinstance(one, str) else asdict(one) for one in self.teacher],
            "teacher_weights": self.teacher_weights,
            "teacher_average": self.teacher_average,
            "sources": self.sources and [source.as_dict() for source in self.sources],
            "sampling_exponent": self.sampling_exponent,
            "student": self.student_record(),
            "adaptation": adaptation_record(self.adaptation),
            "settings": asdict(self.settings),
        }


@dataclass(frozen=True)
class Recipe:
    """The whole recipe.

    Args:
        teacher: The reader to learn from: a directory, a hub name or "embedded".
        data: Training data: SQuAD-format files, tables, a data set on the hub or "sample", the one of this package.
        output_dir: Where everything goes; the finished reader is in `reader` in it.
        stages: What is done, in this order.
        dev_data: What teacher and student are measured on at the end; never trained on.
        dev_split: Without `dev_data`, the share of the articles of `data` that is measured on and not trained on, such
            as 0.1; the seed chooses them. They are left out of a stage's own `data` and `transfer` too.
        student: How the student is made. Where the first stage is on a corpus and has a teacher of its own, it is
            made from that teacher, else from the recipe's.
        labels_only: Also train the same student on labels alone for as many steps, to compare with; those of stages
            that train a teacher or an earlier generation are not counted.
        seed: Seed of everything that is random.
        windows: How questions and contexts become windows; in the file its fields are keys beside the others.
        precision: "auto", "fp32", "bf16" or "fp16".
        device: "auto", "cpu", "cuda", ...
        cache_dir: Where windows and teacher outputs are kept.
        license: Licence for the model card, as the hub calls it, such as "apache-2.0".
        language: Language code for the model card, such as "en".

    Raises:
        DistilError: A value that cannot be, or one that has no effect.
    """

    teacher: str
    data: list[str]
    output_dir: str
    stages: list[Stage]
    dev_data: list[str] | None = None
    dev_split: float | None = None
    student: StudentShape = StudentShape()
    labels_only: bool = False
    seed: int = TrainingSettings.seed
    windows: WindowSettings = field(default_factory=WindowSettings)
    precision: Precision = TrainingSettings.precision
    device: str = "auto"
    cache_dir: str | None = None
    license: str | None = None
    language: str | None = None

    def __post_init__(self) -> None:
        if not self.stages:
            raise DistilError("stages is empty; a recipe has at least one stage")
        names = [stage.name for stage in self.stages]
        for number, stage in enumerate(self.stages):
            if stage.name in names[:number]:
                raise DistilError(f"two stages are called {stage.name!r}; give each a name of its own")
            for teacher in stage.named_teachers:
                if isinstance(teacher, StageResult) and teacher.stage not in names[:number]:
                    raise DistilError(
                        f"stage {stage.name}: teacher: no stage before it is called {teacher.stage!r}; "
                        f"{_earlier(names[:number])}"
                    )
            before = _stage_of(stage.student)
            if before is not None and before not in names[:number]:
                raise DistilError(
                    f"stage {stage.name}: student: no stage before it is called {before!r}; {_earlier(names[:number])}"
                )
            for option, needed, earlier in runs_needed(stage):
                source = next((one for one in self.stages[:number] if one.name == earlier), None)
                if source is not None and needed not in method_name(source.method).split(" + "):
                    raise DistilError(
                        f"stage {stage.name}: {option}: the stage {earlier!r} does not run the method {needed}; name "
                        "one that does"
                    )
            if stage.settings.keep_best and not self.measured:
                raise DistilError(f"stage {stage.name}: keep_best chooses by dev_data; give it, or leave keep_best out")
        if self.dev_split is not None:
            check_share(self.dev_split)
            if self.dev_data:
                raise DistilError("dev_data and dev_split are two ways to one thing; give one of them")
        for stage in self.stages:
            if self.student.bilstm is not None and stage.corpus is not None and stage.student != TEACHER:
                raise DistilError(
                    f"stage {stage.name}: a BiLSTM reader does not learn from a corpus; give it questions, such as "
                    "unlabelled ones"
                )
        if self.labels_only and any(isinstance(one.student, MadeFrom) and one.student.layers for one in self.stages):
            raise DistilError(
                "labels_only trains the student that the recipe makes, and a later stage makes another one (layers); "
                "leave labels_only out"
            )
        if self.labels_only and not self.measured:
            raise DistilError("labels_only is there to compare with; give dev_data or dev_split, or leave it out")
        check_argument("precision", self.precision, self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        require_seed(self.seed)
        require_licence(self.license)
        require_language(self.language)

    @property
    def measured(self) -> bool:
        """Whether there are data to measure on."""
        return bool(self.dev_data) or self.dev_split is not None

    def directory_of(self, stage: Stage | str) -> str:
        """The name of a stage's directory, its number before its name; the stage itself or by its name."""
        name = stage if isinstance(stage, str) else stage.name
        return f"{[one.name for one in self.stages].index(name) + 1}-{name}"

    def as_dict(self) -> dict[str, Any]:
        """The recipe as nested dictionaries of what JSON can hold, every default included."""
        content = {one.name: getattr(self, one.name) for one in fields(self)}
        made = {"student": self.student.as_dict(), "windows": asdict(self.windows)}
        return content | made | {"stages": [stage.as_dict() for stage in self.stages]}


def _stage_of(student: str | StageResult | MadeFrom | None) -> str | None:
    """The earlier stage that the student of a stage is from, if it is from one."""
    if isinstance(student, MadeFrom):
        return student.made_from
    return student.stage if isinstance(student, StageResult) else None


def runs_needed(stage: Stage) -> list[tuple[str, str, str]]:
    """The earlier runs that a stage's method takes something of: option, that run's method, and the option's value."""
    return [
        (option, needed, getattr(part, option))
        for _, part in parts_of(stage.method)
        for option, needed in part.needs_run_of.items()
    ]


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        DistilError: No such file, no YAML, a key that is unknown, misspelt, of an earlier version or missing, or a
            value that cannot be or has no effect. The message begins with the file's name, the stage and the key.
    """
    return recipe_from(read_mapping(Path(path)), str(path))


def recipe_from(content: Mapping[str, Any], place: str) -> Recipe:
    """A recipe from the content of a file, checked.

    Args:
        content: Nested mappings and lists with every value as text, as `utils.yaml_config.read_mapping` reads them.
        place: Where it is from; error messages begin with it.

    Raises:
        DistilError: See `load_recipe`.
    """
    try:
        return _recipe(content)
    except DistilError as error:
        raise DistilError(f"{place}: {error}") from error


# --- the sections of the file ----------------------------------------------------------------------------------------


def _recipe(content: Mapping[str, Any]) -> Recipe:
    for key, method in _OLD_STEPS.items():
        if key in content:
            where = ", corpus: contexts" if key == "general" else ""
            raise DistilError(
                f"`{key}` is now a stage; write stages: - {{name: {key}, method: {method}{where}, ...}}, with the "
                "method's own options in `method` and those of augmentation in `augment`"
            )
    own = get_type_hints(Recipe)
    windows = _hints_of(WindowSettings)
    hints = {name: hint for name, hint in own.items() if name not in ("windows", "stages", "student")} | windows
    readers: dict[str, Callable[[Any], Any]] = {
        "stages": partial(_each_stage, content.get("seed")),
        "student": _student,
    }
    values = _read(content, hints, readers, _misplaced_in_recipe)
    for required in ("teacher", "data", "output_dir", "stages"):
        if required not in values:
            raise DistilError(f"{required} is missing")
    windowed = WindowSettings(**{name: values.pop(name) for name in windows if name in values})
    made = Recipe(**values, windows=windowed)
    for stage, given in zip(made.stages, content["stages"], strict=True):
        if "evaluate_every" in given and stage.settings.evaluate_every and not made.measured:
            raise DistilError(
                f"stage {stage.name}: evaluate_every has no effect without dev_data; give dev_data or dev_split"
            )
    return made


def _each_stage(seed: str | None, content: Any) -> list[Stage]:
    if content is None:
        content = []
    if not isinstance(content, list):
        raise ValueError("must be a list, each stage with a dash before its name")
    stages: list[Stage] = []
    for number, entry in enumerate(content, start=1):
        place = f"stage {number}"
        try:
            if not isinstance(entry, Mapping):
                raise DistilError("must have keys of its own: name, method, ...")
            if isinstance(entry.get("name"), str):
                place = f"stage {entry['name']}"
            stages.append(_stage(entry, [stage.name for stage in stages], seed))
        except ValueError as error:
            raise _InPlace(f"{place}: {error}") from error
    return stages


def _stage(content: Mapping[str, Any], earlier: Sequence[str], seed: str | None) -> Stage:
    settings = {name: hint for name, hint in _hints_of(TrainingSettings).items() if name in _settings_of_a_stage()}
    readers: dict[str, Callable[[Any], Any]] = {
        "method": _method,
        "corpus": _corpus,
        "augment": partial(_augment, seed),
        "transfer": _transfer,
        "teacher": partial(_teachers, earlier),
        "sources": partial(_sources, earlier),
        "student": _student_of_stage,
        "adaptation": partial(_named, ADAPTATIONS, "adaptation"),
    }
    hints = {"name": str, "data": list[str] | None, "teacher_average": Literal["probabilities", "logits"]}
    hints |= {"sampling_exponent": float} | settings
    values = _read(content, hints, readers, partial(_misplaced_in_stage, content))
    for required in ("name", "method"):
        if required not in values:
            raise DistilError(f"{required} is missing")
    if "teacher" in values:
        values["teacher"], values["teacher_weights"] = values["teacher"]
    given = {name: values.pop(name) for name in settings if name in values}
    corpus = values.get("corpus") is not None
    unused = [name for name in ("n_epochs",) if name in given and (corpus or given.get("max_steps") is not None)]
    unused += [name for name in _MEASURING if name in given and corpus]
    if unused:
        why = "on a corpus, a stream without an end, and not measured on" if corpus else "where max_steps is set"
        raise DistilError(f"{', '.join(unused)} has no effect {why}; leave it out")
    if "keep_checkpoints" in given and given.get("checkpoint_every", "auto") is None:
        raise DistilError("keep_checkpoints has no effect with checkpoint_every: none; leave one of them out")
    if "evaluate_every" not in given and not given.get("keep_best"):
        given["evaluate_every"] = None
    values = {name: value for name, value in values.items() if value is not None}
    return Stage(**values, settings=TrainingSettings(**given))


def _method(content: Any) -> Method:
    """A method by name, a mapping with its name and options, or a weighted list of them."""
    if not isinstance(content, list):
        return _named(METHODS, "method", content)
    if not content:
        raise ValueError("the list is empty; give at least one method")
    parts = []
    for entry in content:
        weights = {}
        if isinstance(entry, Mapping):
            given = [key for key in ("weight", "final_weight") if key in entry]
            weights = {key: _at(key, partial(_value, entry[key], float)) for key in given}
            entry = {key: value for key, value in entry.items() if key not in given}
        first = weights.get("weight", 1.0)
        weight: Weight = first
        if "final_weight" in weights:
            weight = _at("final_weight", partial(Linear, first, weights["final_weight"]))
        parts.append((weight, _named(METHODS, "method", entry)))
    return parts[0][1] if len(parts) == 1 and parts[0][0] == 1 else MethodSum(tuple(parts))


def _named(registry: Mapping[str, type[Made]], what: str, content: Any) -> Made:
    """An entry of a registry by name, with options where it is a mapping."""
    options = dict(content) if isinstance(content, Mapping) else {"name": content}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"must be a name ({', '.join(registry)}) or a mapping with a name and options")
    if name not in registry:
        raise ValueError(f"there is no {what} {name!r}; there are {', '.join(registry)}")
    kind = registry[name]
    return kind(**_read(options, _hints_of(kind)))


def _corpus(content: Any) -> CorpusText | None:
    if content is None or content == "none":
        raise ValueError(f"is empty; write files, directories or the name of a data set, or {CONTEXTS}")
    if not isinstance(content, Mapping):
        source = _value(content, list[str])
        return CorpusText([] if source == [CONTEXTS] else source)
    takes = get_type_hints(Corpus.__init__)
    hints = {"files": list[str], "name": str}
    hints |= {name: takes[name] for name in ("text_column", "split", "config")}
    values = _read(content, hints | _hints_of(TextSettings))
    text = TextSettings(**{name: values.pop(name) for name in _hints_of(TextSettings) if name in values})
    if "files" in values and "name" in values:
        raise ValueError("files and name are two corpora; give one")
    source = [values.pop("name")] if "name" in values else values.pop("files", [])
    if source == [CONTEXTS]:
        source = []
    unused = [name for name in values if not source or (name != "text_column" and "name" not in content)]
    if unused:
        why = "with files" if source else "on the contexts of the data"
        raise ValueError(f"{', '.join(unused)} has no effect {why}; leave it out, or name a data set on the hub (name)")
    return CorpusText(source, values, text)


def _augment(seed: str | None, content: Any) -> AugmentSettings | None:
    if content == "none":
        return None
    if not isinstance(content, Mapping):
        raise ValueError("must have keys of its own, such as multiplication_factor; {} for the defaults, none for none")
    given = _read(content, _hints_of(AugmentSettings))
    own = {}
    if seed is not None and given.get("multiplication_factor") != 1:
        own["seed"] = _value(seed, int)
    if given.get("provenance"):
        raise DistilError("provenance has no effect in a recipe, which writes no augmented file; leave it out")
    settings = AugmentSettings(**own | given)
    settings.require_effect(given)
    return settings


def _transfer(content: Any) -> TransferSet | None:
    """The transfer set of a stage: its data alone, or a mapping with the options of `TransferSet`."""
    if content == "none":
        return None
    if content is None:
        raise ValueError("is empty; write files or the name of a data set, or a mapping with data")
    given = content if isinstance(content, Mapping) else {"data": content}
    hints = _hints_of(TransferSet) | {"data": list[str], "question_pool": str | None}
    values = _read(given, hints)
    if not values.get("data"):
        raise ValueError("data is missing")
    return TransferSet(**values)


def _teachers(earlier: Sequence[str], content: Any) -> tuple[list[str | StageResult], list[float] | None]:
    """The teachers of a stage and their weights; the name of an earlier stage stands for its result."""
    entries = content if isinstance(content, list) else [content]
    if content is None or not entries:
        raise ValueError("a value is missing; give one, or leave the key out for the recipe's teacher")
    found: list[str | StageResult] = []
    weights: list[float] = []
    for entry in entries:
        if isinstance(entry, Mapping):
            values = _read(entry, {"name": str, "stage": str, "weight": float})
            if ("name" in values) == ("stage" in values):
                raise ValueError("give name (a reader) or stage (an earlier one) of each teacher")
            if "weight" in values:
                weights.append(values["weight"])
            entry = values["name"] if "name" in values else StageResult(values["stage"])
        if not isinstance(entry, (str, StageResult)):
            raise ValueError("must be a name, an earlier stage, or a list of them")
        found.append(StageResult(entry) if isinstance(entry, str) and entry in earlier else entry)
    if weights and len(weights) < len(found):
        raise ValueError("some of the teachers have a weight and others none; give each one")
    return found, weights or None


def _sources(earlier: Sequence[str], content: Any) -> list[StageSource]:
    """The sources of a stage: a list of mappings with data, teacher, which may be none, and head."""
    if not isinstance(content, list):
        raise ValueError("must be a list, each source with data and teacher")
    found = []
    for number, entry in enumerate(content, start=1):
        if not isinstance(entry, Mapping):
            raise ValueError(f"source {number} must have keys of its own: data and teacher")
        values = _read(entry, {"data": list[str], "head": str | None}, {"teacher": partial(_teachers_or_none, earlier)})
        for required in ("data", "teacher"):
            if required not in values:
                remedy = "; name one, or none for labels alone" if required == "teacher" else ""
                raise ValueError(f"source {number}: {required} is missing{remedy}")
        teachers, weights = values["teacher"]
        found.append(StageSource(values["data"], teachers, weights, values.get("head")))
    return found


def _teachers_or_none(
    earlier: Sequence[str], content: Any
) -> tuple[list[str | StageResult] | None, list[float] | None]:
    if content == "none":
        return None, None
    teachers, weights = _teachers(earlier, content)
    if weights and len(teachers) == 1:
        raise ValueError("weight has no effect with a single teacher; give several, or leave it out")
    return teachers, weights


def _student_of_stage(content: Any) -> str | StageResult | MadeFrom:
    """The student of a stage: start, teacher, an earlier stage, or made_from an earlier stage."""
    if isinstance(content, Mapping):
        values = _read(content, {"stage": str, **_hints_of(MadeFrom)})
        if ("stage" in values) == ("made_from" in values):
            raise ValueError("must have one of: stage (which is trained further), made_from (a stage)")
        if "stage" in values and "layers" in values:
            raise ValueError("layers has no effect on a stage's result that is trained further; use made_from")
        return StageResult(**values) if "stage" in values else MadeFrom(**values)
    if not isinstance(content, str):
        raise ValueError(f"must be {START}, {TEACHER} or an earlier stage")
    return content if content in (START, TEACHER) else StageResult(content)


def _student(content: Any) -> StudentShape:
    """The student: the name of one that exists, or a mapping; keys that are not ours are of a configuration."""
    if isinstance(content, str):
        return StudentShape(start_from=content)
    if not isinstance(content, Mapping):
        raise ValueError("must be a name or have keys of its own, such as layers")
    readers: dict[str, Callable[[Any], Any]] = {
        "pruned": _pruning,
        "bilstm": _bilstm,
        "tokenizer": _own_tokenizer,
    }
    hints = {
        name: hint for name, hint in _hints_of(StudentShape).items() if name != "configured" and name not in readers
    }
    own = [*hints, *readers]
    configured = {}
    for key, value in content.items():
        if key in own:
            continue
        near = difflib.get_close_matches(str(key), own, n=1, cutoff=_IN_CONFIG)
        if near:
            raise ValueError(f"unknown key {key!r}; did you mean {near[0]!r}?")
        if key in ("seed", "teacher"):
            raise ValueError(f"{key} is a key of the recipe; give it at the top of the file")
        configured[str(key)] = _guessed(value)
    given = _read({key: value for key, value in content.items() if key in own}, hints, readers)
    return StudentShape(**given, configured=configured)


def _pruning(content: Any) -> Pruning:
    if not isinstance(content, Mapping):
        raise ValueError("must have keys of its own, such as intermediate_size")
    return Pruning(**_read(content, _hints_of(Pruning)))


def _bilstm(content: Any) -> dict[str, Any]:
    """The options of a BiLSTM reader."""
    if not isinstance(content, Mapping):
        raise ValueError("must have keys of its own, such as units; {} for the defaults")
    options = read_keywords("haystack_distill.students.recurrent", "bilstm")
    hints = {option.name: option.type for option in options if option.name != "seed"}
    return _read(content, hints | {"embeddings": str})


def _own_tokenizer(content: Any) -> OwnTokenizer:
    """The student's tokenizer: its algorithm, or a mapping."""
    values = {"algorithm": content} if isinstance(content, str) else content
    if not isinstance(values, Mapping):
        raise ValueError("must be wordpiece, bpe or unigram, or have keys of its own: algorithm and vocab_size")
    return OwnTokenizer(**_read(values, _hints_of(OwnTokenizer)))


def _settings_of_a_stage() -> list[str]:
    return [name for name in TrainingSettings.names() if name not in (*_OF_THE_RECIPE, *_OF_THE_RUN)]


def _earlier(names: Sequence[str]) -> str:
    return f"before it are {', '.join(names)}" if names else "it is the first"


# --- keys that stand where they do not belong ------------------------------------------------------------------------

_OLD_STEPS = {"general": "intermediate_layers", "layers": "intermediate_layers", "answers": "prediction_layer"}
_OLD_CORPUS = {"corpus_split": "split", "corpus_config": "config"}
_MEASURING = ("evaluate_every", "keep_best", "best_by", "early_stopping_patience")


def _misplaced_in_recipe(key: str) -> str | None:
    """Where a key of the file's top level belongs, if it is known elsewhere."""
    if key in ("method", "corpus", "augment", "transfer", "adaptation", *_settings_of_a_stage()):
        return f"{key!r} belongs to a stage; write it below stages"
    return None


def _misplaced_in_stage(content: Mapping[str, Any], key: str) -> str | None:
    """Where a key of a stage belongs, if it is known elsewhere."""
    if key == "objective":
        return (
            "'objective' is now called method: intermediate_layers (was layers) or masked_language_model (was "
            "predictions)"
        )
    if key in _OLD_CORPUS:
        return f"{key!r} is now an option of the corpus; write corpus: {{name: ..., {_OLD_CORPUS[key]}: ...}}"
    if "corpus" in content and key in ("text_column", "split", "config", *_hints_of(TextSettings)):
        return f"{key!r} is an option of the corpus; write corpus: {{files: ..., {key}: ...}}"
    if key in _OF_THE_RECIPE or key in get_type_hints(Recipe) or key in _hints_of(WindowSettings):
        return f"{key!r} is one for all stages; write it at the top of the file"
    for name in METHODS:
        if key in _hints_of(METHODS[name]):
            return f"{key!r} is an option of the method; write method: {{name: {name}, {key}: ...}}"
    if key in ("proportion", "question_pool", "questions_per_context", "same_title"):
        return f"{key!r} is an option of the transfer set; write transfer: {{data: ..., {key}: ...}}"
    if key in _hints_of(AugmentSettings):
        return f"{key!r} is an option of augmentation; write augment: {{{key}: ...}}"
    for name, kind in ADAPTATIONS.items():
        if key in _hints_of(kind):
            return f"{key!r} is an option of the adaptation; write adaptation: {{name: {name}, {key}: ...}}"
    return None


# --- values ----------------------------------------------------------------------------------------------------------


class _InPlace(DistilError):
    """An error whose message begins with its place already."""


def _hints_of(kind: type) -> dict[str, Any]:
    return {option.name: option.type for option in options_of(kind)}


def _read(
    content: Mapping[str, Any],
    hints: Mapping[str, Any],
    readers: Mapping[str, Callable[[Any], Any]] | None = None,
    misplaced: Callable[[str], str | None] = lambda key: None,
) -> dict[str, Any]:
    """The values of a section.

    Args:
        content: The section, values as text.
        hints: The types of its keys.
        readers: Functions for keys whose values are sections of their own.
        misplaced: Given an unknown key, what to do about it, or None.

    Raises:
        DistilError: An unknown key, or a value that is not right.
    """
    readers = readers or {}
    values = {}
    for key, value in content.items():
        if key in readers:
            values[key] = _at(key, partial(readers[key], value))
        elif key in hints:
            values[key] = _at(key, partial(_value, value, hints[key]))
        else:
            raise DistilError(
                misplaced(str(key)) or f"unknown key {key!r}; {suggestion(str(key), [*hints, *readers]) or 'none here'}"
            )
    return values


def _at(key: str, read: Callable[[], Made]) -> Made:
    """A value; what is wrong with it has its key before it."""
    try:
        return read()
    except _InPlace:
        raise
    except ValueError as error:  # a DistilError is one, too
        raise DistilError(f"{key}: {error}") from error


def _value(value: Any, hint: Any) -> Any:
    """A value of the file as its type has it.

    Raises:
        ValueError: It is not of that type.
    """
    choices = get_args(hint) if get_origin(hint) not in (list, collections.abc.Sequence, Literal) else ()
    if value is None or (value == "none" and NoneType in choices):
        if NoneType in choices:
            return None
        raise ValueError("a value is missing; give one, or leave the key out for the default")
    problems = []
    for kind in choices or (hint,):
        if kind in (NoneType, Path) or get_origin(kind) is collections.abc.Callable:
            continue  # of None there was a word above; a path is text here, and code is for Python alone
        try:
            return _one(value, kind)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError(" or ".join(dict.fromkeys(problems)))


def _one(value: Any, kind: Any) -> Any:
    """A value as one type, not a union, has it."""
    if get_origin(kind) in (list, collections.abc.Sequence):
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


def _guessed(value: Any) -> Any:
    """A value whose type is not known here: what YAML would make of it."""
    if isinstance(value, list):
        return [_guessed(entry) for entry in value]
    if isinstance(value, str):
        if value.lower() in ("true", "false"):
            return value.lower() == "true"
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                pass
    return value
