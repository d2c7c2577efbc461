"""LiveTeacher: the teacher runs in every step, on the student's own windows."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from haystack_distill.data.text_tokenizer import tokenizer_fingerprint
from haystack_distill.errors import DistilError
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.models.outputs import ModelOutputs, OutputRequest, run_model
from haystack_distill.models.reader import Reader, position_limit
from haystack_distill.teachers.teacher import Teacher
from haystack_distill.utils.devices import autocast, evaluating
from haystack_distill.utils.model_fingerprint import model_fingerprint
from haystack_distill.utils.model_inputs import model_inputs, takes_token_types


class LiveTeacher(Teacher):
    """A reader or language model that runs in every step, for hidden states and attention as well as logits.

    It runs in evaluation mode and without gradients, and must have the student's tokenizer and device and at least as
    many positions as the student's windows have tokens.

    Args:
        model: The teacher. It is not changed.

    Attributes:
        model: The teacher.

    Raises:
        DistilError: The model is a reader that was loaded with another backend than PyTorch.

    Example:
        >>> teacher = LiveTeacher(Reader.load("deepset/roberta-base-squad2"))  # doctest: +SKIP
        >>> ReaderTrainer(student).distil(teacher, "train.json", PredictionLayer())  # doctest: +SKIP
    """

    def __init__(self, model: Reader | LanguageModel) -> None:
        if isinstance(model, Reader):
            model.require_weights()
        self.model = model
        self.token_types = takes_token_types(model.model)
        self.config = model.model.config

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Hash of the weights, and the precision in which the teacher runs."""
        return {"weights": model_fingerprint(self.model.model), "precision": self.model.precision}

    def check(self, student: Reader | LanguageModel, request: OutputRequest) -> None:
        """Check that the teacher can run on the student's windows; see `Teacher.check`.

        Raises:
            DistilError: Tokenizers or devices differ, the windows have more tokens than the teacher has positions, or
                logits are requested and the head is untrained.
        """
        if isinstance(student, Reader):
            require_same_tokens(student, self.model)
        require_one_device(student, self.model)
        if request.logits and isinstance(self.model, Reader):
            self.model.require_trained()

    def active(self) -> AbstractContextManager[Any]:
        """The teacher in evaluation mode; see `Teacher.active`."""
        return evaluating(self.model.model)

    def outputs(self, batch: Mapping[str, Tensor], request: OutputRequest) -> ModelOutputs:
        """Run the teacher on a batch; see `Teacher.outputs`."""
        with torch.no_grad(), autocast(self.model.device, self.model.precision):
            return run_model(self.model.model, model_inputs(dict(batch), token_types=self.token_types), request)


def require_same_tokens(student: Reader, teacher: Reader | LanguageModel) -> None:
    """Check that student and teacher can run on the same tokens, so that their layers can be compared.

    Args:
        student: The student; its window settings count.
        teacher: The teacher.

    Raises:
        DistilError: The tokenizers differ, or the windows have more tokens than the teacher has positions.
    """
    require_same_tokenizer(student, teacher)
    require_positions("teacher", teacher, student.window_settings.max_seq_len)


def require_same_tokenizer(student: Reader | LanguageModel, teacher: Reader | LanguageModel) -> None:
    """Check that student and teacher have the same tokenizer.

    Raises:
        DistilError: The tokenizers differ.
    """
    if tokenizer_fingerprint(teacher.tokenizer) != tokenizer_fingerprint(student.tokenizer):
        other = ", or distil the prediction layer, which is aligned by character" if isinstance(student, Reader) else ""
        raise DistilError(
            "teacher and student have different tokenizers, so they cannot be compared token by token; use a student "
            f"with the teacher's tokenizer{other}"
        )


def require_positions(role: str, model: Reader | LanguageModel, max_seq_len: int) -> None:
    """Check that a model has a position for each token of a window.

    Args:
        role: "teacher" or "student", for the message.
        model: The model.
        max_seq_len: The number of tokens of a window.

    Raises:
        DistilError: The model has fewer positions.
    """
    positions = position_limit(model.model)
    if positions is not None and max_seq_len > positions:
        raise DistilError(
            f"windows have {max_seq_len} tokens, but the {role} has {positions} positions; lower max_seq_len"
        )


def require_one_device(student: Reader | LanguageModel, teacher: Reader | LanguageModel) -> None:
    """Check that student and teacher are on the same device, for a teacher that runs in every step.

    Raises:
        DistilError: The devices differ.
    """
    if teacher.device != student.device:
        raise DistilError(
            f"teacher ({teacher.device}) and student ({student.device}) must be on one device, because both run in "
            "every step; load them with the same `device`"
        )
