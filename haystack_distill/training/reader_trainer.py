"""ReaderTrainer: a student learns from labels, from a teacher's answers, or from a teacher's layers."""

import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState

from haystack_distill.data.squad.load import content_hash, load_examples
from haystack_distill.data.squad.metrics import require_measurable
from haystack_distill.data.text_tokenizer import tokenizer_hash
from haystack_distill.errors import DistilError
from haystack_distill.evaluation.processes import evaluate_together
from haystack_distill.models.reader import ExampleSource, Reader, position_limit
from haystack_distill.objectives import IntermediateLayersObjective, LabelObjective, Objective, PredictionLayerObjective
from haystack_distill.teachers.cached import TeacherOutputs
from haystack_distill.training.loop import require_one_device, require_own_weights, run_loop
from haystack_distill.training.run_directory import (
    RunDirectory,
    RunResult,
    code_of,
    recorded,
    settings_that_matter,
    student_may_come_back,
)
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.utils.checks import check_kind
from haystack_distill.utils.devices import resolve_precision
from haystack_distill.utils.files import expanded
from haystack_distill.utils.model_fingerprint import model_hash, start_of
from haystack_distill.utils.model_inputs import takes_token_types

logger = logging.getLogger(__name__)

_ROWS_AT_A_TIME = 1000


class ReaderTrainer:
    """Trains a reader in place.

    Args:
        student: The reader to train; its weights change.
        output_dir: Where checkpoints, log and the finished reader go. None: nothing is kept but the weights in memory.
        settings: See `TrainingSettings`.
        cache_dir: Where windows and teacher outputs are kept, see `utils.cache.cache_directory`.

    Example:
        >>> from haystack_distill import Reader, ReaderTrainer, students  # doctest: +SKIP
        >>> teacher = Reader.load("deepset/roberta-base-squad2")  # doctest: +SKIP
        >>> student = students.from_teacher(teacher, layers=6)  # doctest: +SKIP
        >>> ReaderTrainer(student, "layers").distil_intermediate_layers_from(teacher, "train.json")  # doctest: +SKIP
        >>> ReaderTrainer(student, "student").distil_prediction_layer_from(teacher, "train.json")  # doctest: +SKIP
    """

    def __init__(
        self,
        student: Reader,
        output_dir: str | Path | None = None,
        settings: TrainingSettings | None = None,
        *,
        cache_dir: str | Path | None = None,
    ) -> None:
        check_kind("settings", settings, TrainingSettings)
        self.student = student
        self.output_dir = None if output_dir is None else expanded(output_dir)
        self.settings = settings or TrainingSettings()
        self.cache_dir = cache_dir

    def train(self, data: ExampleSource, dev_data: ExampleSource | None = None) -> RunResult:
        """Train on labels alone: cross entropy of start and end.

        Args:
            data: Labelled examples, as `data.squad.load.load_examples` takes them.
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
            distillation_loss: "kl_div", "mse" (of the logits), or a function; see `PredictionLayerObjective`. A run
                with a function is resumed only with the same code, and the same state of what the function uses.

        Raises:
            DistilError: The teacher's head is untrained, so that its answers are random.
        """
        teacher.require_trained()
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
        require_same_tokens(self.student, teacher)
        require_one_device(self.student, teacher)
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
        self.student.require_weights()
        if teacher is not None:
            teacher.require_weights()
            require_own_weights(self.student, teacher)
        torch.manual_seed(self.settings.seed)  # fresh projections
        objective = make_objective()
        # This process, or all that `accelerate launch` began.
        processes = PartialState(cpu=self.student.device.type == "cpu")
        with processes.main_process_first():  # the others find what it has read and cut in the cache
            examples = load_examples(data, cache_dir=self.cache_dir)
            windows = self.student.cut(examples, cache_dir=self.cache_dir)
            dev_windows = None
            if dev_data is not None:
                dev_examples = load_examples(dev_data, cache_dir=self.cache_dir)
                require_measurable(dev_examples)
                dev_windows = self.student.cut(dev_examples, cache_dir=self.cache_dir)
        teaches = {name for name, weight in objective.weights.items() if weight}
        if teaches <= {"labels"} and not any(examples["labelled"]):
            remedy = "distil from a teacher instead" if teacher is None else "raise distillation_loss_weight"
            raise DistilError(
                "none of the examples is labelled (a transfer set, or a file without answers such as Haystack 1's "
                f"augment_squad writes), so there is nothing to train on; {remedy}"
            )
        if processes.is_main_process:
            windows.warn_of_lost_answers()
            if dev_windows is not None:
                warn_of_shared_contexts(examples, dev_windows.examples)
        if shown_by is not None:  # it reads the student's batches
            windows.token_types = windows.token_types or takes_token_types(shown_by.model)
        if dev_windows is None and (self.settings.keep_best or self.settings.early_stopping_patience):
            raise DistilError("keep_best and early_stopping_patience need dev_data to choose by")
        record = {
            "method": method,
            "arguments": recorded(arguments),
            "code": code_of(arguments),
            "settings": settings_that_matter(self.settings),
            "data": {"examples": len(examples), "windows": len(windows), "sha256": content_hash(examples)},
            "dev_data": None if dev_windows is None else content_hash(dev_windows.examples),
            "windows": asdict(self.student.windows),
            "tokenizer": tokenizer_hash(self.student.tokenizer),
            "student": None if self.output_dir is None else start_of(self.student.model),
            "teacher": None if teacher is None else model_hash(teacher.model),
            "teacher_settings": _teacher_settings(told_by, shown_by),
            "measuring": self._measuring() if dev_windows is not None and self.settings.evaluate_every else None,
            "processes": processes.num_processes,
            "precision": resolve_precision(
                self.settings.precision, self.student.device, self.student.model.config.model_type
            ),
        }
        with (
            RunDirectory(self.output_dir, record, self.settings, processes) as directory,
            student_may_come_back(self.student.model, directory),
        ):
            if directory.finished is not None:
                restored = directory.restore(self.student.model)
                self._head_has_learnt(shown_by)
                return restored
            told = None
            if told_by is not None:
                outputs = TeacherOutputs(
                    told_by,
                    examples,
                    cache_dir=self.cache_dir,
                    progress=self.settings.progress,
                    processes=processes,
                )
                told = functools.partial(outputs.targets, windows)
            evaluate = None
            if dev_windows is not None:
                evaluate = functools.partial(
                    evaluate_together, self.student, dev_windows, processes, progress=self.settings.progress
                )
            steps, history = run_loop(
                self.student,
                objective,
                windows,
                directory.settings,
                directory.checkpoints,
                told=told,
                teacher=shown_by,
                evaluate=evaluate,
            )
            self._head_has_learnt(shown_by)
            metrics = evaluate() if evaluate is not None else {}
            result = RunResult(steps, time.monotonic() - began, metrics, history)
            return directory.finish(result, self.student.save)

    def _head_has_learnt(self, shown_by: Reader | None) -> None:
        if shown_by is None:  # layers alone leave the head as it was
            self.student.untrained = ()

    def _measuring(self) -> dict[str, Any]:
        """What of the student decides its scores during the run, and so which weights are the best."""
        names = ("max_answer_length", "no_answer_threshold", "precision")
        return {name: getattr(self.student, name) for name in names}


def warn_of_shared_contexts(train: datasets.Dataset, dev: datasets.Dataset) -> None:
    """Log how many contexts of the dev data are trained on too: scores on them say little about other texts.

    Args:
        train: Rows as `data.squad.load.load_examples` gives them; read as a stream.
        dev: Likewise; eight bytes a context are kept.
    """
    measured = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *_context_hashes(dev)]))
    shared = np.zeros(len(measured), dtype=bool)
    for hashes in _context_hashes(train) if len(measured) else ():
        places = np.searchsorted(measured, hashes).clip(max=len(measured) - 1)
        shared[places[measured[places] == hashes]] = True
    if shared.any():
        logger.warning(
            "%d of the %d contexts of the dev data are in the training data too, so its scores are too good: take them "
            "out of one of the two",
            shared.sum(),
            len(measured),
        )


def _context_hashes(examples: datasets.Dataset) -> Iterator[np.ndarray]:
    """Python's hashes of the contexts, a batch of rows at a time; good within one process."""
    for table in examples.select_columns(["context"]).with_format("arrow").iter(batch_size=_ROWS_AT_A_TIME):
        yield np.array([hash(context) for context in table["context"].unique().to_pylist()], dtype=np.int64)


def _teacher_settings(told_by: Reader | None, shown_by: Reader | None) -> dict[str, Any] | None:
    """What of a teacher, besides its weights, decides what it teaches."""
    if told_by is not None:
        windows, tokenizer = asdict(told_by.windows), tokenizer_hash(told_by.tokenizer)
        return {"precision": told_by.precision, "windows": windows, "tokenizer": tokenizer}
    return None if shown_by is None else {"precision": shown_by.precision}  # it reads the student's windows


def require_same_tokens(student: Reader, teacher: Reader) -> None:
    """Check that two readers see the same tokens, so that their layers can be compared.

    Raises:
        DistilError: Different tokenizers, or windows longer than the teacher's.
    """
    if tokenizer_hash(teacher.tokenizer) != tokenizer_hash(student.tokenizer):
        raise DistilError(
            "teacher and student split text differently, so their layers cannot be compared token by token; use a "
            "student with the teacher's tokenizer, or distil_prediction_layer_from, which compares characters"
        )
    positions = position_limit(teacher.model)
    if positions is not None and student.windows.max_seq_len > positions:
        raise DistilError(
            f"the student's windows have {student.windows.max_seq_len} tokens, the teacher knows {positions} "
            "positions; lower the student's max_seq_len"
        )
