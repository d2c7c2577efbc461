"""One run of a trainer: its objective, its record, its directory, the training loop and its result."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PretrainedConfig, PreTrainedModel, TrainerCallback

from haystack_distill.data.text_tokenizer import tokenizer_fingerprint
from haystack_distill.errors import DistilError
from haystack_distill.models.adapters import adapters_of
from haystack_distill.models.heads import Heads
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.models.reader import Reader
from haystack_distill.models.trained_weights import check_base
from haystack_distill.objectives.method import Method, MethodSum, parts_of
from haystack_distill.objectives.objective import CORPUS, QUESTIONS, Objective, WeightedSum
from haystack_distill.objectives.schedule import Weight, weight_at
from haystack_distill.students.layers import layer_index
from haystack_distill.teachers.ensemble import members_of
from haystack_distill.teachers.teacher import Teacher
from haystack_distill.training.adaptation import ADAPTATIONS, Adaptation, AllWeights, adapted, head_of
from haystack_distill.training.compilation import require_compilable
from haystack_distill.training.loop import TrainingData, run_loop
from haystack_distill.training.methods import METHODS
from haystack_distill.training.optimisation import is_plain, learning_rates, make_optimizer
from haystack_distill.training.run_directory import RunDirectory, RunResult, remember_initial_student
from haystack_distill.training.run_record import (
    adaptation_record,
    method_name,
    method_record,
    own_code,
    settings_record,
)
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.utils.atomic import write_atomically
from haystack_distill.utils.checks import check_type
from haystack_distill.utils.devices import resolve_precision
from haystack_distill.utils.hashing import hash_file, hash_json
from haystack_distill.utils.model_files import HEADS_FOLDER
from haystack_distill.utils.model_fingerprint import student_record

_MODELS = ("teacher_weights", "student_weights")  # in the metadata of what a run leaves for a later one

MethodSource: TypeAlias = Method | Objective | str

_DATA = {QUESTIONS: "questions", CORPUS: "a corpus"}  # the kinds of training data in messages


class Run:
    """One run of a trainer.

    Args:
        student: The reader or language model to train; its weights change.
        method: A method, a method's name for its default options, or an objective.
        settings: See `TrainingSettings`.
        output_dir: Directory for the checkpoints, the log and the finished model. None: only the weights in memory are
            kept.
        adaptation: Which weights are trained; None for all.
        callbacks: Additional callbacks for transformers' Trainer.

    Attributes:
        processes: This process, or all that `accelerate launch` started.

    Raises:
        DistilError: The method is unknown, or is neither a method nor an objective.
    """

    def __init__(
        self,
        student: Reader | LanguageModel,
        method: MethodSource,
        settings: TrainingSettings,
        output_dir: Path | None,
        *,
        adaptation: Adaptation | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.started = time.monotonic()
        check_type("adaptation", adaptation, Adaptation)
        self.student = student
        self.settings = settings
        self.output_dir = output_dir
        self.method = resolve_method(method)
        self.adaptation = adaptation or AllWeights()
        methods = [part for _, part in parts_of(self.method)] if isinstance(self.method, Method) else []
        for part in (*methods, self.adaptation):
            if not is_dataclass(part):
                raise DistilError(f"{type(part).__qualname__} must be a dataclass; add @dataclass(frozen=True)")
        self.callbacks = callbacks
        self.processes = PartialState(cpu=student.device.type == "cpu")

    def objective(self, teacher_config: PretrainedConfig | None, data: str) -> Objective:
        """Create the method's objective.

        Args:
            teacher_config: The configuration of the teacher, or of the first of several teachers; None without one.
            data: The kind of training data, "questions" or "corpus".

        Raises:
            DistilError: The method does not fit student, teacher or data.
        """
        torch.manual_seed(self.settings.seed)  # for the initial weights of projections
        objective = self.method
        if isinstance(objective, Method):
            objective = objective.objective(self.student.model.config, teacher_config)
        _require_weights(objective, method_name(self.method))
        _require_anchor(objective, method_name(self.method))
        if objective.keeps_answers and not isinstance(self.adaptation, AllWeights):
            raise DistilError(
                f"{method_name(self.method)} trains no weight that the student's answers depend on, so an adaptation "
                "would have no effect; leave it out"
            )
        learning_rates(self.settings, self.student.model, objective)  # checks them
        if self.settings.torch_compile:
            require_compilable(self.student.model, objective.student_request)
        if data not in objective.data:
            needed = " or ".join(_DATA[kind] for kind in sorted(objective.data))
            remedy = (
                "use a LanguageModelTrainer, or in a recipe give the stage a `corpus`"
                if CORPUS in objective.data
                else "use a ReaderTrainer, or in a recipe leave the stage's `corpus` out"
            )
            raise DistilError(f"{method_name(self.method)} needs {needed} to train on, not {_DATA[data]}; {remedy}")
        return objective

    def check_adaptation(self, measured: bool, objective: Objective) -> None:
        """Check that adaptation and optimiser suit the student, without changing it.

        Args:
            measured: Whether there are dev data.
            objective: The objective, as `objective` creates it.

        Raises:
            DistilError: It does not, or an option of it would have no effect.
        """
        option = self.adaptation.needs_evaluations
        if option is not None and not (measured and self.settings.evaluate_every):
            raise DistilError(
                f"{option} has no effect where the student is not evaluated during the run; set dev_data and "
                "evaluate_every, or leave it out"
            )
        if isinstance(self.adaptation, AllWeights):
            self._check_optimiser(self.student.model, objective)
            self._check_base(self.student.model)
            return
        copied = self.student.copy()
        with adapted(copied.model, self.adaptation):
            self._check_optimiser(copied.model, objective)
            self._check_effect(copied.model, objective)
        only_trained = self.adaptation.save_only_trained
        if isinstance(self.student, LanguageModel) and (only_trained or adapters_of(copied.model)):
            remedy = "set save_only_trained=False" if only_trained else "choose another adaptation, such as lora"
            name = ADAPTATIONS.name_of(self.adaptation)
            raise DistilError(f"{name}: a language model is saved whole and without adapters; {remedy}")
        self._check_base(copied.model)

    def _check_base(self, model: PreTrainedModel) -> None:
        """Check that the trained weights alone can be saved, where that is how this model is saved."""
        only_trained = self.adaptation.save_only_trained
        if self.output_dir is not None and (only_trained or adapters_of(model)):
            check_base(self.student.model, self.output_dir, required=only_trained)

    def _check_effect(self, model: PreTrainedModel, objective: Objective) -> None:
        """Check that what is compared depends on a weight that is trained from the first step on."""
        request = objective.student_request
        if request.logits or request.exits or not objective.trains_student:
            return
        encoder = {id(parameter) for parameter in self.adaptation.first_trained(model)} - head_of(model)
        adaptation, method = ADAPTATIONS.name_of(self.adaptation), method_name(self.method)
        later = self.adaptation.freezes_later
        if not encoder and later and any(True for _ in objective.parameters()):
            return  # what the method trains of its own learns first, as with Mukherjee and Awadallah's
        if not encoder:
            raise DistilError(
                f"{adaptation} trains the head {'first and ' if later else ''}alone, and {method} compares no answers, "
                "so nothing would be learnt; choose another adaptation"
            )
        layers = (*request.attention_scores, *request.query_key_value)
        if request.hidden_states or not layers:
            return
        compared = max(layers)
        numbers = [layer_index(model, name) for name, weight in model.named_parameters() if id(weight) in encoder]
        lowest = min(-1 if number is None else number for number in numbers) + 1
        if lowest > compared:
            raise DistilError(
                f"{adaptation} trains layer {lowest} and above, and {method} compares layer {compared} and none above "
                "it, so nothing would be learnt; choose another adaptation or layer"
            )

    def _check_optimiser(self, model: PreTrainedModel, objective: Objective) -> None:
        """Check that there are weights for each learning rate, and for the optimiser."""
        if not is_plain(self.settings):
            make_optimizer(self.settings, model, objective, (), torch.optim.AdamW)

    def record(self, teacher: Teacher | None, data: dict[str, Any]) -> dict[str, Any]:
        """Everything that decides the result, as JSON holds it.

        Args:
            teacher: The teacher, if there is one.
            data: The entries that describe the training data.
        """
        method = method_record(_with_hashes(self.method))
        teachers = {f"teacher {number}": one for number, one in enumerate(members_of(teacher), start=1)}
        method["code"] |= own_code(adaptation=self.adaptation, **teachers)
        return {
            **method,
            "adaptation": adaptation_record(self.adaptation),
            "settings": settings_record(self.settings),
            **data,
            "tokenizer": tokenizer_fingerprint(self.student.tokenizer),
            "student": None if self.output_dir is None else student_record(self.student.model),
            "teacher": None if teacher is None else teacher.fingerprint,
            "processes": self.processes.num_processes,
            "precision": resolve_precision(
                self.settings.precision, self.student.device, self.student.model.config.model_type
            ),
        }

    def execute(
        self,
        objective: Objective,
        data: TrainingData,
        record: dict[str, Any],
        *,
        teacher: Teacher | None = None,
        heads: Heads | None = None,
        prepare: Callable[[], None] | None = None,
        evaluate: Callable[[], dict[str, float]] | None = None,
        on_trained: Callable[[], None] | None = None,
    ) -> RunResult:
        """Train the student, resume its training, or load the result of the run if it has finished already.

        Args:
            objective: The objective, as `objective` creates it.
            data: The training data.
            record: The record of the run, as `record` creates it.
            teacher: The teacher, if there is one.
            heads: The heads of the student, where sources of the data have their own.
            prepare: Called before training starts; not called if the run has finished already.
            evaluate: Returns the metrics of the student with its current weights.
            on_trained: Called once the student has the trained weights, before they are evaluated and saved.

        Returns:
            The result; the trained student is saved in the output directory.
        """
        if not self.settings.resume:  # before anything is written or replaced
            self.check_adaptation(evaluate is not None, objective)
        with (
            RunDirectory(self.output_dir, record, self.settings, self.processes) as directory,
            remember_initial_student(self.student.model, directory),
        ):
            if directory.finished is not None:
                result = directory.restore(self.student.model, heads)
                if on_trained is not None:
                    on_trained()
                return replace(result, heads=self._readers(heads))
            if self.settings.resume:  # a finished run's student has been adapted already
                self.check_adaptation(evaluate is not None, objective)
            models = _models_of(directory.record)
            _require_same_models(self.method, models)
            if prepare is not None:
                prepare()
            objective.prepare()
            steps, history, trained = run_loop(
                self.student,
                objective,
                data,
                directory.settings,
                directory.checkpoints,
                teacher=teacher,
                adaptation=self.adaptation,
                heads=heads,
                callbacks=self.callbacks,
                evaluate=evaluate,
                name=method_name(self.method) if self.output_dir is None else self.output_dir.name,
            )
            if on_trained is not None:
                on_trained()
            metrics = evaluate() if evaluate is not None else {}
            seconds, readers = time.monotonic() - self.started, self._readers(heads)
            result = RunResult(steps, seconds, metrics, history, trained=trained, heads=readers)
            return directory.finish(result, lambda path: self._save(path, objective, readers, models))

    def _readers(self, heads: Heads | None) -> dict[str, Reader]:
        """The trained student with each of the heads that have a name."""
        return heads.readers(self.student) if heads is not None and isinstance(self.student, Reader) else {}

    def _save(
        self, directory: Path, objective: Objective, heads: Mapping[str, Reader], metadata: dict[str, str]
    ) -> list[str]:
        """Save the student, a reader for each of its heads, and what the objective leaves for a later run.

        Args:
            directory: Where to.
            objective: The objective.
            heads: The readers of the heads by their names.
            metadata: What is written into the files for a later run.

        Returns:
            The names of the files for a later run.
        """
        for name, reader in heads.items():
            reader.save(directory / HEADS_FOLDER / name, only_trained=self.adaptation.save_only_trained)
        if isinstance(self.student, Reader):
            self.student.save(directory, only_trained=self.adaptation.save_only_trained)
        else:
            self.student.save(directory)
        left = []
        for name, tensors in objective.results().items():
            content = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
            left.append(f"{name}.safetensors")
            write_atomically(directory / left[-1], partial(save_file, content, metadata=metadata))
        return left


def _with_hashes(method: Method | Objective) -> Method | Objective:
    """A method with the hashes of the files of earlier runs in place of the directories in which they are.

    Raises:
        DistilError: There is no such file.
    """
    if isinstance(method, Objective):
        return method
    parts = []
    for weight, part in parts_of(method):
        hashes = {}
        for option, path in part.files().items():
            if not path.is_file():
                needed = part.needs_run_of[option]
                raise DistilError(
                    f"{option}: there is no {path}; give the output directory of a finished run of the method {needed}"
                )
            hashes[option] = hash_file(path)
        parts.append((weight, replace(part, **hashes) if hashes else part))  # type: ignore[type-var]
    return MethodSum(tuple(parts)) if isinstance(method, MethodSum) else parts[0][1]


def _models_of(record: Mapping[str, Any]) -> dict[str, str]:
    """The models of a run by hashes of their weights, from its record, for what it leaves for a later run or takes."""
    teacher, student = record["teacher"], record["student"]
    found = {}
    if teacher is not None:  # in whatever precision it runs
        found[_MODELS[0]] = hash_json({name: value for name, value in teacher.items() if name != "precision"})
    if student is not None:
        found[_MODELS[1]] = str(student["weights"])
    return found


def _require_same_models(method: Method | Objective, models: Mapping[str, str]) -> None:
    """Check that what an earlier run left was learnt with the teacher and the student of this one.

    Args:
        method: The method.
        models: As `_models_of` returns them.

    Raises:
        DistilError: It was learnt with another, or cannot be read.
    """
    parts = parts_of(method) if isinstance(method, Method) else []
    for option, path in (file for _, part in parts for file in part.files().items()):
        try:
            with safe_open(str(path), framework="numpy") as stream:
                metadata = stream.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise DistilError(f"{option}: {path} cannot be read ({error}); train it again") from error
        for name in _MODELS:
            if {name} <= models.keys() & metadata.keys() and models[name] != metadata[name]:
                raise DistilError(
                    f"{option}: {path} was learnt with another {name.partition('_')[0]}; take that one, or train it "
                    "anew with this one"
                )


def _require_weights(objective: Objective, name: str) -> None:
    """Check that there is something to learn, where weights change in the first and in the last step.

    Raises:
        DistilError: All weights are 0, throughout or in one of these steps.
    """
    if not any(objective.largest_weights().values()):
        raise DistilError(f"all weights of {name} are 0, so there is nothing to learn; set one above 0")
    if not isinstance(objective, WeightedSum):
        return
    parts: list[tuple[Weight, Objective]] = list(zip(objective.part_weights, objective.parts, strict=True))  # type: ignore[arg-type]
    for progress, step in ((0.0, "first"), (1.0, "last")):
        if not any(weight_at(weight, progress) and any(part.largest_weights().values()) for weight, part in parts):
            raise DistilError(
                f"all weights of {name} are 0 in the {step} step, so nothing is learnt in it; give one of its methods "
                "a weight above 0 there"
            )


def _require_anchor(objective: Objective, name: str) -> None:
    """Check that a last layer that learns along with its branches learns from something else than they do.

    Raises:
        DistilError: There are no labels, and no teacher.
    """
    used = {term.partition("_")[0] for term, weight in objective.largest_weights().items() if weight}
    if objective.student_request.exit_gradients and used <= {"exits", "level", "matches"}:
        raise DistilError(
            f"{name} with backbone=True trains the layers to suit the branches, and nothing keeps the answers of the "
            "last one; set label_loss_weight, or add the method labels or prediction_layer"
        )


def resolve_method(method: MethodSource) -> Method | Objective:
    """The method of a name with its default options; a method or an objective is returned as it is.

    Raises:
        DistilError: The name is unknown, or `method` is none of these.
    """
    if isinstance(method, str):
        return METHODS[method]()
    if not isinstance(method, (Method, Objective)):
        raise DistilError(
            f"a method must be a Method, an Objective or one of the names {', '.join(METHODS)}, not {method!r}"
        )
    return method
