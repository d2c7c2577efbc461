"""EnsembleTeacher: several teachers, averaged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from torch import Tensor

from haystack_distill.data.windows import Windows
from haystack_distill.errors import DistilError
from haystack_distill.models.outputs import ModelOutputs, OutputRequest
from haystack_distill.models.reader import Reader
from haystack_distill.teachers.teacher import Teacher
from haystack_distill.utils.checks import is_number


class EnsembleTeacher(Teacher):
    """The weighted average of several teachers' start and end probabilities.

    Distilling an ensemble into one model is Hinton et al. 2015 (arXiv 1503.02531), whose soft targets are averages of
    the teachers' distributions. The probabilities are over the context and the no-answer position, at temperature 1;
    the outputs are the logarithms of the averages, so that their softmax is the average. Each teacher may have its own
    tokenizer and windows. Hidden states and attention scores of different models cannot be averaged.

    Args:
        teachers: Two or more teachers.
        weights: A weight above 0 per teacher, or None for equal weights; they are divided by their sum.

    Attributes:
        teachers: The teachers.
        weights: The weights; they sum to 1.

    Raises:
        DistilError: There are fewer than two teachers, or the weights do not match them.

    Example:
        >>> teacher = EnsembleTeacher([CachedTeacher(first), CachedTeacher(second)], [0.7, 0.3])  # doctest: +SKIP
        >>> ReaderTrainer(student).distil(teacher, "train.json", PredictionLayer())  # doctest: +SKIP
    """

    def __init__(self, teachers: Sequence[Teacher], weights: Sequence[float] | None = None) -> None:
        if len(teachers) < 2:
            raise DistilError(f"an ensemble needs two or more teachers, not {len(teachers)}; give one teacher as it is")
        weights = [1.0] * len(teachers) if weights is None else list(weights)
        if len(weights) != len(teachers) or not all(is_number(weight) and weight > 0 for weight in weights):
            raise DistilError(
                f"an ensemble of {len(teachers)} teachers needs {len(teachers)} weights above 0, not {weights!r}"
            )
        self.teachers = list(teachers)
        self.weights = [weight / sum(weights) for weight in weights]
        self.token_types = any(teacher.token_types for teacher in teachers)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The fingerprints of the teachers by their number (from 1), and their weights."""
        members = {str(number): teacher.fingerprint for number, teacher in enumerate(self.teachers, start=1)}
        return {"teachers": members, "weights": self.weights}

    def check(self, student: Reader, request: OutputRequest) -> None:
        """Check that only logits are requested, and check each teacher; see `Teacher.check`.

        Raises:
            DistilError: Hidden states or attention scores are requested, or a teacher cannot provide its logits.
        """
        if request.beyond_logits:
            raise DistilError(
                "only the predictions of several teachers can be averaged; give a single teacher for hidden states and "
                "attention scores"
            )
        for teacher in self.teachers:
            teacher.check(student, request)

    def prepare(
        self,
        examples: datasets.Dataset,
        windows: Windows,
        *,
        cache_dir: str | Path | None = None,
        progress: bool = True,
        processes: PartialState | None = None,
    ) -> None:
        """Prepare each teacher; see `Teacher.prepare`."""
        for teacher in self.teachers:
            teacher.prepare(examples, windows, cache_dir=cache_dir, progress=progress, processes=processes)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The contexts of all teachers; see `Teacher.active`."""
        with contextlib.ExitStack() as stack:
            for teacher in self.teachers:
                stack.enter_context(teacher.active())
            yield

    def cached(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The cached outputs of all teachers, with the prefix `teacher_<number>/`; see `Teacher.cached`."""
        return {
            f"teacher_{number}/{name}": value
            for number, teacher in enumerate(self.teachers, start=1)
            for name, value in teacher.cached(batch).items()
        }

    def outputs(self, batch: Mapping[str, Tensor], request: OutputRequest) -> ModelOutputs:
        """The logarithms of the averaged probabilities as start and end logits; see `Teacher.outputs`.

        Args:
            batch: A batch of the student's windows, including the tensors of `cached`.
            request: The outputs that the objective needs: logits.

        Returns:
            Start and end logits (B, L) float32, -inf outside the context and the no-answer position.

        Raises:
            DistilError: A teacher has no start and end logits.
        """
        found = [
            teacher.outputs(self._batch_of(number, batch), request)
            for number, teacher in enumerate(self.teachers, start=1)
        ]
        mask = batch["context_mask"].bool()
        starts = [outputs.start_logits for outputs in found]
        ends = [outputs.end_logits for outputs in found]
        return ModelOutputs(self._average(starts, mask), self._average(ends, mask))

    def _batch_of(self, number: int, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch with the cached outputs of one teacher, under their own names."""
        own = f"teacher_{number}/"
        shared = {name: value for name, value in batch.items() if "/" not in name}
        return shared | {name[len(own) :]: value for name, value in batch.items() if name.startswith(own)}

    def _average(self, logits: Sequence[Tensor | None], mask: Tensor) -> Tensor:
        total = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
        for weight, values in zip(self.weights, logits, strict=True):
            if values is None:
                raise DistilError("a teacher of the ensemble has no start and end logits; use readers as teachers")
            total += weight * values.float().masked_fill(~mask, float("-inf")).softmax(dim=1)
        return total.log()


def members_of(teacher: Teacher | None) -> list[Teacher]:
    """The teachers of an ensemble, ensembles within it resolved; a single teacher alone; none for None."""
    if isinstance(teacher, EnsembleTeacher):
        return [member for one in teacher.teachers for member in members_of(one)]
    return [] if teacher is None else [teacher]
