"""The three-step recipe: general distillation, intermediate layers on augmented data, the prediction layer.

Each step works in a directory of its own under the recipe's `output_dir` and leaves a model there. A step that is
finished is not done again; one that was cut off goes on from its last checkpoint.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from accelerate import PartialState

from augment.augmenter import augmented
from augment.settings import AugmentSettings
from augment.tagging import choose_tagger
from haystack_distill import students
from haystack_distill.data.corpus import Corpus
from haystack_distill.data.sample import sample_path
from haystack_distill.data.squad.arrow import SCHEMA, plain_rows, record_batches
from haystack_distill.data.squad.load import content_hash, load_examples
from haystack_distill.data.squad.metrics import require_measurable
from haystack_distill.data.squad.validation import Row
from haystack_distill.data.text_windows import TextSettings
from haystack_distill.data.window_settings import WindowSettings
from haystack_distill.errors import DistilError
from haystack_distill.evaluation.measurements import Measurements, measure_reader
from haystack_distill.models.embedded import named_reader
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.models.reader import Reader
from haystack_distill.objectives import IntermediateLayers, MaskedLanguageModel, PredictionLayer
from haystack_distill.recipes.schema import GeneralStep, LayersStep, Recipe, Training, layers_losses
from haystack_distill.reporting.model_card import CARD_FILE, write_card
from haystack_distill.reporting.report import REPORT_FILE, write_report
from haystack_distill.students.layers import AnyModel
from haystack_distill.teachers.live import require_same_tokens
from haystack_distill.training.checkpoints import FOLDER, Checkpoints, clear_finished, directory_lock
from haystack_distill.training.language_model_trainer import LanguageModelTrainer
from haystack_distill.training.reader_trainer import ReaderTrainer, warn_of_shared_contexts
from haystack_distill.training.run_directory import NOT_RECORDED, differences, versions
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.utils.atomic import write_atomically, write_json
from haystack_distill.utils.cache import cache_directory, cached_table
from haystack_distill.utils.devices import require_device, resolve_device
from haystack_distill.utils.files import expand_user, require_writable
from haystack_distill.utils.hashing import hash_json
from haystack_distill.utils.model_files import RUN_FILE, read_json_object
from haystack_distill.utils.model_fingerprint import model_fingerprint
from haystack_distill.utils.processes import run_on_main_process
from haystack_distill.utils.transformers_compat import architectures

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
        recipe: See `recipes.schema.Recipe`.
        progress: Whether to show bars.

    Raises:
        DistilError: Something is wrong with the recipe, or a step was done otherwise before.
        DataError: Something is wrong with the data.
    """
    cook = _Cook(recipe, progress)
    with contextlib.ExitStack() as held:
        run_on_main_process(lambda: held.enter_context(directory_lock(cook.output)), cook.processes)
        run_on_main_process(cook.check_reader, cook.processes)
        return cook.run()


def distil_general(step: GeneralStep, trainer: LanguageModelTrainer, teacher: LanguageModel, corpus: Corpus) -> object:
    """Run step 1 with a trainer that is made for it."""
    method = IntermediateLayers if step.objective == "layers" else MaskedLanguageModel
    return trainer.distil(teacher, corpus, method(**step.losses()))


def labels_training(recipe: Recipe, steps: int) -> Training:
    """How a student is trained on labels alone, to compare with: as in step 3 (else step 2), for so many steps."""
    like = recipe.answers or recipe.layers or Training()
    own = {name: getattr(like, name) for name in Training.__dataclass_fields__}
    return Training(**own | {"max_steps": steps})


class Ingredients:
    """What a recipe works with: the teacher, the data and the first student, loaded when they are asked for."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        require_writable(expand_user(recipe.output_dir))
        require_device(recipe.device)
        window_settings = WindowSettings(recipe.max_seq_len, recipe.doc_stride, recipe.max_query_length)
        self.reading: dict[str, Any] = {
            "window_settings": window_settings,
            "device": resolve_device(recipe.device),
            "precision": recipe.precision,
        }
        self.where = {name: self.reading[name] for name in ("device", "precision")}
        self.examples = self.load(recipe.data, "train")
        self.dev_examples: datasets.Dataset | None = None
        if recipe.dev_data:
            with _in_section("dev_data"):
                self.dev_examples = self.load(recipe.dev_data, "validation")
                require_measurable(self.dev_examples)
        self.teacher = named_reader(recipe.teacher, **self.reading)
        if recipe.answers:
            self.teacher.require_trained()
        self._tagger: str | None = None

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
            write_atomically(path, write)
        return Corpus(path)

    def starting_weights(self) -> dict[str, str]:
        """Hashes of the models that are named besides the teacher: a name may come to stand for other weights."""
        general, found = self.recipe.general, {}
        start = self.recipe.student.start_from
        if start is not None:
            student = self.first_student() if general is None else LanguageModel.load(start, **self.where)
            found["start_from_weights"] = model_fingerprint(student.model)
        if general is not None and general.teacher is not None:
            found["general_teacher_weights"] = model_fingerprint(
                LanguageModel.load(general.teacher, **self.where).model
            )
        return found

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

    def _made_from(self, teacher: AnyModel) -> AnyModel:
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
        settings, tagger = self.augmentation(step)
        key = hash_json("augmented", _AUGMENTED_FORMAT, content_hash(self.examples), asdict(settings), tagger)

        def batches() -> Iterator[dict[str, pa.Array]]:
            chosen = replace(settings, tagger=tagger)  # else it would be chosen, and the choice logged, once more
            return record_batches(Row.from_example(example) for example in augmented(self.examples, chosen))

        return cached_table("examples", key, SCHEMA, batches, self.recipe.cache_dir)[0]

    def augmentation(self, step: LayersStep) -> tuple[AugmentSettings, str]:
        """How step 2 multiplies the data, and the tagger that this means here."""
        mask = self.teacher.tokenizer.mask_token
        if mask is None and step.p_mask:
            raise DistilError("the tokenizer has no mask token; set p_mask: 0")
        if self._tagger is None:
            self._tagger = choose_tagger(step.tagger)
        return step.augmentation(self.recipe.seed, mask), self._tagger


def check_steps(have: Ingredients, student: Reader) -> None:
    """Find out whether every step can begin, so that the last does not fail after the first ones took hours.

    Args:
        have: What the recipe works with.
        student: The reader that the first step on questions begins with, or one of its shape.

    Raises:
        DistilError: One cannot; the message begins with its name.
        DataError: Data of step 2 cannot be read.
    """
    recipe = have.recipe
    labelled = any(have.examples["labelled"])
    configs = student.model.config, have.teacher.model.config
    if recipe.layers:
        with _in_section("layers"):
            if recipe.layers.data is not None:
                have.load(recipe.layers.data, "train")
            elif recipe.layers.multiplication_factor > 1:
                have.augmentation(recipe.layers)
            require_same_tokens(student, have.teacher)
            IntermediateLayers(**layers_losses(recipe.layers)).objective(*configs)
    if recipe.answers:
        with _in_section("answers"):
            PredictionLayer(**recipe.answers.losses())
            if not labelled and recipe.answers.distillation_loss_weight == 0:
                raise DistilError(
                    "none of the data is labelled, so with a distillation_loss_weight of 0 there is nothing to learn: "
                    "raise it, or give labelled data"
                )
    if recipe.labels_only:
        with _in_section("labels_only"):
            if not labelled:
                raise DistilError("none of the data is labelled: leave labels_only out, or give labelled data")
            if recipe.general:
                have.first_student()  # it is made of other things than the student that step 1 teaches


@contextlib.contextmanager
def _in_section(name: str) -> Iterator[None]:
    """What is wrong in here is said with the section's name before it."""
    try:
        yield
    except DistilError as error:
        raise type(error)(f"{name}: {error}") from error


class _Cook:
    """Does the steps of a recipe, one after the other."""

    def __init__(self, recipe: Recipe, progress: bool) -> None:
        self.recipe = recipe
        self.progress = progress
        self.output = expand_user(recipe.output_dir)
        if self.output.exists() and not self.output.is_dir():
            raise DistilError(f"{self.output} is a file: choose another output_dir")
        self.processes = PartialState(cpu=resolve_device(recipe.device).type == "cpu")
        self.record: dict[str, Any] = {}  # what the step at hand is made from, all steps before it included
        self.done: dict[str, dict[str, Any]] = {}  # the run records of finished steps

    def check_reader(self) -> None:
        """Check that the finished reader would not be written over something else: at first nothing may be there."""
        begun = [self.output / name / _STEP_FILE for name in (GENERAL, LAYERS, ANSWERS, LABELS_ONLY)]
        target = self.output / READER
        if any(path.exists() for path in (*begun, self.output / RESULT_FILE)) or not target.exists():
            return
        if not target.is_dir() or any(target.iterdir()):
            raise DistilError(
                f"{target}, where the finished reader would go, is not of this recipe: choose another output_dir, or "
                "move it away"
            )

    def run(self) -> RecipeResult:
        recipe = self.recipe
        with self.processes.main_process_first():
            have = Ingredients(recipe)
            starting_weights = have.starting_weights()
        self.reading = have.reading
        self.record = {
            "teacher": model_fingerprint(have.teacher.model),
            "student": asdict(recipe.student) | starting_weights,
            "windows": asdict(have.teacher.window_settings),
            "seed": recipe.seed,
            "precision": have.teacher.precision,
        }
        if have.dev_examples is not None and self.processes.is_main_process:
            warn_of_shared_contexts(have.examples, have.dev_examples)
        self._known()  # one that was cut off is better known before the steps than after
        pair = None
        if recipe.general is None:
            student = have.first_student()
        elif self._is_finished(self.output / GENERAL):
            made = LanguageModel.load(self.output / GENERAL, **have.where)
            student = have.reader_of(made)
        else:
            pair = have.general_pair(recipe.general)
            student = have.reader_of(pair[0])
        with self.processes.main_process_first():  # the others find what it has read in the cache
            check_steps(have, student)
        if recipe.general:
            student = self._general(have, recipe.general, pair)
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

    def _general(
        self, have: Ingredients, step: GeneralStep, pair: tuple[LanguageModel, LanguageModel] | None
    ) -> Reader:
        with self.processes.main_process_first():
            corpus = have.corpus(step, cache_directory(self.recipe.cache_dir) / "corpora")
        directory = self._begin(GENERAL, step, corpus.identity, corpus_content=corpus.fingerprint)
        if not self._is_finished(directory):
            text = TextSettings(step.max_seq_len, step.mask_probability, step.buffer_windows)
            student, teacher = pair or have.general_pair(step)
            distil_general(step, LanguageModelTrainer(student, directory, self._settings(step), text), teacher, corpus)
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

    def _begin(self, name: str, step: Training, data: str, **more: str | None) -> Path:
        """The directory of a step, after a check that nothing else was begun there."""
        told = {key: value for key, value in asdict(step).items() if key != "checkpoint_every"}  # decides no weight
        self.record = {**self.record, name: {**told, "data": data, **more}}
        record = json.loads(json.dumps(self.record))
        directory = self.output / name
        begun = directory / _STEP_FILE
        before = None
        if self._is_finished(directory) or Checkpoints(directory / FOLDER, run="").any():  # else nothing stands on it
            before = read_json_object(directory, _STEP_FILE, f"remove {directory} to do the step anew")
        if before is not None:
            if not before.keys() & record.keys():
                raise DistilError(f"{begun} is not the record of a step: remove {directory} to do the step anew")
            changed, unknown = [], []
            for place, then, now in differences(before, record):
                if then == NOT_RECORDED:
                    unknown.append(place)
                elif then != now:
                    changed.append(f"{place}: then {then}, now {now}")
            if unknown:
                logger.warning(
                    "%s was begun by an earlier version, which did not record %s", directory, ", ".join(unknown)
                )
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
        remedy = f"remove {directory} to do the step anew"
        record = read_json_object(directory, RUN_FILE, remedy) or {}
        if not {"steps", "seconds", "history"} <= record.keys():
            raise DistilError(f"{directory / RUN_FILE} is not the record of a finished run: {remedy}")
        self.done[name] = record
        if self.processes.is_main_process:  # a run killed at its very end may have left them
            clear_finished(directory)

    def _finish(self, readers: dict[str, Reader], have: Ingredients) -> RecipeResult:
        """Measure, and write the finished reader with its report and its card."""
        recipe = self.recipe
        target = self.output / READER
        dev = have.dev_examples
        shown = {"dev_data": None if dev is None else content_hash(dev), "card": [recipe.license, recipe.language]}
        record = json.loads(json.dumps(self.record | shown))
        known = self._known()
        wanted = ["config.json", "model.safetensors", CARD_FILE, *([REPORT_FILE] if dev is not None else [])]
        made = all((target / name).is_file() for name in wanted)
        self.processes.wait_for_everyone()  # until all have looked, and before the first one writes
        if known.get("record") != record or not made:
            measured = []
            if dev is not None:
                for (name, reader), role in zip(readers.items(), _ROLES, strict=False):
                    common = {"processes": self.processes, "cache_dir": recipe.cache_dir, "progress": self.progress}
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
                write_json(self.output / RESULT_FILE, known)
            self.processes.wait_for_everyone()
            known = self._known()
        return RecipeResult(target, known["steps"], known["seconds"], known["metrics"])

    def _known(self) -> dict[str, Any]:
        """What came of the recipe when it was finished before; empty where it was not."""
        remedy = "remove it, and the recipe measures its readers and writes it again"
        known = read_json_object(self.output, RESULT_FILE, remedy) or {}
        if known and not {"record", "steps", "seconds", "metrics"} <= known.keys():
            raise DistilError(f"{self.output / RESULT_FILE} is not the result of a recipe: {remedy}")
        return known

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


def _is_reader(name: str) -> bool:
    """Whether a model says of itself that it answers questions."""
    return any(kind.endswith("ForQuestionAnswering") for kind in architectures(name, "student to start from"))
