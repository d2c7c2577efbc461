"""Validation of one SQuAD question, which turns it into a row, and the messages about invalid ones."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from haystack_distill.utils.checks import is_integer

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class BadExample(Exception):
    """A question is invalid; the message names the problem and the remedy.

    Attributes:
        reason: A short name of the problem, for counting.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Place(NamedTuple):
    """The place of a question in a source; indices count from 0, as in the JSON."""

    source: str
    article: int  # the row, if there are no articles
    title: str | None = None
    paragraph: int | None = None
    qa: int | None = None
    line: int | None = None  # of a text file, counted from 1

    def __str__(self) -> str:
        if self.title is None:
            return f"{self.source}: row {self.article}" + ("" if self.line is None else f" (line {self.line})")
        text = f'{self.source}: article "{self.title}" (data[{self.article}])'
        if self.paragraph is not None:
            text += f", paragraph {self.paragraph}"
        if self.qa is not None:
            text += f", question {self.qa}"
        return text


class Question(NamedTuple):
    """A question as read, unchecked."""

    place: Place
    title: Any
    paragraph: dict[str, Any]  # with the context
    qa: Any  # in the form of the JSON: id, question, answers, flags
    assumed_impossible: bool = False  # is_impossible was derived from the lack of answers
    fault: BadExample | None = None  # why the article or paragraph could not be read
    without_starts: bool = False  # its answers have no `answer_start`: each must occur once in the context
    id_may_change: bool = False  # its id was generated
    answerless: bool = False  # see `data.squad.intake.marking_answerless`
    replaced: int = 0  # lone surrogates replaced by U+FFFD since the previous question


class Row(NamedTuple):
    """A question that passed the checks: one row of the dataset."""

    id: str
    title: str
    context: str
    question: str
    texts: list[str]
    starts: list[int]
    is_impossible: bool
    labelled: bool
    repaired: bool
    replaced: int = 0  # lone surrogates in its texts that were replaced by U+FFFD

    @classmethod
    def from_example(cls, example: Mapping[str, Any]) -> "Row":
        """The row of an example that `data.squad.load.load_examples` returned; nothing is checked again."""
        answers = example["answers"]
        texts = example["id"], example["title"], example["context"], example["question"]
        flags = example["is_impossible"], example["labelled"]
        return cls(*texts, answers["text"], answers["answer_start"], *flags, repaired=False)

    def to_example(self) -> dict[str, Any]:
        """The row with the columns of SQuAD on the Hugging Face hub, as in the dataset."""
        return {
            "id": self.id,
            "title": self.title,
            "context": self.context,
            "question": self.question,
            "answers": {"text": self.texts, "answer_start": self.starts},
            "is_impossible": self.is_impossible,
            "labelled": self.labelled,
        }


def check_question(question: Question) -> Row:
    """Validate a question; an `answer_start` that is off is corrected if the answer occurs only once in the context.

    Raises:
        BadExample: The question is invalid.
    """
    if question.fault is not None:
        raise question.fault
    qa = question.qa
    if not isinstance(qa, dict):
        raise BadExample("wrong type", f"a question must be a JSON object, not {json_type(qa)}")
    context = _check_text(_value(question.paragraph, "context"), "context")
    title = _check_title(question.title)
    id_ = _check_text(number_as_text(_value(qa, "id")), "id")
    text = _value(qa, "question")
    is_impossible = _check_flag(qa.get("is_impossible"), "is_impossible", default=False)
    labelled = _check_flag(qa.get("labelled"), "labelled", default=True)
    if labelled or text != "":  # without question and label, a row is plain text for distilling layers
        text = _check_text(text, "question")
    labelled = labelled and not question.answerless
    # In version 2.0, unlabelled questions without answers may have to set is_impossible; it is not a label there.
    is_impossible = is_impossible and labelled
    if labelled and "answers" not in qa:
        raise BadExample(
            "missing key",
            'the key "answers" is missing: add it, or "labelled": false for a question to distil from without a label',
        )
    answers = qa.get("answers", [])
    if not isinstance(answers, list):
        raise BadExample("wrong type", f"answers must be a list, not {json_type(answers)}")
    if (is_impossible or question.answerless) and all(map(is_blank, answers)):
        answers = []  # annotation tools write {"text": "", "answer_category": "NOT_GIVEN"}
    if is_impossible and answers:
        raise BadExample(
            "answers although impossible",
            "is_impossible is true, but there are answers: empty the list, or set is_impossible to false",
        )
    if labelled and not is_impossible and not answers:
        raise BadExample(
            "no answers",
            "an answerable question without answers: add an answer, or set is_impossible to true, or labelled to false "
            "for a question to distil from without a label",
        )
    texts, starts, repaired = [], [], False
    for answer in answers:
        answer_text, start, moved = _check_answer(answer, context, question.without_starts)
        texts.append(answer_text)
        starts.append(start)
        repaired = repaired or moved
    return Row(id_, title, context, text, texts, starts, is_impossible, labelled, repaired, question.replaced)


def _check_answer(answer: Any, context: str, without_start: bool) -> tuple[str, int, bool]:
    """Return the answer's text, its start in code points, and whether the start was corrected."""
    if not isinstance(answer, dict):
        raise BadExample("wrong type", f"answers must be objects with text and answer_start, not {json_type(answer)}")
    text = _check_text(_value(answer, "text"), "answer text")
    start = _value(answer, "answer_start")
    if start is None and without_start:
        return text, _unique_position(text, context), False
    if not is_integer(start):
        raise BadExample("wrong type", f"answer_start must be an integer, not {json_type(start)}")
    if start >= 0 and context.startswith(text, start):
        return text, start, False
    found = _first_position(text, context)
    if context.find(text, found + 1) >= 0:
        raise BadExample(
            "answer_start does not match",
            f"answer_start {start} does not match the answer {abbreviated(text)}, which occurs more than once in the "
            "context: give the code point at which the right occurrence begins",
        )
    return text, found, True


def _unique_position(text: str, context: str) -> int:
    found = _first_position(text, context)
    if context.find(text, found + 1) >= 0:
        raise BadExample(
            "no answer_start",
            f"the answer {abbreviated(text)} occurs more than once in the context: add a column answer_start with the "
            "code point at which the right occurrence begins",
        )
    return found


def _first_position(text: str, context: str) -> int:
    found = context.find(text)
    if found < 0:
        raise BadExample(
            "answer not in context",
            f"the answer {abbreviated(text)} does not occur in the context: correct or remove it",
        )
    return found


def _value(item: dict[str, Any], key: str) -> Any:
    if key not in item:
        raise BadExample("missing key", f'the key "{key}" is missing: add it')
    return item[key]


def _check_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadExample("wrong type", f"the {name} must be a string, not {json_type(value)}")
    if not value or value.isspace():
        raise BadExample(f"empty {name}", f"the {name} is empty: fill it in or remove the question")
    return replace_lone_surrogates(value)


def replace_lone_surrogates(text: str) -> str:
    """A text with each lone surrogate, which is not a character, replaced by U+FFFD; offsets stay valid."""
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return _LONE_SURROGATE.sub("\ufffd", text)
    return text


def count_lone_surrogates(text: str) -> int:
    """The number of lone surrogates in a text."""
    return len(_LONE_SURROGATE.findall(text))


def number_as_text(value: Any) -> Any:
    """An integer as text (annotation tools and tables use integers as ids); any other value unchanged."""
    return str(value) if is_integer(value) else value


def _check_title(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BadExample("wrong type", f"the title must be a string, not {json_type(value)}")
    return replace_lone_surrogates(str(value))


def is_blank(answer: Any) -> bool:
    """Whether an answer is a placeholder with an empty text."""
    if not isinstance(answer, dict):
        return False
    text = answer.get("text")
    return text is None or (isinstance(text, str) and text.strip() == "")


def _check_flag(value: Any, name: str, *, default: bool) -> bool:
    if value is None:  # the same as a missing key
        return default
    if not isinstance(value, bool):
        raise BadExample("wrong type", f"{name} must be true or false, not {json_type(value)}")
    return value


def json_type(value: Any) -> str:
    """A description of a value in the terms of JSON, for error messages."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{json.dumps(value)} (write null where a value is missing, or leave it out)"
    return f"the {'string' if isinstance(value, str) else 'number'} {abbreviated(value)}"


def abbreviated(value: Any) -> str:
    """A value as JSON writes it, cut to 60 characters."""
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
