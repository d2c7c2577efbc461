"""TeachersByData: several sources of training data, each with a teacher of its own or none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from haystack_distill.data.windows import Windows
from haystack_distill.errors import DistilError
from haystack_distill.models.heads import check_head
from haystack_distill.models.outputs import ModelOutputs, OutputRequest
from haystack_distill.models.reader import ExampleSource, Reader
from haystack_distill.teachers.teacher import Teacher
from haystack_distill.utils.checks import check_argument, is_number

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from haystack_distill.teachers.choice import TeacherSource


@dataclass(frozen=True)
class Source:
    """A part of the training data.

    Args:
        data: Examples, as `data.squad.load.load_examples` accepts them.
        teacher: The teacher of these examples: a reader, several readers (their predictions are averaged), or a
            `Teacher` that caches its logits. None for labels alone.
        head: The name of the student's head that these examples train; sources may share one. None for the head that
            all sources without a name share.
    """

    data: ExampleSource
    teacher: TeacherSource | None = None
    head: str | None = None


@dataclass(frozen=True)
class Sources:
    """Several parts of the training data, each with a teacher of its own or none, which one student learns at once.

    Multi-task learning with distillation (MT-DNN, Liu et al. 2019, arXiv 1904.09482): windows of all sources are mixed
    evenly over the steps, each with the soft targets of the teacher of its source; those of a source without a teacher
    have their labels alone. The loss of the paper is the mean of both, `PredictionLayer()`.

    The student has one encoder and one head, or heads of their own for sources that name one: each starts as a copy of
    the student's head and learns from the windows of its sources alone. See `models.heads.Heads`.

    Args:
        sources: Two or more.
        sampling_exponent: Sources are drawn in proportion to this power of their numbers of windows: with 1 each window
            is drawn once in an epoch, less gives small sources a larger share, 0 gives all the same. See
            `data.mixture.tempered_mixture`.

    Raises:
        DistilError: There are fewer than two sources, the exponent is out of range, or the name of a head cannot be
            that of a directory or has no effect.

    Example:
        >>> sources = Sources([Source("wiki.json", first), Source("law.json", second), Source("labelled.json")])
        ... # doctest: +SKIP
        >>> ReaderTrainer(student).distil(None, sources, PredictionLayer())  # doctest: +SKIP
    """

    sources: Sequence[Source]
    sampling_exponent: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))
        if len(self.sources) < 2 or not all(isinstance(source, Source) for source in self.sources):
            raise DistilError(
                "sources must be two or more of the type Source; with a single one give its data and teacher directly"
            )
        exponent = self.sampling_exponent
        check_argument(
            "sampling_exponent", exponent, is_number(exponent) and 0 <= exponent <= 1, "a number from 0 (equal) to 1"
        )
        check_heads([source.head for source in self.sources])

    @property
    def heads(self) -> tuple[str | None, ...]:
        """The names of the student's heads, that without a name (None) first; empty if no source names one."""
        names = list(dict.fromkeys(source.head for source in self.sources))
        return tuple(sorted(names, key=lambda name: name is not None)) if any(names) else ()

    @property
    def any_teacher(self) -> bool:
        """Whether any of the sources has a teacher."""
        return any(source.teacher is not None for source in self.sources)

    @property
    def config(self) -> PretrainedConfig | None:
        """The configuration of the first teacher that is a `Teacher`; None without one."""
        return next((one.teacher.config for one in self.sources if isinstance(one.teacher, Teacher)), None)


def check_heads(names: Sequence[str | None]) -> None:
    """Check the heads that sources name.

    Args:
        names: The name of each source's head, or None.

    Raises:
        DistilError: A name cannot be that of a directory, or all sources have the same.
    """
    for number, name in enumerate(names, start=1):
        if name is not None:
            try:
                check_head(name)
            except DistilError as error:
                raise DistilError(f"source {number}: {error}") from error
    if names[0] is not None and len(set(names)) == 1:
        raise DistilError(
            f"all sources have the head {names[0]!r}, which has no effect because it would be the only one; give one "
            "of them another, or leave head out"
        )


class TeachersByData(Teacher):
    """The cached logits of several teachers, each for the windows of its own source of the training data.

    A batch gets `has_teacher` (B,) bool: False for the windows of a source without a teacher, for which no objective
    has a term that compares student and teacher. Their logits are 0, so that no loss of them is infinite.

    Each teacher runs over the examples of its own source only.

    Args:
        teachers: The teacher of each source, or None.

    Attributes:
        teachers: As given.

    Raises:
        DistilError: No source has a teacher, a teacher does not cache its logits, or one object teaches two sources.
    """

    caches_logits = True

    def __init__(self, teachers: Sequence[Teacher | None]) -> None:
        self.teachers = list(teachers)
        members = self.members()
        if not members:
            raise DistilError("none of the sources has a teacher; give at least one of them a teacher")
        if len({id(member) for member in members}) < len(members):
            raise DistilError("one Teacher object teaches two sources; give the reader itself to both")
        self.config = members[0].config

    def members(self) -> list[Teacher]:
        """The teachers of all sources; see `Teacher.members`."""
        return [member for teacher in self.teachers if teacher is not None for member in teacher.members()]

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The fingerprints of the teachers by the number of their source (from 1); None for one without."""
        numbered = enumerate(self.teachers, start=1)
        return {"sources": {str(number): None if one is None else one.fingerprint for number, one in numbered}}

    def check(self, student: Reader, request: OutputRequest) -> None:
        """Check that only logits are requested, and check each teacher; see `Teacher.check`.

        Raises:
            DistilError: Hidden states or attention scores are requested, or a teacher cannot provide its logits or does
                not cache them.
        """
        if request.beyond_logits:
            raise DistilError(
                "teachers by data provide only logits, and the method needs hidden states or attention scores; take a "
                "method of the answers alone, such as prediction_layer, or train on each source in a stage of its own"
            )
        for number, teacher in enumerate(self.teachers, start=1):
            if teacher is None:
                continue
            if not teacher.caches_logits:
                raise DistilError(f"source {number}: the teacher does not cache its logits; give a reader")
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
        """Prepare each teacher for the examples of its source; see `Teacher.prepare`.

        Args:
            examples: The examples of all sources, one source after the other.
            windows: The student's windows of these examples; its `mixture` has the source of each.
            cache_dir: See `utils.cache.cache_directory`.
            progress: Whether to display a progress bar while a model runs.
            processes: The processes of the run, or None for one.

        Raises:
            DistilError: The windows are not those of as many sources as there are teachers.
        """
        if windows.mixture is None or len(windows.mixture.counts) != len(self.teachers):
            raise DistilError("teachers by data need the sources of the data; give `Sources` as the data of the run")
        self._source_of = windows.mixture.part_of
        self._has_teacher = np.array([teacher is not None for teacher in self.teachers])
        numbers = np.arange(len(self.teachers))
        self._first = np.searchsorted(self._source_of, numbers, "left")
        past = np.searchsorted(self._source_of, numbers, "right")
        for teacher, first, stop in zip(self.teachers, self._first, past, strict=True):
            if teacher is None or first == stop:
                continue
            rows = range(int(windows.example_of[first]), int(windows.example_of[stop - 1]) + 1)
            own = examples.select(rows)
            cut = Windows.cut(
                own, windows.tokenizer, windows.settings, token_types=windows.token_types, cache_dir=cache_dir
            )
            teacher.prepare(own, cut, cache_dir=cache_dir, progress=progress, processes=processes)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The contexts of all teachers; see `Teacher.active`."""
        with contextlib.ExitStack() as stack:
            for teacher in self.teachers:
                if teacher is not None:
                    stack.enter_context(teacher.active())
            yield

    def cached(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each window's logits from the teacher of its source; see `Teacher.cached`.

        Returns:
            `teacher_start_logits`, `teacher_end_logits` (B, L) float32, -inf at positions without a teacher score;
            `has_teacher` (B,) bool.
        """
        names = ("teacher_start_logits", "teacher_end_logits")
        mask = batch["context_mask"].bool()
        made = {name: torch.zeros(mask.shape).masked_fill(~mask, float("-inf")) for name in names}
        sources = self._source_of[batch["window"].numpy()]
        for number, teacher in enumerate(self.teachers):
            rows = torch.from_numpy(np.flatnonzero(sources == number))
            if teacher is None or not len(rows):
                continue
            own = {name: value[rows] for name, value in batch.items()}
            own["window"] = own["window"] - int(self._first[number])
            found = teacher.cached(own)
            for name in names:
                made[name][rows] = found[name]
        return made | {"has_teacher": torch.from_numpy(self._has_teacher[sources])}

    def outputs(self, batch: Mapping[str, Tensor], request: OutputRequest) -> ModelOutputs:
        """The logits that `cached` added to the batch; see `Teacher.outputs`."""
        return ModelOutputs(batch["teacher_start_logits"], batch["teacher_end_logits"])
