"""Text for general distillation: read as a stream, cut into windows, shuffled in a buffer, resumed where it was."""

import copy
import functools
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import datasets

from haystack_distill.errors import DataError, DistilError
from haystack_distill.utils.cache import NO_CODE
from haystack_distill.utils.files import expand_user
from haystack_distill.utils.hashing import hash_file, hash_json

CorpusSource: TypeAlias = str | Path | Sequence[str | Path] | datasets.IterableDataset

# What `datasets` calls the format of a file, by the end of its name.
_FORMATS = {".txt": "text", ".txt.gz": "text", ".jsonl": "json", ".jsonl.gz": "json", ".parquet": "parquet"}
_ROWS_AT_A_TIME = 100  # few, because a row may be a book
_LINES_AT_A_TIME = 1000


class Corpus:
    """Text as a stream of documents, never in memory whole.

    Args:
        source: A file or several of one kind, a directory of such files, the name of a data set on the Hugging Face
            hub, or a `datasets.IterableDataset`. Files are plain text (.txt; an empty line ends a document), JSON lines
            (.jsonl) or Parquet (.parquet); text and JSON lines may be packed with gzip (.gz).
        text_column: Which column holds the text; plain text files have no columns.
        split: Which split of a data set on the hub.
        config: Which configuration of a data set on the hub, such as "20231101.en".
        name: What to call an `IterableDataset`; another name for other content. A run on one without a name cannot be
            resumed, because nobody could say whether it is the same text.

    Attributes:
        identity: What a run records of the corpus: names and sizes of the files, or the data set's name.

    Raises:
        DataError: There is nothing to read, or files of different kinds.
    """

    def __init__(
        self,
        source: CorpusSource,
        *,
        text_column: str = "text",
        split: str = "train",
        config: str | None = None,
        name: str | None = None,
    ) -> None:
        self.by_line = False
        self.column = text_column
        self._files: list[Path] = []
        self._version: str | None = None  # of what is not a file
        if name is not None and not isinstance(source, datasets.IterableDataset):
            raise DistilError(
                "name is for an IterableDataset; files and data sets on the hub are known by their content"
            )
        if isinstance(source, datasets.IterableDataset):
            self.dataset, self.identity, self._version = source, name or "an IterableDataset", name
        elif isinstance(source, str) and not expand_user(source).exists() and _kind_of(Path(source)) is None:
            self.dataset, self._version = _from_hub(source, config, split)
            self.identity = f"{source} {config or ''} {split}"
        else:
            files = _files_of([source] if isinstance(source, (str, Path)) else source)
            kind = _common_kind(files)
            if kind == "text":
                self.by_line, self.column = True, "text"
            names = [str(file) for file in files]
            self.dataset = datasets.load_dataset(kind, data_files=names, split="train", streaming=True)
            self.identity = ", ".join(f"{file.name} ({file.stat().st_size} bytes)" for file in files)
            self._files = files

    @functools.cached_property
    def fingerprint(self) -> str | None:
        """SHA-256 (hex) of the content: of the files' bytes, or of the data set's version on the hub.

        Files are read for it, once. None where the content is not known: an `IterableDataset` without a name.
        """
        if self._files:
            return hash_json(self.column, [(file.name, hash_file(file)) for file in self._files])
        return None if self._version is None else hash_json(self.column, self.identity, self._version)

    def read(
        self, state: dict[str, Any] | None = None, *, process: int = 0, processes: int = 1
    ) -> Iterator[tuple[list[str], Callable[[], dict[str, Any]]]]:
        """The texts from where a state was taken, or from the start, and with each batch of them a function.

        Called before the next batch is asked for, it gives the state behind this one.

        In plain text files a text is a line, and an empty one ends a document; elsewhere it is a document.

        Args:
            state: What such a function gave; the batch behind it is the first.
            process: Which of `processes` this one is: batches that are another's turn come without their texts, which
                is most of the time it takes to read them.
            processes: How many take turns.

        Raises:
            DataError: There is no such column, or something that cannot be read.
        """
        rows = copy.copy(self.dataset).with_format("arrow")  # a copy: a state once loaded would stay with the data set
        if state is not None:
            rows.load_state_dict(state)
        batches = rows.iter(batch_size=_LINES_AT_A_TIME if self.by_line else _ROWS_AT_A_TIME)
        for number in count():
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (
                OSError,
                ValueError,
                RuntimeError,
                EOFError,
                zlib.error,
                datasets.exceptions.DatasetsError,
            ) as error:
                reason = " ".join(str(error).split())
                raise DataError(
                    f"{self._place_in(rows.state_dict())} cannot be read: {reason}. Fetch it again, or leave it out"
                ) from error
            if self.column not in batch.column_names:
                there = ", ".join(batch.column_names)
                raise DataError(
                    f"the corpus {self.identity} has no column {self.column!r}; it has {there}. Say which one holds "
                    "the text (text_column)"
                )
            mine = number % processes == process
            texts = batch[self.column].to_pylist() if mine else []
            yield [text or "" for text in texts], rows.state_dict

    def _place_in(self, state: dict[str, Any]) -> str:
        """The file that a reader in this state is at, else the whole corpus."""
        while "shard_idx" not in state and isinstance(state.get("examples_iterable"), dict):
            state = state["examples_iterable"]
        number = state.get("shard_idx", len(self._files))
        return str(self._files[number]) if number < len(self._files) else f"the corpus {self.identity}"


def _from_hub(name: str, config: str | None, split: str) -> tuple[datasets.IterableDataset, str | None]:
    """A data set on the hub as a stream, and the commit that it is read from."""
    try:
        builder = datasets.load_dataset_builder(name, config, **NO_CODE)
        return builder.as_streaming_dataset(split=split), builder.hash
    except Exception as error:  # datasets, huggingface_hub and the HTTP library each raise their own
        raise DataError(
            f"{name!r} is neither a file or directory here nor a data set that the hub gives "
            f"({type(error).__name__}: {error}). Files end in {', '.join(_FORMATS)}"
        ) from error


def _kind_of(path: Path) -> str | None:
    """The format of a file by its name, None where it is none of ours."""
    return next((kind for end, kind in _FORMATS.items() if path.name.endswith(end)), None)


def _files_of(sources: Iterable[str | Path]) -> list[Path]:
    """Files as they are given, directories as the files of a known kind in and under them, by name."""
    files = []
    for source in sources:
        path = expand_user(source)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and _kind_of(file))
            if not inside:
                raise DataError(f"{path} holds no file that ends in {', '.join(_FORMATS)}")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"{path}: no such file or directory")
    if not files:
        raise DataError("no corpus: give at least one file")
    return files


def _common_kind(files: Sequence[Path]) -> str:
    kinds = {file: _kind_of(file) for file in files}
    for file, kind in kinds.items():
        if kind is None:
            raise DataError(f"{file}: not a kind of text that is known; names end in {', '.join(_FORMATS)}")
        if kind != kinds[files[0]]:
            raise DataError(f"{files[0]} and {file} are of different kinds; a corpus is of one kind")
    return str(kinds[files[0]])
