"""EnsembleTeacher: several teachers, averaged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import datasets
import torch
from accelerate import PartialState
from torch import Tensor

from haystack_distill.data.text_tokenizer import tokenizer_fingerprint
from haystack_distill.data.windows import Windows
from haystack_distill.errors import DistilError
from haystack_distill.models.outputs import ModelOutputs, OutputRequest
from haystack_distill.models.reader import Reader
from haystack_distill.teachers.teacher import Teacher
from haystack_distill.utils.checks import check_argument, is_number


class EnsembleTeacher(Teacher):
    """The weighted average of several teachers' start and end probabilities, or of their logits.

    Distilling an ensemble into one model is Hinton et al. 2015 (arXiv 1503.02531), whose soft targets are the
    arithmetic or geometric means of the teachers' distributions. The arithmetic mean is that of the probabilities over
    the context and the no-answer position, at temperature 1; the outputs are the logarithms of the averages, so that
    their softmax is the average. Each teacher may have its own tokenizer and windows. The geometric mean is that of the
    logits, which needs the same tokenizer and windows in all teachers. Hidden states and attention scores of different
    models cannot be averaged.

    The teachers are prepared one after the other. Those given as `CachedTeacher(load)`, with a function that loads the
    reader, are in memory one at a time.

    Args:
        teachers: Two or more teachers.
        weights: A weight above 0 per teacher, or None for equal weights; they are divided by their sum.
        average: "probabilities" or "logits".

    Attributes:
        teachers: The teachers.
        weights: The weights; they sum to 1.
        average: As given.

    Raises:
        DistilError: There are fewer than two teachers, one of them is a reader, the weights do not match them, or
            `average` is unknown.

    Example:
        >>> teacher = EnsembleTeacher([CachedTeacher(first), CachedTeacher(second)], [0.7, 0.3])  # doctest: +SKIP
        >>> ReaderTrainer(student).distil(teacher, "train.json", PredictionLayer())  # doctest: +SKIP
    """

    def __init__(
        self,
        teachers: Sequence[Teacher],
        weights: Sequence[float] | None = None,
        *,
        average: Literal["probabilities", "logits"] = "probabilities",
    ) -> None:
        if len(teachers) < 2:
            raise DistilError(f"an ensemble needs two or more teachers, not {len(teachers)}; give one teacher as it is")
        if not all(isinstance(one, Teacher) for one in teachers):
            raise DistilError("an ensemble is made of teachers; give each reader as CachedTeacher(reader)")
        weights = [1.0] * len(teachers) if weights is None else list(weights)
        if len(weights) != len(teachers) or not all(is_number(weight) and weight > 0 for weight in weights):
            raise DistilError(
                f"an ensemble of {len(teachers)} teachers needs {len(teachers)} weights above 0, not {weights!r}"
            )
        check_argument("average", average, average in ("probabilities", "logits"), '"probabilities" or "logits"')
        self.average = average
        self.teachers = list(teachers)
        self.weights = [weight / sum(weights) for weight in weights]
        self.token_types = any(teacher.token_types for teacher in teachers)
        self.caches_logits = all(teacher.caches_logits for teacher in teachers)
        self.config = teachers[0].config

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The fingerprints of the teachers by their number (from 1), their weights, and how they are averaged."""
        members = {str(number): teacher.fingerprint for number, teacher in enumerate(self.teachers, start=1)}
        other = {} if self.average == "probabilities" else {"average": self.average}
        return {"teachers": members, "weights": self.weights, **other}

    def members(self) -> list[Teacher]:
        """The teachers, ensembles within it resolved; see `Teacher.members`."""
        return [member for teacher in self.teachers for member in teacher.members()]

    def check(self, student: Reader, request: OutputRequest) -> None:
        """Check that only logits are requested, and check each teacher; see `Teacher.check`.

        Raises:
            DistilError: Hidden states or attention scores are requested, a teacher cannot provide its logits, or logits
                are to be averaged and the teachers differ in tokenizer or windows.
        """
        if request.beyond_logits:
            raise DistilError(
                "only the predictions of several teachers can be averaged; give a single teacher for hidden states and "
                "attention scores"
            )
        for teacher in self.teachers:
            teacher.check(student, request)
        if self.average == "logits":
            self._require_same_windows(student)

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
        """The averaged logits where those of all teachers are cached; see `Teacher.cached`.

        Otherwise what is cached of each teacher, with the prefix `teacher_<number>/`.
        """
        found = [teacher.cached(batch) for teacher in self.teachers]
        if self.caches_logits:
            mask = batch["context_mask"].bool()
            names = ("teacher_start_logits", "teacher_end_logits")
            return {name: self._average([one[name] for one in found], mask) for name in names}
        return {
            f"teacher_{number}/{name}": value
            for number, outputs in enumerate(found, start=1)
            for name, value in outputs.items()
        }

    def outputs(self, batch: Mapping[str, Tensor], request: OutputRequest) -> ModelOutputs:
        """The averages as start and end logits; see `Teacher.outputs`.

        Args:
            batch: A batch of the student's windows, including the tensors of `cached`.
            request: The outputs that the objective needs: logits.

        Returns:
            Start and end logits (B, L) float32, -inf outside the context and the no-answer position.

        Raises:
            DistilError: A teacher has no start and end logits.
        """
        if self.caches_logits:
            return ModelOutputs(batch["teacher_start_logits"], batch["teacher_end_logits"])
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
            inside = values.float().masked_fill(~mask, float("-inf"))
            total += weight * (inside if self.average == "logits" else inside.softmax(dim=1))
        return total if self.average == "logits" else total.log()

    def _require_same_windows(self, student: Reader) -> None:
        """Check that all teachers have the same tokenizer and windows; a teacher that is not cached has the student's.

        Raises:
            DistilError: They differ.
        """
        own = {"windows": asdict(student.window_settings), "tokenizer": tokenizer_fingerprint(student.tokenizer)}
        kinds = [{name: teacher.fingerprint.get(name, own[name]) for name in own} for teacher in self.teachers]
        if any(kind != kinds[0] for kind in kinds):
            raise DistilError(
                'average="logits" needs teachers with the same tokenizer and windows, and these differ; use '
                'average="probabilities"'
            )


def members_of(teacher: Teacher | None) -> list[Teacher]:
    """The members of a teacher, see `Teacher.members`; none for None."""
    return [] if teacher is None else teacher.members()
