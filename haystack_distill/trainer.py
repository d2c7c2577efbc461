"""ReaderTrainer: a student learns from labels, from a teacher's answers, or from a teacher's layers."""

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from accelerate import PartialState

from haystack_distill.errors import DistilError
from haystack_distill.features import takes_token_types, tokenizer_hash
from haystack_distill.files import write_json
from haystack_distill.loop import run_loop, whole_checkpoints
from haystack_distill.objectives import (
    IntermediateLayersObjective,
    LabelObjective,
    Objective,
    PredictionLayerObjective,
)
from haystack_distill.reader import ExampleSource, Reader, position_limit
from haystack_distill.settings import TrainingSettings
from haystack_distill.squad import content_hash, load_examples
from haystack_distill.teachers import TeacherOutputs, model_hash

logger = logging.getLogger(__name__)

RUN_FILE = "haystack_distill.json"


@dataclass(frozen=True)
class RunResult:
    """What came of a run.

    Attributes:
        steps: Optimiser steps.
        seconds: From reading the data to the end, teacher included.
        metrics: SQuAD metrics of the finished student on the dev data; empty without dev data.
        history: The log, one dictionary an entry: losses by part, learning rate, evaluations.
        directory: Where the student was saved, or None.
    """

    steps: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    directory: Path | None = None


class ReaderTrainer:
    """Trains a reader in place.

    Args:
        student: The reader to train; its weights change.
        output_dir: Where checkpoints, log and the finished reader go. None: nothing is kept but the weights in memory.
        settings: See `TrainingSettings`.
        cache_dir: Where windows and teacher outputs are kept, see `store.cache_directory`.

    Example:
        >>> from haystack_distill import Reader, ReaderTrainer, students  # doctest: +SKIP
        >>> teacher = Reader.load("deepset/roberta-base-squad2")  # doctest: +SKIP
        >>> student = students.from_teacher(teacher, layers=6)  # doctest: +SKIP
        >>> trainer = ReaderTrainer(student, "student")  # doctest: +SKIP
        >>> trainer.distil_intermediate_layers_from(teacher, "train.json")  # doctest: +SKIP
        >>> trainer.distil_prediction_layer_from(teacher, "train.json")  # doctest: +SKIP
    """

    def __init__(
        self,
        student: Reader,
        output_dir: str | Path | None = None,
        settings: TrainingSettings | None = None,
        *,
        cache_dir: str | Path | None = None,
    ) -> None:
        self.student = student
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.settings = settings or TrainingSettings()
        self.cache_dir = cache_dir

    def train(self, data: ExampleSource, dev_data: ExampleSource | None = None) -> RunResult:
        """Train on labels alone: cross entropy of start and end.

        Args:
            data: Labelled examples, as `squad.load_examples` takes them.
            dev_data: Examples to measure on; never trained on.
        """
        return self._run("train", LabelObjective, data, dev_data, {})

    def distil_prediction_layer_from(
        self,
        teacher: Reader,
        data: ExampleSource,
        dev_data: ExampleSource | None = None,
        *,
        temperature: float = 1.0,
        distillation_loss_weight: float = 0.5,
        distillation_loss: str | Callable = "kl_div",
    ) -> RunResult:
        """Teach the student the teacher's answers (Hinton et al. 2015, arXiv 1503.02531).

        The loss is `w * T^2 * distillation + (1 - w) * labels`, each the mean over start and end. The teacher runs
        once over the data and what it says is kept on disk; it may have another tokenizer and other windows than the
        student.

        Args:
            teacher: A reader that answers well. It is not changed.
            data: Examples; unlabelled ones teach by the teacher's word alone.
            dev_data: Examples to measure on; never trained on.
            temperature: T, softens both distributions; with "kl_div" only.
            distillation_loss_weight: w, from 0 (labels only) to 1 (teacher only).
            distillation_loss: "kl_div", "mse" (of the logits), or a function; see `PredictionLayerObjective`.
        """
        arguments = {
            "temperature": temperature,
            "distillation_loss_weight": distillation_loss_weight,
            "distillation_loss": distillation_loss,
        }
        return self._run(
            "distil_prediction_layer",
            lambda: PredictionLayerObjective(**arguments),  # type: ignore[arg-type]
            data,
            dev_data,
            arguments,
            told_by=teacher,
        )

    def distil_intermediate_layers_from(
        self,
        teacher: Reader,
        data: ExampleSource,
        dev_data: ExampleSource | None = None,
        *,
        layer_mapping: str | Sequence[int | None] = "uniform",
        embedding_loss_weight: float = 1.0,
        hidden_loss_weight: float = 1.0,
        attention_loss_weight: float = 0.03,
    ) -> RunResult:
        """Teach the student the teacher's embeddings, hidden states and attention scores (TinyBERT, arXiv 1909.10351).

        The question answering head learns nothing here: follow with `distil_prediction_layer_from`. No labels are used.

        Args:
            teacher: A reader with the student's tokenizer. It is not changed.
            data: Examples, labelled or not.
            dev_data: Examples to measure on; never trained on.
            layer_mapping: Which teacher layer each student layer learns; see `IntermediateLayersObjective`.
            embedding_loss_weight: Weight of the embedding loss; 0 leaves it out.
            hidden_loss_weight: Weight of the hidden-state loss; 0 leaves it out.
            attention_loss_weight: Weight of the attention-score loss; 0 leaves it out. The default makes it about as
                large as the hidden-state loss.

        Raises:
            DistilError: Different tokenizers or devices, windows longer than the teacher's, or layers and heads that
                do not fit.
        """
        if tokenizer_hash(teacher.tokenizer) != tokenizer_hash(self.student.tokenizer):
            raise DistilError(
                "teacher and student split text differently, so their layers cannot be compared token by token; use a "
                "student with the teacher's tokenizer, or distil_prediction_layer_from, which compares characters"
            )
        positions = position_limit(teacher.model)
        if positions is not None and self.student.windows.max_seq_len > positions:
            raise DistilError(
                f"the student's windows have {self.student.windows.max_seq_len} tokens, the teacher knows {positions} "
                "positions; lower the student's max_seq_len"
            )
        if teacher.device != self.student.device:
            raise DistilError(
                f"teacher ({teacher.device}) and student ({self.student.device}) must be on one device, because both "
                "run in every step; load them with the same `device`"
            )
        arguments = {
            "layer_mapping": layer_mapping,
            "embedding_loss_weight": embedding_loss_weight,
            "hidden_loss_weight": hidden_loss_weight,
            "attention_loss_weight": attention_loss_weight,
        }

        def objective() -> Objective:
            configs = self.student.model.config, teacher.model.config
            return IntermediateLayersObjective(*configs, **arguments)  # type: ignore[arg-type]

        return self._run("distil_intermediate_layers", objective, data, dev_data, arguments, shown_by=teacher)

    def _run(
        self,
        method: str,
        make_objective: Callable[[], Objective],
        data: ExampleSource,
        dev_data: ExampleSource | None,
        arguments: dict[str, Any],
        *,
        told_by: Reader | None = None,
        shown_by: Reader | None = None,
    ) -> RunResult:
        """One run: `told_by` speaks through cached logits, `shown_by` runs in every step."""
        began = time.monotonic()
        teacher = told_by or shown_by
        if teacher is not None and _share_weights(teacher, self.student):
            raise DistilError(
                "teacher and student are the same model; cut or copy the student first (students, Reader.copy)"
            )
        torch.manual_seed(self.settings.seed)  # fresh projections
        objective = make_objective()
        examples = load_examples(data, cache_dir=self.cache_dir)
        if not any(examples["labelled"]) and "labels" in objective.weights and teacher is None:
            raise DistilError(
                "none of the examples is labelled, so there is nothing to train on; distil from a teacher instead"
            )
        windows = self.student.cut(examples, cache_dir=self.cache_dir)
        if shown_by is not None:  # it reads the student's batches
            windows.token_types = windows.token_types or takes_token_types(shown_by.model)
        dev_windows = None
        if dev_data is not None:
            dev_windows = self.student.cut(load_examples(dev_data, cache_dir=self.cache_dir), cache_dir=self.cache_dir)
        elif self.settings.keep_best or self.settings.early_stopping_patience:
            raise DistilError("keep_best and early_stopping_patience need dev_data to choose by")
        processes = PartialState(
            cpu=self.student.device.type == "cpu"
        )  # this one, or all that `accelerate launch` began
        record = {
            "method": method,
            "arguments": {name: _plain(value) for name, value in arguments.items()},
            "settings": _settings_that_matter(self.settings),
            "data": {"examples": len(examples), "windows": len(windows), "sha256": content_hash(examples)},
            "dev_data": None if dev_windows is None else content_hash(dev_windows.examples),
            "windows": asdict(self.student.windows),
            "tokenizer": tokenizer_hash(self.student.tokenizer),
            "teacher": None if teacher is None else model_hash(teacher.model),
            "processes": processes.num_processes,
            "precision": self.student.precision if self.settings.precision == "auto" else self.settings.precision,
        }
        directory, temporary = self._directory(record, processes)
        try:
            outputs = None
            if told_by is not None:
                outputs = TeacherOutputs(told_by, examples, cache_dir=self.cache_dir, progress=self.settings.progress)
            steps, history = run_loop(
                self.student,
                objective,
                windows,
                dev_windows,
                outputs,
                shown_by,
                self.settings,
                directory / "checkpoints",
            )
        finally:
            if temporary:
                shutil.rmtree(directory)
        metrics = self.student.evaluate_windows(dev_windows) if dev_windows is not None else {}
        seconds = time.monotonic() - began
        if temporary:
            return RunResult(steps, seconds, metrics, history)
        processes.wait_for_everyone()  # until nobody needs a checkpoint any more
        if processes.is_main_process:
            self._finish(directory, record, RunResult(steps, seconds, metrics, history))
        return RunResult(steps, seconds, metrics, history, directory)

    def _finish(self, directory: Path, record: dict[str, Any], result: RunResult) -> None:
        """Save the reader and the record of its run; the checkpoints have served."""
        self.student.save(directory)
        finished = {
            "status": "finished",
            "versions": versions(),
            "metrics": result.metrics,
            "steps": result.steps,
            "seconds": result.seconds,
        }
        write_json(directory / RUN_FILE, record | finished | {"history": result.history})
        shutil.rmtree(directory / "checkpoints", ignore_errors=True)

    def _directory(self, record: dict[str, Any], processes: PartialState) -> tuple[Path, bool]:
        """Where this run works, and whether that goes again when it ends."""
        if self.output_dir is None:
            if self.settings.resume:
                raise DistilError("resume needs an output_dir to resume from")
            if self.settings.tensorboard:
                raise DistilError("tensorboard=True needs an output_dir to write to")
            if processes.num_processes > 1:
                raise DistilError("several processes need an output_dir to share")
            return Path(tempfile.mkdtemp(prefix="haystack-distill-")), True
        if not processes.is_main_process:  # the main process looks after the directory for all
            return self.output_dir, False
        begun = self.output_dir / "checkpoints" / "run.json"
        if begun.exists() and whole_checkpoints(begun.parent):  # else there is nothing to lose
            if not self.settings.resume:
                raise DistilError(
                    f"{self.output_dir} holds the checkpoints of a run that did not finish; set resume=True to go on "
                    "with it, or remove its directory 'checkpoints' to start again"
                )
            before = json.loads(begun.read_text(encoding="utf-8"))
            here = json.loads(json.dumps(record))
            changed = [name for name in here if here[name] != before.get(name)]
            if changed:
                raise DistilError(
                    f"cannot resume the run in {self.output_dir}: its {', '.join(changed)} differ from now "
                    f"({'; '.join(f'{name}: then {before.get(name)}, now {here[name]}' for name in changed)}). Run it "
                    "as it was begun, or remove its directory 'checkpoints' to start again"
                )
        else:
            write_json(begun, record)
        return self.output_dir, False


def _share_weights(one: Reader, other: Reader) -> bool:
    """Whether two readers stand on the same weights, even if each wraps them in a model of its own."""
    return one.model.get_input_embeddings() is other.model.get_input_embeddings()


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    try:
        own = version("haystack-distill")
    except PackageNotFoundError:
        own = "not installed"
    return {
        "haystack-distill": own,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "datasets": datasets.__version__,
    }


def _settings_that_matter(settings: TrainingSettings) -> dict[str, Any]:
    """The settings that decide the weights; how a run is shown or kept may change when it is resumed."""
    shown = ("resume", "progress", "tensorboard", "log_every", "keep_checkpoints", "checkpoint_every")
    return {name: value for name, value in asdict(settings).items() if name not in shown}


def _plain(value: Any) -> Any:
    """A value as JSON can hold it; a function by its name."""
    return getattr(value, "__qualname__", repr(value)) if callable(value) else value
