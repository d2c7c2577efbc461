"""Agreement: its figures by hand, its order of differences, and readers against each other."""

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from haystack_distill import DistilError, Reader
from haystack_distill.evaluation import agreement
from haystack_distill.evaluation.agreement import Agreement, AnswerPair, measure_agreement
from haystack_distill.models.answers import Answer
from tests.conftest import CONTEXTS


def pair(row: int, f1: float, score: float, student: str = "a", teacher: str = "b") -> AnswerPair:
    answers = (
        Answer(text, 0, len(text), probability, 0.0, no_answer=not text)
        for text, probability in ((student, 0.5), (teacher, score))
    )
    return AnswerPair(row, *answers, float(f1 == 1), f1)


def test_the_figures_by_hand() -> None:
    found = Agreement.of(
        [
            pair(0, 1.0, 0.9),
            pair(1, 0.5, 0.4),
            pair(2, 0.0, 0.3, ""),
            pair(3, 0.0, 0.8, "a", ""),
            pair(4, 1.0, 1, "", ""),
        ]
    )
    assert (found.exact, found.f1, found.no_answer) == (2 / 5, 2.5 / 5, 3 / 5)
    assert found.unanswered() == {"both": 1, "student_only": 1, "teacher_only": 1}
    assert [one.row for one in found.differences()] == [3, 2, 1]  # 0.8, 0.3 and 0.4 times 0.5
    assert [one.row for one in found.differences(1)] == [3]


def test_a_reader_agrees_with_itself(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    data = tmp_path / "questions.csv"
    data.write_text("question,context\n" + "".join(f'Who wrote it?,"{text}"\n' for text in CONTEXTS), encoding="utf-8")
    one, other = tiny_reader(seed=3, initializer_range=0.4), tiny_reader(seed=5, initializer_range=0.4)
    same = measure_agreement(one, one.copy(), data, progress=False)
    assert (same.exact, same.f1, same.no_answer, same.differences()) == (1, 1, 1, [])
    found = measure_agreement(one, other, data, allow_no_answer=False, progress=False)
    assert found.f1 < 1
    assert not any(answer.no_answer for pair in found.pairs for answer in (pair.student, pair.teacher))
    assert [pair.row for pair in found.pairs] == [0, 1, 2, 3]
    silent = other.replace(no_answer_threshold=float("-inf"))
    found = measure_agreement(one.replace(no_answer_threshold=float("inf")), silent, data, progress=False)
    assert (found.f1, found.no_answer) == (0, 0)
    assert found.unanswered() == {"both": 0, "student_only": 0, "teacher_only": 4}


def test_a_span_that_is_no_text_is_not_the_same_as_no_answer(
    tiny_reader: Callable[..., Reader], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The metric leaves articles out, so "the" would equal no answer."""
    student, teacher = tiny_reader(), tiny_reader(seed=1)
    silent = Answer("", 0, 0, 0.5, 1.0, no_answer=True)

    def answers(reader: Reader, *_: object) -> list[Answer]:
        return [silent if reader is student else Answer("the", 0, 3, 0.5, 1.0)]

    monkeypatch.setattr(agreement, "_answers", answers)
    rows = datasets.Dataset.from_list([{"question": "What?", "context": "the end"}])
    found = measure_agreement(student, teacher, rows)
    assert (found.exact, found.f1, found.no_answer) == (0, 0, 0)
    assert len(found.differences()) == 1


def test_what_is_refused(tiny_reader: Callable[..., Reader], tmp_path: Path) -> None:
    reader = tiny_reader()
    reader.untrained = ("qa_outputs.weight",)
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"question": "Who?", "context": CONTEXTS[0]}) + "\n")
    with pytest.raises(DistilError, match=r"the student's answers are random, for qa_outputs\.weight are untrained"):
        measure_agreement(reader, tiny_reader(), questions)
    with pytest.raises(DistilError, match="the teacher's answers are random"):
        measure_agreement(tiny_reader(), reader, questions)
