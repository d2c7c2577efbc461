"""Examples as Arrow tables: their schema, and reading, checking and hashing the columns of a `datasets.Dataset`."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from haystack_distill.data.squad.tables import question_of
from haystack_distill.data.squad.validation import Place, Question, Row
from haystack_distill.errors import DataError

# The columns and types of SQuAD on the Hugging Face hub, and two flags of our own.
SCHEMA = pa.schema(
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
_ROWS_PER_BATCH = 1000
_CHARS_PER_BATCH = 8 * 2**20  # keeps batches small when contexts are whole books


def record_batches(rows: Iterable[Row]) -> Iterator[dict[str, pa.Array]]:
    """Rows as columns of `SCHEMA`, in batches of a bounded size."""
    batch: list[Row] = []
    chars = 0
    for row in rows:
        batch.append(row)
        chars += len(row.context) + len(row.question)
        if len(batch) >= _ROWS_PER_BATCH or chars >= _CHARS_PER_BATCH:
            yield _columns_of(batch)
            batch, chars = [], 0
    if batch:
        yield _columns_of(batch)


def _columns_of(rows: Sequence[Row]) -> dict[str, pa.Array]:
    """Rows as columns of `SCHEMA`."""
    columns = dict(zip(Row._fields, zip(*rows, strict=True), strict=True))
    text, start = (part.type for part in SCHEMA.field("answers").type)
    answers = [pa.array(columns["texts"], text), pa.array(columns["starts"], start)]
    flat = {name: pa.array(columns[name], SCHEMA.field(name).type) for name in SCHEMA.names if name != "answers"}
    return flat | {"answers": pa.StructArray.from_arrays(answers, fields=list(SCHEMA.field("answers").type))}


def questions_in_dataset(dataset: datasets.Dataset, columns: list[str], name: str) -> Iterator[Question]:
    """The rows of a dataset as unchecked questions; `columns` are those of `data.squad.tables.COLUMNS` in it."""
    for index, row in enumerate(plain_rows(dataset, columns)):
        yield question_of(row, Place(name, index))


def plain_rows(dataset: datasets.Dataset, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows as dictionaries of the columns, read in small batches."""
    for table in _tables(dataset, columns):
        for batch in table.to_batches(max_chunksize=50):  # a thousand rows may be large as Python objects
            yield from batch.to_pylist()


def _tables(dataset: datasets.Dataset, columns: list[str]) -> Iterator[pa.Table]:
    """The rows, in the order of the dataset's indices, as Arrow tables of a bounded size."""
    yield from dataset.select_columns(columns).with_format("arrow").iter(batch_size=_ROWS_PER_BATCH)


def require_columns(dataset: datasets.Dataset, columns: Iterable[str], remedy: str) -> None:
    """Check that a dataset has columns.

    Raises:
        DataError: It lacks one; the message ends with `remedy`.
    """
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise DataError(f"the dataset lacks the column(s) {missing} (it has {dataset.column_names}): {remedy}")


def require_types(dataset: datasets.Dataset, columns: Iterable[str], name: str) -> None:
    """Check that columns have the types of `SCHEMA`, of any width.

    Ids and titles may also be numbers. Columns that are not in `SCHEMA` are checked row by row later.

    Raises:
        DataError: A column has another type.
    """
    for column in columns:
        if column not in SCHEMA.names:
            continue
        found, wanted = dataset.data.schema.field(column).type, SCHEMA.field(column).type
        is_number = column in ("id", "title") and (pa.types.is_integer(found) or pa.types.is_floating(found))
        if not (is_number or _fits(found, wanted)):
            raise DataError(f'{name}: column "{column}" must be {wanted}, not {found}: cast it')


def _fits(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_null(found):  # a column with nulls only
        return True
    if pa.types.is_struct(wanted):
        if pa.types.is_list(found) or pa.types.is_large_list(found):  # as in SQuAD's JSON: a list of answers
            found, wanted = found.value_type, pa.struct([(part.name, part.type.value_type) for part in wanted])
        return pa.types.is_struct(found) and all(
            found.get_field_index(part.name) >= 0 and _fits(found.field(part.name).type, part.type) for part in wanted
        )
    if pa.types.is_list(wanted):
        is_list = pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)
        return is_list and _fits(found.value_type, wanted.value_type)
    if pa.types.is_string(wanted):
        return bool(pa.types.is_string(found) or pa.types.is_large_string(found))
    return bool(pa.types.is_integer(found) if pa.types.is_integer(wanted) else found == wanted)


def hash_columns(dataset: datasets.Dataset, columns: list[str]) -> str:
    """SHA-256 (hex) of columns, independent of chunks: nulls, lengths and values of each leaf are hashed separately.

    Raises:
        DataError: A column has a type that examples do not have.
    """
    streams: dict[str, Any] = {}

    def feed(name: str, values: Any) -> None:  # any buffer of bytes, so that nothing is copied
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
        elif pa.types.is_floating(kind):
            feed(name, array.cast(pa.float64()).fill_null(0).to_numpy(zero_copy_only=False).astype("<f8"))
        elif pa.types.is_boolean(kind) or pa.types.is_integer(kind):
            feed(name, _numbers(array))
        elif not pa.types.is_null(kind):
            raise DataError(f'column "{name}" has the type {kind}: load the dataset with load_examples first')

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
