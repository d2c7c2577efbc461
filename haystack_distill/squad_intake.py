"""From questions to rows: each question of a source is checked, and what happened to all of them is reported."""

import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from haystack_distill.errors import DataError
from haystack_distill.squad_checks import BadExample, Place, Question, Row, check, shown

logger = logging.getLogger(__name__)

_IDS_IN_REPORT = 5


@dataclass
class ReadReport:
    """What happened to the questions of a source while it was read.

    Attributes:
        read: questions that are in the dataset.
        skipped: bad questions that were dropped (`on_bad_example="skip"`).
        repaired: questions in the dataset with at least one `answer_start` that was off and was put right.
        assumed_impossible: questions without answers, from a dataset without an `is_impossible` column, that were
            taken as unanswerable, as the hub's squad_v2 means them.
        reasons: why questions were skipped: reason -> count.
        repaired_ids: ids of the first few repaired questions.
        skipped_ids: ids (or places, where the id is what is wrong) of the first few skipped questions.
    """

    read: int = 0
    skipped: int = 0
    repaired: int = 0
    assumed_impossible: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    repaired_ids: list[str] = field(default_factory=list)
    skipped_ids: list[str] = field(default_factory=list)


class Intake:
    """Checks the questions of sources that belong together and lets the good ones through.

    Args:
        sources: name and questions of each, in order.
        skip: drop and count bad questions; otherwise the first one is a DataError.
        also: a further check of each row, which raises BadExample.
    """

    def __init__(
        self,
        sources: Sequence[tuple[str, Iterable[Question]]],
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
        """The good questions and where they stood. Can be iterated over once."""
        with closing(_Ids(self.names)) as ids:
            for source, ((name, questions), report) in enumerate(zip(self._sources, self.reports, strict=True)):
                for question in questions:
                    try:
                        row = check(question)
                        if self._also is not None:
                            self._also(row)
                        ids.require_new(row.id, source, question.place)
                    except BadExample as bad:
                        self._reject(question, bad, report)
                        continue
                    report.read += 1
                    report.assumed_impossible += question.assumed_impossible
                    if row.repaired:
                        report.repaired += 1
                        if len(report.repaired_ids) < _IDS_IN_REPORT:
                            report.repaired_ids.append(row.id)
                    yield question.place, row
                if not report.read:
                    why = f": all were skipped ({_reasons(report)})" if report.skipped else ""
                    raise DataError(f"{name}: no questions{why}. Give a file with at least one valid question.")

    def _reject(self, question: Question, bad: BadExample, report: ReadReport) -> None:
        id_ = question.qa.get("id") if isinstance(question.qa, dict) else None
        named = isinstance(id_, str) and id_ != ""
        if not self._skip:
            raise DataError(f"{question.place}{f' (id {shown(id_)})' if named else ''}: {bad}.") from None
        report.skipped += 1
        report.reasons[bad.reason] = report.reasons.get(bad.reason, 0) + 1
        if len(report.skipped_ids) < _IDS_IN_REPORT:
            report.skipped_ids.append(str(id_) if named else str(question.place))


class _Ids:
    """The ids seen so far and where, in a temporary database.

    SQLite keeps it in a bounded cache and spills to disk: a set of all ids would grow with the data.
    """

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA cache_size = -16384")  # in KiB
        self._database.execute("CREATE TABLE ids (id TEXT PRIMARY KEY, source INTEGER, article INTEGER) WITHOUT ROWID")
        self._database.execute("BEGIN")

    def require_new(self, id_: str, source: int, place: Place) -> None:
        """Remember an id; a BadExample if it was there before."""
        done = self._database.execute("INSERT OR IGNORE INTO ids VALUES (?, ?, ?)", (id_, source, place.article))
        if not done.rowcount:
            row = self._database.execute("SELECT source, article FROM ids WHERE id = ?", (id_,)).fetchone()
            first = f"{self._names[row[0]]}, {'row' if place.title is None else 'article'} {row[1]}"
            raise BadExample("duplicate id", f"this id was already used in {first}: ids must be unique over all files")

    def close(self) -> None:
        """Let go of the database, which then is gone."""
        self._database.close()


def warn_of(source: str, report: ReadReport) -> None:
    """Log as warnings what a user should know about how a source was read."""
    if report.repaired:
        logger.warning(
            "%s: put right the answer_start of %d question(s) whose answer occurs once in the context (%s).",
            source,
            report.repaired,
            _some(report.repaired_ids, report.repaired),
        )
    if report.skipped:
        logger.warning(
            "%s: skipped %d bad question(s): %s (%s).",
            source,
            report.skipped,
            _reasons(report),
            _some(report.skipped_ids, report.skipped),
        )
    if report.assumed_impossible:
        logger.warning(
            '%s: %d row(s) without answers are taken as unanswerable, as there is no "is_impossible" column.',
            source,
            report.assumed_impossible,
        )


def sum_of(reports: list[ReadReport]) -> ReadReport:
    """One report over several sources."""
    total = ReadReport()
    for report in reports:
        total.read += report.read
        total.skipped += report.skipped
        total.repaired += report.repaired
        total.assumed_impossible += report.assumed_impossible
        for reason, count in report.reasons.items():
            total.reasons[reason] = total.reasons.get(reason, 0) + count
        total.repaired_ids = (total.repaired_ids + report.repaired_ids)[:_IDS_IN_REPORT]
        total.skipped_ids = (total.skipped_ids + report.skipped_ids)[:_IDS_IN_REPORT]
    return total


def _some(ids: list[str], count: int) -> str:
    return ", ".join(ids) + (", ..." if count > len(ids) else "")


def _reasons(report: ReadReport) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in sorted(report.reasons.items()))
