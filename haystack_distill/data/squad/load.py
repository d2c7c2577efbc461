"""Loading of examples from SQuAD-format JSON (versions 1.1 and 2.0), tables, datasets and the hub, and writing of JSON.

Files are read article by article into a memory-mapped Arrow file, so memory does not grow with the data. All examples
have passed the checks of `data.squad.validation`.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from haystack_distill.data.squad.tables import COLUMNS, FILE_ENDINGS, Only, require_question_columns, table_kind
from haystack_distill.data.squad.validation import Question
from haystack_distill.errors import DataError, DistilError
from haystack_distill.utils.atomic import write_atomically
from haystack_distill.utils.cache import NO_CODE, cached_table
from haystack_distill.utils.files import expand_user
from haystack_distill.utils.hashing import hash_file, hash_json

__all__ = ["ReadReport", "content_hash", "load_examples", "read_squad", "read_squad_with_report", "write_squad"]

PathLike: TypeAlias = str | Path
OnBadExample: TypeAlias = Literal["error", "skip"]

_FORMAT = 3  # increase it when the same input is read differently
_HASHED_COLUMNS = ["id", "question", "context", "answers", "is_impossible", "labelled"]


def read_squad(
    paths: PathLike | Sequence[PathLike], *, on_bad_example: OnBadExample = "error", cache_dir: PathLike | None = None
) -> datasets.Dataset:
    """Read files with questions, SQuAD-format JSON or tables, as one memory-mapped dataset.

    Rows keep the order of the files. The columns are those of SQuAD on the Hugging Face hub (`id`, `title`, `context`,
    `question`, `answers` with the lists `text` and `answer_start`, in Unicode code points), and the flags
    `is_impossible` and `labelled`. A question without the key `is_impossible` (version 1.1) is answerable. A question
    with `"labelled": false` belongs to a transfer set: it may lack answers, and its `is_impossible` is ignored. If its
    question is empty too, it is plain text for distilling layers. `plausible_answers` and other extra keys are ignored.
    A missing `title` is the empty string, integers as ids and titles are converted to text, a null flag counts as
    missing, and empty answers of an unanswerable question are dropped.

    A table has one question per row: CSV with a header (.csv, .tsv; UTF-8, separated by commas, semicolons or tabs),
    JSON lines (.jsonl, .ndjson), a JSON list of objects, or Parquet (.parquet). Its columns are those above, or instead
    of `answers` a single `answer` (or `answer_text`) and its `answer_start` in code points; without `answer_start`, the
    answer must occur exactly once in the context. With an empty `answer`, either `is_impossible` must be true or
    `labelled` false. Empty `answers` without `is_impossible` mean that the question is unanswerable, as in squad_v2 on
    the hub, with a warning. Without a column `id`, the ids are row-0, row-1, ...

    A source in which no question has an answer although not all are marked impossible is read as a transfer set, with
    a warning: a table with the columns `question` and `context` alone, or a file of Haystack 1's `augment_squad`. All
    its questions are unlabelled, and repeated ids get a suffix -2, -3, ...

    An `answer_start` that does not match its text is corrected if the text occurs exactly once in the context. Lone
    surrogates (`\\ud83d` without its pair), which are not characters, are replaced by U+FFFD. Warnings report the
    number of both. The result is cached under a SHA-256 of the files' bytes.

    Args:
        paths: One file or several, plain or gzip (Parquet: plain); several are concatenated.
        on_bad_example: "error" stops at the first invalid question; "skip" drops invalid questions, articles,
            paragraphs and lines, counts them and logs a warning. A broken file, such as a truncated one, is an error
            either way.
        cache_dir: The cache directory, see `utils.cache.cache_directory`; examples are in its subdirectory `examples`.

    Raises:
        DataError: A file cannot be read, or contains invalid SQuAD data; the message names the file, the article, the
            paragraph and the question.
        DistilError: `on_bad_example` is unknown, or the cache directory cannot be used.
    """
    return read_squad_with_report(paths, on_bad_example=on_bad_example, cache_dir=cache_dir)[0]


def read_squad_with_report(
    paths: PathLike | Sequence[PathLike],
    *,
    on_bad_example: OnBadExample = "error",
    cache_dir: PathLike | None = None,
    only: Only = None,
) -> tuple[datasets.Dataset, ReadReport]:
    """Read like `read_squad`, and also return a report on all files: questions read, skipped, repaired.

    Args:
        paths: As for `read_squad`.
        on_bad_example: As for `read_squad`.
        cache_dir: As for `read_squad`.
        only: As for `load_examples`.

    Raises:
        DataError: As for `read_squad`.
        DistilError: As for `read_squad`.
    """
    skip = _is_skip(on_bad_example)
    files = [expand_user(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    if not files:
        raise DataError("no file to read: give at least one SQuAD-format file")
    for path in files:
        if path.is_dir():
            raise DataError(f"{path} is a directory: give the SQuAD-format JSON file(s) in it")
        if not path.is_file():
            raise DataError(f"{path}: no such file: check the path (it is relative to {Path.cwd()})")

    sources = [[table_kind(path), _hash_of_source(path)] for path in files]
    key = hash_json("files", _FORMAT, on_bad_example, sources, *_reading_key(only))
    read = [(str(path), partial(_unlabelled, partial(questions_in_file, path, only), only)) for path in files]
    intake = Intake(read, skip=skip)
    return _through_cache(key, intake, cache_dir)


def load_examples(
    source: PathLike | Sequence[PathLike] | datasets.Dataset,
    *,
    split: str = "train",
    on_bad_example: OnBadExample = "error",
    cache_dir: PathLike | None = None,
    only: Only = None,
) -> datasets.Dataset:
    """Load examples from files, from a `datasets.Dataset` or from the Hugging Face hub, as `read_squad` returns them.

    The rows of a dataset are read and checked like those of a table, see `read_squad`.

    Args:
        source: A path (a `Path`, or a string that exists or has the suffix of a data file), a list of paths, a dataset
            with the columns of a table, or the name of a dataset on the hub, such as "squad" or "deepset/germanquad".
        split: The split of a hub dataset; it does not apply to files and datasets.
        on_bad_example: As for `read_squad`.
        cache_dir: As for `read_squad`.
        only: What is read of each example; None for everything. "questions": questions and contexts as a transfer set,
            all unlabelled; answers and flags are ignored and may be missing. "contexts": the contexts with empty
            questions, unlabelled; questions are ignored and may be missing too. In SQuAD-format JSON each paragraph is
            one row then.

    Raises:
        DataError: The source cannot be loaded, lacks a column, or contains an invalid example.
        DistilError: `on_bad_example` is unknown, or the cache directory cannot be used.
    """
    if isinstance(source, datasets.Dataset):
        return _checked_dataset(source, "dataset", on_bad_example, cache_dir, only)
    if isinstance(source, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        raise DataError(f"expected one dataset, got a dict of splits: choose one of {sorted(map(str, source))}")
    if isinstance(source, datasets.IterableDataset):
        raise DataError("expected a datasets.Dataset, got an IterableDataset: load it without streaming=True")
    if isinstance(source, str) and not _looks_like_file(source):
        return _checked_dataset(
            _load_from_hub(source, split), f"hub dataset {source} ({split})", on_bad_example, cache_dir, only
        )
    if isinstance(source, (str, Path)) or (
        isinstance(source, Sequence) and all(isinstance(path, (str, Path)) for path in source)
    ):
        return read_squad_with_report(source, on_bad_example=on_bad_example, cache_dir=cache_dir, only=only)[0]
    raise DataError(
        f"cannot load examples from {type(source).__name__}: give a path, a list of paths, a datasets.Dataset or the "
        "name of a dataset on the Hugging Face hub"
    )


def write_squad(
    dataset: datasets.Dataset,
    path: PathLike,
    *,
    version: Literal["1.1", "2.0"] = "2.0",
    overwrite: bool = False,
) -> None:
    """Write examples as SQuAD-format JSON; consecutive rows with the same title and context share a paragraph.

    The write is atomic. The same rows give the same bytes, and reading the file returns the same rows.

    Args:
        dataset: Rows as `read_squad` returns them.
        path: The file to write; gzip if the name ends in .gz.
        version: "2.0" writes `is_impossible`; "1.1" lacks it, so every question must be answerable. Both mark the rows
            of a transfer set with `"labelled": false`.
        overwrite: Whether to replace an existing file.

    Raises:
        DataError: The dataset has no rows, lacks a column, or has unanswerable questions although version is "1.1".
        DistilError: The version is unknown, or the file exists and `overwrite` is false.
    """
    if version not in ("1.1", "2.0"):
        raise DistilError(f'unknown SQuAD version {version!r}: choose "1.1" or "2.0"')
    path = expand_user(path)
    require_columns(dataset, SCHEMA.names, "load it with load_examples first")
    if len(dataset) == 0:
        raise DataError(f"the dataset has no rows to write to {path}: load one that has")
    if path.exists() and (path.is_dir() or not overwrite):
        raise DistilError(f"{path} exists: choose another name, or pass overwrite=True to replace a file")
    rows = plain_rows(dataset, SCHEMA.names)
    packed = path.name.endswith(".gz")
    write_atomically(path, lambda temporary: write_rows(rows, temporary, version=version, packed=packed))


def content_hash(dataset: datasets.Dataset) -> str:
    """SHA-256 (hex) of the rows in order: id, question, context, answers, is_impossible and labelled.

    It depends on the values only, not on their storage or source. Titles do not count.

    Raises:
        DataError: A column is missing.
    """
    require_columns(dataset, _HASHED_COLUMNS, "load it with load_examples first")
    return hash_columns(dataset, _HASHED_COLUMNS)


def _is_skip(on_bad_example: str) -> bool:
    if on_bad_example not in ("error", "skip"):
        raise DistilError(f'unknown on_bad_example {on_bad_example!r}: choose "error" or "skip"')
    return on_bad_example == "skip"


def _hash_of_source(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}): check its permissions") from error


def _looks_like_file(source: str) -> bool:
    if source.lower().endswith(FILE_ENDINGS) or expand_user(source).exists():
        return True
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise DataError(f"{source!r} is neither a file nor the name of a dataset on the Hugging Face hub: check it")
    return False


def _load_from_hub(name: str, split: str) -> datasets.Dataset:
    try:
        loaded = datasets.load_dataset(name, split=split, **NO_CODE)
    except Exception as error:  # datasets, huggingface_hub and the HTTP library have no common class
        raise DataError(
            f'cannot load split "{split}" of "{name}" from the Hugging Face hub ({type(error).__name__}: {error}), and '
            "there is no file of that name: check the name and the split, or offline give a SQuAD-format file"
        ) from error
    assert isinstance(loaded, datasets.Dataset)  # as always with a split and without streaming
    return loaded


def _checked_dataset(
    dataset: datasets.Dataset, name: str, on_bad_example: OnBadExample, cache_dir: PathLike | None, only: Only
) -> datasets.Dataset:
    """Validate and cache the rows of a dataset, like those of a file."""
    skip = _is_skip(on_bad_example)
    require_question_columns(dataset.column_names, name, only)
    read = COLUMNS if only is None else ("id", "title", "context", "question")
    columns = [column for column in read if column in dataset.column_names]
    require_types(dataset, columns, name)
    key = hash_json("dataset", _FORMAT, on_bad_example, columns, hash_columns(dataset, columns), *_reading_key(only))
    questions = partial(_unlabelled, partial(questions_in_dataset, dataset, columns, name), only)
    intake = Intake([(name, questions)], skip=skip)
    return _through_cache(key, intake, cache_dir)[0]


def _reading_key(only: Only) -> list[str]:
    """What `only` adds to the key of the cache; nothing for everything, so that older caches stay valid.

    Raises:
        DistilError: It is unknown.
    """
    if only not in (None, "questions", "contexts"):
        raise DistilError(f'unknown only {only!r}: choose None, "questions" or "contexts"')
    return [] if only is None else [only]


def _unlabelled(read: Callable[[], Iterable[Question]], only: Only) -> Iterator[Question]:
    """The questions of a source, with `only` without their labels, see `load_examples`."""
    if only is None:
        yield from read()
        return
    for question in read():
        qa = question.qa
        if question.fault is None and isinstance(qa, dict):
            kept = {"id": qa["id"]} if "id" in qa else {}
            if only == "contexts":
                kept["question"] = ""
            elif "question" in qa:
                kept["question"] = qa["question"]
            question = question._replace(
                qa=kept | {"labelled": False},
                assumed_impossible=False,
                without_starts=False,
                id_may_change=question.id_may_change or only == "contexts",  # each file counts its paragraphs from 0
            )
        yield question


def _through_cache(key: str, intake: Intake, cache_dir: PathLike | None) -> tuple[datasets.Dataset, ReadReport]:
    """The examples cached under `key`, read from the intake if necessary, and the report on all sources."""

    def notes() -> dict[str, list[dict[str, object]]]:
        return {"reports": [asdict(report) for report in intake.reports]}

    def batches() -> Iterator[dict[str, pa.Array]]:
        return record_batches(row for _, row in intake.rows())

    dataset, kept, _ = cached_table("examples", key, SCHEMA, batches, cache_dir, notes)
    reports = [ReadReport(**report) for report in kept["reports"]]
    for name, report in zip(intake.names, reports, strict=True):
        log_warnings(name, report)
    return dataset, total_of(reports)
