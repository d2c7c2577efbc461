"""What a recipe works with: teachers, data, and the student between two stages."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeAlias

import datasets
import numpy as np
import pyarrow as pa
import torch

from augment.augmenter import augmented, mask_token_of
from augment.settings import AugmentSettings
from augment.tagging import choose_tagger
from haystack_distill import students
from haystack_distill.data.corpus import Corpus
from haystack_distill.data.sample import sample_path
from haystack_distill.data.squad.arrow import SCHEMA, plain_rows, record_batches
from haystack_distill.data.squad.held_out import hold_out, without_articles
from haystack_distill.data.squad.load import content_hash, load_examples
from haystack_distill.data.squad.metrics import require_measurable
from haystack_distill.data.squad.validation import Row
from haystack_distill.data.transfer import TransferSet
from haystack_distill.data.window_settings import WindowSettings
from haystack_distill.errors import DistilError, in_section
from haystack_distill.models.embedded_teacher import EMBEDDED, named_reader, named_teacher
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.models.reader import Reader
from haystack_distill.models.trained_weights import check_base
from haystack_distill.objectives.method import Method, MethodSum, parts_of
from haystack_distill.recipes.schema import START, TEACHER, MadeFrom, Recipe, Stage, StageResult, runs_needed
from haystack_distill.students.exits import require_no_exits
from haystack_distill.students.layers import AnyModel
from haystack_distill.students.tokenizer import corpus_of
from haystack_distill.teachers.by_data import Source, Sources
from haystack_distill.teachers.cached import CachedTeacher
from haystack_distill.teachers.ensemble import EnsembleTeacher
from haystack_distill.training.adaptation import AllWeights, adapted
from haystack_distill.training.language_model_trainer import LanguageModelTrainer
from haystack_distill.training.reader_trainer import ReaderTrainer
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.utils.atomic import write_atomically
from haystack_distill.utils.cache import cached_table
from haystack_distill.utils.devices import require_device, resolve_device
from haystack_distill.utils.files import expand_user, require_writable
from haystack_distill.utils.hashing import hash_file, hash_json
from haystack_distill.utils.model_fingerprint import model_fingerprint
from haystack_distill.utils.transformers_compat import architectures

SAMPLE = "sample"  # as the name of data: the one that comes with this package
_PARTS: dict[str, Any] = {"train": "train", "validation": "dev"}  # of the sample, by the hub's names of splits
_AUGMENTED_FORMAT = 1  # raise it when the same data would be augmented differently

Teaching: TypeAlias = Reader | EnsembleTeacher | LanguageModel | None


@dataclass(frozen=True)
class Student:
    """The student between two stages, from which each stage takes the form that it trains.

    Args:
        model: A reader, or after a stage on a corpus a language model.
        head: The reader whose head and settings a reader made of the language model takes.
        windows: The windows of such a reader, where they are not those of `head`.
    """

    model: Reader | LanguageModel
    head: Reader
    windows: WindowSettings | None = None

    def reader(self) -> Reader:
        """The student as a reader."""
        if isinstance(self.model, Reader):
            return self.model
        return students.from_language_model(self.model, self.head, self.windows)

    def language_model(self) -> LanguageModel:
        """The student as a language model; of a reader a copy of its encoder.

        Raises:
            DistilError: It is a reader with early exits.
        """
        require_no_exits(
            self.model,
            "a stage on a corpus trains a language model, which has none: give the finished reader early exits in a "
            "recipe of their own",
        )
        return LanguageModel.of(self.model).copy() if isinstance(self.model, Reader) else self.model

    def after(self, made: Reader | LanguageModel) -> "Student":
        """The student when a stage has made this of it."""
        if isinstance(made, Reader):
            return Student(made, made)
        return Student(made, self.model if isinstance(self.model, Reader) else self.head, self.windows)


class Inputs:
    """The teacher and the data of a recipe, and what its stages need besides, loaded when it is asked for.

    Attributes:
        reading: How readers are loaded.
        examples: The recipe's data, without what is held out of it.
        dev_examples: Its dev data, or None.
        teacher: Its teacher.

    Raises:
        DistilError: A model or a device is not there, or the recipe's directory cannot be written.
        DataError: Data cannot be read.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        require_writable(expand_user(recipe.output_dir))
        require_device(recipe.device)
        self.reading: dict[str, Any] = {
            "window_settings": recipe.windows,
            "device": resolve_device(recipe.device),
            "precision": recipe.precision,
        }
        self.running = {name: self.reading[name] for name in ("device", "precision")}
        self.examples = self.load(recipe.data, "train")
        self.dev_examples: datasets.Dataset | None = None
        if recipe.dev_data:
            with in_section("dev_data"):
                self.dev_examples = self.load(recipe.dev_data, "validation")
                require_measurable(self.dev_examples)
        if recipe.dev_split is not None:
            self.examples, self.dev_examples = hold_out(
                self.examples, recipe.dev_split, seed=recipe.seed, cache_dir=recipe.cache_dir
            )
            require_measurable(self.dev_examples)
        # A student cut from the teacher has its positions, so that there windows that are too long are an error.
        reader = named_reader if recipe.student.start_from is None else named_teacher
        self.teacher = reader(recipe.teacher, **self.reading)
        self._taggers: dict[str, str] = {}
        self._measured: Any = None  # the student that importance makes of the teacher

    def load(self, data: list[str], split: str) -> datasets.Dataset:
        """Examples of files or of a data set on the hub."""
        return load_questions(data, split, self.recipe.cache_dir)

    # --- data of a stage -------------------------------------------------------------------------------------------

    def corpus(self, stage: Stage, scratch: Path) -> Corpus:
        """The text of a stage; where it is the contexts of the data, they are written to a file in `scratch`."""
        assert stage.corpus is not None
        source = stage.corpus.source
        if source:
            return Corpus(source[0] if len(source) == 1 else source, **stage.corpus.options)
        path = scratch / f"contexts-{content_hash(self.examples)[:16]}.jsonl"

        def write(aside: Path) -> None:
            with open(aside, "w", encoding="utf-8") as file:
                for context, _ in groupby(plain_rows(self.examples, ["context"]), lambda row: row["context"]):
                    file.write(json.dumps({"text": context}, ensure_ascii=False) + "\n")

        if not path.exists():
            write_atomically(path, write)
        return Corpus(path)

    def original(self, stage: Stage) -> datasets.Dataset:
        """The questions of a stage before augmentation."""
        if stage.sources is not None:
            return datasets.concatenate_datasets([self._own(source.data) for source in stage.sources])
        return self.examples if stage.data is None else self._own(stage.data)

    def _own(self, data: list[str]) -> datasets.Dataset:
        """Questions that a stage names, without what is held out of the recipe's data."""
        return self._to_train_on(self.load(data, "train"))

    def _to_train_on(self, examples: datasets.Dataset) -> datasets.Dataset:
        """Examples without the articles that `dev_split` holds out."""
        if self.recipe.dev_split is None:
            return examples
        assert self.dev_examples is not None
        return without_articles(examples, self.dev_examples, cache_dir=self.recipe.cache_dir)

    def sources(self, stage: Stage, result: Callable[[str], Reader | LanguageModel]) -> Sources | None:
        """The sources of a stage, their examples loaded and each teacher when it has to run; None where it has none.

        Args:
            stage: The stage.
            result: Gives the result of an earlier stage, by its name.
        """
        if stage.sources is None:
            return None
        found = []
        for source in stage.sources:
            teacher = None if source.teacher is None else self._cached(source.teacher, source.teacher_weights, result)
            found.append(Source(self._own(source.data), teacher, source.head))
        return Sources(found, stage.sampling_exponent)

    def source_records(self, stage: Stage) -> list[dict[str, Any]]:
        """What the sources of a stage are, as JSON can hold it: hashes of their examples and of their teachers."""
        return [
            {
                "data": content_hash(self._own(source.data)),
                "teacher": self._fingerprints_of(source.teacher),
                "teacher_weights": source.teacher_weights,
                **({} if source.head is None else {"head": source.head}),
            }
            for source in stage.sources or ()
        ]

    def transfer(self, stage: Stage) -> TransferSet | None:
        """The transfer set of a stage, its examples loaded; None where it has none."""
        if stage.transfer is None:
            return None
        with in_section("transfer"):
            examples = load_transfer(stage.transfer, self.recipe.seed, self.recipe.cache_dir)
            examples = self._to_train_on(examples)
        return TransferSet(examples, stage.transfer.proportion)

    def questions(self, stage: Stage, student: Reader) -> datasets.Dataset:
        """The questions that a stage trains on: multiplied, where it asks for that."""
        examples = self.original(stage)
        if stage.augment is None:
            return examples
        settings, decisive = self.augmentation(stage, student)
        key = hash_json("augmented", _AUGMENTED_FORMAT, content_hash(examples), *decisive)
        chosen = settings.with_tagger(self._taggers[settings.tagger])  # else the choice would be logged once more

        def batches() -> Iterator[dict[str, pa.Array]]:
            return record_batches(Row.from_example(example) for example in augmented(examples, chosen))

        return cached_table("examples", key, SCHEMA, batches, self.recipe.cache_dir)[0]

    def augmentation(self, stage: Stage, student: Reader) -> tuple[AugmentSettings, list[Any]]:
        """How a stage multiplies its data, and all that decides the result, as JSON can hold it.

        Masked words become the student's mask token, and the language model runs on the recipe's device, unless the
        stage names others.

        Raises:
            DistilError: There is no mask token, tagger, language model or file of vectors as asked for.
        """
        settings = stage.augment
        assert settings is not None
        if settings.multiplication_factor > 1 and settings.p_mask and not (settings.mask_token or settings.tokenizer):
            mask = student.tokenizer.mask_token
            if mask is None:
                raise DistilError("augment: the student's tokenizer has no mask token; set p_mask: 0, or mask_token")
            settings = replace(settings, mask_token=mask)
        mask_token_of(settings)  # a missing tokenizer is better known before the work than in the middle of it
        if settings.tagger not in self._taggers:
            self._taggers[settings.tagger] = choose_tagger(settings.tagger)
        decisive: list[Any] = [asdict(settings), self._taggers[settings.tagger]]
        if settings.model is not None:
            model = LanguageModel.load(settings.model, device="cpu")
            if settings.device == "auto":
                settings = replace(settings, device=str(self.running["device"]))
            decisive.append({"model": model_fingerprint(model.model)})
        if settings.glove_path is not None:
            decisive.append({"glove": hash_file(expand_user(settings.glove_path))})
        return settings, decisive

    def method(self, stage: Stage, base: Path) -> Method:
        """The method of a stage, with the directories of the earlier stages that its options name.

        Args:
            stage: The stage.
            base: The directory in which the directories of the stages are.
        """
        names = [one.name for one in self.recipe.stages]
        parts = []
        for weight, part in parts_of(stage.method):
            found = {
                option: str(base / self.recipe.directory_of(getattr(part, option)))
                for option in part.needs_run_of
                if getattr(part, option) in names
            }
            parts.append((weight, replace(part, **found) if found else part))  # type: ignore[type-var]
        return MethodSum(tuple(parts)) if isinstance(stage.method, MethodSum) else parts[0][1]

    # --- models ----------------------------------------------------------------------------------------------------

    def teachers(
        self, stage: Stage, student: Reader | LanguageModel, result: Callable[[str], Reader | LanguageModel]
    ) -> Teaching:
        """What a stage learns from: a language model on a corpus, else a reader or an ensemble; None where nothing.

        The readers of an ensemble are loaded one at a time.

        Args:
            stage: The stage.
            student: The student in the form that the stage trains, or one of its shape.
            result: Gives the result of an earlier stage, by its name.
        """
        if stage.corpus is not None:
            name = stage.teacher[0] if stage.teacher else None
            if isinstance(name, StageResult):
                made = result(name.stage)
                return LanguageModel.of(made) if isinstance(made, Reader) else made
            if name is None and self._learns_alone(stage):
                return None
            return LanguageModel.of(self.teacher) if name is None else self.language_model(name)
        if stage.sources is not None:
            return None  # they have their own
        if stage.teacher is None:
            objective = stage.method.objective(student.model.config, self.teacher.model.config)
            return self.teacher if objective.teacher_request else None
        if len(stage.teacher) == 1:
            return self._named_teacher(stage.teacher[0], result)
        ensemble = self._cached(stage.teacher, stage.teacher_weights, result, stage.teacher_average)
        assert isinstance(ensemble, EnsembleTeacher)
        return ensemble

    def _cached(
        self,
        names: Sequence[str | StageResult],
        weights: list[float] | None,
        result: Callable[[str], Reader | LanguageModel],
        average: Literal["probabilities", "logits"] = "probabilities",
    ) -> CachedTeacher | EnsembleTeacher:
        """Readers by name as a teacher, loaded one at a time."""
        members = [CachedTeacher(partial(self._named_teacher, name, result)) for name in names]
        return members[0] if len(members) == 1 else EnsembleTeacher(members, weights, average=average)

    def _named_teacher(self, name: str | StageResult, result: Callable[[str], Reader | LanguageModel]) -> Reader:
        """A teacher that a stage names, as a reader."""
        if not isinstance(name, StageResult):
            return named_teacher(name, **self.reading)
        made = result(name.stage)
        if isinstance(made, Reader):
            return made
        return students.from_language_model(made, self.teacher, self.recipe.windows)

    def language_model(self, name: str) -> LanguageModel:
        """A language model by name."""
        if name == EMBEDDED:
            return LanguageModel.of(named_reader(name, **self.reading))
        return LanguageModel.load(name, **self.running)

    def language_model_of(self, stage: Stage, student: Student) -> LanguageModel:
        """The student in the form that a stage on a corpus trains.

        An encoder that learns masked words without a teacher gets a fresh head for it.
        """
        model = student.language_model()
        if self._learns_alone(stage) and not model.has_head:
            return students.with_language_model_head(model, seed=self.recipe.seed)
        return model

    def _learns_alone(self, stage: Stage) -> bool:
        """Whether a method learns from the text alone, not from a teacher."""
        config = self.teacher.model.config
        try:
            return not stage.method.objective(config, None).teacher_request
        except DistilError:  # it needs a teacher
            return False

    def fingerprints(self, stage: Stage) -> list[Any] | None:
        """Hashes of the teachers that a stage names: a name may come to stand for other weights."""
        return self._fingerprints_of(stage.teacher, on_corpus=stage.corpus is not None)

    def _fingerprints_of(
        self, names: Sequence[str | StageResult] | None, *, on_corpus: bool = False
    ) -> list[Any] | None:
        if names is None:
            return None
        found: list[Any] = []
        for name in names:
            if isinstance(name, StageResult):
                found.append(asdict(name))
            elif on_corpus:
                found.append(model_fingerprint(self.language_model(name).model))
            else:
                found.append(model_fingerprint(named_teacher(name, **self.reading).model))
        return found

    def student_record(self) -> dict[str, Any]:
        """How the student is made, and the hash of the model that it starts from, if it does."""
        record = self.recipe.student.as_dict()
        start = self.recipe.student.start_from
        if start is not None:
            found = self.first_reader() if _is_reader(start) else LanguageModel.load(start, **self.running)
            # The weights count, and not where they are.
            record |= {"start_from": None, "start_from_weights": model_fingerprint(found.model)}
        return record

    def first_student(self) -> Student:
        """The student that the first stage begins with."""
        stage = self.recipe.stages[0]
        if stage.student == TEACHER:  # the recipe's own student may need what this stage makes
            copy = self.teacher.copy()
            return Student(copy, copy)
        if stage.corpus is None:
            reader = self.first_reader()
            return Student(reader, reader)
        if self.recipe.student.early_exit:
            raise DistilError(
                "student: a language model has no early exits, and the first stage is on a corpus; leave early_exit "
                "out, and give the finished reader early exits in a recipe of their own"
            )
        start, head = self.recipe.student.start_from, self.teacher
        if start is not None:
            if _is_reader(start):
                head = Reader.load(start, **self.reading)
            return Student(LanguageModel.load(start, **self.running), head, self.recipe.windows)
        name = stage.teacher[0] if stage.teacher else None
        if self.recipe.student.by_importance:  # only a reader answers questions
            return Student(LanguageModel.of(self._made_from(self.teacher)), head)
        teacher = self.language_model(name) if isinstance(name, str) else LanguageModel.of(self.teacher)
        return Student(self._made_from(teacher), head)

    def student_of(self, stage: Stage, before: Student, result: Callable[[str], Reader | LanguageModel]) -> Student:
        """The student that a stage begins with.

        Args:
            stage: The stage.
            before: The student after the stage before it, or the first student.
            result: Gives the result of an earlier stage, by its name.
        """
        if stage.student is None:
            return before
        if stage.student == START:
            if self.recipe.stages[0].student is None:
                return self.first_student()
            first = self.first_reader()
            return Student(first, first)
        if stage.student == TEACHER:
            copy = self.teacher.copy()
            return Student(copy, copy)
        if isinstance(stage.student, MadeFrom):
            source, layers = result(stage.student.made_from), stage.student.layers
            made = students.from_teacher(source, layers) if layers else self._made_from(source)  # type: ignore[type-var]
        else:
            assert isinstance(stage.student, StageResult)
            made = result(stage.student.stage)
        return Student(made, made if isinstance(made, Reader) else self.teacher, self.recipe.windows)

    def first_reader(self) -> Reader:
        """The student as it would begin a stage on questions, without any stage before it."""
        start = self.recipe.student.start_from
        if start is None:
            return self._made_from(self.teacher)
        if _is_reader(start):
            return self._with_exits(Reader.load(start, **self.reading))
        encoder = LanguageModel.load(start, **self.running)
        return self._with_exits(students.from_language_model(encoder, self.teacher, self.recipe.windows))

    def _made_from(self, teacher: AnyModel) -> AnyModel:
        if not (self.recipe.student.by_importance and teacher is self.teacher):
            return self._make_from(teacher)
        if self._measured is None:  # which takes a while, and several ask for it
            self._measured = self._make_from(self.teacher)
        return self._measured.copy()

    def _make_from(self, teacher: AnyModel) -> AnyModel:
        shape, seed = self.recipe.student, self.recipe.seed
        with in_section("student"):
            if shape.configured:
                made = students.from_config(teacher, seed=seed, **shape.configured)
            elif shape.pruned is not None:
                options = {one.name: getattr(shape.pruned, one.name) for one in fields(shape.pruned)}
                data = options.pop("data")
                examples = self.examples if data is None else self._own(data)
                made = students.pruned(teacher, examples, seed=seed, **options)  # type: ignore[arg-type, assignment]
            elif shape.bilstm is not None:  # a recipe with a corpus was refused
                made = students.bilstm(teacher, seed=seed, **shape.bilstm)  # type: ignore[arg-type, assignment]
            elif shape.early_exit and shape.layers is None:
                made = teacher  # the whole of it; early exits are given to a copy
            else:
                measured = {"data": self.examples, "seed": seed} if shape.by_importance else {}
                made = students.from_teacher(teacher, shape.layers or 3, shape.which, **measured)
            if shape.tokenizer is None:
                return self._with_exits(made)
            if not isinstance(made, Reader):
                raise DistilError(
                    "tokenizer is for a student that begins on questions, and the first stage is on a corpus; make the "
                    "student before (haystack-distill student --tokenizer ...) and give it as start_from"
                )
            return self._with_exits(students.with_tokenizer(made, corpus_of(self.examples), **asdict(shape.tokenizer)))

    def _with_exits(self, made: AnyModel) -> AnyModel:
        """The student with early exits, where it is to have them."""
        shape = self.recipe.student
        if not (shape.early_exit and isinstance(made, Reader)):
            return made
        sizes = {"branch_size": shape.branch_size, "match_size": shape.match_size}
        given = {name: size for name, size in sizes.items() if size is not None}
        return students.early_exit(made, seed=self.recipe.seed, **given)


@dataclass(frozen=True)
class ReadyStage:
    """A stage that can begin, with stand-ins for what earlier stages will have made.

    Args:
        stage: The stage.
        student: A model of the shape that the student will have, in the form that the stage trains.
        teacher: What it learns from; models of the shapes of earlier stages' results.
        examples: Its questions before augmentation; None on a corpus.
        transfer: Its transfer set, or None.
        sources: The parts of its questions with teachers of their own, or None.
    """

    stage: Stage
    student: Reader | LanguageModel
    teacher: Teaching
    examples: datasets.Dataset | None
    transfer: TransferSet | None = None
    sources: Sources | None = None


def load_questions(data: list[str], split: str, cache_dir: str | None) -> datasets.Dataset:
    """Examples of files, of the sample or of a data set on the hub, as the data of a recipe is named.

    Args:
        data: Files, "sample" or the name of a data set.
        split: "train" or "validation", of the sample or of a data set on the hub.
        cache_dir: The cache directory, see `utils.cache.cache_directory`.

    Raises:
        DataError: The data cannot be read.
    """
    if data == [SAMPLE]:
        return load_examples(sample_path(_PARTS[split]), cache_dir=cache_dir)
    return load_examples(data[0] if len(data) == 1 else data, split=split, cache_dir=cache_dir)


def load_transfer(transfer: TransferSet, seed: int, cache_dir: str | None) -> datasets.Dataset:
    """The unlabelled examples of a transfer set whose data is named as that of a recipe.

    Args:
        transfer: As a stage has it.
        seed: The seed of the questions that are drawn from a pool.
        cache_dir: The cache directory, see `utils.cache.cache_directory`.

    Raises:
        DataError: The data or the pool cannot be read.
    """
    source: Any = [sample_path(_PARTS["train"])] if transfer.data == [SAMPLE] else transfer.data
    given = replace(transfer, data=source[0] if len(source) == 1 else source)
    return given.load(seed, cache_dir=cache_dir)


def ready_stages(inputs: Inputs, student: Student) -> Iterator[ReadyStage]:
    """Find out stage by stage whether it can begin, so that the last does not fail after the first ones took hours.

    Args:
        inputs: What the recipe works with.
        student: The student that the first stage begins with. It is not changed.

    Raises:
        DistilError: A stage cannot begin; the message begins with its name.
        DataError: Data of a stage cannot be read.
    """
    recipe = inputs.recipe
    made: dict[str, Reader | LanguageModel] = {}
    for number, stage in enumerate(recipe.stages):
        with in_section(f"stage {stage.name}"):
            student = inputs.student_of(stage, student, lambda name: made[name].copy())
            form = student.reader() if stage.corpus is None else inputs.language_model_of(stage, student)
            plain = isinstance(stage.adaptation, AllWeights)  # others may leave something in the model
            form = form.copy() if number == 0 or not plain else form
            teacher = inputs.teachers(stage, form, lambda name: made[name].copy())
            examples = None if stage.corpus else inputs.original(stage)
            sources = inputs.sources(stage, lambda name: made[name].copy())
            ready = ReadyStage(stage, form, teacher, examples, inputs.transfer(stage), sources)
            _check(inputs, ready)
        yield ready
        with torch.random.fork_rng(devices=[]), adapted(form.model, stage.adaptation):
            pass  # what the stage will leave in its model, such as adapters, later stages have to suit
        made[stage.name] = form
        student = student.after(form)
    if recipe.labels_only:
        with in_section("labels_only"):
            if not any(inputs.examples["labelled"]):
                raise DistilError("none of the data is labelled; leave labels_only out, or give labelled data")
            if recipe.stages[0].corpus is not None:
                inputs.first_reader()  # it is made of other things than the student of the first stage


def _check(inputs: Inputs, ready: ReadyStage) -> None:
    stage, teacher = ready.stage, ready.teacher
    names = [one.name for one in inputs.recipe.stages]
    earlier = names[: names.index(stage.name)]
    for option, needed, given in runs_needed(stage):
        if given and given not in earlier and not expand_user(given).is_dir():
            raise DistilError(
                f"{option}: {given!r} is neither an earlier stage nor a directory; name a stage with the method "
                f"{needed}, or the output directory of such a run"
            )
    settings = run_settings(inputs.recipe, stage)
    if isinstance(ready.student, LanguageModel):
        assert stage.corpus is not None
        assert teacher is None or isinstance(teacher, LanguageModel)
        LanguageModelTrainer(ready.student, None, settings, stage.corpus.text).check(
            teacher, stage.method, adaptation=stage.adaptation
        )
        return
    assert not isinstance(teacher, LanguageModel)
    assert ready.examples is not None
    examples = ready.examples
    if stage.augment is not None:
        inputs.augmentation(stage, ready.student)
        examples = _as_augmented(examples, stage.augment)
    if stage.adaptation.save_only_trained and not _follows_a_stage(inputs.recipe, stage):
        check_base(ready.student.model, None, required=True)
    objective = ReaderTrainer(ready.student, None, settings).check(
        teacher,
        examples if ready.sources is None else ready.sources,
        stage.method,
        measured=inputs.dev_examples is not None,
        transfer=ready.transfer,
        adaptation=stage.adaptation,
    )
    if objective.student_request.logits:
        ready.student.untrained = ()  # as training leaves it


def _as_augmented(examples: datasets.Dataset, augment: AugmentSettings) -> datasets.Dataset:
    """Examples with the labels that augmentation leaves them; where it may lose labels, one example has lost its."""
    labelled = np.array(examples["labelled"], dtype=bool)
    if augment.drop_labels:
        labelled[:] = False
    elif augment.context_ngrams and labelled.sum() > 1:
        labelled[labelled.argmax()] = False
    return examples.remove_columns("labelled").add_column("labelled", labelled.tolist())  # type: ignore[call-arg]


def _follows_a_stage(recipe: Recipe, stage: Stage) -> bool:
    """Whether the student of a stage will be loaded from the directory of an earlier one."""
    first = stage is recipe.stages[0]
    return isinstance(stage.student, StageResult) or (stage.student is None and not first)


def stages_of_reader(recipe: Recipe) -> list[Stage]:
    """The stages that the weights of the finished reader have passed through, the last one first.

    Not those of a teacher that was trained first, nor of an earlier generation.
    """
    places = {stage.name: number for number, stage in enumerate(recipe.stages)}
    found = [recipe.stages[-1]]
    while True:
        before = found[-1].student
        number = places[found[-1].name] - 1
        if isinstance(before, StageResult):
            number = places[before.stage]
        elif before is not None or number < 0:
            return found
        found.append(recipe.stages[number])


def windows_of(stage: Stage, windows: int) -> int:
    """The windows of an epoch of a stage on questions, those of its transfer set included.

    Args:
        stage: The stage.
        windows: Those of its questions before augmentation.
    """
    total = windows * (1 if stage.augment is None else stage.augment.multiplication_factor)
    if stage.transfer is not None:
        share = stage.transfer.proportion
        total += max(1, round(total * share / (1 - share)))
    return total


def steps_of(stage: Stage, windows: int) -> int:
    """The optimiser steps of a stage on questions; see `windows_of`."""
    settings = stage.settings
    per_step = settings.batch_size * settings.gradient_accumulation_steps
    return settings.max_steps or settings.n_epochs * -(-windows_of(stage, windows) // per_step)


def run_settings(recipe: Recipe, stage: Stage, **run: Any) -> TrainingSettings:
    """How a stage trains, with the settings that are one for all stages."""
    return replace(stage.settings, seed=recipe.seed, precision=recipe.precision, **run)


def _is_reader(name: str) -> bool:
    """Whether a model's configuration names it a model for question answering."""
    return any(kind.endswith("ForQuestionAnswering") for kind in architectures(name, "student to start from"))
