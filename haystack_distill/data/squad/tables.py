"""Tables with one question per row: CSV, JSON lines, JSON records and Parquet."""

import ast
import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Literal, TypeAlias

import ijson
import pyarrow as pa
import pyarrow.parquet as pq

from haystack_distill.data.squad.encoding import SurrogateReplacer, open_data, require_utf8
from haystack_distill.data.squad.validation import BadExample, Place, Question, json_type
from haystack_distill.errors import DataError
from haystack_distill.utils.checks import is_integer

_FLAT = ("answer_text", "answer")  # columns with a single answer, with or without `answer_start`
COLUMNS = ("id", "title", "context", "question", "answers", *_FLAT, "answer_start", "is_impossible", "labelled")
Only: TypeAlias = Literal["questions", "contexts"] | None  # what is read of each example, see `load_examples`
_BATCH_SIZE = 50  # rows; a thousand may be large as Python objects
_LONGEST_CELL = 2**31 - 1
_FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False, "": None}

CSV, LINES, PARQUET = "csv", "lines", "parquet"
_ENDINGS = {".csv": CSV, ".tsv": CSV, ".jsonl": LINES, ".ndjson": LINES, ".parquet": PARQUET}
FILE_ENDINGS = tuple(ending + packing for ending in (".json", *_ENDINGS) for packing in ("", ".gz"))


def table_kind(path: Path) -> str | None:
    """The kind of table according to a file's name; None for JSON, whose layout depends on the content."""
    return _ENDINGS.get(Path(path.name.removesuffix(".gz")).suffix.lower())


def questions_in_table(path: Path, kind: str, only: Only = None) -> Iterator[Question]:
    """The rows of a table as unchecked questions.

    Raises:
        DataError: The file cannot be read, is broken, or lacks a column.
    """
    rows = {CSV: _csv_rows, LINES: _line_rows, PARQUET: _parquet_rows}[kind](path, only)
    for place, row, replaced in rows:
        yield question_of(row, place)._replace(replaced=replaced)


def questions_in_records(path: Path) -> Iterator[Question]:
    """The objects of a JSON list as unchecked questions.

    Raises:
        ijson.JSONError: The JSON is broken.
        UnicodeDecodeError: The file is not UTF-8.
    """
    with open_data(path) as file:
        text = SurrogateReplacer(file)
        replaced = 0
        for index, row in enumerate(ijson.items(text, "item", use_float=True)):
            yield question_of(row, Place(str(path), index))._replace(replaced=text.replaced - replaced)
            replaced = text.replaced


def require_question_columns(columns: Iterable[str], name: str, only: Only = None) -> None:
    """Check that a table has columns for contexts and for questions; one without answers is a transfer set.

    Args:
        columns: The columns of the table.
        name: The name of the table, for the message.
        only: "contexts" needs no questions.

    Raises:
        DataError: It lacks one.
    """
    columns = list(columns)
    missing = [column for column in _needed(only) if column not in columns]
    if missing and only is not None:
        raise DataError(f"{name} lacks the column(s) {missing} (it has {columns}): name the columns so")
    if missing:
        raise DataError(
            f"{name} lacks the column(s) {missing} (it has {columns}): give it the columns of SQuAD, or question, "
            "context, answer and answer_start"
        )


def _needed(only: Only) -> tuple[str, ...]:
    """The columns that every table must have."""
    return ("context",) if only == "contexts" else ("context", "question")


def question_of(row: Any, place: Place) -> Question:
    """A row as an unchecked question; `data.squad.load.read_squad` documents the columns."""
    if isinstance(row, BadExample):
        return Question(place, None, {}, {}, fault=row)
    if not isinstance(row, dict):
        fault = BadExample("wrong type", f"a question must be a JSON object, not {json_type(row)}")
        return Question(place, None, {}, {}, fault=fault)
    qa = {key: row[key] for key in ("question", "is_impossible", "labelled") if key in row}
    qa["id"] = _as_integer(row["id"]) if "id" in row else f"row-{place.article}"
    flat = next((name for name in _FLAT if name in row), None)
    assumed = without_starts = False
    if "answers" in row:
        qa["answers"] = _answer_list(row["answers"])
        # As in squad_v2 on the hub.
        assumed = qa["answers"] == [] and qa.get("is_impossible") is None and qa.get("labelled") is not False
        if assumed:
            qa["is_impossible"] = True
    elif flat is not None:
        without_starts = row.get("answer_start") is None
        qa["answers"] = _flat_answers(row[flat], row.get("answer_start"))
    paragraph = {"context": row["context"]} if "context" in row else {}
    return Question(
        place, row.get("title"), paragraph, qa, assumed, without_starts=without_starts, id_may_change="id" not in row
    )


def _answer_list(answers: Any) -> Any:
    """Answers as in SQuAD's JSON, from the format of the hub, a dictionary of lists."""
    if isinstance(answers, dict):
        texts, starts = answers.get("text"), answers.get("answer_start")
        if isinstance(texts, str):
            texts, starts = [texts], [starts]
        if not isinstance(texts, list) or not isinstance(starts, list):
            return None  # the validation reports that it is not a list of answers
        # If the lists differ in length, the validation meets a null.
        return [{"text": text, "answer_start": _as_integer(start)} for text, start in zip_longest(texts, starts)]
    if isinstance(answers, list):
        return [_with_integer_start(answer) for answer in answers]
    return answers


def _with_integer_start(answer: Any) -> Any:
    has_start = isinstance(answer, dict) and "answer_start" in answer
    return answer | {"answer_start": _as_integer(answer["answer_start"])} if has_start else answer


def _flat_answers(answer: Any, start: Any) -> list[dict[str, Any]]:
    texts = answer if isinstance(answer, list) else [answer]
    starts = start if isinstance(start, list) else [start]
    if texts in ([None], []) or (len(texts) == 1 and isinstance(texts[0], str) and not texts[0].strip()):
        return []
    if start is None:
        starts = [None] * len(texts)
    pairs = zip_longest(texts, starts)
    return [{"text": str(text) if is_integer(text) else text, "answer_start": _as_integer(at)} for text, at in pairs]


def _as_integer(value: Any) -> Any:
    """A number like 12.0 as an integer (pandas converts integers in a column with gaps to floats)."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# --- Readers of files: each yields the place of a row, the row, and the lone surrogates replaced since the last one ---


def _parquet_rows(path: Path, only: Only) -> Iterator[tuple[Place, Any, int]]:
    index = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            require_question_columns(names, str(path), only)
            columns = [column for column in COLUMNS if column in names]
            for batch in file.iter_batches(batch_size=_BATCH_SIZE, columns=columns):
                for row in batch.to_pylist():
                    yield Place(str(path), index), row, 0
                    index += 1
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: row {index} or one soon after is not UTF-8 ({error}): write it again") from error
    except (pa.ArrowException, OSError) as error:
        what = str(error).splitlines()[0]
        raise DataError(f"{path}: not a valid Parquet file ({what}): download or write it again") from error


def _line_rows(path: Path, only: Only) -> Iterator[tuple[Place, Any, int]]:
    with open_data(path) as file:
        text = SurrogateReplacer(file)
        index = replaced = 0
        for number, line in enumerate(io.BufferedReader(text), 1):
            if not line.isspace():
                yield Place(str(path), index, line=number), _line(line, path), text.replaced - replaced
                replaced = text.replaced
                index += 1


def _line(line: bytes, path: Path) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError:
        require_utf8(path)
        raise
    except (ValueError, RecursionError) as error:
        return BadExample("not JSON", f"this line is not JSON, or is truncated ({error}): write it again or remove it")


def _csv_rows(path: Path, only: Only) -> Iterator[tuple[Place, Any, int]]:
    csv.field_size_limit(_LONGEST_CELL)  # a context may be a book
    index = 0
    try:
        with open_data(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            head = text.readline()
            delimiter = _delimiter(head, _needed(only))
            reader = csv.reader(chain([head], text), delimiter=delimiter, strict=True)
            names = [name.strip() for name in next(reader, [])]
            require_question_columns(names, f"{path} (a CSV file whose first line names the columns)", only)
            for name in COLUMNS:
                if names.count(name) > 1:
                    raise DataError(f'{path}: the column "{name}" appears twice: rename one of them')
            line = reader.line_num + 1
            for cells in reader:
                if cells:
                    yield Place(str(path), index, line=line), _typed(names, cells), 0
                    index += 1
                line = reader.line_num + 1
    except UnicodeDecodeError:
        require_utf8(path)
        raise
    except csv.Error as error:
        raise DataError(
            f"{path}: the CSV is broken or truncated in row {index} ({error}): correct its quotes, or write the "
            "file again"
        ) from error


def _delimiter(head: str, needed: Sequence[str]) -> str:
    """The separator of columns: a comma, a semicolon (as Excel writes in many countries) or a tab."""
    for delimiter in ",;\t":
        names = next(csv.reader([head], delimiter=delimiter), [])
        if set(needed) <= {name.strip() for name in names}:
            return delimiter
    return ","


def _typed(names: list[str], cells: list[str]) -> Any:
    """A row of cells converted to numbers, flags and lists by column; cells that cannot be converted stay text."""
    if len(cells) != len(names):
        return BadExample(
            "wrong number of cells", f"the row has {len(cells)} cells, but the header {len(names)}: correct its quotes"
        )
    return {name: _TYPES.get(name, str)(cell) for name, cell in zip(names, cells, strict=True) if name in COLUMNS}


def _flag(cell: str) -> Any:
    return _FLAGS.get(cell.strip().lower(), cell)


def _number(cell: str) -> Any:
    """An offset, a list of offsets in brackets, or None for an empty cell."""
    try:
        found = json.loads(cell) if cell.strip() else None
    except ValueError:
        return cell
    return [_as_integer(one) for one in found] if isinstance(found, list) else _as_integer(found)


def _answers(cell: str) -> Any:
    """Answers written as JSON or as Python literals, with numpy arrays as in `datasets.Dataset.to_csv`."""
    if not cell.strip():
        return []
    for parse in (json.loads, _literal):
        try:
            return parse(cell)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return cell


def _literal(cell: str) -> Any:
    return ast.literal_eval(_WithoutArrays().visit(ast.parse(cell.strip(), mode="eval")))


class _WithoutArrays(ast.NodeTransformer):
    """Replaces `array([1], dtype=int64)` by `[1]` in the syntax tree; nothing is called."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Replace a call of `array` by its argument."""
        is_array = isinstance(node.func, ast.Name) and node.func.id == "array" and len(node.args) == 1
        return node.args[0] if is_array else node


_TYPES: dict[str, Callable[[str], Any]] = {
    "is_impossible": _flag,
    "labelled": _flag,
    "answer_start": _number,
    "answers": _answers,
}
