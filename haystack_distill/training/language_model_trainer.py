"""GeneralTrainer: a student learns the language from a teacher, on plain text, before it is told of questions."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from haystack_distill.data.corpus import Corpus, CorpusSource
from haystack_distill.data.text_tokenizer import tokenizer_fingerprint
from haystack_distill.data.text_windows import TextSettings, TextWindows
from haystack_distill.errors import DistilError
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.models.reader import position_limit
from haystack_distill.objectives import IntermediateLayersObjective, LanguageModelObjective, Objective
from haystack_distill.training.loop import require_one_device, require_own_weights, run_loop
from haystack_distill.training.run_directory import (
    NOT_COMPARABLE,
    RunDirectory,
    RunResult,
    recorded,
    settings_record,
    student_may_come_back,
)
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.utils.checks import check_type
from haystack_distill.utils.devices import resolve_precision
from haystack_distill.utils.files import expand_user
from haystack_distill.utils.model_fingerprint import model_fingerprint, student_record
from haystack_distill.utils.model_inputs import takes_token_types


class GeneralTrainer:
    """Trains a language model in place on a corpus: step 1 of the recipe of TinyBERT (arXiv 1909.10351).

    Args:
        student: The language model to train; its weights change.
        output_dir: Where checkpoints, log and the finished model go. None: nothing is kept but the weights in memory.
        settings: See `TrainingSettings`. A corpus is a stream, so `max_steps` says how long to train, all steps count
            as one epoch, and there is nothing to evaluate on.
        text: How text becomes windows.

    Example:
        >>> teacher = LanguageModel.load("google-bert/bert-base-uncased")  # doctest: +SKIP
        >>> student = students.from_teacher(teacher, layers=4)  # doctest: +SKIP
        >>> settings = TrainingSettings(max_steps=10_000, checkpoint_every=500)  # doctest: +SKIP
        >>> GeneralTrainer(student, "general", settings).distil_layers_from(teacher, "texts/")  # doctest: +SKIP
    """

    def __init__(
        self,
        student: LanguageModel,
        output_dir: str | Path | None = None,
        settings: TrainingSettings | None = None,
        text: TextSettings | None = None,
    ) -> None:
        check_type("settings", settings, TrainingSettings)
        check_type("text", text, TextSettings)
        self.student = student
        self.output_dir = None if output_dir is None else expand_user(output_dir)
        self.settings = settings or TrainingSettings()
        self.text = text or TextSettings()

    def distil_layers_from(
        self,
        teacher: LanguageModel,
        corpus: CorpusSource | Corpus,
        *,
        layer_mapping: str | Sequence[int | None] = "uniform",
        embedding_loss_weight: float = 1.0,
        hidden_loss_weight: float = 1.0,
        attention_loss_weight: float = 0.03,
    ) -> RunResult:
        """Teach the student the teacher's embeddings, hidden states and attention scores (TinyBERT, arXiv 1909.10351).

        Neither needs a head. The arguments are those of `ReaderTrainer.distil_intermediate_layers_from`.

        Args:
            teacher: A language model with the student's tokenizer. It is not changed.
            corpus: Text; see `Corpus`.
            layer_mapping: Which teacher layer each student layer learns; see `IntermediateLayersObjective`.
            embedding_loss_weight: Weight of the embedding loss; 0 leaves it out.
            hidden_loss_weight: Weight of the hidden-state loss; 0 leaves it out.
            attention_loss_weight: Weight of the attention-score loss; 0 leaves it out.

        Raises:
            DistilError: Teacher and student do not fit, or a setting is missing.
            DataError: The corpus cannot be read or is empty.
        """
        arguments: dict[str, Any] = {
            "layer_mapping": layer_mapping,
            "embedding_loss_weight": embedding_loss_weight,
            "hidden_loss_weight": hidden_loss_weight,
            "attention_loss_weight": attention_loss_weight,
        }
        return self._run("distil_layers", IntermediateLayersObjective, teacher, corpus, arguments)

    def distil_predictions_from(
        self,
        teacher: LanguageModel,
        corpus: CorpusSource | Corpus,
        *,
        temperature: float = 2.0,
        soft_target_weight: float = 5.0,
        masked_word_weight: float = 2.0,
        cosine_weight: float = 1.0,
    ) -> RunResult:
        """Teach the student what the teacher expects behind each mask: DistilBERT's triple loss (arXiv 1910.01108).

        Args:
            teacher: A masked language model with the student's tokenizer. It is not changed.
            corpus: Text; see `Corpus`.
            temperature: T, softens both distributions over the vocabulary.
            soft_target_weight: Weight of the teacher's distribution; 0 leaves it out.
            masked_word_weight: Weight of the words that were masked; 0 leaves it out.
            cosine_weight: Weight of the direction of the last hidden states; 0 leaves it out.

        Raises:
            DistilError: Teacher and student do not fit or have no head, or a setting is missing.
            DataError: The corpus cannot be read or is empty.
        """
        for who, model in (("teacher", teacher), ("student", self.student)):
            if not model.has_head:
                raise DistilError(
                    f"the {who} is an encoder without a head for masked language modelling; take a masked language "
                    "model, or distil_layers_from, which needs no head"
                )
        if masked_word_weight and not self.text.mask_probability:
            raise DistilError("mask_probability=0 leaves no masked words to learn; set masked_word_weight=0 too")
        arguments: dict[str, Any] = {
            "temperature": temperature,
            "soft_target_weight": soft_target_weight,
            "masked_word_weight": masked_word_weight,
            "cosine_weight": cosine_weight,
        }
        return self._run("distil_predictions", LanguageModelObjective, teacher, corpus, arguments)

    def _run(
        self,
        method: str,
        make_objective: Callable[..., Objective],
        teacher: LanguageModel,
        corpus: CorpusSource | Corpus,
        arguments: dict[str, Any],
    ) -> RunResult:
        began = time.monotonic()
        steps = self._check(teacher)
        source = corpus if isinstance(corpus, Corpus) else Corpus(corpus)
        processes = PartialState(cpu=self.student.device.type == "cpu")
        torch.manual_seed(self.settings.seed)  # fresh projections
        objective = make_objective(self.student.model.config, teacher.model.config, **arguments)
        windows = TextWindows(
            source,
            self.student.tokenizer,
            self.text,
            n_steps=steps,
            seed=self.settings.seed,
            token_types=takes_token_types(self.student.model) or takes_token_types(teacher.model),
            processes=processes,
        )
        record = {
            "method": method,
            "arguments": recorded(arguments),
            "settings": settings_record(self.settings),
            "corpus": source.identity,
            # Read by the process that looks after the directory, where there is one.
            "corpus_content": _content_of(source) if self.output_dir and processes.is_main_process else None,
            "text": asdict(self.text),
            "tokenizer": tokenizer_fingerprint(self.student.tokenizer),
            "student": None if self.output_dir is None else student_record(self.student.model),
            "teacher": model_fingerprint(teacher.model),
            "teacher_settings": {"precision": teacher.precision},
            "processes": processes.num_processes,
            "precision": resolve_precision(
                self.settings.precision, self.student.device, self.student.model.config.model_type
            ),
        }
        with (
            windows,
            RunDirectory(self.output_dir, record, self.settings, processes) as directory,
            student_may_come_back(self.student.model, directory),
        ):
            if directory.finished is not None:
                return directory.restore(self.student.model)
            n_steps, history = run_loop(
                self.student, objective, windows, directory.settings, directory.checkpoints, teacher=teacher
            )
            result = RunResult(n_steps, time.monotonic() - began, {}, history)
            return directory.finish(result, self.student.save)

    def _check(self, teacher: LanguageModel) -> int:
        """The number of steps, if everything fits."""
        settings = self.settings
        if settings.max_steps is None:
            raise DistilError("a corpus is a stream without an end: set max_steps to say how long to train")
        if settings.keep_best or settings.early_stopping_patience:
            raise DistilError(
                "keep_best and early_stopping_patience need data to choose by; a corpus is not measured on"
            )
        require_own_weights(self.student, teacher)
        if tokenizer_fingerprint(teacher.tokenizer) != tokenizer_fingerprint(self.student.tokenizer):
            raise DistilError(
                "teacher and student split text differently, so they cannot be compared token by token; use a student "
                "with the teacher's tokenizer"
            )
        require_one_device(self.student, teacher)
        for who, model in (("teacher", teacher.model), ("student", self.student.model)):
            positions = position_limit(model)
            if positions is not None and self.text.max_seq_len > positions:
                raise DistilError(
                    f"windows have {self.text.max_seq_len} tokens, the {who} knows {positions} positions; lower "
                    "max_seq_len"
                )
        return settings.max_steps


def _content_of(corpus: Corpus) -> str:
    return corpus.fingerprint or (
        f"{NOT_COMPARABLE}an IterableDataset without a name; give it one that changes with its content: "
        "Corpus(dataset, name='...')"
    )
