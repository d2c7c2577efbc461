"""From questions to rows: the questions of a source are checked one by one, with a report on all of them."""

import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from haystack_distill.data.squad.validation import (
    BadExample,
    Place,
    Question,
    Row,
    abbreviated,
    check_question,
    is_blank,
    number_as_text,
)
from haystack_distill.errors import DataError

logger = logging.getLogger(__name__)

_IDS_IN_REPORT = 5


@dataclass
class ReadReport:
    """Statistics of reading a source.

    Attributes:
        read: Questions in the dataset.
        skipped: Invalid questions that were dropped (`on_bad_example="skip"`).
        repaired: Questions in the dataset with at least one corrected `answer_start`.
        assumed_impossible: Questions without answers, from a dataset without an `is_impossible` column, that are
            treated as unanswerable, as in squad_v2 on the hub.
        answerless: Questions from sources in which no question has an answer although some are not impossible; they
            are treated as unlabelled.
        renamed: Those of them whose id had been used before and got the suffix `-2`, `-3`, ...
        replaced: Lone surrogates that were replaced by U+FFFD.
        reasons: Why questions were skipped: reason -> count.
        repaired_ids: Ids of the first few repaired questions.
        skipped_ids: Ids (or places, where the id itself is invalid) of the first few skipped questions.
    """

    read: int = 0
    skipped: int = 0
    repaired: int = 0
    assumed_impossible: int = 0
    answerless: int = 0
    renamed: int = 0
    replaced: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    repaired_ids: list[str] = field(default_factory=list)
    skipped_ids: list[str] = field(default_factory=list)


class Intake:
    """Checks the questions of sources that form one dataset, and yields the valid ones as rows.

    Args:
        sources: The name of each source and a function that reads its questions, in order.
        skip: Drop and count invalid questions; otherwise the first one raises a DataError.
        also: A further check of each row, which raises BadExample.
    """

    def __init__(
        self,
        sources: Sequence[tuple[str, Callable[[], Iterable[Question]]]],
        *,
        skip: bool,
        also: Callable[[Row], None] | None = None,
    ) -> None:
        self.names = [name for name, _ in sources]
        self.reports = [ReadReport() for _ in sources]  # filled by rows()
        self._sources = sources
        self._skip = skip
        self._also = also

    def rows(self) -> Iterator[tuple[Place, Row]]:
        """The valid questions and their places. Can be iterated over once.

        Raises:
            DataError: A question is invalid and `skip` is False, or a source has no valid question.
        """
        with closing(_Ids(self.names)) as ids:
            for source, ((name, read), report) in enumerate(zip(self._sources, self.reports, strict=True)):
                first_bad = ""
                for question in marking_answerless(read):
                    report.replaced += question.replaced
                    try:
                        row = check_question(question)
                        if self._also is not None:
                            self._also(row)
                        if question.id_may_change or question.answerless:
                            row = row._replace(id=ids.make_unique(row.id, source, question.place))
                        else:
                            ids.require_new(row.id, source, question.place)
                    except BadExample as bad:
                        first_bad = first_bad or f"{question.place}: {bad}"
                        self._reject(question, bad, report)
                        continue
                    report.read += 1
                    report.assumed_impossible += question.assumed_impossible
                    report.answerless += question.answerless
                    report.renamed += question.answerless and row.id != number_as_text(question.qa["id"])
                    if row.repaired:
                        report.repaired += 1
                        if len(report.repaired_ids) < _IDS_IN_REPORT:
                            report.repaired_ids.append(row.id)
                    yield question.place, row
                if not report.read:
                    why = f" (all were skipped: {_reasons(report)}; the first is {first_bad})" if report.skipped else ""
                    raise DataError(f"{name}: no questions{why}: give a file with at least one valid question")

    def _reject(self, question: Question, bad: BadExample, report: ReadReport) -> None:
        id_ = number_as_text(question.qa.get("id")) if isinstance(question.qa, dict) else None
        named = isinstance(id_, str) and id_ != ""
        if not self._skip:
            raise DataError(f"{question.place}{f' (id {abbreviated(id_)})' if named else ''}: {bad}") from None
        report.skipped += 1
        report.reasons[bad.reason] = report.reasons.get(bad.reason, 0) + 1
        if len(report.skipped_ids) < _IDS_IN_REPORT:
            report.skipped_ids.append(str(id_) if named else str(question.place))


def marking_answerless(read: Callable[[], Iterable[Question]]) -> Iterator[Question]:
    """The questions of a source, marked as answerless if none has an answer although some are not marked impossible.

    Haystack 1's `augment_squad` writes such files: it drops all answers and repeats the ids. Their questions carry no
    label, not even that they are impossible. A source that begins with questions without answers is read a second time,
    up to the first answer.
    """
    answerless: bool | None = None
    for question in read():
        if answerless is None and _answer_label(question) is not None:
            answerless = _answer_label(question) != "answers" and _is_answerless(read())
        yield question._replace(answerless=True) if answerless else question


def _is_answerless(questions: Iterable[Question]) -> bool:
    found = set()
    for question in questions:
        found.add(_answer_label(question))
        if "answers" in found:
            return False
    return "nothing" in found


def _answer_label(question: Question) -> str | None:
    """The label of a question: "answers", "impossible" or "nothing"; None for one that does not count."""
    qa = question.qa
    if question.fault is not None or not isinstance(qa, dict) or qa.get("labelled") is False:
        return None
    answers = qa.get("answers", [])
    if not isinstance(answers, list):
        return None
    if not all(map(is_blank, answers)):
        return "answers"
    return "impossible" if qa.get("is_impossible") else "nothing"


class _Ids:
    """The ids used so far and their places, in a temporary database.

    SQLite has a bounded cache and spills to disk, whereas a set of all ids would grow with the data.
    """

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA cache_size = -16384")  # in KiB
        self._database.execute(
            "CREATE TABLE ids (id TEXT PRIMARY KEY, source INTEGER, article INTEGER, uses INTEGER) WITHOUT ROWID"
        )
        self._database.execute("BEGIN")

    def require_new(self, id_: str, source: int, place: Place) -> None:
        """Record an id.

        Raises:
            BadExample: It has been used before.
        """
        done = self._database.execute("INSERT OR IGNORE INTO ids VALUES (?, ?, ?, 1)", (id_, source, place.article))
        if not done.rowcount:
            row = self._database.execute("SELECT source, article FROM ids WHERE id = ?", (id_,)).fetchone()
            first = f"{self._names[row[0]]}, {'row' if place.title is None else 'article'} {row[1]}"
            raise BadExample("duplicate id", f"this id was already used in {first}: ids must be unique over all files")

    def make_unique(self, id_: str, source: int, place: Place) -> str:
        """Record an id and return it, or if it has been used before, the first unused of `id-2`, `id-3`, ..."""
        wanted = id_
        while True:
            try:
                self.require_new(wanted, source, place)
            except BadExample:
                self._database.execute("UPDATE ids SET uses = uses + 1 WHERE id = ?", (id_,))
                uses = self._database.execute("SELECT uses FROM ids WHERE id = ?", (id_,)).fetchone()[0]
                wanted = f"{id_}-{uses}"
            else:
                return wanted

    def close(self) -> None:
        """Close the database, which deletes it."""
        self._database.close()


def log_warnings(source: str, report: ReadReport) -> None:
    """Log warnings about repaired, skipped and reinterpreted questions of a source."""
    if report.repaired:
        logger.warning(
            "%s: corrected the answer_start of %d question(s) whose answer occurs once in the context (%s).",
            source,
            report.repaired,
            _some(report.repaired_ids, report.repaired),
        )
    if report.skipped:
        logger.warning(
            "%s: skipped %d invalid question(s): %s (%s).",
            source,
            report.skipped,
            _reasons(report),
            _some(report.skipped_ids, report.skipped),
        )
    if report.assumed_impossible:
        logger.warning(
            '%s: %d row(s) without answers are treated as unanswerable, because there is no "is_impossible" column.',
            source,
            report.assumed_impossible,
        )
    _log_text_warnings(source, report)


def _log_text_warnings(source: str, report: ReadReport) -> None:
    if report.answerless:
        repeated = f"; {report.renamed} repeated id(s) got the suffix -2, -3, ..." if report.renamed else ""
        logger.warning(
            "%s: none of the %d question(s) has an answer, yet not all are marked impossible: they are treated as "
            "unlabelled questions to distil from%s.",
            source,
            report.answerless,
            repeated,
        )
    if report.replaced:
        logger.warning(
            "%s: replaced %d lone surrogate(s), which are not characters, by U+FFFD.", source, report.replaced
        )


def total_of(reports: list[ReadReport]) -> ReadReport:
    """The sum of the reports on several sources."""
    total = ReadReport()
    for report in reports:
        total.read += report.read
        total.skipped += report.skipped
        total.repaired += report.repaired
        total.assumed_impossible += report.assumed_impossible
        total.answerless += report.answerless
        total.renamed += report.renamed
        total.replaced += report.replaced
        for reason, count in report.reasons.items():
            total.reasons[reason] = total.reasons.get(reason, 0) + count
        total.repaired_ids = (total.repaired_ids + report.repaired_ids)[:_IDS_IN_REPORT]
        total.skipped_ids = (total.skipped_ids + report.skipped_ids)[:_IDS_IN_REPORT]
    return total


def _some(ids: list[str], count: int) -> str:
    return ", ".join(ids) + (", ..." if count > len(ids) else "")


def _reasons(report: ReadReport) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in sorted(report.reasons.items()))
