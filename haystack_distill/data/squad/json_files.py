"""SQuAD-format JSON, plain or gzip: questions are read article by article, rows are written."""

import gzip
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from haystack_distill.data.squad.encoding import BLOCK, SurrogateReplacer, open_data, require_utf8
from haystack_distill.data.squad.tables import (
    CSV,
    LINES,
    PARQUET,
    Only,
    questions_in_records,
    questions_in_table,
    table_kind,
)
from haystack_distill.data.squad.validation import BadExample, Place, Question, abbreviated, json_type
from haystack_distill.errors import DataError

_QUESTION = b'"question"'
_CONSTANT = re.compile(rb"[^-]?(-?(?:NaN|Infinity))")
_CHUNK = 2**16  # bytes parsed at once
_ARTICLES, _RECORDS = "articles", "records"


def questions_in_file(path: Path, only: Only = None) -> Iterator[Question]:
    """The questions of a file in any format that `data.squad.load.read_squad` accepts, unchecked.

    An invalid article or paragraph becomes one question with a `fault`. With `only`, the columns and keys that it does
    not need may be missing; with "contexts", a paragraph is one question without a text.

    Raises:
        DataError: The file cannot be read, is broken, or has another format.
    """
    table = table_kind(path)
    if table is not None:
        yield from questions_in_table(path, table, only)
        return
    done = [0]
    with _json_errors(path, done):
        with open_data(path) as file:
            layout = _layout_of(path, file)
        if layout == _RECORDS:
            for done[0], question in enumerate(questions_in_records(path), 1):
                yield question
            return
        if layout == _ARTICLES:
            waiting = 0  # replaced, and not yet attributed to a question
            for done[0], (article, replaced) in enumerate(_articles(path), 1):
                waiting += replaced
                for question in _questions_of(path, done[0] - 1, article, only):
                    yield question._replace(replaced=waiting) if waiting else question
                    waiting = 0
            return
    yield from questions_in_table(path, LINES, only)


def _questions_of(path: Path, index: int, article: Any, only: Only) -> Iterator[Question]:
    try:
        if not isinstance(article, dict):
            raise BadExample(
                "wrong type", f"an article must be an object with title and paragraphs, not {json_type(article)}"
            )
        title = article.get("title")
        paragraphs = _list_in(article, "paragraphs")
    except BadExample as bad:
        yield _invalid(Place(str(path), index, _title_of(article)), bad)
        return
    title_text = _title_of(article)
    for number, paragraph in enumerate(paragraphs):
        try:
            if not isinstance(paragraph, dict):
                raise BadExample(
                    "wrong type", f"a paragraph must be an object with context and qas, not {json_type(paragraph)}"
                )
            qas = [{"id": f"context-{index}-{number}"}] if only == "contexts" else _list_in(paragraph, "qas")
        except BadExample as bad:
            yield _invalid(Place(str(path), index, title_text, number), bad)
            continue
        for position, qa in enumerate(qas):
            yield Question(Place(str(path), index, title_text, number, position), title, paragraph, qa)


def _title_of(article: Any) -> str:
    title = article.get("title") if isinstance(article, dict) else None
    return title if isinstance(title, str) else "" if title is None else abbreviated(title)


def _invalid(place: Place, fault: BadExample) -> Question:
    return Question(place, None, {}, {}, fault=fault)


def count_questions(path: Path) -> int | None:
    """The approximate number of questions in a file, counted without parsing it, for progress bars.

    None for formats in which they cannot be counted like this.
    """
    if table_kind(path) in (CSV, PARQUET):
        return None
    count, rest = 0, b""
    with open_data(path) as file:
        while block := file.read(BLOCK):
            block = rest + block
            count += block.count(_QUESTION)
            rest = block[-len(_QUESTION) + 1 :]
    return count


def _list_in(item: dict[str, Any], key: str) -> list[Any]:
    if key not in item:
        raise BadExample("missing key", f'the key "{key}" is missing: give SQuAD-format data, or add the list')
    value = [] if item[key] is None else item[key]
    if not isinstance(value, list):
        raise BadExample("wrong type", f'"{key}" must be a list, not {json_type(value)}')
    return value


def _articles(path: Path) -> Iterator[tuple[Any, int]]:
    """The items of the "data" list one by one, each with the number of lone surrogates replaced since the last."""
    with open_data(path) as file:
        text = SurrogateReplacer(file)
        replaced = 0
        for article in ijson.items(text, "data.item", use_float=True):
            yield article, text.replaced - replaced
            replaced = text.replaced


def _layout_of(path: Path, file: BinaryIO) -> str:
    """The layout of a JSON file: articles, records or lines; reads no more than necessary.

    Raises:
        DataError: It is none of them.
    """
    remedy = 'SQuAD-format data is {"version": ..., "data": [articles]}'
    keys = set()
    # JSON lines are several values; the first one is enough.
    for position, (prefix, event, value) in enumerate(
        ijson.parse(SurrogateReplacer(file), multiple_values=True, use_float=True)
    ):
        if position == 0 and event == "start_array":
            return _RECORDS
        if position == 0 and event != "start_map":
            raise DataError(f"{path}: the file must hold a JSON object: {remedy}")
        if prefix == "data":
            if event != "start_array":
                raise DataError(f'{path}: "data" must be a list of articles: {remedy}')
            return _ARTICLES
        if prefix == "" and event == "map_key":
            keys.add(value)
        if prefix == "" and event == "end_map":
            break
    if {"context", "question"} <= keys:
        return LINES
    raise DataError(f'{path}: the key "data" is missing: {remedy}')


@contextmanager
def _json_errors(path: Path, done: list[int]) -> Iterator[None]:
    """Raise every error of broken JSON as a DataError; `done` holds the number of complete articles or rows so far."""
    try:
        yield
    except (ijson.JSONError, UnicodeDecodeError, json.JSONDecodeError) as error:
        require_utf8(path)
        # yajl adds lines with the position of the error; the first line is its description.
        what = str(error.args[0] if error.args else error).splitlines()[0]
        named = None if "premature" in what or "ncomplete" in what else _not_a_number(path)
        if named is not None:
            raise named from error
        raise DataError(
            f"{path}: the JSON is broken or truncated after {done[0]} complete articles ({what}): "
            "download or write the file again"
        ) from error


class _CountingReader:
    """A file that counts the bytes read, and beyond `slow` returns at most `step` bytes at a time."""

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
    """The error for a file with NaN or Infinity, which Python tools write although JSON lacks them; None for others."""
    # Only the block in which the parser fails is known, so three passes narrow it down. Reading single bytes from the
    # start would take too long: the parser goes over a string from its beginning with each block.
    end, before = 0, 0
    for step in (_CHUNK, _CHUNK // 128, 1):
        end, place, key = _end_of_json(path, max(0, end - before), step)
        before = step
    with open_data(path) as file:
        begin = max(file.tell(), file.tell() + end - 2)
        file.seek(begin)
        found = _CONSTANT.match(file.read(16))
    if found is None:
        return None
    where = path if place.article < 0 else place  # outside the questions
    return DataError(
        f'{where}: "{key}" is {found[1].decode()} (at byte {begin + found.start(1)}), which is not valid JSON: write '
        "a value or null there, or leave the key out"
    )


def _end_of_json(path: Path, slow: int, step: int) -> tuple[int, Place, str]:
    """Where a file ceases to be JSON: the number of bytes read until then, the question, and the last key."""
    place, key = Place(str(path), 0), ""
    with open_data(path) as file:
        reader = _CountingReader(SurrogateReplacer(file), slow, step)
        try:
            for place, key in _places(path, reader):  # noqa: B007  # the last values are used
                pass
        except (ijson.JSONError, UnicodeDecodeError):
            pass  # expected
    return reader.done, place, key


def _places(path: Path, file: _CountingReader) -> Iterator[tuple[Place, str]]:
    """The places that the parser reaches in a file, each with the last key."""
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
    """Write rows to a file, gzip if `packed`; the same rows give the same bytes.

    Raises:
        DataError: A row is unanswerable and `version` is "1.1".
    """
    write_compressed(path, lambda file: _write_json(rows, file, version), packed=packed)


def write_compressed(path: Path, fill: Callable[[Any], None], *, packed: bool, level: int = 9) -> None:
    """Write a file with `fill`, gzip at `level` if `packed`; the same content gives the same bytes."""
    with open(path, "wb") as raw:
        if packed:  # no name and no timestamp in the header
            with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=level) as file:
                fill(file)
        else:
            fill(raw)


def _write_json(rows: Iterable[dict[str, Any]], file: BinaryIO | gzip.GzipFile, version: str) -> None:
    def dump(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    text = io.TextIOWrapper(file, encoding="utf-8", newline="\n")
    text.write(f'{{"version":{dump("v2.0" if version == "2.0" else "1.1")},"data":[')
    began = False
    title: str | None = None
    context: str | None = None
    for row in rows:
        if row["is_impossible"] and version == "1.1":
            raise DataError(
                f'question "{row["id"]}" is unanswerable, which SQuAD 1.1 cannot express: use version="2.0"'
            )
        opens = not began or row["title"] != title
        if opens:
            text.write(("]}]}," if began else "") + f'{{"title":{dump(row["title"])},"paragraphs":[')
        elif row["context"] != context:
            text.write("]},")
        if opens or row["context"] != context:
            text.write(f'{{"context":{dump(row["context"])},"qas":[')
        else:
            text.write(",")
        began, title, context = True, row["title"], row["context"]
        text.write(dump(_qa(row, version)))
    text.write("]}]}]}\n")
    text.flush()
    text.detach()  # the file is closed by whoever open_data it


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
