"""The page on the agreement of two readers: the shares, and the questions on which they differ most."""

from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import datasets

from haystack_distill.evaluation.agreement import Agreement, AnswerPair
from haystack_distill.models.answers import Answer
from haystack_distill.reporting.page import page_of, table_of
from haystack_distill.utils.atomic import write_atomically, write_json

PAGE_FILE = "agreement.html"
NUMBERS_FILE = "agreement.json"

_DIFFERENCES = 20  # questions side by side
_EXCERPT = 320  # characters of a context


def summary_of(agreement: Agreement) -> dict[str, Any]:
    """The figures of an agreement, as JSON holds them; shares from 0 to 1."""
    return {
        "questions": len(agreement.pairs),
        "exact": agreement.exact,
        "f1": agreement.f1,
        "no_answer": agreement.no_answer,
        "unanswered": agreement.unanswered(),
    }


def write_agreement(
    directory: Path, agreement: Agreement, examples: datasets.Dataset, *, student: str, teacher: str
) -> Path:
    """Write `agreement.html` and `agreement.json`, which quote questions, answers and contexts.

    Each file is written atomically, the page last.

    Args:
        directory: The directory to write to; it is created if necessary.
        agreement: The agreement.
        examples: The questions that it was measured on.
        student: The name of the student.
        teacher: The name of the teacher.

    Returns:
        The path of the page.
    """
    chosen = agreement.differences(_DIFFERENCES)
    title = f"Agreement of {student} with {teacher}"
    n_differing = sum(pair.f1 < 1 for pair in agreement.pairs)
    silent = agreement.unanswered()
    shares = (
        "Same answer: exact match of the two. F1: mean F1 between the two answers. Without an answer: "
        f"{silent['both']:,} questions by both, {silent['student_only']:,} by the student only, "
        f"{silent['teacher_only']:,} by the teacher only."
    )
    order = (
        f"{len(chosen)} of {n_differing:,} questions to which the answers differ, by the score of the teacher's answer "
        "times what F1 lacks to 1."
    )
    body = [
        f"<h1>{escape(title)}</h1>",
        table_of(
            ["questions", "same answer", "F1", "agree on no-answer"],
            [[f"{len(agreement.pairs):,}", *(f"{share:.1%}" for share in _shares(agreement))]],
        ),
        f'<p class="note">{escape(shares)}</p>',
        "<h2>Where they differ most</h2>",
        f'<p class="note">{escape(order)}</p>',
        _table(chosen, examples, student, teacher),
    ]
    rows = [_row(pair, examples[pair.row]) | {"weight": pair.weight} for pair in chosen]
    names = {"student": student, "teacher": teacher}
    write_json(directory / NUMBERS_FILE, names | summary_of(agreement) | {"differences": rows})
    page = page_of(title, body)
    write_atomically(directory / PAGE_FILE, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return directory / PAGE_FILE


def _shares(agreement: Agreement) -> tuple[float, float, float]:
    return agreement.exact, agreement.f1, agreement.no_answer


def _row(pair: AnswerPair, example: dict[str, Any]) -> dict[str, Any]:
    """A pair of answers with its question, as JSON holds it."""
    found = {"id": example["id"], "question": example["question"], "context": example["context"]}
    return found | {name: value for name, value in asdict(pair).items() if name != "row"}


def _table(pairs: list[AnswerPair], examples: datasets.Dataset, student: str, teacher: str) -> str:
    if not pairs:
        return ""
    titles = "".join(
        f'<th scope="col">{escape(column)}</th>'
        for column in ("question", teacher, student, "context, around the answer")
    )
    lines = []
    for pair in pairs:
        example = examples[pair.row]
        cells = [
            escape(example["question"]),
            _cell(pair.teacher, ""),
            _cell(pair.student, f", F1 {100 * pair.f1:.0f}"),
            f"<small>{escape(_excerpt(example['context'], pair.teacher))}</small>",
        ]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    rows = "\n".join(lines)
    return (
        f'<div class="scroll" tabindex="0"><table class="texts"><thead><tr>{titles}</tr></thead>\n'
        f"<tbody>\n{rows}</tbody></table></div>"
    )


def _cell(answer: Answer, more: str) -> str:
    return f"{escape(answer.text or '(no answer)')}<small>score {answer.score:.2f}{more}</small>"


def _excerpt(context: str, answer: Answer) -> str:
    """The part of a context around an answer."""
    first = max(0, answer.start - _EXCERPT // 2)
    last = first + _EXCERPT
    return f"{'…' if first else ''}{context[first:last]}{'…' if last < len(context) else ''}"
