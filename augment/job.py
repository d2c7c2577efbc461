"""One file multiplied: article by article, in several processes, on disk throughout, and resumable.

Two passes, with a working directory beside the output. The first reads the input once, checks it, splits and tags each
text once and counts the words; each article becomes a file. The second turns each article into its part of the output.
The parts are then joined aside and renamed. What a part holds depends on the settings, the counts and the article
alone, so neither the number of processes nor where a run was interrupted shows in the output.
"""

import gzip
import itertools
import json
import logging
import multiprocessing
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from augment.articles import Article, Paragraph
from augment.augmenter import Augmenter, Splitter, Variant
from augment.lexicon import TagCounts
from augment.settings import AugmentSettings
from haystack_distill.errors import DataError, DistilError
from haystack_distill.files import file_hash, hash_of, write_aside, write_json
from haystack_distill.squad_checks import Place, Row
from haystack_distill.squad_intake import Intake, warn_of
from haystack_distill.squad_json import questions_in_file

logger = logging.getLogger(__name__)

_FORMAT = 1  # raise it when the same input and settings would give another output
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_COPY = 2**20

OnProgress = Callable[[str, int, int | None], None]  # stage, rows done since the last call, rows in all


@dataclass
class Tally:
    """What became of some rows.

    Attributes:
        rows_in: rows read.
        rows_out: rows written, the originals included.
        short: rows that have too few distinct variants.
        edits: edits made, by operation; an n-gram counts once.
        edited_rows: rows with an edited question, context or both, by text.
    """

    rows_in: int = 0
    rows_out: int = 0
    short: int = 0
    edits: Counter[str] = field(default_factory=Counter)
    edited_rows: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Tally") -> None:
        """Count another part too."""
        self.rows_in += other.rows_in
        self.rows_out += other.rows_out
        self.short += other.short
        self.edits.update(other.edits)
        self.edited_rows.update(other.edited_rows)

    @classmethod
    def read(cls, path: Path) -> "Tally":
        """A tally from its JSON file."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(**content | {name: Counter(content[name]) for name in ("edits", "edited_rows")})


@dataclass(frozen=True)
class Job:
    """What is to be made of which file; everything that decides the output's bytes.

    Attributes:
        source: the SQuAD-format file.
        settings: what is edited and how.
        tagger: what `choose_tagger` made of the settings' tagger.
        work: the working directory.
        shard: (i, n): only every n-th article, from the i-th on; counted from 1.
        on_bad_example: as for `haystack_distill.squad.read_squad`.
    """

    source: Path
    settings: AugmentSettings
    tagger: str
    work: Path
    shard: tuple[int, int] = (1, 1)
    on_bad_example: str = "error"

    def begin(self, statistics: TagCounts | None) -> bool:
        """Make the working directory, or find that an interrupted run of the same job left it; return whether."""
        plan = {
            "format": _FORMAT,
            "settings": asdict(self.settings),
            "tagger": self.tagger,
            "shard": list(self.shard),
            "on_bad_example": self.on_bad_example,
            "input": file_hash(self.source),
            "statistics": None if statistics is None else hash_of(statistics.as_json()),
        }
        path = self.work / "plan.json"
        if path.exists():
            if json.loads(path.read_text(encoding="utf-8")) == plan:
                logger.info("going on with the interrupted run in %s", self.work)
                return True
            logger.warning("%s is from an interrupted run of another input or other settings; starting anew", self.work)
        if self.work.exists():
            shutil.rmtree(self.work)
        for name in ("articles", "parts"):
            (self.work / name).mkdir(parents=True)
        write_json(path, plan)
        return False

    def read(self, processes: "Processes", progress: OnProgress) -> TagCounts:
        """The first pass: articles on disk, and how often each word has which tag in all of them."""
        counted = self.work / "counts.json"
        if counted.exists():  # by the run that was interrupted
            return TagCounts.read(counted)
        intake = Intake([(str(self.source), questions_in_file(self.source))], skip=self.on_bad_example == "skip")
        counts = TagCounts()
        for found in processes.each(_prepare, self._articles(intake, progress)):
            counts.merge(TagCounts(found))
        warn_of(str(self.source), intake.reports[0])
        write_json(counted, counts.as_json())
        return counts

    def write(self, counts: TagCounts, processes: "Processes", progress: OnProgress) -> Tally:
        """The second pass: each article's part of the output, and what happened in all of them."""
        write_json(self.work / "draws.json", counts.as_json())
        articles = sorted(self.work.glob("articles/*.json"))
        rows = sum(int(path.stem.split("-")[1]) for path in articles)
        total = Tally()
        for tally in processes.each(_write_part, ((path,) for path in articles)):
            total.add(tally)
            progress("augmenting", tally.rows_out, rows * self.settings.multiplication_factor)
        return total

    def join(self, output: Path) -> None:
        """The parts in their order as one file."""
        mark = f',"shard":"{self.shard[0]}/{self.shard[1]}"' if self.shard != (1, 1) else ""
        parts = sorted(self.work.glob("parts/*.part"))

        def fill(file: IO[bytes]) -> None:
            file.write(f'{{"version":"v2.0"{mark},"data":['.encode())
            for number, path in enumerate(parts):
                file.write(b",\n" if number else b"\n")
                with open(path, "rb") as part:
                    shutil.copyfileobj(part, file, _COPY)
            file.write(b"\n]}\n")

        write_squad_file(output, fill)

    def _articles(self, intake: Intake, progress: OnProgress) -> Iterator[tuple[Path, str, list[Row]]]:
        """The checked articles of this shard, as arguments of `_prepare`."""
        for number, (_, items) in enumerate(itertools.groupby(intake.rows(), key=lambda item: item[0].article)):
            rows = []
            for place, row in items:
                _require_unused_id(place, row)
                rows.append(row)
            progress("reading", len(rows), None)
            if number % self.shard[1] == self.shard[0] - 1:
                yield self.work / "articles" / f"{number:08d}-{len(rows)}.json", rows[0].title, rows


def _require_unused_id(place: Place, row: Row) -> None:
    base, dash, number = row.id.rpartition("-aug")
    if base and dash and number.isdecimal():
        raise DataError(
            f'{place} (id "{row.id}"): the id is one that augmenting gives, so variants of "{base}" could not be told '
            "from it: augment the file that this one was made from, or rename the question"
        )


class Processes:
    """Runs the functions of this module, in this process or in several.

    Args:
        job: what they work on.
        number: how many processes; 1 works in this one.
    """

    def __init__(self, job: Job, number: int) -> None:
        self._number = number
        self._pool: Executor | None = None
        if number == 1:
            _start(job)
        else:
            self._pool = ProcessPoolExecutor(
                number,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(job,),
            )

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        _start(None)

    def each(self, function: Callable[..., Any], calls: Iterator[tuple[Any, ...]]) -> Iterator[Any]:
        """What `function` returns for each tuple of arguments, as it comes; few calls wait at a time."""
        if self._pool is None:
            for call in calls:
                yield function(*call)
            return
        waiting: set[Future] = set()
        try:
            for call in calls:
                waiting.add(self._pool.submit(function, *call))
                if len(waiting) > self._number:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            for future in waiting:
                yield future.result()
        except BrokenProcessPool as error:
            raise DistilError(
                "one of the processes was killed, perhaps because memory ran out; the same call with fewer processes "
                "goes on from here"
            ) from error


# What a process works with; made once in each, because a tagger and a lexicon take long.
_job: Job | None = None
_reader: Augmenter | None = None  # knows no words yet
_writer: Augmenter | None = None


def _start(job: Job | None) -> None:
    global _job, _reader, _writer
    _job, _reader, _writer = job, None, None


def _start_worker(job: Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process stops the others
    _start(job)


def _prepare(path: Path, title: str, rows: list[Row]) -> dict[str, Counter[str]]:
    """Write one article with its words and candidates to `path`; count its words."""
    global _reader
    assert _job is not None
    if path.exists():  # from the run that was interrupted
        article = Article.read(path)
    else:
        _reader = _reader or Augmenter(_job.settings, splitter=Splitter(_job.settings, _job.tagger))
        contexts = [(context, list(group)) for context, group in itertools.groupby(rows, key=lambda row: row.context)]
        texts = iter(_reader.prepare([text for context, group in contexts for text in (context, *_questions(group))]))
        paragraphs = [Paragraph(next(texts), [(row, next(texts)) for row in group]) for _, group in contexts]
        article = Article(title, paragraphs)
        article.write(path)
    counts = TagCounts()
    for context, questions in article.paragraphs:
        counts.add(context.text, context.words)
        for _, question in questions:
            counts.add(question.text, question.words)
    return counts.counts


def _questions(rows: list[Row]) -> list[str]:
    return [row.question for row in rows]


def _write_part(article_path: Path) -> Tally:
    """Write one article's part of the output, and beside it what was done."""
    global _writer
    assert _job is not None
    part = _job.work / "parts" / f"{article_path.stem}.part"
    tally_path = part.with_suffix(".json")
    if tally_path.exists():  # it is written last
        return Tally.read(tally_path)
    augmenter = _writer = _writer or Augmenter(_job.settings, TagCounts.read(_job.work / "draws.json"))
    article = Article.read(article_path)
    tally = Tally()

    def fill(aside: Path) -> None:
        with open(aside, "w", encoding="utf-8", newline="\n") as file:
            file.write(f'{{"title":{_encode(article.title)},"paragraphs":[')
            for number, (context, rows) in enumerate(article.paragraphs):
                file.write("," if number else "")
                versions = [augmenter.variants(row, question, context) for row, question in rows]
                file.writelines(_paragraphs(context.text, versions, augmenter.settings, tally))
            file.write("]}")

    write_aside(part, fill)
    write_json(tally_path, vars(tally))
    return tally


def _paragraphs(context: str, versions: list[list[Variant]], settings: AugmentSettings, tally: Tally) -> Iterator[str]:
    """A paragraph with its questions, first as they were, then edited; and each edited context with its question."""
    kept = [_qa(of_row[0], of_row[0], settings) for of_row in versions]
    for of_row in versions:
        tally.rows_in += 1
        tally.rows_out += len(of_row)
        tally.short += len(of_row) < settings.multiplication_factor
        for variant in of_row[1:]:
            for name, operations in variant.operations().items():
                tally.edited_rows[name] += 1
                tally.edits.update(operations)
            if variant.context is None:
                kept.append(_qa(variant, of_row[0], settings))
    yield f'{{"context":{_encode(context)},"qas":[{",".join(kept)}]}}'
    for of_row in versions:
        for variant in of_row[1:]:
            if variant.context is not None:
                qa = _qa(variant, of_row[0], settings)
                yield f',{{"context":{_encode(variant.row.context)},"qas":[{qa}]}}'


def _qa(variant: Variant, original: Variant, settings: AugmentSettings) -> str:
    row = variant.row
    qa: dict[str, Any] = {
        "id": row.id,
        "question": row.question,
        "answers": [{"text": text, "answer_start": start} for text, start in zip(row.texts, row.starts, strict=True)],
        # Other tools know no other word for a question without answers.
        "is_impossible": row.is_impossible or not row.texts,
    }
    if not row.labelled:
        qa["labelled"] = False
    if settings.provenance:
        qa["augmentation"] = {"of": original.row.id, **variant.operations()}
    return _encode(qa)


def write_squad_file(output: Path, fill: Callable[[IO[bytes]], None]) -> None:
    """Let `fill` write a file, packed where the name ends in .gz; it is whole or not there."""

    def write(aside: Path) -> None:
        with open(aside, "wb") as raw:
            if output.name.endswith(".gz"):  # no name and no time in the header: the same rows, the same bytes
                with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as packed:
                    fill(packed)  # type: ignore[arg-type]  # all of IO that is needed
            else:
                fill(raw)

    write_aside(output, write)


@contextmanager
def blaming(folder: Path) -> Iterator[None]:
    """What the system refuses in here is the output directory's fault; a full disk, most often."""
    try:
        yield
    except OSError as error:
        raise DistilError(
            f"cannot write to {folder} ({error.strerror or error}): make room there, or choose another output_path"
        ) from error
