"""Questions out of a file, SQuAD-format JSON article by article, and rows into one; plain or gzip."""

import gzip
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from haystack_distill.data.squad.encoding import BLOCK, SurrogateReplacer, opened, require_utf8
from haystack_distill.data.squad.tables import CSV, LINES, PARQUET, questions_in_records, questions_in_table, table_kind
from haystack_distill.data.squad.validation import BadExample, Place, Question, abbreviated, kind
from haystack_distill.errors import DataError

_QUESTION = b'"question"'
_CONSTANT = re.compile(rb"[^-]?(-?(?:NaN|Infinity))")
_CHUNK = 2**16  # bytes that are parsed at once
_ARTICLES, _RECORDS = "articles", "records"


def questions_in_file(path: Path) -> Iterator[Question]:
    """The questions of a file of any kind that `data.squad.load.read_squad` reads, unchecked.

    What should hold questions and does not comes as one bad question.

    Raises:
        DataError: the file cannot be read, is broken, or is of no such kind.
    """
    table = table_kind(path)
    if table is not None:
        yield from questions_in_table(path, table)
        return
    done = [0]
    with _naming_what_is_broken(path, done):
        with opened(path) as file:
            form = _form_of(path, file)
        if form == _RECORDS:
            for done[0], question in enumerate(questions_in_records(path), 1):
                yield question
            return
        if form == _ARTICLES:
            waiting = 0  # replaced, and not yet said with a question
            for done[0], (article, replaced) in enumerate(_articles(path), 1):
                waiting += replaced
                for question in _questions_of(path, done[0] - 1, article):
                    yield question._replace(replaced=waiting) if waiting else question
                    waiting = 0
            return
    yield from questions_in_table(path, LINES)


def _questions_of(path: Path, index: int, article: Any) -> Iterator[Question]:
    try:
        if not isinstance(article, dict):
            raise BadExample(
                "wrong type", f"an article must be an object with title and paragraphs, not {kind(article)}"
            )
        title = article.get("title")
        paragraphs = _list_in(article, "paragraphs")
    except BadExample as bad:
        yield _faulty(Place(str(path), index, _shown_title(article)), bad)
        return
    shown_title = _shown_title(article)
    for number, paragraph in enumerate(paragraphs):
        try:
            if not isinstance(paragraph, dict):
                raise BadExample(
                    "wrong type", f"a paragraph must be an object with context and qas, not {kind(paragraph)}"
                )
            qas = _list_in(paragraph, "qas")
        except BadExample as bad:
            yield _faulty(Place(str(path), index, shown_title, number), bad)
            continue
        for position, qa in enumerate(qas):
            yield Question(Place(str(path), index, shown_title, number, position), title, paragraph, qa)


def _shown_title(article: Any) -> str:
    title = article.get("title") if isinstance(article, dict) else None
    return title if isinstance(title, str) else "" if title is None else abbreviated(title)


def _faulty(place: Place, fault: BadExample) -> Question:
    return Question(place, None, {}, {}, fault=fault)


def count_questions(path: Path) -> int | None:
    """About how many questions a file has, counted without parsing it: to show how far reading it is.

    None where it cannot be counted so.
    """
    if table_kind(path) in (CSV, PARQUET):
        return None
    count, rest = 0, b""
    with opened(path) as file:
        while block := file.read(BLOCK):
            block = rest + block
            count += block.count(_QUESTION)
            rest = block[-len(_QUESTION) + 1 :]
    return count


def _list_in(item: dict[str, Any], key: str) -> list[Any]:
    if key not in item:
        raise BadExample(
            "missing key", f'the key "{key}" is missing: this is not SQuAD-format data, or the list was left out'
        )
    value = [] if item[key] is None else item[key]
    if not isinstance(value, list):
        raise BadExample("wrong type", f'"{key}" must be a list, not {kind(value)}')
    return value


def _articles(path: Path) -> Iterator[tuple[Any, int]]:
    """The items of the file's "data" list, one at a time, and how many half surrogate pairs were replaced since."""
    with opened(path) as file:
        text = SurrogateReplacer(file)
        replaced = 0
        for article in ijson.items(text, "data.item", use_float=True):
            yield article, text.replaced - replaced
            replaced = text.replaced


def _form_of(path: Path, file: BinaryIO) -> str:
    """How the questions of a JSON file are laid out; read no farther than it takes to know."""
    remedy = 'SQuAD-format data is {"version": ..., "data": [articles]}'
    keys = set()
    # JSON lines are several values, of which the first is enough.
    for position, (prefix, event, value) in enumerate(
        ijson.parse(SurrogateReplacer(file), multiple_values=True, use_float=True)
    ):
        if position == 0 and event == "start_array":
            return _RECORDS
        if position == 0 and event != "start_map":
            raise DataError(f"{path}: the file must hold a JSON object: {remedy}.")
        if prefix == "data":
            if event != "start_array":
                raise DataError(f'{path}: "data" must be a list of articles: {remedy}.')
            return _ARTICLES
        if prefix == "" and event == "map_key":
            keys.add(value)
        if prefix == "" and event == "end_map":
            break
    if {"context", "question"} <= keys:
        return LINES
    raise DataError(f'{path}: the key "data" is missing: {remedy}.')


@contextmanager
def _naming_what_is_broken(path: Path, done: list[int]) -> Iterator[None]:
    """Every way in which JSON can be broken as a DataError; `done` holds how many whole articles or rows there were."""
    try:
        yield
    except (ijson.JSONError, UnicodeDecodeError, json.JSONDecodeError) as error:
        require_utf8(path)
        # yajl adds lines with the place of the error; its first line says what it is.
        what = str(error.args[0] if error.args else error).splitlines()[0]
        named = None if "premature" in what or "ncomplete" in what else _not_a_number(path)
        if named is not None:
            raise named from error
        raise DataError(
            f"{path}: the JSON is broken or cut off (truncated) after {done[0]} whole articles ({what}): "
            "fetch or write the file again."
        ) from error


class _Watched:
    """A file that counts what is read of it, and from `slow` on gives no more than `step` bytes at a time."""

    def __init__(self, file: io.RawIOBase, slow: int, step: int) -> None:
        self.done = 0
        self._file = file
        self._slow = slow
        self._step = step

    def read(self, size: int) -> bytes:
        step = self._step if self.done >= self._slow else min(_CHUNK, self._slow - self.done)
        block = self._file.read(min(size, step)) or b""
        self.done += len(block)
        return block


def _not_a_number(path: Path) -> DataError | None:
    """The error of a file that is broken by NaN or Infinity, which Python and JavaScript tools write and JSON lacks."""
    # Only the block in which the parser fails is known, so three passes narrow it down. Single bytes throughout would
    # not do: the parser goes over a text from its beginning with each block.
    end, before = 0, 0
    for step in (_CHUNK, _CHUNK // 128, 1):
        end, place, key = _end_of_json(path, max(0, end - before), step)
        before = step
    with opened(path) as file:
        begin = max(file.tell(), file.tell() + end - 2)
        file.seek(begin)
        found = _CONSTANT.match(file.read(16))
    if found is None:
        return None
    where = path if place.article < 0 else place  # beside the questions
    return DataError(
        f'{where}: "{key}" is {found[1].decode()} (at byte {begin + found.start(1)}), which JSON does not have: write '
        "a value or null there, or leave the key out"
    )


def _end_of_json(path: Path, slow: int, step: int) -> tuple[int, Place, str]:
    """How many bytes were read of a file until it was no longer JSON, in which question and after which key that is."""
    place, key = Place(str(path), 0), ""
    with opened(path) as file:
        watched = _Watched(SurrogateReplacer(file), slow, step)
        try:
            for place, key in _places(path, watched):  # noqa: B007  # the last ones are wanted
                pass
        except (ijson.JSONError, UnicodeDecodeError):
            pass  # as is known
    return watched.done, place, key


def _places(path: Path, file: _Watched) -> Iterator[tuple[Place, str]]:
    """Where in a file the parser is, and the last key that it has read."""
    place = Place(str(path), -1)
    for prefix, event, value in ijson.parse(file, buf_size=_CHUNK, use_float=True):
        if event == "start_map":
            if prefix == "item":
                place = Place(str(path), place.article + 1)
            elif prefix == "data.item":
                place = Place(str(path), place.article + 1, "")
            elif prefix == "data.item.paragraphs.item":
                place = place._replace(paragraph=0 if place.paragraph is None else place.paragraph + 1, qa=None)
            elif prefix == "data.item.paragraphs.item.qas.item":
                place = place._replace(qa=0 if place.qa is None else place.qa + 1)
        elif prefix == "data.item.title":
            place = place._replace(title=str(value))
        elif event == "map_key":
            yield place, value


def write_rows(rows: Iterable[dict[str, Any]], path: Path, *, version: str, packed: bool) -> None:
    """Write rows as one file, gzip if `packed`; the same rows give the same bytes."""
    write_compressed(path, lambda file: _write_json(rows, file, version), packed=packed)


def write_compressed(path: Path, fill: Callable[[Any], None], *, packed: bool, level: int = 9) -> None:
    """Let `fill` write a file, gzip at `level` if `packed`; the same content gives the same bytes."""
    with open(path, "wb") as raw:
        if packed:  # no name and no time in the header
            with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=level) as file:
                fill(file)
        else:
            fill(raw)


def _write_json(rows: Iterable[dict[str, Any]], file: BinaryIO | gzip.GzipFile, version: str) -> None:
    def dump(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    text = io.TextIOWrapper(file, encoding="utf-8", newline="\n")
    text.write(f'{{"version":{dump("v2.0" if version == "2.0" else "1.1")},"data":[')
    title: str | None = None
    context: str | None = None
    for row in rows:
        if row["is_impossible"] and version == "1.1":
            raise DataError(f'Question "{row["id"]}" is unanswerable, which SQuAD 1.1 cannot say: use version="2.0".')
        if row["title"] != title:
            text.write(("" if title is None else "]}]},") + f'{{"title":{dump(row["title"])},"paragraphs":[')
        elif row["context"] != context:
            text.write("]},")
        if row["title"] != title or row["context"] != context:
            text.write(f'{{"context":{dump(row["context"])},"qas":[')
        else:
            text.write(",")
        title, context = row["title"], row["context"]
        text.write(dump(_qa(row, version)))
    text.write("]}]}]}\n")
    text.flush()
    text.detach()  # the file is closed by whoever opened it


def _qa(row: dict[str, Any], version: str) -> dict[str, Any]:
    pairs = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
    qa: dict[str, Any] = {
        "id": row["id"],
        "question": row["question"],
        "answers": [{"text": text, "answer_start": start} for text, start in pairs],
    }
    if version == "2.0":
        qa["is_impossible"] = row["is_impossible"]
    if not row["labelled"]:
        qa["labelled"] = False
    return qa
