"""LiveTeacher: the teacher runs in every step, on the student's own windows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from haystack_distill.data.text_tokenizer import tokenizer_fingerprint
from haystack_distill.data.token_translation import TokenTranslation
from haystack_distill.errors import DistilError
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.models.outputs import ModelOutputs, OutputRequest, at_places, run_model
from haystack_distill.models.reader import Reader, position_limit
from haystack_distill.teachers.teacher import Teacher
from haystack_distill.utils.cpu_linear import kept_casts
from haystack_distill.utils.devices import autocast, evaluating
from haystack_distill.utils.model_fingerprint import model_fingerprint
from haystack_distill.utils.model_inputs import model_inputs, takes_token_types


class LiveTeacher(Teacher):
    """A reader or language model that runs in every step, for hidden states and attention as well as logits.

    It runs in evaluation mode and without gradients, and must have the student's device and at least as many positions
    as the student's windows have tokens. Its tokenizer must be the student's, or cut text into the same pieces, as
    MPNet's and BERT's do: then it runs on the student's windows in its own ids and with its own special tokens, see
    `data.token_translation.TokenTranslation`, and the outputs are those of the student's tokens.

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
        self._translation: TokenTranslation | None = None
        self._casts: AbstractContextManager[Any] = contextlib.nullcontext()  # another while it is active

    def models(self) -> list[Reader | LanguageModel]:
        """Its model; see `Teacher.models`."""
        return [self.model]

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Hash of the weights and the precision in which it runs; also its tokenizer if it is not the student's."""
        found = {"weights": model_fingerprint(self.model.model), "precision": self.model.precision}
        if self._translation is not None:
            found["tokenizer"] = tokenizer_fingerprint(self.model.tokenizer)
        return found

    def check(self, student: Reader | LanguageModel, request: OutputRequest) -> None:
        """Check that the teacher can run on the student's windows; see `Teacher.check`.

        Raises:
            DistilError: The tokenizers cut text into different pieces, the devices differ, the windows have more tokens
                than the teacher has positions, or logits are requested and the head is untrained.
        """
        if isinstance(student, Reader):
            self._translation = _translation(student, self.model)
            more = 0 if self._translation is None else self._translation.more_tokens
            require_positions("teacher", self.model, student.window_settings.max_seq_len + more)
        require_one_device(student, self.model)
        if request.logits and isinstance(self.model, Reader):
            self.model.require_trained()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The teacher in evaluation mode; see `Teacher.active`."""
        self._casts = kept_casts(self.model.device, self.model.precision, self.model.model)
        try:
            with evaluating(self.model.model):
                yield
        finally:
            self._casts = contextlib.nullcontext()

    def outputs(self, batch: Mapping[str, Tensor], request: OutputRequest) -> ModelOutputs:
        """Run the teacher on a batch; see `Teacher.outputs`."""
        inputs, places = dict(batch), None
        if self._translation is not None:
            inputs, places = self._translation.translate(batch["input_ids"], batch["attention_mask"])
        with torch.no_grad(), autocast(self.model.device, self.model.precision), self._casts:
            found = run_model(self.model.model, model_inputs(inputs, token_types=self.token_types), request)
            return found if places is None else at_places(found, places)


def _translation(student: Reader, teacher: Reader | LanguageModel) -> TokenTranslation | None:
    """How the teacher reads the student's windows; None where both have one tokenizer.

    Raises:
        DistilError: The tokenizers cut text into different pieces.
    """
    try:
        return TokenTranslation.between(student.tokenizer, teacher.tokenizer)
    except DistilError as error:
        raise DistilError(
            "teacher and student have different tokenizers, so they cannot be compared token by token "
            f"({error}); use a student with the teacher's pieces, or distil the prediction layer, which is aligned by "
            "character"
        ) from error


def require_same_tokenizer(student: LanguageModel, teacher: LanguageModel) -> None:
    """Check that two language models have the same tokenizer, and so one vocabulary.

    Raises:
        DistilError: The tokenizers differ.
    """
    if tokenizer_fingerprint(teacher.tokenizer) != tokenizer_fingerprint(student.tokenizer):
        raise DistilError(
            "teacher and student have different tokenizers, so they cannot be compared token by token; use a student "
            "with the teacher's tokenizer"
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
