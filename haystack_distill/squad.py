"""SQuAD-format data in and out: read, validate, write (versions 1.1 and 2.0, plain or gzip).

Files are read article by article and land in an Arrow file that is opened memory-mapped, so memory does not grow with
the data. Everything that reaches the rest of the package has passed the checks in this file.
"""

import codecs
import gzip
import hashlib
import io
import json
import logging
import os
import re
import secrets
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeAlias

import datasets
import ijson
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from haystack_distill.errors import DataError, DistilError

__all__ = ["ReadReport", "content_hash", "load_examples", "read_squad", "read_squad_with_report", "write_squad"]

logger = logging.getLogger(__name__)

PathLike: TypeAlias = str | Path
OnBadExample: TypeAlias = Literal["error", "skip"]

# The columns of SQuAD on the Hugging Face hub, with the hub's types, and our two flags.
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("title", pa.string()),
        ("context", pa.string()),
        ("question", pa.string()),
        ("answers", pa.struct([("text", pa.list_(pa.string())), ("answer_start", pa.list_(pa.int32()))])),
        ("is_impossible", pa.bool_()),
        ("labelled", pa.bool_()),
    ]
)
_HASHED_COLUMNS = ["id", "question", "context", "answers", "is_impossible", "labelled"]

# Part of every cache key: raise it when the same input would be read differently.
_FORMAT_VERSION = 1
_ROWS_PER_BATCH = 1000
_CHARS_PER_BATCH = 8 * 2**20  # keeps a batch small when contexts are whole books
_IDS_IN_REPORT = 5
_BLOCK = 2**20


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


def read_squad(
    paths: PathLike | Sequence[PathLike], *, on_bad_example: OnBadExample = "error", cache_dir: PathLike | None = None
) -> datasets.Dataset:
    """Read SQuAD-format JSON files and return their questions as one memory-mapped dataset.

    Rows keep the order of the files. The columns are those of SQuAD on the Hugging Face hub (`id`, `title`, `context`,
    `question`, `answers` with lists `text` and `answer_start` in Unicode code points), and `is_impossible` and
    `labelled`. A question without the key `is_impossible` (version 1.1) is answerable; a question with
    `"labelled": false` belongs to a transfer set: it may lack answers and never counts as unanswerable. If it is the
    empty string, the row is plain text, to distil layers from.
    `plausible_answers` and other extra keys are left out; a missing `title` is the empty string.

    An `answer_start` that does not match its text is put right when the text occurs exactly once in the context, and
    the number of repairs is logged as a warning. What was read is cached under a SHA-256 of the files' bytes.

    Args:
        paths: a file or several, plain or gzip; several are joined.
        on_bad_example: "error" stops at the first bad question; "skip" drops bad questions, counts them and logs a
            warning. A file whose JSON is itself broken is an error either way.
        cache_dir: where the Arrow files go; by default the environment variable HAYSTACK_DISTILL_CACHE, or
            ~/.cache/haystack-distill/examples.

    Raises:
        DataError: a file cannot be read, or holds something that is not valid SQuAD data; the message names the file,
            the article, the paragraph and the question.
        DistilError: `on_bad_example` is unknown, or the cache directory cannot be written.
    """
    return read_squad_with_report(paths, on_bad_example=on_bad_example, cache_dir=cache_dir)[0]


def read_squad_with_report(
    paths: PathLike | Sequence[PathLike], *, on_bad_example: OnBadExample = "error", cache_dir: PathLike | None = None
) -> tuple[datasets.Dataset, ReadReport]:
    """Read like `read_squad`, and also return what was read, skipped and repaired over all files.

    Args:
        paths: as for `read_squad`.
        on_bad_example: as for `read_squad`.
        cache_dir: as for `read_squad`.

    Raises:
        DataError: as for `read_squad`.
        DistilError: as for `read_squad`.
    """
    skip = _wants_skip(on_bad_example)
    files = [Path(path).expanduser() for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    if not files:
        raise DataError("No file to read: give at least one SQuAD-format file.")
    for path in files:
        if path.is_dir():
            raise DataError(f"{path} is a directory: give the SQuAD-format JSON file(s) in it.")
        if not path.is_file():
            raise DataError(f"{path}: no such file. Check the path (it is relative to {Path.cwd()}).")

    key = hashlib.sha256(f"squad files, format {_FORMAT_VERSION}, {on_bad_example}".encode())
    for path in files:
        key.update(_file_sha256(path))
    names = [str(path) for path in files]

    def fill(writer: "_ExampleWriter") -> list[ReadReport]:
        return [writer.add_all(_questions_in_file(path), source=str(path), skip=skip) for path in files]

    return _through_cache(key.hexdigest(), names, cache_dir, fill)


def load_examples(
    source: PathLike | Sequence[PathLike] | datasets.Dataset,
    *,
    split: str = "train",
    on_bad_example: OnBadExample = "error",
    cache_dir: PathLike | None = None,
) -> datasets.Dataset:
    """Load examples from files, from a `datasets.Dataset` or from the Hugging Face hub, in the form of `read_squad`.

    Rows of a dataset pass the same checks as those of a file. Extra columns are left out. Without an `is_impossible`
    column, a row without answers is unanswerable, which is what it means in the hub's squad_v2 (a warning says how
    many there were).

    Args:
        source: a path (a `Path`, or a string that exists or ends in .json or .json.gz), a list of paths, a dataset with
            the SQuAD columns, or the name of a dataset on the hub, such as "squad" or "deepset/germanquad".
        split: which split to load of a hub dataset; files and datasets have no splits.
        on_bad_example: as for `read_squad`.
        cache_dir: as for `read_squad`.

    Raises:
        DataError: the source cannot be loaded, lacks a column, or holds a bad example.
        DistilError: `on_bad_example` is unknown, or the cache directory cannot be written.
    """
    if isinstance(source, datasets.Dataset):
        return _checked_dataset(source, "dataset", on_bad_example, cache_dir)
    if isinstance(source, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        raise DataError(f"Expected one dataset, got a dict of splits: choose one of {sorted(map(str, source))}.")
    if isinstance(source, datasets.IterableDataset):
        raise DataError("Expected a datasets.Dataset, got an IterableDataset: load it without streaming=True.")
    if isinstance(source, str) and not _looks_like_file(source):
        return _checked_dataset(
            _load_from_hub(source, split), f"hub dataset {source} ({split})", on_bad_example, cache_dir
        )
    if isinstance(source, (str, Path)) or (
        isinstance(source, Sequence) and all(isinstance(path, (str, Path)) for path in source)
    ):
        return read_squad(source, on_bad_example=on_bad_example, cache_dir=cache_dir)
    raise DataError(
        f"Cannot load examples from {type(source).__name__}: give a path, a list of paths, a datasets.Dataset or the "
        "name of a dataset on the Hugging Face hub."
    )


def write_squad(
    dataset: datasets.Dataset,
    path: PathLike,
    *,
    version: Literal["1.1", "2.0"] = "2.0",
    overwrite: bool = False,
) -> None:
    """Write examples as SQuAD-format JSON; consecutive rows with the same title and context share a paragraph.

    The file is complete or not there at all. The same rows give the same bytes, and reading them back the same rows.

    Args:
        dataset: rows as `read_squad` returns them.
        path: where to write; gzip when the name ends in .gz.
        version: "2.0" writes `is_impossible`; "1.1" has no way to say it, so every question must be answerable. Either
            marks transfer-set rows with `"labelled": false`.
        overwrite: replace a file that is already there.

    Raises:
        DataError: the dataset has no rows, lacks a column, or holds unanswerable questions although version is "1.1".
        DistilError: the version is unknown, or the file exists and `overwrite` is false.
    """
    if version not in ("1.1", "2.0"):
        raise DistilError(f'Unknown SQuAD version {version!r}: choose "1.1" or "2.0".')
    path = Path(path).expanduser()
    _require_columns(dataset, _SCHEMA.names, "load it with load_examples first")
    if len(dataset) == 0:
        raise DataError(f"The dataset has no rows: nothing to write to {path}.")
    if path.exists() and (path.is_dir() or not overwrite):
        raise DistilError(f"{path} exists: choose another name, or pass overwrite=True to replace a file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as raw:
        if path.name.endswith(".gz"):
            # No name and no time in the header, so that the same rows give the same bytes.
            with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed:
                _write_json(dataset, packed, version)
        else:
            _write_json(dataset, raw, version)


def content_hash(dataset: datasets.Dataset) -> str:
    """SHA-256 (hex) over the rows in order: id, question, context, answers, is_impossible and labelled.

    It depends on the values alone: not on how the rows are stored or where they came from. Titles do not count.

    Raises:
        DataError: a column is missing.
    """
    _require_columns(dataset, _HASHED_COLUMNS, "load it with load_examples first")
    return _hash_columns(dataset, _HASHED_COLUMNS)


@contextmanager
def written_aside(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that takes its place when the block ends well, and is removed otherwise."""
    aside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(aside, "xb") as file:
            yield file
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


# --- Checking one question ----------------------------------------------------------------------------------------


class _BadExample(Exception):
    """One question is bad: `reason` is a short name to count by, the message says what is wrong and the remedy."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class _Place(NamedTuple):
    """Where a question stands; indices count from 0, as in the JSON."""

    source: str
    article: int  # the row, where there are no articles
    title: str | None = None
    paragraph: int | None = None
    qa: int | None = None

    def __str__(self) -> str:
        if self.title is None:
            return f"{self.source}: row {self.article}"
        text = f'{self.source}: article "{self.title}" (data[{self.article}])'
        if self.paragraph is not None:
            text += f", paragraph {self.paragraph}"
        if self.qa is not None:
            text += f", question {self.qa}"
        return text


class _Question(NamedTuple):
    """A question as it came, unchecked. `qa` has the form of the JSON: id, question, answers, flags."""

    place: _Place
    title: str
    paragraph: dict[str, Any]  # with the context
    qa: Any


class _Row(NamedTuple):
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


def _check(question: _Question) -> _Row:
    qa = question.qa
    if not isinstance(qa, dict):
        raise _BadExample("wrong type", f"a question must be a JSON object, not {_kind(qa)}")
    context = _check_text(_value(question.paragraph, "context"), "context")
    id_ = _check_text(_value(qa, "id"), "id")
    text = _value(qa, "question")
    is_impossible = _check_flag(qa.get("is_impossible", False), "is_impossible")
    labelled = _check_flag(qa.get("labelled", True), "labelled")
    if labelled or text != "":  # without question and label, a row is plain text to distil layers from
        text = _check_text(text, "question")
    if is_impossible and not labelled:
        raise _BadExample(
            "contradiction", "is_impossible is true although labelled is false: an unlabelled question has no label"
        )
    answers = _value(qa, "answers") if labelled else qa.get("answers", [])
    if not isinstance(answers, list):
        raise _BadExample("wrong type", f"answers must be a list, not {_kind(answers)}")
    if is_impossible and answers:
        raise _BadExample(
            "answers although impossible",
            "is_impossible is true, but there are answers: empty the list, or set is_impossible to false",
        )
    if labelled and not is_impossible and not answers:
        raise _BadExample(
            "no answers",
            "an answerable question without answers: add an answer, or set is_impossible to true, or labelled to false "
            "for a question to distil from without a label",
        )
    texts, starts, repaired = [], [], False
    for answer in answers:
        answer_text, start, moved = _check_answer(answer, context)
        texts.append(answer_text)
        starts.append(start)
        repaired = repaired or moved
    return _Row(id_, question.title, context, text, texts, starts, is_impossible, labelled, repaired)


def _check_answer(answer: Any, context: str) -> tuple[str, int, bool]:
    """Return the answer's text, its start in code points, and whether the start had to be put right."""
    if not isinstance(answer, dict):
        raise _BadExample("wrong type", f"an answer must be an object with text and answer_start, not {_kind(answer)}")
    text = _check_text(_value(answer, "text"), "answer text")
    start = _value(answer, "answer_start")
    if not isinstance(start, int) or isinstance(start, bool):
        raise _BadExample("wrong type", f"answer_start must be an integer, not {_kind(start)}")
    if start >= 0 and context.startswith(text, start):
        return text, start, False
    found = context.find(text)
    if found < 0:
        raise _BadExample(
            "answer not in context", f"the answer {_shown(text)} does not occur in the context: correct or remove it"
        )
    if context.find(text, found + 1) >= 0:
        raise _BadExample(
            "answer_start does not match",
            f"answer_start {start} does not match the answer {_shown(text)}, which occurs more than once in the "
            "context: give the code point at which the right one begins",
        )
    return text, found, True


def _value(item: dict[str, Any], key: str) -> Any:
    if key not in item:
        raise _BadExample("missing key", f'the key "{key}" is missing: add it')
    return item[key]


def _check_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _BadExample("wrong type", f"the {name} must be a string, not {_kind(value)}")
    if not value or value.isspace():
        raise _BadExample(f"empty {name}", f"the {name} is empty: fill it in or remove the question")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise _BadExample("not Unicode", f"the {name} holds half a surrogate pair: write it as UTF-8") from None
    return value


def _check_flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise _BadExample("wrong type", f"{name} must be true or false, not {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    """A value's type in the words of JSON, with the value where it is short."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return f"the {'string' if isinstance(value, str) else 'number'} {_shown(value)}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- Reading files -------------------------------------------------------------------------------------------------


def _questions_in_file(path: Path) -> Iterator[_Question]:
    """The questions of a file, article by article. What is wrong above the questions is a DataError."""
    for index, article in enumerate(_articles(path)):
        where = f"{path}: article {index} (data[{index}])"
        if not isinstance(article, dict):
            raise DataError(f"{where}: must be an object with title and paragraphs, not {_kind(article)}.")
        title = article.get("title", "")
        if not isinstance(title, str):
            raise DataError(f"{where}: the title must be a string, not {_kind(title)}.")
        place = _Place(str(path), index, title)
        for number, paragraph in enumerate(_list_in(article, "paragraphs", place)):
            place = _Place(str(path), index, title, number)
            if not isinstance(paragraph, dict):
                raise DataError(f"{place}: must be an object with context and qas, not {_kind(paragraph)}.")
            qas = _list_in(paragraph, "qas", place)
            for position, qa in enumerate(qas):
                yield _Question(_Place(str(path), index, title, number, position), title, paragraph, qa)


def _list_in(item: dict[str, Any], key: str, place: _Place) -> list[Any]:
    if key not in item:
        raise DataError(
            f'{place}: the key "{key}" is missing: this is not SQuAD-format data, or the list was left out.'
        )
    value = item[key]
    if not isinstance(value, list):
        raise DataError(f'{place}: "{key}" must be a list, not {_kind(value)}.')
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


def _file_sha256(path: Path) -> bytes:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
    return digest.digest()


# --- Reading datasets ----------------------------------------------------------------------------------------------


def _looks_like_file(source: str) -> bool:
    if source.endswith((".json", ".json.gz")) or Path(source).expanduser().exists():
        return True
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise DataError(f"{source!r} is neither a file nor the name of a dataset on the Hugging Face hub.")
    return False


def _load_from_hub(name: str, split: str) -> datasets.Dataset:
    try:
        loaded = datasets.load_dataset(name, split=split)
    except Exception as error:  # datasets, huggingface_hub and the HTTP library each raise their own
        raise DataError(
            f'Cannot load split "{split}" of "{name}" from the Hugging Face hub ({type(error).__name__}: {error}). '
            "There is no file of that name either. Check the name and the split; offline, give a SQuAD-format file."
        ) from error
    assert isinstance(loaded, datasets.Dataset)  # with a split and without streaming, it is nothing else
    return loaded


def _checked_dataset(
    dataset: datasets.Dataset, name: str, on_bad_example: OnBadExample, cache_dir: PathLike | None
) -> datasets.Dataset:
    """Pass a dataset's rows through the checks and the cache, like those of a file."""
    skip = _wants_skip(on_bad_example)
    required = _SCHEMA.names[:5]
    _require_columns(dataset, required, "the columns must be those of SQuAD")
    columns = [column for column in _SCHEMA.names if column in dataset.column_names]
    for column in columns:
        found = dataset.data.schema.field(column).type
        if not _fits(found, _SCHEMA.field(column).type):
            raise DataError(f'{name}: column "{column}" must be {_SCHEMA.field(column).type}, not {found}: cast it.')
    key = hashlib.sha256(f"dataset, format {_FORMAT_VERSION}, {on_bad_example}, {columns}".encode())
    key.update(_hash_columns(dataset, columns).encode())

    def fill(writer: "_ExampleWriter") -> list[ReadReport]:
        report = writer.add_all(_questions_in_dataset(dataset, columns, name), source=name, skip=skip)
        if "is_impossible" not in columns:
            report.assumed_impossible = writer.impossible
        return [report]

    return _through_cache(key.hexdigest(), [name], cache_dir, fill)[0]


def _questions_in_dataset(dataset: datasets.Dataset, columns: list[str], name: str) -> Iterator[_Question]:
    for index, row in enumerate(_plain_rows(dataset, columns)):
        qa = {key: row[key] for key in columns if key not in ("title", "context")}
        answers = row["answers"] or {}
        texts, starts = answers.get("text"), answers.get("answer_start")
        if texts is None or starts is None:
            qa["answers"] = None  # the check says that this is not a list of answers
        else:  # where the lists differ in length, the check meets a null
            qa["answers"] = [{"text": text, "answer_start": start} for text, start in zip_longest(texts, starts)]
        if "is_impossible" not in columns and qa.get("labelled", True):
            qa["is_impossible"] = qa["answers"] == []
        yield _Question(_Place(name, index), row["title"] or "", {"context": row["context"]}, qa)


def _plain_rows(dataset: datasets.Dataset, columns: list[str]) -> Iterator[dict[str, Any]]:
    for table in _tables(dataset, columns):
        for batch in table.to_batches(max_chunksize=50):  # as Python objects, a thousand rows may be much
            yield from batch.to_pylist()


def _tables(dataset: datasets.Dataset, columns: list[str]) -> Iterator[pa.Table]:
    """The rows in their order (selected, shuffled or not) as Arrow tables of a bounded size."""
    yield from dataset.select_columns(columns).with_format("arrow").iter(batch_size=_ROWS_PER_BATCH)


def _require_columns(dataset: datasets.Dataset, columns: Iterable[str], remedy: str) -> None:
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise DataError(f"The dataset lacks the column(s) {missing} (it has {dataset.column_names}): {remedy}.")


def _fits(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a column's type holds the same kind of values, whatever their width; a type of nulls alone holds any."""
    if pa.types.is_null(found):
        return True
    if pa.types.is_struct(wanted):
        return pa.types.is_struct(found) and all(
            found.get_field_index(part.name) >= 0 and _fits(found.field(part.name).type, part.type) for part in wanted
        )
    if pa.types.is_list(wanted):
        is_list = pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)
        return is_list and _fits(found.value_type, wanted.value_type)
    if pa.types.is_string(wanted):
        return bool(pa.types.is_string(found) or pa.types.is_large_string(found))
    return bool(pa.types.is_integer(found) if pa.types.is_integer(wanted) else found == wanted)


def _hash_columns(dataset: datasets.Dataset, columns: list[str]) -> str:
    """SHA-256 over columns. Each leaf has hashes of its own for nulls, lengths and values, so chunks do not matter."""
    streams: dict[str, Any] = {}

    def feed(name: str, values: Any) -> None:  # anything that is a buffer of bytes, so that nothing is copied
        streams.setdefault(name, hashlib.sha256()).update(values)

    def walk(name: str, array: pa.Array) -> None:
        kind = array.type
        feed(name + " nulls", array.is_null().to_numpy(zero_copy_only=False).astype(np.uint8))
        if pa.types.is_struct(kind):
            for part in sorted(kind.field(i).name for i in range(kind.num_fields)):
                walk(f"{name}.{part}", pc.struct_field(array, part))
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            feed(name + " lengths", _numbers(pc.list_value_length(array)))
            walk(name + "[]", array.flatten())
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            feed(name + " lengths", _numbers(pc.binary_length(array)))
            packed = array.fill_null("").cast(pa.large_binary())
            offsets = np.frombuffer(packed.buffers()[1], dtype="<i8")[packed.offset : packed.offset + len(packed) + 1]
            if len(packed) and packed.buffers()[2] is not None:
                feed(name, packed.buffers()[2].slice(offsets[0], offsets[-1] - offsets[0]))
        elif pa.types.is_boolean(kind) or pa.types.is_integer(kind):
            feed(name, _numbers(array))
        elif not pa.types.is_null(kind):
            raise DataError(f'Column "{name}" has the type {kind}: load the dataset with load_examples first.')

    rows = 0
    for table in _tables(dataset, columns):
        rows += len(table)
        for column in columns:
            for chunk in table[column].chunks:
                walk(column, chunk)
    total = hashlib.sha256(f"{rows} rows".encode())
    for name in sorted(streams):
        total.update(f"{name}\n".encode() + streams[name].digest())
    return total.hexdigest()


def _numbers(array: pa.Array) -> np.ndarray[Any, Any]:
    return array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False).astype("<i8")  # type: ignore[no-any-return]


# --- The cache -----------------------------------------------------------------------------------------------------


def _wants_skip(on_bad_example: str) -> bool:
    if on_bad_example not in ("error", "skip"):
        raise DistilError(f'Unknown on_bad_example {on_bad_example!r}: choose "error" or "skip".')
    return on_bad_example == "skip"


def _through_cache(
    key: str,
    sources: list[str],
    cache_dir: PathLike | None,
    fill: Callable[["_ExampleWriter"], list[ReadReport]],
) -> tuple[datasets.Dataset, ReadReport]:
    """Return the dataset cached under `key` and its report; `fill` writes it where it is not there or not sound.

    `fill` returns one report per source, in the order of `sources`.
    """
    if cache_dir is None:
        cache_dir = os.environ.get("HAYSTACK_DISTILL_CACHE") or "~/.cache/haystack-distill/examples"
    folder = Path(cache_dir).expanduser()
    remedy = "make room there, pass another cache_dir, or set the environment variable HAYSTACK_DISTILL_CACHE"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DistilError(f"Cannot make the cache directory {folder} ({error}): {remedy}.") from error
    arrow, side = folder / f"{key}.arrow", folder / f"{key}.json"
    reports = _cached_reports(arrow, side)
    if reports is None:
        try:
            with written_aside(arrow) as file, _ExampleWriter(file, sources) as writer:
                reports = fill(writer)
            # The side file comes last: where it is missing or does not match, the pair is written again.
            with written_aside(side) as file:
                content = {"arrow_sha256": _file_sha256(arrow).hex(), "reports": [asdict(report) for report in reports]}
                file.write(json.dumps(content, indent=1).encode())
        except OSError as error:
            raise DistilError(f"Cannot write to the cache directory {folder} ({error}): {remedy}.") from error
    for source, report in zip(sources, reports, strict=True):
        _warn(source, report)
    return datasets.Dataset.from_file(str(arrow)), _sum_of(reports)


def _cached_reports(arrow: Path, side: Path) -> list[ReadReport] | None:
    if not (arrow.is_file() and side.is_file()):
        return None
    try:
        content = json.loads(side.read_bytes())
        reports = [ReadReport(**report) for report in content["reports"]]
        if content["arrow_sha256"] == _file_sha256(arrow).hex():
            return reports
    except (ValueError, KeyError, TypeError) as error:
        logger.debug("%s is not sound: %s", side, error)
    logger.warning("The cached file %s is damaged: reading its source again.", arrow)
    return None


def _warn(source: str, report: ReadReport) -> None:
    if report.repaired:
        logger.warning(
            "%s: put right the answer_start of %d question(s) whose answer occurs once in the context (%s%s).",
            source,
            report.repaired,
            ", ".join(report.repaired_ids),
            ", ..." if report.repaired > len(report.repaired_ids) else "",
        )
    if report.skipped:
        logger.warning(
            "%s: skipped %d bad question(s): %s (%s%s).",
            source,
            report.skipped,
            _reasons(report),
            ", ".join(report.skipped_ids),
            ", ..." if report.skipped > len(report.skipped_ids) else "",
        )

    if report.assumed_impossible:
        logger.warning(
            '%s: %d row(s) without answers are taken as unanswerable, as there is no "is_impossible" column.',
            source,
            report.assumed_impossible,
        )


def _reasons(report: ReadReport) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in sorted(report.reasons.items()))


def _sum_of(reports: list[ReadReport]) -> ReadReport:
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


class _ExampleWriter:
    """Checks questions and writes the good ones to an Arrow stream, in batches."""

    def __init__(self, file: BinaryIO, sources: list[str]) -> None:
        self._stream = pa.ipc.new_stream(file, _SCHEMA)
        self._sources = sources
        self._rows: list[_Row] = []
        self._chars = 0
        self.impossible = 0  # rows written so far that are unanswerable
        # Ids are compared in a temporary database, which SQLite keeps in a bounded cache and spills to disk: a set of
        # all ids would grow with the data.
        self._ids = sqlite3.connect("", isolation_level=None)
        self._ids.execute("PRAGMA journal_mode = OFF")
        self._ids.execute("PRAGMA cache_size = -16384")  # in KiB
        self._ids.execute("CREATE TABLE ids (id TEXT PRIMARY KEY, source INTEGER, article INTEGER) WITHOUT ROWID")
        self._ids.execute("BEGIN")

    def __enter__(self) -> "_ExampleWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._ids.close()
        self._stream.close()

    def add_all(self, questions: Iterable[_Question], *, source: str, skip: bool) -> ReadReport:
        """Check and write the questions of one source."""
        report = ReadReport()
        number = self._sources.index(source)
        for question in questions:
            try:
                row = _check(question)
                self._require_new(row.id, number, question.place)
            except _BadExample as bad:
                id_ = question.qa.get("id") if isinstance(question.qa, dict) else None
                named = isinstance(id_, str) and id_ != ""
                if not skip:
                    raise DataError(f"{question.place}{f' (id {_shown(id_)})' if named else ''}: {bad}.") from None
                report.skipped += 1
                report.reasons[bad.reason] = report.reasons.get(bad.reason, 0) + 1
                if len(report.skipped_ids) < _IDS_IN_REPORT:
                    report.skipped_ids.append(str(id_) if named else str(question.place))
                continue
            report.read += 1
            self.impossible += row.is_impossible
            if row.repaired:
                report.repaired += 1
                if len(report.repaired_ids) < _IDS_IN_REPORT:
                    report.repaired_ids.append(row.id)
            self._rows.append(row)
            self._chars += len(row.context) + len(row.question)
            if len(self._rows) >= _ROWS_PER_BATCH or self._chars >= _CHARS_PER_BATCH:
                self._flush()
        self._flush()
        if not report.read:
            why = f": all were skipped ({_reasons(report)})" if report.skipped else ""
            raise DataError(f"{source}: no questions{why}. Give a file with at least one valid question.")
        return report

    def _require_new(self, id_: str, source: int, place: _Place) -> None:
        done = self._ids.execute("INSERT OR IGNORE INTO ids VALUES (?, ?, ?)", (id_, source, place.article))
        if not done.rowcount:
            row = self._ids.execute("SELECT source, article FROM ids WHERE id = ?", (id_,)).fetchone()
            first = f"{self._sources[row[0]]}, {'row' if place.title is None else 'article'} {row[1]}"
            raise _BadExample("duplicate id", f"this id was already used in {first}: ids must be unique over all files")

    def _flush(self) -> None:
        if self._rows:
            columns = list(zip(*self._rows, strict=True))
            answers = pa.StructArray.from_arrays(
                [pa.array(columns[4], pa.list_(pa.string())), pa.array(columns[5], pa.list_(pa.int32()))],
                fields=list(_SCHEMA.field("answers").type),
            )
            flat = [pa.array(columns[i], pa.string()) for i in range(4)]
            flags = [pa.array(columns[i], pa.bool_()) for i in (6, 7)]
            self._stream.write_batch(pa.record_batch([*flat, answers, *flags], schema=_SCHEMA))
            self._rows.clear()
            self._chars = 0


# --- Writing files -------------------------------------------------------------------------------------------------


def _write_json(dataset: datasets.Dataset, file: BinaryIO | gzip.GzipFile, version: str) -> None:
    def dump(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    text = io.TextIOWrapper(file, encoding="utf-8", newline="\n")
    text.write(f'{{"version":{dump("v2.0" if version == "2.0" else "1.1")},"data":[')
    title: str | None = None
    context: str | None = None
    for row in _plain_rows(dataset, _SCHEMA.names):
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
