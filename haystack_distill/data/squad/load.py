"""Questions in and out: SQuAD-format JSON (versions 1.1 and 2.0) and tables are read, SQuAD-format JSON is written.

Files are read article by article and land in an Arrow file that is opened memory-mapped, so memory does not grow with
the data. Everything that reaches the rest of the package has passed the checks of `squad_checks`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import datasets
import pyarrow as pa

from haystack_distill.data.squad.arrow import (
    SCHEMA,
    hash_columns,
    plain_rows,
    questions_in_dataset,
    record_batches,
    require_columns,
    require_types,
)
from haystack_distill.data.squad.intake import Intake, ReadReport, log_warnings, total_of
from haystack_distill.data.squad.json_files import questions_in_file, write_rows
from haystack_distill.data.squad.tables import COLUMNS, FILE_ENDINGS, require_question_columns, table_kind
from haystack_distill.errors import DataError, DistilError
from haystack_distill.utils.atomic import write_atomically
from haystack_distill.utils.cache import NO_CODE, cached_table
from haystack_distill.utils.files import expand_user
from haystack_distill.utils.hashing import hash_file, hash_json

__all__ = ["ReadReport", "content_hash", "load_examples", "read_squad", "read_squad_with_report", "write_squad"]

PathLike: TypeAlias = str | Path
OnBadExample: TypeAlias = Literal["error", "skip"]

_FORMAT = 3  # raise it when the same input would be read differently
_HASHED_COLUMNS = ["id", "question", "context", "answers", "is_impossible", "labelled"]


def read_squad(
    paths: PathLike | Sequence[PathLike], *, on_bad_example: OnBadExample = "error", cache_dir: PathLike | None = None
) -> datasets.Dataset:
    """Read files of questions, SQuAD-format JSON or tables, and return them as one memory-mapped dataset.

    Rows keep the order of the files. The columns are those of SQuAD on the Hugging Face hub (`id`, `title`, `context`,
    `question`, `answers` with lists `text` and `answer_start` in Unicode code points), and `is_impossible` and
    `labelled`. A question without the key `is_impossible` (version 1.1) is answerable; a question with
    `"labelled": false` belongs to a transfer set: it may lack answers and never counts as unanswerable, whatever its
    `is_impossible` says. With an empty question it is plain text, to distil layers from.
    `plausible_answers` and other extra keys are left out; a missing `title` is the empty string, a whole number as an
    id or a title is taken as text, a flag that is null as absent, and an unanswerable question whose only answers are
    empty has none.

    A table has one question a row: CSV with a header (.csv, .tsv; UTF-8, columns separated by commas, semicolons or
    tabs), JSON lines (.jsonl, .ndjson), a JSON list of objects, or Parquet (.parquet). Its columns are those above, or
    instead of `answers` one `answer` (or `answer_text`) and `answer_start`, in code points of the row's context as it
    is written; without `answer_start` the answer must occur exactly once in the context. An empty `answer` is no
    answer: `is_impossible` must say that the question is unanswerable, or `labelled` that it is no label. An empty
    `answers` without `is_impossible` is unanswerable, as in the hub's squad_v2 (a warning says how many there were).
    Rows without a column `id` are called row-0, row-1, ...

    A source in which no question has an answer although not all are marked impossible is taken as a transfer set, with
    a warning: Haystack 1's `augment_squad` writes such files. Its questions are all unlabelled, and repeated ids get
    -2, -3, ... behind them.

    An `answer_start` that does not match its text is put right when the text occurs exactly once in the context, and
    the number of repairs is logged as a warning; so is that of half surrogate pairs (`\\ud83d` alone), which are no
    characters and are replaced by U+FFFD. What was read is cached under a SHA-256 of the files' bytes.

    Args:
        paths: a file or several, plain or gzip (Parquet: plain); several are joined.
        on_bad_example: "error" stops at the first bad question; "skip" drops bad questions (and articles, paragraphs
            and lines that hold none), counts them and logs a warning. A file that is itself broken, such as one that
            is cut off, is an error either way.
        cache_dir: the directory of all caches, see `utils.cache.cache_directory`; examples go to `examples` in it.

    Raises:
        DataError: a file cannot be read, or holds something that is not valid SQuAD data; the message names the file,
            the article, the paragraph and the question.
        DistilError: `on_bad_example` is unknown, or the cache directory cannot be used.
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
    files = [expand_user(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    if not files:
        raise DataError("No file to read: give at least one SQuAD-format file.")
    for path in files:
        if path.is_dir():
            raise DataError(f"{path} is a directory: give the SQuAD-format JSON file(s) in it.")
        if not path.is_file():
            raise DataError(f"{path}: no such file. Check the path (it is relative to {Path.cwd()}).")

    sources = [[table_kind(path), _hash_of_source(path)] for path in files]
    key = hash_json("files", _FORMAT, on_bad_example, sources)
    intake = Intake([(str(path), partial(questions_in_file, path)) for path in files], skip=skip)
    return _through_cache(key, intake, cache_dir)


def load_examples(
    source: PathLike | Sequence[PathLike] | datasets.Dataset,
    *,
    split: str = "train",
    on_bad_example: OnBadExample = "error",
    cache_dir: PathLike | None = None,
) -> datasets.Dataset:
    """Load examples from files, from a `datasets.Dataset` or from the Hugging Face hub, in the form of `read_squad`.

    Rows of a dataset are read like those of a table, see `read_squad`, and pass the same checks.

    Args:
        source: a path (a `Path`, or a string that exists or ends like a file of `read_squad`), a list of paths, a
            dataset with the columns of a table, or the name of a dataset on the hub, such as "squad" or
            "deepset/germanquad".
        split: which split to load of a hub dataset; files and datasets have no splits.
        on_bad_example: as for `read_squad`.
        cache_dir: as for `read_squad`.

    Raises:
        DataError: the source cannot be loaded, lacks a column, or holds a bad example.
        DistilError: `on_bad_example` is unknown, or the cache directory cannot be used.
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
    path = expand_user(path)
    require_columns(dataset, SCHEMA.names, "load it with load_examples first")
    if len(dataset) == 0:
        raise DataError(f"The dataset has no rows: nothing to write to {path}.")
    if path.exists() and (path.is_dir() or not overwrite):
        raise DistilError(f"{path} exists: choose another name, or pass overwrite=True to replace a file.")
    rows = plain_rows(dataset, SCHEMA.names)
    packed = path.name.endswith(".gz")
    write_atomically(path, lambda aside: write_rows(rows, aside, version=version, packed=packed))


def content_hash(dataset: datasets.Dataset) -> str:
    """SHA-256 (hex) over the rows in order: id, question, context, answers, is_impossible and labelled.

    It depends on the values alone: not on how the rows are stored or where they came from. Titles do not count.

    Raises:
        DataError: a column is missing.
    """
    require_columns(dataset, _HASHED_COLUMNS, "load it with load_examples first")
    return hash_columns(dataset, _HASHED_COLUMNS)


def _wants_skip(on_bad_example: str) -> bool:
    if on_bad_example not in ("error", "skip"):
        raise DistilError(f'Unknown on_bad_example {on_bad_example!r}: choose "error" or "skip".')
    return on_bad_example == "skip"


def _hash_of_source(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _looks_like_file(source: str) -> bool:
    if source.lower().endswith(FILE_ENDINGS) or expand_user(source).exists():
        return True
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise DataError(f"{source!r} is neither a file nor the name of a dataset on the Hugging Face hub.")
    return False


def _load_from_hub(name: str, split: str) -> datasets.Dataset:
    try:
        loaded = datasets.load_dataset(name, split=split, **NO_CODE)
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
    require_question_columns(dataset.column_names, name)
    columns = [column for column in COLUMNS if column in dataset.column_names]
    require_types(dataset, columns, name)
    key = hash_json("dataset", _FORMAT, on_bad_example, columns, hash_columns(dataset, columns))
    intake = Intake([(name, partial(questions_in_dataset, dataset, columns, name))], skip=skip)
    return _through_cache(key, intake, cache_dir)[0]


def _through_cache(key: str, intake: Intake, cache_dir: PathLike | None) -> tuple[datasets.Dataset, ReadReport]:
    """The examples cached under `key`, from the intake where they are not there, and the report on all sources."""

    def notes() -> dict[str, list[dict[str, object]]]:
        return {"reports": [asdict(report) for report in intake.reports]}

    def batches() -> Iterator[dict[str, pa.Array]]:
        return record_batches(row for _, row in intake.rows())

    dataset, kept, _ = cached_table("examples", key, SCHEMA, batches, cache_dir, notes)
    reports = [ReadReport(**report) for report in kept["reports"]]
    for name, report in zip(intake.names, reports, strict=True):
        log_warnings(name, report)
    return dataset, total_of(reports)
