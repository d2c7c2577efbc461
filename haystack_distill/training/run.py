"""One run, whatever it trains on: its objective, its record, its directory, the loop, and the result that it leaves."""

import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias

import torch
from accelerate import PartialState
from transformers import PretrainedConfig, TrainerCallback

from haystack_distill.data.text_tokenizer import tokenizer_fingerprint
from haystack_distill.errors import DistilError
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.models.reader import Reader
from haystack_distill.objectives.method import Method, parts_of
from haystack_distill.objectives.objective import Objective
from haystack_distill.teachers.teacher import Teacher
from haystack_distill.training.adaptation import Adaptation, AllWeights, adapted
from haystack_distill.training.adaptations import ADAPTATIONS
from haystack_distill.training.loop import TrainingData, run_loop
from haystack_distill.training.methods import METHODS
from haystack_distill.training.run_directory import (
    RunDirectory,
    RunResult,
    code_of,
    recorded,
    settings_record,
    student_may_come_back,
)
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.utils.checks import check_type
from haystack_distill.utils.devices import resolve_precision
from haystack_distill.utils.model_fingerprint import student_record

MethodSource: TypeAlias = Method | Objective | str


class Run:
    """One run of a trainer, from its parts to its result.

    Args:
        student: The reader or language model to train; its weights change.
        method: A method, a method's name for its default options, or an objective.
        settings: See `TrainingSettings`.
        output_dir: Where checkpoints, log and the finished model go. None: nothing is kept but the weights in memory.
        adaptation: Which weights learn; None for all.
        callbacks: More callbacks for transformers' Trainer.

    Attributes:
        processes: This process, or all that `accelerate launch` started.

    Raises:
        DistilError: An unknown method, or something that is neither a method nor an objective.
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
        self.began = time.monotonic()
        check_type("adaptation", adaptation, Adaptation)
        self.student = student
        self.settings = settings
        self.output_dir = output_dir
        self.method = resolve_method(method)
        self.adaptation = adaptation or AllWeights()
        self.callbacks = callbacks
        self.processes = PartialState(cpu=student.device.type == "cpu")

    def objective(self, teacher_config: PretrainedConfig | None, data: str) -> Objective:
        """The method's objective.

        Args:
            teacher_config: The configuration of the teacher, of several teachers the first one's; None for none.
            data: "questions" or "corpus": what is trained on.

        Raises:
            DistilError: The method does not fit student, teacher or data.
        """
        torch.manual_seed(self.settings.seed)  # fresh projections
        made = self.method
        if isinstance(made, Method):
            made = made.objective(self.student.model.config, teacher_config)
        if data not in made.data:
            needed = " or ".join(sorted(made.data))
            raise DistilError(f"{describe(self.method)} needs {needed} to train on, not {data}")
        return made

    def check_adaptation(self) -> None:
        """Check that the student can be trained as the adaptation has it.

        Raises:
            DistilError: It cannot.
        """
        with adapted(self.student.copy().model, self.adaptation):
            pass

    def record(self, teacher: Teacher | None, data: dict[str, Any]) -> dict[str, Any]:
        """Everything that decides the result, as JSON holds it; `data` has what is trained on."""
        return {
            **method_record(self.method),
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

    def go(
        self,
        objective: Objective,
        data: TrainingData,
        record: dict[str, Any],
        *,
        teacher: Teacher | None = None,
        prepare: Callable[[], None] | None = None,
        evaluate: Callable[[], dict[str, float]] | None = None,
        trained: Callable[[], None] | None = None,
    ) -> RunResult:
        """Train, resume or take the finished result, and leave the student in the output directory.

        Args:
            objective: The loss.
            data: The training data.
            record: See `record`.
            teacher: What the student learns from.
            prepare: Called before training starts, and not where the run is finished already.
            evaluate: Measures the student as it is now.
            trained: Called when the student's weights are the trained ones.
        """
        with (
            RunDirectory(self.output_dir, record, self.settings, self.processes) as directory,
            student_may_come_back(self.student.model, directory),
        ):
            if directory.finished is not None:
                result = directory.restore(self.student.model)
                if trained is not None:
                    trained()
                return result
            if prepare is not None:
                prepare()
            steps, history = run_loop(
                self.student,
                objective,
                data,
                directory.settings,
                directory.checkpoints,
                teacher=teacher,
                adaptation=self.adaptation,
                callbacks=self.callbacks,
                evaluate=evaluate,
            )
            if trained is not None:
                trained()
            metrics = evaluate() if evaluate is not None else {}
            result = RunResult(steps, time.monotonic() - self.began, metrics, history)
            return directory.finish(result, self.student.save)


def resolve_method(method: MethodSource) -> Method | Objective:
    """A method or an objective; a name stands for a method with its default options.

    Raises:
        DistilError: An unknown name, or something else.
    """
    if isinstance(method, str):
        return METHODS[method]()
    if not isinstance(method, (Method, Objective)):
        raise DistilError(
            f"a method must be a Method, an Objective or one of the names {', '.join(METHODS)}, not {method!r}"
        )
    return method


def describe(method: Method | Objective) -> str:
    """What to call a method in a message."""
    if isinstance(method, Objective):
        return type(method).__name__
    return " + ".join(METHODS.name_of(part) for _, part in parts_of(method))


def method_record(method: Method | Objective) -> dict[str, Any]:
    """A method's name and options, and the fingerprints of code that is not this package's, as JSON holds them.

    The options of a sum of methods stand in a list: {"method", "weight", "arguments"} for each part.
    """
    if isinstance(method, Objective):
        # An object's fingerprint covers its class, where that is the user's own, and its options and parameters.
        code = code_of({"objective": method})
        return {"method": type(method).__qualname__, "arguments": {"weights": method.weights}, "code": code}
    parts = [(weight, part, _options_of(part)) for weight, part in parts_of(method)]
    code = {}
    for _, part, options in parts:
        code |= code_of(options)
        if not _is_own(part):
            code |= code_of({METHODS.name_of(part): type(part).objective})
    if len(parts) == 1 and parts[0][0] == 1:
        return {"method": METHODS.name_of(parts[0][1]), "arguments": recorded(parts[0][2]), "code": code}
    listed = [
        {"method": METHODS.name_of(part), "weight": weight, "arguments": recorded(options)}
        for weight, part, options in parts
    ]
    return {"method": describe(method), "arguments": {"parts": listed}, "code": code}


def adaptation_record(adaptation: Adaptation) -> dict[str, Any]:
    """An adaptation's name and options, as JSON holds them."""
    return {"name": ADAPTATIONS.name_of(adaptation), **_options_of(adaptation)}


def _options_of(options: Any) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in fields(options)}


def _is_own(made: object) -> bool:
    return type(made).__module__.startswith("haystack_distill.")
