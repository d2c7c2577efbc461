"""The three-step recipe: general distillation, intermediate layers on augmented data, the prediction layer.

Each step works in a directory of its own under the recipe's `output_dir` and leaves a model there. A step that is
finished is not done again; one that was cut off goes on from its last checkpoint.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from accelerate import PartialState

from augment.augmenter import augmented
from augment.tagging import choose_tagger
from haystack_distill import students
from haystack_distill.card import write_card
from haystack_distill.compat import architectures
from haystack_distill.corpus import Corpus, TextSettings
from haystack_distill.devices import resolve_device
from haystack_distill.embedded import named_reader
from haystack_distill.errors import DistilError
from haystack_distill.features import WindowSettings
from haystack_distill.files import RUN_FILE, hash_of, write_aside, write_json
from haystack_distill.general import GeneralTrainer
from haystack_distill.language_model import LanguageModel
from haystack_distill.measurements import Measurements, measure_reader
from haystack_distill.reader import Reader
from haystack_distill.recipe_file import GeneralStep, LayersStep, Recipe, Training, layers_losses
from haystack_distill.report import write_report
from haystack_distill.runs import versions
from haystack_distill.sample import sample_path
from haystack_distill.settings import TrainingSettings
from haystack_distill.squad import content_hash, load_examples
from haystack_distill.squad_arrow import SCHEMA, batches_of, plain_rows
from haystack_distill.squad_checks import Row
from haystack_distill.store import cache_directory, cached_table
from haystack_distill.teachers import model_hash
from haystack_distill.trainer import ReaderTrainer

logger = logging.getLogger(__name__)

GENERAL, LAYERS, ANSWERS, LABELS_ONLY, READER = "1-general", "2-layers", "3-answers", "labels-only", "reader"
RESULT_FILE = "recipe.json"
SAMPLE = "sample"  # as the name of data: the one that comes with this package
_PARTS: dict[str, Any] = {"train": "train", "validation": "dev"}  # of the sample, by the hub's names of splits
_ROLES = ("teacher", "distilled", "labels")  # of the readers, in the order in which they are measured
_STEP_FILE = "step.json"  # what a step is made from, written before it begins
_AUGMENTED_FORMAT = 1  # raise it when the same data would be augmented differently


@dataclass(frozen=True)
class RecipeResult:
    """What came of a recipe.

    Attributes:
        directory: The finished reader.
        steps: Optimiser steps of each step, by its directory's name.
        seconds: Of each step's training, likewise.
        metrics: SQuAD metrics on the dev data by model: "teacher", "student" and maybe "labels only".
    """

    directory: Path
    steps: dict[str, int]
    seconds: dict[str, float]
    metrics: dict[str, dict[str, float]]


def run_recipe(recipe: Recipe, *, progress: bool = True) -> RecipeResult:
    """Do what is left to do of a recipe.

    Args:
        recipe: See `recipe_file.Recipe`.
        progress: Whether to show bars.

    Raises:
        DistilError: Something is wrong with the recipe, or a step was done otherwise before.
        DataError: Something is wrong with the data.
    """
    return _Cook(recipe, progress).run()


def distil_general(step: GeneralStep, trainer: GeneralTrainer, teacher: LanguageModel, corpus: Corpus) -> object:
    """Run step 1 with a trainer that is made for it."""
    run = trainer.distil_layers_from if step.objective == "layers" else trainer.distil_predictions_from
    return run(teacher, corpus, **step.losses())


def labels_training(recipe: Recipe, steps: int) -> Training:
    """How a student is trained on labels alone, to compare with: as in step 3 (else step 2), for so many steps."""
    like = recipe.answers or recipe.layers or Training()
    own = {name: getattr(like, name) for name in Training.__dataclass_fields__}
    return Training(**own | {"max_steps": steps})


class Ingredients:
    """What a recipe works with: the teacher, the data and the first student, loaded when they are asked for."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        windows = WindowSettings(recipe.max_seq_len, recipe.doc_stride, recipe.max_query_length)
        self.reading: dict[str, Any] = {
            "windows": windows,
            "device": resolve_device(recipe.device),
            "precision": recipe.precision,
        }
        self.where = {name: self.reading[name] for name in ("device", "precision")}
        self.teacher = named_reader(recipe.teacher, **self.reading)
        if recipe.answers:
            self.teacher.require_trained()
        self.examples = self.load(recipe.data, "train")

    def load(self, data: list[str], split: str) -> datasets.Dataset:
        """Examples of files or of a data set on the hub."""
        if data == [SAMPLE]:
            return load_examples(sample_path(_PARTS[split]), cache_dir=self.recipe.cache_dir)
        return load_examples(data[0] if len(data) == 1 else data, split=split, cache_dir=self.recipe.cache_dir)

    def corpus(self, step: GeneralStep, scratch: Path) -> Corpus:
        """The text of step 1; where it is the contexts of the data, they are written to a file in `scratch`."""
        if step.corpus:
            source = step.corpus[0] if len(step.corpus) == 1 else step.corpus
            return Corpus(source, text_column=step.text_column, split=step.corpus_split, config=step.corpus_config)
        path = scratch / f"contexts-{content_hash(self.examples)[:16]}.jsonl"

        def write(aside: Path) -> None:
            with open(aside, "w", encoding="utf-8") as file:
                for context, _ in groupby(plain_rows(self.examples, ["context"]), lambda row: row["context"]):
                    file.write(json.dumps({"text": context}, ensure_ascii=False) + "\n")

        if not path.exists():
            write_aside(path, write)
        return Corpus(path)

    def general_pair(self, step: GeneralStep) -> tuple[LanguageModel, LanguageModel]:
        """Student and teacher of step 1."""
        named = step.teacher
        teacher = LanguageModel.of(self.teacher) if named is None else LanguageModel.load(named, **self.where)
        if step.objective == "predictions" and not teacher.has_head:
            raise DistilError(
                "general: the objective 'predictions' needs a masked language model to learn from: name one as "
                "general.teacher"
            )
        shape = self.recipe.student
        if shape.start_from is not None:
            return LanguageModel.load(shape.start_from, **self.where), teacher
        return self._made_from(teacher), teacher

    def first_student(self) -> Reader:
        """The reader that the first step on questions begins with, where there is no step 1."""
        start = self.recipe.student.start_from
        if start is None:
            return self._made_from(self.teacher)
        if _is_reader(start):
            return Reader.load(start, **self.reading)
        return students.from_language_model(LanguageModel.load(start, **self.where), self.teacher)

    def reader_of(self, student: LanguageModel) -> Reader:
        """A reader on what step 1 left, with the head of the reader that it began with, else the teacher's."""
        start = self.recipe.student.start_from
        if start is not None and _is_reader(start):
            return students.from_language_model(student, Reader.load(start, **self.reading))
        return students.from_language_model(student, self.teacher)

    def _made_from(self, teacher: students.AnyModel) -> students.AnyModel:
        shape = self.recipe.student
        if shape.fresh_shape:
            return students.fresh(teacher, seed=self.recipe.seed, **shape.fresh_shape)
        return students.from_teacher(teacher, shape.layers or 3, shape.which)

    def layers_data(self, step: LayersStep) -> datasets.Dataset:
        """What step 2 trains on: data of its own, or the recipe's, multiplied."""
        if step.data is not None:
            return self.load(step.data, "train")
        if step.multiplication_factor == 1:
            return self.examples
        mask = self.teacher.tokenizer.mask_token
        if mask is None and step.p_mask:
            raise DistilError("layers: the tokenizer has no mask token; set p_mask: 0")
        settings = step.augmentation(self.recipe.seed, mask)
        key = hash_of(
            "augmented", _AUGMENTED_FORMAT, content_hash(self.examples), asdict(settings), choose_tagger(step.tagger)
        )

        def batches() -> Iterator[dict[str, pa.Array]]:
            return batches_of(_row_of(example) for example in augmented(self.examples, settings))

        return cached_table("examples", key, SCHEMA, batches, self.recipe.cache_dir)[0]


class _Cook:
    """Does the steps of a recipe, one after the other."""

    def __init__(self, recipe: Recipe, progress: bool) -> None:
        self.recipe = recipe
        self.progress = progress
        self.output = Path(recipe.output_dir).expanduser()
        if self.output.exists() and not self.output.is_dir():
            raise DistilError(f"{self.output} is a file: choose another output_dir")
        self.processes = PartialState(cpu=resolve_device(recipe.device).type == "cpu")
        self.record: dict[str, Any] = {}  # what the step at hand is made from, all steps before it included
        self.done: dict[str, dict[str, Any]] = {}  # the run records of finished steps

    def run(self) -> RecipeResult:
        recipe = self.recipe
        with self.processes.main_process_first():
            have = Ingredients(recipe)
        self.reading = have.reading
        self.record = {
            "teacher": model_hash(have.teacher.model),
            "student": asdict(recipe.student),
            "windows": asdict(have.teacher.windows),
            "seed": recipe.seed,
            "precision": have.teacher.precision,
        }
        student = self._general(have, recipe.general) if recipe.general else have.first_student()
        if recipe.layers:
            with self.processes.main_process_first():
                data = have.layers_data(recipe.layers)
            losses = layers_losses(recipe.layers)
            student = self._step(
                LAYERS,
                recipe.layers,
                student,
                data,
                lambda trainer: trainer.distil_intermediate_layers_from(have.teacher, data, **losses),
            )
        if recipe.answers:
            answers = recipe.answers.losses()
            student = self._step(
                ANSWERS,
                recipe.answers,
                student,
                have.examples,
                lambda trainer: trainer.distil_prediction_layer_from(have.teacher, have.examples, **answers),
            )
        readers = {"teacher": have.teacher, "student": student}
        if recipe.labels_only:
            readers["labels only"] = self._labels_only(have)
        return self._finish(readers, have)

    def _general(self, have: Ingredients, step: GeneralStep) -> Reader:
        with self.processes.main_process_first():
            corpus = have.corpus(step, cache_directory(self.recipe.cache_dir) / "corpora")
        directory = self._begin(GENERAL, step, corpus.identity)
        if not self._is_finished(directory):
            text = TextSettings(step.max_seq_len, step.mask_probability, step.buffer_windows)
            student, teacher = have.general_pair(step)
            distil_general(step, GeneralTrainer(student, directory, self._settings(step), text), teacher, corpus)
        self._note(GENERAL, directory)
        return have.reader_of(LanguageModel.load(directory, **have.where))

    def _step(
        self,
        name: str,
        step: Training,
        student: Reader,
        data: datasets.Dataset,
        run: Callable[[ReaderTrainer], object],
    ) -> Reader:
        directory = self._begin(name, step, content_hash(data))
        if not self._is_finished(directory):
            run(ReaderTrainer(student, directory, self._settings(step), cache_dir=self.recipe.cache_dir))
        self._note(name, directory)
        # Also where it was trained just now: what a stopped recipe goes on with is what an unstopped one has.
        return Reader.load(directory, **self.reading)

    def _labels_only(self, have: Ingredients) -> Reader:
        """The student as it was made, trained on labels alone for as many steps as all steps together."""
        steps = sum(record["steps"] for record in self.done.values())
        training = labels_training(self.recipe, steps)
        student = have.first_student()
        return self._step(LABELS_ONLY, training, student, have.examples, lambda trainer: trainer.train(have.examples))

    def _settings(self, step: Training) -> TrainingSettings:
        return step.settings(
            seed=self.recipe.seed, precision=self.recipe.precision, progress=self.progress, resume=True
        )

    def _begin(self, name: str, step: Training, data: str) -> Path:
        """The directory of a step, after a check that nothing else was begun there."""
        told = {key: value for key, value in asdict(step).items() if key != "checkpoint_every"}  # decides no weight
        self.record = {**self.record, name: {**told, "data": data}}
        record = json.loads(json.dumps(self.record))
        directory = self.output / name
        begun = directory / _STEP_FILE
        if begun.exists():
            before = json.loads(begun.read_text(encoding="utf-8"))
            changed = [
                f"{place}: then {then}, now {now}" for place, then, now in _differences(before, record) if then != now
            ]
            if changed:
                raise DistilError(
                    f"{directory} was begun otherwise ({'; '.join(changed)}). Remove it, and the directories of the "
                    "steps after it, to do it anew; or choose another output_dir"
                )
        elif self.processes.is_main_process:
            write_json(begun, record)
        logger.info("%s: %s", name, "done before" if self._is_finished(directory) else directory)
        self.processes.wait_for_everyone()
        return directory

    def _is_finished(self, directory: Path) -> bool:
        return (directory / RUN_FILE).exists()

    def _note(self, name: str, directory: Path) -> None:
        self.done[name] = json.loads((directory / RUN_FILE).read_text(encoding="utf-8"))
        if self.processes.is_main_process:  # a run killed at its very end may have left them
            shutil.rmtree(directory / "checkpoints", ignore_errors=True)

    def _finish(self, readers: dict[str, Reader], have: Ingredients) -> RecipeResult:
        """Measure, and write the finished reader with its report and its card."""
        recipe = self.recipe
        target = self.output / READER
        result_file = self.output / RESULT_FILE
        dev = None
        if recipe.dev_data:
            with self.processes.main_process_first():
                dev = have.load(recipe.dev_data, "validation")
        shown = {"dev_data": None if dev is None else content_hash(dev), "card": [recipe.license, recipe.language]}
        record = json.loads(json.dumps(self.record | shown))
        known = json.loads(result_file.read_text(encoding="utf-8")) if result_file.exists() else {}
        if known.get("record") != record:
            measured = []
            if dev is not None:
                for (name, reader), role in zip(readers.items(), _ROLES, strict=False):
                    common = {"processes": self.processes, "cache_dir": recipe.cache_dir}
                    measured.append(measure_reader(reader, dev, name, role=role, **common))  # type: ignore[arg-type]
            if self.processes.is_main_process:
                readers["student"].save(target)
                self._describe(target, dev, measured)
                known = {
                    "record": record,
                    "recipe": recipe.as_dict(),
                    "versions": versions(),
                    "steps": {name: run["steps"] for name, run in self.done.items()},
                    "seconds": {name: run["seconds"] for name, run in self.done.items()},
                    "metrics": {one.name: dict(one.metrics) for one in measured},
                }
                write_json(result_file, known)
            self.processes.wait_for_everyone()
            known = json.loads(result_file.read_text(encoding="utf-8"))
        return RecipeResult(target, known["steps"], known["seconds"], known["metrics"])

    def _describe(self, target: Path, dev: datasets.Dataset | None, measured: list[Measurements]) -> None:
        """The finished reader's report and card."""
        recipe = self.recipe
        if dev is not None:
            facts = {"teacher": Path(recipe.teacher).name, "seed": recipe.seed} | versions()
            histories = {name: run["history"] for name, run in self.done.items()}
            write_report(target, measured, dev, histories, title=f"Distilled from {facts['teacher']}", facts=facts)
        write_card(
            target,
            metrics=next((one.metrics for one in measured if one.role == "distilled"), {}),
            teacher=recipe.teacher,
            train_data=recipe.data,
            dev_data=recipe.dev_data[0] if recipe.dev_data else None,
            runs=[run for name, run in self.done.items() if name != LABELS_ONLY],
            measurements=measured,
            license=recipe.license,
            language=recipe.language,
        )


def _differences(before: Any, now: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The leaves of two nested dictionaries: where they are, and what stands there."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*before, *now]):
            yield from _differences(before.get(name), now.get(name), f"{place}.{name}" if place else name)
    else:
        yield place, before, now


def _is_reader(name: str) -> bool:
    """Whether a model says of itself that it answers questions."""
    return any(kind.endswith("ForQuestionAnswering") for kind in architectures(name, "student to start from"))


def _row_of(example: dict[str, Any]) -> Row:
    answers = example["answers"]
    flags = example["is_impossible"], example["labelled"]
    texts = example["id"], example["title"], example["context"], example["question"]
    return Row(*texts, answers["text"], answers["answer_start"], *flags, repaired=False)
