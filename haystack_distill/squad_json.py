"""SQuAD-format JSON, plain or gzip: questions out of a file article by article, and rows into one."""

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from haystack_distill.errors import DataError
from haystack_distill.squad_checks import Place, Question, kind

_BLOCK = 2**20
_QUESTION = b'"question"'


def questions_in_file(path: Path) -> Iterator[Question]:
    """The questions of a file, article by article. What is wrong above the questions is a DataError."""
    for index, article in enumerate(_articles(path)):
        where = f"{path}: article {index} (data[{index}])"
        if not isinstance(article, dict):
            raise DataError(f"{where}: must be an object with title and paragraphs, not {kind(article)}.")
        title = article.get("title", "")
        if not isinstance(title, str):
            raise DataError(f"{where}: the title must be a string, not {kind(title)}.")
        place = Place(str(path), index, title)
        for number, paragraph in enumerate(_list_in(article, "paragraphs", place)):
            place = Place(str(path), index, title, number)
            if not isinstance(paragraph, dict):
                raise DataError(f"{place}: must be an object with context and qas, not {kind(paragraph)}.")
            qas = _list_in(paragraph, "qas", place)
            for position, qa in enumerate(qas):
                yield Question(Place(str(path), index, title, number, position), title, paragraph, qa)


def count_of_questions(path: Path) -> int:
    """About how many questions a file has, counted without parsing it: to show how far reading it is."""
    count, rest = 0, b""
    with _open(path) as file:
        while block := file.read(_BLOCK):
            block = rest + block
            count += block.count(_QUESTION)
            rest = block[-len(_QUESTION) + 1 :]
    return count


def _list_in(item: dict[str, Any], key: str, place: Place) -> list[Any]:
    if key not in item:
        raise DataError(
            f'{place}: the key "{key}" is missing: this is not SQuAD-format data, or the list was left out.'
        )
    value = item[key]
    if not isinstance(value, list):
        raise DataError(f'{place}: "{key}" must be a list, not {kind(value)}.')
    return value


def _articles(path: Path) -> Iterator[Any]:
    """The items of the file's "data" list, one at a time; every way in which the file can be broken is a DataError."""
    count = 0
    try:
        with _open(path) as file:
            _require_data_list(path, file)
        with _open(path) as file:
            for article in ijson.items(file, "data.item", use_float=True):
                yield article
                count += 1
    except (ijson.JSONError, UnicodeDecodeError, json.JSONDecodeError) as error:
        _require_utf8(path)
        # yajl adds lines with the place of the error; its first line says what it is.
        what = str(error.args[0] if error.args else error).splitlines()[0]
        raise DataError(
            f"{path}: the JSON is broken or cut off (truncated) after {count} whole articles ({what}): "
            "fetch or write the file again."
        ) from error


def _require_data_list(path: Path, file: BinaryIO) -> None:
    """Check that the file is an object with a list "data"; stops reading where that list begins."""
    remedy = 'SQuAD-format data is {"version": ..., "data": [articles]}'
    for position, (prefix, event, _) in enumerate(ijson.parse(file, use_float=True)):
        if position == 0 and event != "start_map":
            raise DataError(f"{path}: the file must hold a JSON object: {remedy}.")
        if prefix == "data":
            if event != "start_array":
                raise DataError(f'{path}: "data" must be a list of articles: {remedy}.')
            return
    raise DataError(f'{path}: the key "data" is missing: {remedy}.')


def _require_utf8(path: Path) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0
    with _open(path) as file:
        while True:
            block = file.read(_BLOCK)
            waiting = len(decoder.getstate()[0])  # bytes of a character that the last block began
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: not UTF-8 (at byte {done - waiting + error.start}): save the file as UTF-8."
                ) from error
            if not block:
                return
            done += len(block)


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Open a plain or gzip file for reading, past a byte order mark; what goes wrong in reading it is a DataError."""
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b" or path.name.endswith(".gz")
            raw.seek(0)
            with gzip.open(raw) if packed else raw as file:
                if file.read(3) != codecs.BOM_UTF8:
                    file.seek(0)
                yield file  # type: ignore[misc]  # GzipFile is a BinaryIO in all that is used here
    except EOFError as error:
        raise DataError(f"{path}: the gzip file is cut off (truncated): fetch or write it again.") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: not a sound gzip file ({error}): fetch or write it again.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error


def write_rows(rows: Iterable[dict[str, Any]], path: Path, *, version: str, packed: bool) -> None:
    """Write rows as one file, gzip if `packed`; the same rows give the same bytes."""
    write_packed(path, lambda file: _write_json(rows, file, version), packed=packed)


def write_packed(path: Path, fill: Callable[[Any], None], *, packed: bool, level: int = 9) -> None:
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
