"""Corpora for general distillation: text that is streamed from files or from the hub, and can be resumed."""

import copy
import functools
import glob
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

# The name that `datasets` has for a format, by file suffix.
_FORMATS = {".txt": "text", ".txt.gz": "text", ".jsonl": "json", ".jsonl.gz": "json", ".parquet": "parquet"}
_ROWS_PER_BATCH = 100  # few, because a row may be a book
_LINES_PER_BATCH = 1000


class Corpus:
    """Text as a stream of documents; it is never loaded into memory as a whole.

    Args:
        source: A file or several of one format, a directory of such files, the name of a dataset on the Hugging Face
            hub, or a `datasets.IterableDataset`. Files are plain text (.txt; an empty line ends a document, the end of
            a file does not), JSON lines (.jsonl) or Parquet (.parquet); text and JSON lines may be compressed with gzip
            (.gz).
        text_column: The column with the text; plain text files have no columns.
        split: The split of a dataset on the hub.
        config: The configuration of a dataset on the hub, such as "20231101.en".
        name: A name that identifies the content of an `IterableDataset`. Without one, a run cannot be resumed, because
            the text could have changed.

    Attributes:
        identity: The name of the corpus in run records: names and sizes of the files, or the name of the dataset.

    Raises:
        DataError: There is nothing to read, or the files have different formats.
        DistilError: `name` is given for another source than an `IterableDataset`.
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
        self._version: str | None = None  # of a dataset that is not made of files
        if name is not None and not isinstance(source, datasets.IterableDataset):
            raise DistilError(
                "name is for an IterableDataset only, because files and datasets on the hub are identified by their "
                "content; leave it out"
            )
        if isinstance(source, datasets.IterableDataset):
            self.dataset, self.identity, self._version = source, name or "an IterableDataset", name
        elif isinstance(source, str) and not expand_user(source).exists() and _format_of(Path(source)) is None:
            self.dataset, self._version = _from_hub(source, config, split)
            self.identity = f"{source} {config or ''} {split}"
        else:
            if not isinstance(source, (str, Path)) and not isinstance(source, Iterable):
                raise DataError(f"a corpus is a file, a directory, the name of a data set, or files, not {source!r}")
            files = _files_of([source] if isinstance(source, (str, Path)) else source)
            format = _common_format(files)
            if format == "text":
                self.by_line, self.column = True, "text"
            names = [glob.escape(str(file)) for file in files]
            self.dataset = datasets.load_dataset(format, data_files=names, split="train", streaming=True)
            self.identity = ", ".join(f"{file.name} ({file.stat().st_size} bytes)" for file in files)
            self._files = files

    @functools.cached_property
    def fingerprint(self) -> str | None:
        """SHA-256 (hex) of the content: of the files' bytes, or of the version of the dataset on the hub.

        The files are read once to compute it. None for an `IterableDataset` without a name, whose content is unknown.
        """
        if self._files:
            return hash_json(self.column, [(file.name, hash_file(file)) for file in self._files])
        return None if self._version is None else hash_json(self.column, self.identity, self._version)

    def read(
        self, state: dict[str, Any] | None = None, *, process: int = 0, processes: int = 1
    ) -> Iterator[tuple[list[str], Callable[[], dict[str, Any]]]]:
        """Iterate over batches of texts, each with a function that returns the state after it.

        The function must be called before the next batch is requested. In plain text files a text is a line, and an
        empty line ends a document; in other formats a text is a document.

        Args:
            state: The state to resume from, as such a function returned it. None starts at the beginning.
            process: The index of this process. The batches of other processes are yielded without texts, which saves
                most of the time of reading them.
            processes: The number of processes that take turns.

        Raises:
            DataError: The text column is missing, or a file cannot be read.
        """
        rows = copy.copy(self.dataset).with_format("arrow")  # a copy, which keeps the loaded state out of self.dataset
        if state is not None:
            rows.load_state_dict(state)
        batches = rows.iter(batch_size=_LINES_PER_BATCH if self.by_line else _ROWS_PER_BATCH)
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
                    f"{self._place_in(rows.state_dict())} cannot be read ({reason}); download it again, or leave it out"
                ) from error
            if self.column not in batch.column_names:
                there = ", ".join(batch.column_names)
                raise DataError(
                    f"the corpus {self.identity} has no column {self.column!r} (it has {there}); set text_column "
                    "to the one with the text"
                )
            is_own = number % processes == process
            texts = batch[self.column].to_pylist() if is_own else []
            # Some editors put a mark at the beginning of a text file.
            yield [(text or "").removeprefix("\ufeff" if self.by_line else "") for text in texts], rows.state_dict

    def _place_in(self, state: dict[str, Any]) -> str:
        """The file that is being read in a state, or the corpus if it has no files."""
        while "shard_idx" not in state and isinstance(state.get("examples_iterable"), dict):
            state = state["examples_iterable"]
        number = state.get("shard_idx", len(self._files))
        return str(self._files[number]) if number < len(self._files) else f"the corpus {self.identity}"


def _from_hub(name: str, config: str | None, split: str) -> tuple[datasets.IterableDataset, str | None]:
    """A dataset on the hub as a stream, and its version."""
    try:
        builder = datasets.load_dataset_builder(name, config, **NO_CODE)
        return builder.as_streaming_dataset(split=split), builder.hash
    except Exception as error:  # datasets, huggingface_hub and the HTTP library have no common class
        raise DataError(
            f"{name!r} is neither a file, a directory nor a dataset on the hub ({type(error).__name__}: {error}); "
            f"check the name: file names end in {', '.join(_FORMATS)}"
        ) from error


def _format_of(path: Path) -> str | None:
    """The format of a file by its suffix, or None if it is not supported."""
    return next((format for end, format in _FORMATS.items() if path.name.endswith(end)), None)


def _files_of(sources: Iterable[str | Path]) -> list[Path]:
    """The given files, and the files of a supported format in the given directories, sorted by name."""
    files = []
    for source in sources:
        path = expand_user(source)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and _format_of(file))
            if not inside:
                raise DataError(f"{path} has no file that ends in {', '.join(_FORMATS)}; give one that has")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"{path}: no such file or directory; check the path")
    if not files:
        raise DataError("the corpus has no files; give at least one")
    for file in files:
        if "::" in str(file):  # which `datasets` takes for a chain of addresses
            raise DataError(f"{file}: the name of a corpus file must not have '::' in it; rename it")
    return files


def _common_format(files: Sequence[Path]) -> str:
    formats = {file: _format_of(file) for file in files}
    for file, format in formats.items():
        if format is None:
            raise DataError(f"{file}: unsupported format; give files that end in {', '.join(_FORMATS)}")
        if format != formats[files[0]]:
            raise DataError(f"{files[0]} and {file} have different formats; give files of one format")
    return str(formats[files[0]])
