"""Objective: named loss terms of a batch; objectives can be added up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from haystack_distill.errors import DistilError
from haystack_distill.models.outputs import ModelOutputs, OutputRequest
from haystack_distill.objectives.schedule import Linear, Weight, as_weight, is_weight, largest, multiplied, weight_at

QUESTIONS, CORPUS = "questions", "corpus"


class LossTerm(NamedTuple):
    """One loss of a batch of B windows, unweighted.

    Attributes:
        values: The loss of each window, (B,).
        mask: True for the windows that have the loss, (B,) bool. The mean is over these windows of the whole
            optimiser step.
    """

    values: Tensor
    mask: Tensor


def has_teacher(batch: Mapping[str, Tensor]) -> Tensor:
    """The windows of a batch whose source of data has a teacher, (B,) bool; see `teachers.TeachersByData`.

    Args:
        batch: `weight` (B,) and, where sources differ in it, `has_teacher` (B,) bool.
    """
    if "has_teacher" in batch:
        return batch["has_teacher"].bool()
    return torch.ones_like(batch["weight"], dtype=torch.bool)


class Objective(nn.Module, ABC):
    """The loss of a student: a module that computes named loss terms from the outputs of student and teacher.

    Its parameters, such as projections between different widths, are trained and saved in checkpoints with the student.
    Objectives add up: `0.8 * first + 0.2 * second` has the terms of both.

    To write one, set `weights` and the requests, and implement `forward`; also `masks` if some windows lack a term, and
    `begin_step` if something changes while the run lasts.

    Attributes:
        weights: The weight of each term by name, in the present optimiser step. The loss of the step is the sum over
            terms of weight * mean, where the mean is over the windows of the step that have the term.
        student_request: The student outputs that `forward` reads.
        teacher_request: The teacher outputs that `forward` reads; empty for an objective without a teacher.
        data: The kinds of training data that suit the objective: "questions" (windows of a question and a context),
            "corpus" (windows of plain text).
        reads_cached_logits: Whether `masks` reads `teacher_start_logits` and `teacher_end_logits`, which the batch has
            only if the teacher caches its logits.
        needs_unlabelled: If at least one example must be unlabelled for the objective to have an effect of its own, the
            option that makes it use labelled ones, for the error message.
        trains_student: Whether the student's weights change; False for one that trains parameters of its own alone.
        keeps_answers: Whether all that changes is beside what computes the student's answers, as with branches.

    Example:
        >>> class LastHiddenState(Objective):
        ...     student_request = OutputRequest(hidden_states=True)
        ...     teacher_request = OutputRequest(hidden_states=True)
        ...
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weights = {"last": 1.0}
        ...
        ...     def forward(self, student, teacher, batch):
        ...         difference = student.hidden_states[-1] - teacher.hidden_states[-1]
        ...         return {"last": LossTerm(difference.square().mean(dim=(1, 2)), self.masks(batch)["last"])}
    """

    weights: dict[str, float]
    student_request: OutputRequest = OutputRequest(logits=True)
    teacher_request: OutputRequest = OutputRequest()
    data: ClassVar[frozenset[str]] = frozenset({QUESTIONS})
    reads_cached_logits: bool = False
    needs_unlabelled: str | None = None
    trains_student: bool = True
    keeps_answers: bool = False

    def begin_step(self, progress: float) -> None:
        """Get ready for an optimiser step; called before each one, the first after a resume included.

        What changes with the progress, such as `weights` or a temperature, is set here, as a function of the progress
        alone: a run that is resumed has seen no earlier call.

        Args:
            progress: The optimiser steps done, divided by all steps of the run but one: 0 in the first, 1 in the last.
        """

    def largest_weights(self) -> dict[str, float]:
        """The largest weight that each term has in a run, whatever the present step."""
        return dict(self.weights)

    def masks(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Which windows of a batch have each term.

        The number of windows of the whole step must be known before its first backward pass, so this is computed
        without student outputs. By default all windows have all terms; with a teacher those that have one.

        Args:
            batch: As for `forward`, including cached teacher outputs.

        Returns:
            For each term the mask that `forward` returns, (B,) bool.
        """
        everywhere = torch.ones_like(batch["weight"], dtype=torch.bool)
        return dict.fromkeys(self.weights, has_teacher(batch) if self.teacher_request else everywhere)

    def check_windows(self, batches: Callable[[], Iterable[Mapping[str, Tensor]]]) -> None:
        """Look at all windows of the data before the first step; called only if `reads_cached_logits`.

        Args:
            batches: Goes through the windows in batches, as `masks` gets them.

        Raises:
            DistilError: The objective learns nothing from the teacher's answers to any of them.
        """

    def prepare(self) -> None:
        """Load what the objective takes from an earlier run; called once, before the first step or a checkpoint."""

    def results(self) -> dict[str, dict[str, Tensor]]:
        """What a run leaves beside the student, for a later one.

        Returns:
            Tensors by name, for each file in the output directory by its name without the suffix `.safetensors`.
        """
        return {}

    @abstractmethod
    def forward(
        self, student: ModelOutputs, teacher: ModelOutputs | None, batch: Mapping[str, Tensor]
    ) -> dict[str, LossTerm]:
        """The unweighted terms of a batch of B windows, L tokens long.

        Args:
            student: The student outputs of `student_request`.
            teacher: The teacher outputs of `teacher_request`; None without a teacher.
            batch: `input_ids`, `attention_mask` (B, L); `weight` (B,), 0 for a window that only fills the batch. With
                questions also `start_positions`, `end_positions` (B,), `labelled` (B,) bool and `context_mask` (B, L)
                bool: the context tokens and the no-answer position; where some sources of the data have no teacher,
                `has_teacher` (B,) bool. With a corpus `labels` (B, L): the original token
                of a masked position, -100 elsewhere.

        Returns:
            One term per name in `weights`.

        Raises:
            DistilError: An output that the objective needs is missing.
        """

    def __add__(self, other: Objective) -> WeightedSum:
        if not isinstance(other, Objective):
            return NotImplemented
        return WeightedSum([*_parts_of(self), *_parts_of(other)])

    def __mul__(self, weight: Weight) -> WeightedSum:
        if not is_weight(weight):
            return NotImplemented
        return WeightedSum([(multiplied(weight, own), part) for own, part in _parts_of(self)])

    __rmul__ = __mul__


class WeightedSum(Objective):
    """Several objectives at once: the weighted sum of their totals.

    Terms keep their names; if two parts have a term of the same name, the later one is called `name_2`, and so on. In a
    step in which a `Linear` weight is 0, the terms of its part are left out. Before the first step, `weights` has the
    largest weight of each term.

    Args:
        parts: Pairs of a weight, 0 or more or a `Linear`, and an objective.

    Attributes:
        parts: The objectives.
        part_weights: Their weights.

    Raises:
        DistilError: There is no part, a weight is not a number of 0 or more, or no kind of data suits all parts.
    """

    def __init__(self, parts: Sequence[tuple[Weight, Objective]]) -> None:
        super().__init__()
        if not parts:
            raise DistilError("a weighted sum needs at least one objective; add one")
        self.part_weights = tuple(as_weight(weight, "an objective") for weight, _ in parts)
        self.parts = nn.ModuleList(part for _, part in parts)
        self.weights = {}
        self._names: list[dict[str, str]] = []  # for each part, the names of its terms in the sum
        self._left_out: frozenset[int] = frozenset()  # the numbers of the parts that have no weight in this step
        self.student_request, self.teacher_request = OutputRequest(), OutputRequest()
        self.data = frozenset.intersection(*(part.data for _, part in parts))  # type: ignore[misc]
        self.trains_student = any(part.trains_student for _, part in parts)
        self.keeps_answers = all(part.keeps_answers for _, part in parts)
        self.reads_cached_logits = any(part.reads_cached_logits for _, part in parts)
        self.needs_unlabelled = next((part.needs_unlabelled for _, part in parts if part.needs_unlabelled), None)
        for weight, part in parts:
            names = {}
            for name, own in part.weights.items():
                names[name] = self._free_name(name)
                self.weights[names[name]] = largest(weight) * own
            self._names.append(names)
            self.student_request |= part.student_request
            self.teacher_request |= part.teacher_request
        if not self.data:
            raise DistilError(
                "these objectives cannot be added up, because some need questions and others a corpus; train them one "
                "after the other"
            )

    def _free_name(self, name: str) -> str:
        free, number = name, 1
        while free in self.weights:
            number += 1
            free = f"{name}_{number}"
        return free

    def begin_step(self, progress: float) -> None:
        """Pass the progress to the parts, and set the weights of this step; see `Objective.begin_step`."""
        present = [weight_at(weight, progress) for weight in self.part_weights]
        # Not those of a constant weight 0, which are logged.
        self._left_out = frozenset(
            number
            for number, weight in enumerate(self.part_weights)
            if isinstance(weight, Linear) and not present[number]
        )
        for part in self._objectives():
            part.begin_step(progress)
        self.weights = {
            names[name]: present[number] * own
            for number, part, names in self._present_parts()
            for name, own in part.weights.items()
        }

    def largest_weights(self) -> dict[str, float]:
        """The largest weight that each term has in a run; see `Objective.largest_weights`."""
        return {
            names[name]: largest(weight) * own
            for weight, part, names in zip(self.part_weights, self._objectives(), self._names, strict=True)
            for name, own in part.largest_weights().items()
        }

    def _objectives(self) -> Iterator[Objective]:
        yield from self.parts  # type: ignore[misc]

    def _present_parts(self) -> Iterator[tuple[int, Objective, dict[str, str]]]:
        """The number of each part that is not left out, the part, and the names of its terms in the sum."""
        for number, (part, names) in enumerate(zip(self._objectives(), self._names, strict=True)):
            if number not in self._left_out:
                yield number, part, names

    def masks(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Which windows have each term; see `Objective.masks`."""
        return {
            names[name]: mask for _, part, names in self._present_parts() for name, mask in part.masks(batch).items()
        }

    def check_windows(self, batches: Callable[[], Iterable[Mapping[str, Tensor]]]) -> None:
        """Let each part that reads cached logits look at the windows; see `Objective.check_windows`."""
        for part in self._objectives():
            if part.reads_cached_logits:
                part.check_windows(batches)

    def prepare(self) -> None:
        """Prepare all parts; see `Objective.prepare`."""
        for part in self._objectives():
            part.prepare()

    def results(self) -> dict[str, dict[str, Tensor]]:
        """The results of all parts; see `Objective.results`."""
        return {name: tensors for part in self._objectives() for name, tensors in part.results().items()}

    def forward(
        self, student: ModelOutputs, teacher: ModelOutputs | None, batch: Mapping[str, Tensor]
    ) -> dict[str, LossTerm]:
        """The terms of all parts; see `Objective.forward`."""
        return {
            names[name]: term
            for _, part, names in self._present_parts()
            for name, term in part(student, teacher, batch).items()
        }


def _parts_of(objective: Objective) -> list[tuple[Weight, Objective]]:
    """An objective as the parts of a sum."""
    if isinstance(objective, WeightedSum):
        return list(zip(objective.part_weights, objective.parts, strict=True))  # type: ignore[arg-type]
    return [(1.0, objective)]
