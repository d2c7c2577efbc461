"""Agreement of two readers on questions without labels: how often, and how well, a student answers as its teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from haystack_distill.data.squad.load import load_examples
from haystack_distill.data.squad.metrics import example_scores
from haystack_distill.errors import DistilError
from haystack_distill.evaluation.measurements import chosen_answer
from haystack_distill.models.answers import Answer
from haystack_distill.models.reader import ExampleSource, Reader
from haystack_distill.utils.progress import progress_bar


@dataclass(frozen=True)
class AnswerPair:
    """The answers of two readers to one question.

    Attributes:
        row: The row of the question in the data.
        student: The student's answer.
        teacher: The teacher's answer.
        exact: Exact match of the two, 0 or 1.
        f1: F1 of the two, 0 to 1.
    """

    row: int
    student: Answer
    teacher: Answer
    exact: float
    f1: float

    @property
    def weight(self) -> float:
        """How much the difference matters: the teacher's score times what F1 lacks to 1."""
        return self.teacher.score * (1 - self.f1)


@dataclass(frozen=True)
class Agreement:
    """How well the answers of a student agree with its teacher's.

    Attributes:
        exact: The share of questions with the same answer, as exact match compares, 0 to 1; two no-answers are the
            same.
        f1: The mean F1 of the two answers, 0 to 1; 1 for two no-answers, 0 for one.
        no_answer: The share of questions that both or neither of the two leave without an answer, 0 to 1.
        pairs: The answers to each question, in the order of the data.
    """

    exact: float
    f1: float
    no_answer: float
    pairs: tuple[AnswerPair, ...]

    @classmethod
    def of(cls, pairs: Sequence[AnswerPair]) -> Agreement:
        """The means over some pairs of answers."""
        same = sum(pair.student.no_answer == pair.teacher.no_answer for pair in pairs)
        exact, f1 = (sum(getattr(pair, name) for pair in pairs) for name in ("exact", "f1"))
        return cls(exact / len(pairs), f1 / len(pairs), same / len(pairs), tuple(pairs))

    def unanswered(self) -> dict[str, int]:
        """The number of questions that both, only the student and only the teacher leave without an answer."""
        silent = [(pair.student.no_answer, pair.teacher.no_answer) for pair in self.pairs]
        names = {"both": (True, True), "student_only": (True, False), "teacher_only": (False, True)}
        return {name: silent.count(wanted) for name, wanted in names.items()}

    def differences(self, number: int = 20) -> list[AnswerPair]:
        """The pairs that differ most, by the teacher's score times (1 - F1); those that are alike never."""
        differing = [pair for pair in self.pairs if pair.f1 < 1]
        return sorted(differing, key=lambda pair: (-pair.weight, pair.row))[:number]


def measure_agreement(
    student: Reader,
    teacher: Reader,
    data: ExampleSource,
    *,
    allow_no_answer: bool = True,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> Agreement:
    """Ask two readers the same questions and compare their answers; labels are not needed and not looked at.

    Args:
        student: The reader to judge.
        teacher: The reader to judge it by. Tokenizers and windows may differ.
        data: Questions and contexts, as `data.squad.load.load_examples` accepts them.
        allow_no_answer: Whether a reader may leave a question without an answer, by its own threshold.
        cache_dir: The cache directory, see `utils.cache.cache_directory`.
        progress: Whether to show progress bars.

    Raises:
        DataError: The data cannot be read.
        DistilError: There is no question, or some weights of a reader are untrained.

    Example:
        >>> found = measure_agreement(student, teacher, "questions.jsonl")  # doctest: +SKIP
        >>> found.f1 >= 0.95  # doctest: +SKIP
    """
    for reader, name in ((student, "student"), (teacher, "teacher")):
        if reader.untrained:
            raise DistilError(
                f"the {name}'s answers are random, for {', '.join(reader.untrained)} are untrained; train it first"
            )
    examples = load_examples(data, only="questions", cache_dir=cache_dir)
    if not len(examples):
        raise DistilError("there is no question to compare answers to; give at least one")
    answers, references = (
        _answers(reader, examples, name, allow_no_answer, cache_dir, progress)
        for reader, name in ((student, "student"), (teacher, "teacher"))
    )
    rows = [_as_reference(number, answer) for number, answer in enumerate(references)]
    scores = example_scores(rows, {str(row): answer.text for row, answer in enumerate(answers)}, version="2.0")
    found = []
    for row, (answer, reference, score) in enumerate(zip(answers, references, scores.values(), strict=True)):
        # A span of an article alone is no text for the metric, but not the same as no answer.
        both = (0.0, 0.0) if answer.no_answer != reference.no_answer else score
        found.append(AnswerPair(row, answer, reference, *both))
    return Agreement.of(found)


def _answers(
    reader: Reader,
    examples: datasets.Dataset,
    name: str,
    allow_no_answer: bool,
    cache_dir: str | Path | None,
    progress: bool,
) -> list[Answer]:
    windows = reader.cut(examples, cache_dir=cache_dir)
    threshold = reader.no_answer_threshold if allow_no_answer else None
    with progress_bar(name, len(windows), "windows", visible=progress) as bar:
        return [chosen_answer(found, threshold) for found in reader.predict_windows(windows, advance=bar.advance)]


def _as_reference(row: int, answer: Answer) -> Mapping[str, Any]:
    """An answer as the reference answer of an example."""
    return {"id": str(row), "answers": {"text": [] if answer.no_answer else [answer.text]}, "labelled": True}
