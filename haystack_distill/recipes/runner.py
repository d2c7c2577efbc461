"""Running a recipe: its stages one after the other, each resumed where it was and none repeated.

Each stage works in a directory of its own under the recipe's `output_dir` and leaves a model there. A stage that is
finished is not repeated; an interrupted one resumes from its last checkpoint.
"""

import contextlib
import json
import logging
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState

from haystack_distill.data.squad.load import content_hash
from haystack_distill.errors import DistilError, in_section
from haystack_distill.evaluation.measurements import Measurements, Role, measure_reader
from haystack_distill.models.adapters import adapters_of
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.models.reader import Reader
from haystack_distill.objectives import Labels
from haystack_distill.recipes.inputs import (
    Inputs,
    Student,
    ready_stages,
    run_settings,
    stages_of_reader,
)
from haystack_distill.recipes.schema import LABELS_ONLY, READER, TEACHER, Recipe, Stage
from haystack_distill.reporting.model_card import CARD_FILE, write_card
from haystack_distill.reporting.report import REPORT_FILE, write_report
from haystack_distill.training.checkpoints import FOLDER, Checkpoints, clear_finished, directory_lock
from haystack_distill.training.language_model_trainer import LanguageModelTrainer
from haystack_distill.training.reader_trainer import ReaderTrainer, warn_of_shared_contexts
from haystack_distill.training.run import adaptation_record, method_record
from haystack_distill.training.run_record import NOT_RECORDED, differences, head_names, settings_record, versions
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.utils.atomic import write_json
from haystack_distill.utils.cache import cache_directory
from haystack_distill.utils.devices import resolve_device
from haystack_distill.utils.files import expand_user
from haystack_distill.utils.model_files import HEADS_FOLDER, RUN_FILE, TRAINED_WEIGHTS, read_json_object
from haystack_distill.utils.model_fingerprint import model_fingerprint
from haystack_distill.utils.processes import run_on_main_process

logger = logging.getLogger(__name__)

RESULT_FILE = "recipe.json"
_ROLES: dict[str, Role] = {"teacher": "teacher", "student": "distilled", "labels only": "labels"}
_STAGE_FILE = "stage.json"  # what a stage is made from, written before it begins


@dataclass(frozen=True)
class RecipeResult:
    """The result of a recipe.

    Attributes:
        directory: The finished reader.
        steps: Optimiser steps of each stage, by its directory's name.
        seconds: Of each stage's training, likewise.
        metrics: SQuAD metrics on the dev data by model: "teacher", "student" and maybe "labels only".
    """

    directory: Path
    steps: dict[str, int]
    seconds: dict[str, float]
    metrics: dict[str, dict[str, float]]


def run_recipe(recipe: Recipe, *, progress: bool = True, measure: bool = True) -> RecipeResult:
    """Run what is left of a recipe.

    Args:
        recipe: See `recipes.schema.Recipe`.
        progress: Whether to show bars.
        measure: Whether teacher and student are measured at the end, where there are dev data.

    Raises:
        DistilError: Something is wrong with the recipe, or a stage was begun otherwise before.
        DataError: Something is wrong with the data.
    """
    runner = _Runner(recipe, progress, measure)
    with contextlib.ExitStack() as held:
        run_on_main_process(lambda: held.enter_context(directory_lock(runner.output)), runner.processes)
        run_on_main_process(runner.check_reader, runner.processes)
        return runner.run()


def labels_stage(recipe: Recipe, steps: int) -> Stage:
    """The student trained on labels alone, to compare with: as the last stage on questions, for so many steps."""
    on_questions = [stage for stage in recipe.stages if stage.corpus is None]
    made = Stage(LABELS_ONLY, Labels())
    settings = on_questions[-1].settings if on_questions else made.settings
    # Labels alone train no projections.
    return replace(made, settings=replace(settings.unmeasured(), max_steps=steps, projection_learning_rate=None))


class _Runner:
    """Runs the stages of a recipe, one after the other."""

    def __init__(self, recipe: Recipe, progress: bool, measure: bool) -> None:
        self.recipe = recipe
        self.progress = progress
        self.measure = measure
        self.output = expand_user(recipe.output_dir)
        if self.output.exists() and not self.output.is_dir():
            raise DistilError(f"{self.output} is a file; choose another output_dir")
        self.processes = PartialState(cpu=resolve_device(recipe.device).type == "cpu")
        self.record: dict[str, Any] = {}  # what the present stage is made from, all stages before it included
        self.taught = False  # whether a stage learns from a teacher
        self.done: dict[str, dict[str, Any]] = {}  # the run records of finished stages

    def check_reader(self) -> None:
        """Check that the finished reader would not be written over something else: at first nothing may be there."""
        begun = self.output.glob(f"*/{_STAGE_FILE}")
        target = self.output / READER
        if any(begun) or (self.output / RESULT_FILE).exists() or not target.exists():
            return
        if not target.is_dir() or any(target.iterdir()):
            raise DistilError(
                f"{target}, where the finished reader would go, is not of this recipe; choose another output_dir, or "
                "move it away"
            )

    def run(self) -> RecipeResult:
        recipe = self.recipe
        with self.processes.main_process_first():
            inputs = self.inputs = Inputs(recipe)
            student_record = inputs.student_record()
        self.record = {
            "teacher": model_fingerprint(inputs.teacher.model),
            "student": student_record,
            "windows": asdict(recipe.windows),
            "seed": recipe.seed,
            "precision": inputs.teacher.precision,
        }
        start = self.record
        if inputs.dev_examples is not None and self.processes.is_main_process:
            warn_of_shared_contexts(inputs.examples, inputs.dev_examples)
        self._known()  # a damaged file is better known before the stages than after
        student = inputs.first_student()
        with self.processes.main_process_first():  # the others find what it has read in the cache
            taught = [
                ready.teacher is not None or (ready.sources is not None and ready.sources.any_teacher)
                for ready in ready_stages(inputs, student)
            ]
        self.taught = any(taught)
        for stage in recipe.stages:
            student = inputs.student_of(stage, student, self._result)
            student = student.after(self._on_corpus(stage, student) if stage.corpus else self._on_data(stage, student))
        readers = {"student": student.reader()}
        teacher = self._last_teacher()
        if not teacher.untrained:  # else its answers are random, and nothing to compare with
            readers = {"teacher": teacher} | readers
        if recipe.labels_only:
            steps = sum(self.done[recipe.directory_of(stage)]["steps"] for stage in stages_of_reader(recipe))
            first = inputs.first_reader()
            stages = self.record
            self.record = start  # the stages decide nothing of it but its number of steps
            readers["labels only"] = self._on_data(labels_stage(recipe, steps), Student(first, first), LABELS_ONLY)
            self.record = stages | self.record
        return self._finish(readers)

    def _on_corpus(self, stage: Stage, student: Student) -> LanguageModel:
        assert stage.corpus is not None
        name = self.recipe.directory_of(stage)
        with self.processes.main_process_first():
            corpus = self.inputs.corpus(stage, cache_directory(self.recipe.cache_dir) / "corpora")
        text = asdict(stage.corpus.text)
        directory = self._begin(
            name, stage, {"corpus": corpus.identity, "corpus_content": corpus.fingerprint, "text": text}
        )
        if not self._is_finished(directory):
            model = self.inputs.language_model_of(stage, student)
            teacher = self.inputs.teachers(stage, model, self._result)
            trainer = LanguageModelTrainer(model, directory, self._settings(stage), stage.corpus.text)
            method = self.inputs.method(stage, self.output)
            trainer.distil(teacher, corpus, method, adaptation=stage.adaptation)  # type: ignore[arg-type]
        self._note(name, directory)
        # Also where it was trained just now: a resumed recipe must have the same as one that was not interrupted.
        return LanguageModel.load(directory, **self.inputs.running)

    def _on_data(self, stage: Stage, student: Student, name: str | None = None) -> Reader:
        name = name or self.recipe.directory_of(stage)
        reader = student.reader()
        with self.processes.main_process_first(), in_section(f"stage {stage.name}"):
            data = self.inputs.questions(stage, reader)
            transfer = self.inputs.transfer(stage)
        augmentation = None
        if stage.augment is not None:
            augmentation = self.inputs.augmentation(stage, reader)[1]
        dev = self.inputs.dev_examples if stage.settings.evaluate_every else None
        measured = {} if dev is None else {"dev_data": content_hash(dev)}
        added: dict[str, Any] = {}
        if transfer is not None:
            unlabelled = transfer.load(cache_dir=self.recipe.cache_dir)
            added["transfer"] = {"data": content_hash(unlabelled), "proportion": transfer.proportion}
        if stage.sources is not None:
            added["sources"] = self.inputs.source_records(stage)
            added["sampling_exponent"] = stage.sampling_exponent
        made_from = {"data": content_hash(data), "augment": augmentation, **added, **measured}
        directory = self._begin(name, stage, made_from)
        if not self._is_finished(directory):
            teacher = self.inputs.teachers(stage, reader, self._result)
            trainer = ReaderTrainer(reader, directory, self._settings(stage), cache_dir=self.recipe.cache_dir)
            method = self.inputs.method(stage, self.output)
            trainer.distil(
                teacher,  # type: ignore[arg-type]
                self.inputs.sources(stage, self._result) or data,
                method,
                dev,
                transfer=transfer,
                adaptation=stage.adaptation,
            )
        self._note(name, directory)
        return Reader.load(directory, **self.inputs.reading)  # see above

    def _result(self, name: str) -> Reader | LanguageModel:
        """The result of an earlier stage."""
        stage = next(stage for stage in self.recipe.stages if stage.name == name)
        directory = self.output / self.recipe.directory_of(stage)
        if stage.corpus is not None:
            return LanguageModel.load(directory, **self.inputs.running)
        return Reader.load(directory, **self.inputs.reading)

    def _last_teacher(self) -> Reader:
        """The recipe's teacher; where stages train a copy of it, what the last of them made."""
        found, copies = self.inputs.teacher, set()
        before = ""
        for stage in self.recipe.stages:
            follows = before if stage.student is None else getattr(stage.student, "stage", "")
            if stage.student == TEACHER or follows in copies:
                copies.add(stage.name)
                made = self._result(stage.name)
                found = made if isinstance(made, Reader) else found
            before = stage.name
        return found

    def _settings(self, stage: Stage) -> TrainingSettings:
        return run_settings(self.recipe, stage, progress=self.progress, resume=True)

    def _begin(self, name: str, stage: Stage, made_from: dict[str, Any]) -> Path:
        """The directory of a stage, after a check that nothing else was begun there."""
        settings = settings_record(stage.settings)
        own = {key: value for key, value in settings.items() if key not in ("seed", "precision")}  # the recipe's
        averaging: dict[str, Any] = {}
        if stage.teacher_weights is not None:
            averaging["teacher_weights"] = stage.teacher_weights
        if stage.teacher_average != "probabilities":
            averaging["teacher_average"] = stage.teacher_average
        options = {
            **method_record(stage.method),
            "adaptation": adaptation_record(stage.adaptation),
            "teacher": self.inputs.fingerprints(stage),
            **averaging,
            **({} if stage.student is None else {"student": stage.student_record()}),
            **own,
        }
        self.record = {**self.record, name: {**options, **made_from}}
        record = json.loads(json.dumps(self.record))
        directory = self.output / name
        begun = directory / _STAGE_FILE
        remedy = f"remove {directory} to repeat the stage"
        before = None
        if self._is_finished(directory) or Checkpoints(directory / FOLDER, run="").any():  # else nothing depends on it
            before = read_json_object(directory, _STAGE_FILE, remedy)
            if before is None:
                raise DistilError(
                    f"{directory} holds a run without {_STAGE_FILE}, of an earlier version or of something else; "
                    "remove it to repeat the stage, or choose another output_dir"
                )
        if before is not None:
            if not before.keys() & record.keys():
                raise DistilError(f"{begun} is not the record of a stage; {remedy}")
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
                    f"{directory} was begun otherwise ({'; '.join(changed)}); remove it, and the directories of the "
                    "stages after it, to repeat them; or choose another output_dir"
                )
        elif self.processes.is_main_process:
            write_json(begun, record)
        logger.info("%s: %s", name, "finished before" if self._is_finished(directory) else directory)
        self.processes.wait_for_everyone()
        return directory

    def _is_finished(self, directory: Path) -> bool:
        return (directory / RUN_FILE).exists()

    def _note(self, name: str, directory: Path) -> None:
        remedy = f"remove {directory} to repeat the stage"
        record = read_json_object(directory, RUN_FILE, remedy) or {}
        if not {"steps", "seconds", "history"} <= record.keys():
            raise DistilError(f"{directory / RUN_FILE} is not the record of a finished run; {remedy}")
        self.done[name] = record
        if self.processes.is_main_process:  # a run killed at its very end may have left them
            clear_finished(directory)

    def _finish(self, readers: dict[str, Reader]) -> RecipeResult:
        """Measure, and write the finished reader with its report and its card."""
        recipe = self.recipe
        target = self.output / READER
        dev = self.inputs.dev_examples if self.measure else None
        described = {"dev_data": None if dev is None else content_hash(dev), "card": [recipe.license, recipe.language]}
        record = json.loads(json.dumps(self.record | described))
        known = self._known()
        only_trained = recipe.stages[-1].adaptation.save_only_trained
        partly = only_trained or adapters_of(readers["student"].model)
        weights = TRAINED_WEIGHTS if partly else "model.safetensors"
        wanted = ["config.json", weights, CARD_FILE, *([REPORT_FILE] if dev is not None else [])]
        last = recipe.directory_of(recipe.stages[-1])
        heads = head_names(self.done[last])
        wanted += [f"{HEADS_FOLDER}/{name}/{file}" for name in heads for file in ("config.json", weights, CARD_FILE)]
        made = all((target / name).is_file() for name in wanted)
        self.processes.wait_for_everyone()  # until all have looked, and before the first one writes
        if known.get("record") != record or not made:
            measured = []
            if dev is not None:
                for name, reader in readers.items():
                    role = _ROLES[name]
                    common = {"processes": self.processes, "cache_dir": recipe.cache_dir, "progress": self.progress}
                    measured.append(measure_reader(reader, dev, name, role=role, **common))  # type: ignore[arg-type]
            if self.processes.is_main_process:
                self._save_heads(self.output / last / HEADS_FOLDER, target / HEADS_FOLDER, heads, only_trained)
                readers["student"].save(target, only_trained=only_trained)
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

    def _save_heads(self, made: Path, target: Path, names: list[str], only_trained: bool) -> None:
        """Write a reader for each head that the last stage made, with its card, and remove those of an earlier run."""
        for there in target.glob("*"):
            if there.is_dir() and there.name not in names:
                shutil.rmtree(there)
        for name in names:
            Reader.load(made / name, **self.inputs.reading).save(target / name, only_trained=only_trained)
            self._card(target / name, [])

    def _known(self) -> dict[str, Any]:
        """The recipe's result where it was finished before, else empty."""
        remedy = "remove it, and the recipe measures its readers and writes it again"
        known = read_json_object(self.output, RESULT_FILE, remedy) or {}
        if known and not {"record", "steps", "seconds", "metrics"} <= known.keys():
            raise DistilError(f"{self.output / RESULT_FILE} is not the result of a recipe; {remedy}")
        return known

    def _describe(self, target: Path, dev: datasets.Dataset | None, measured: list[Measurements]) -> None:
        """The finished reader's report and card."""
        recipe = self.recipe
        if dev is not None:
            facts = {"teacher": Path(recipe.teacher).name, "seed": recipe.seed} | versions()
            histories = {name: run["history"] for name, run in self.done.items()}
            how = "Distilled" if self.taught else "Trained"
            write_report(target, measured, dev, histories, title=f"{how} from {facts['teacher']}", facts=facts)
        self._card(target, measured)

    def _card(self, target: Path, measured: list[Measurements]) -> None:
        """The card of a finished reader."""
        recipe = self.recipe
        write_card(
            target,
            metrics=next((one.metrics for one in measured if one.role == "distilled"), {}),
            teacher=recipe.teacher if self.taught else None,
            train_data=self._trained_on(),
            dev_data=recipe.dev_data[0] if recipe.dev_data else recipe.data[0] if recipe.measured else None,
            dev_split="held-out articles" if recipe.dev_split else None,
            runs=[run for name, run in self.done.items() if name != LABELS_ONLY],
            measurements=measured,
            license=recipe.license,
            language=recipe.language,
        )

    def _trained_on(self) -> list[str]:
        """The questions that the stages train on, files or data sets by name."""
        names: list[str] = []
        for stage in self.recipe.stages:
            if stage.sources is not None:
                names += [name for source in stage.sources for name in source.data]
            elif stage.corpus is None:
                names += stage.data or self.recipe.data
        return list(dict.fromkeys(names or self.recipe.data))
