"""Arrow tables on disk: written aside, renamed when whole, checked before they are trusted.

Everything this package derives (examples read from JSON, token windows, what a teacher said) is an Arrow stream file
under one cache directory, named by a SHA-256 of what it was made from. A side file records the SHA-256 of the bytes; a
table whose bytes do not match it is rebuilt.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from packaging.version import Version

from haystack_distill.errors import DistilError, WriteError
from haystack_distill.utils.atomic import write_atomically, write_json
from haystack_distill.utils.files import expand_user
from haystack_distill.utils.hashing import hash_file

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "HAYSTACK_DISTILL_CACHE"
# For `datasets.load_dataset` by a name on the hub: before version 4 it would ask whether code there may be run.
NO_CODE: dict[str, Any] = {} if Version(datasets.__version__) >= Version("4.0.0") else {"trust_remote_code": False}


def cache_directory(cache_dir: str | Path | None = None) -> Path:
    """The directory of all caches: `cache_dir`, else `$HAYSTACK_DISTILL_CACHE`, else `~/.cache/haystack-distill`.

    Raises:
        DistilError: It is in the home directory, and there is none: HOME is not set and the system does not know who
            this is, as in a container that runs under a number of its own.
    """
    chosen = cache_dir or os.environ.get(CACHE_VARIABLE) or Path("~", ".cache", "haystack-distill")
    try:
        return expand_user(chosen)
    except DistilError as error:
        raise DistilError(
            f"no home directory to keep the cache in ({error}): set HOME, pass another cache_dir, or set the "
            f"environment variable {CACHE_VARIABLE}"
        ) from error


def cached_table(
    kind: str,
    key: str,
    schema: pa.Schema,
    batches: Callable[[], Iterable[dict[str, Any]]],
    cache_dir: str | Path | None = None,
    notes: Callable[[], dict[str, Any]] | None = None,
) -> tuple[datasets.Dataset, dict[str, Any], bool]:
    """The memory-mapped table `kind`/`key`, built from `batches()` when it is absent or damaged.

    Args:
        kind: Sub-directory of the cache, one a kind of table.
        key: SHA-256 of everything the table depends on.
        schema: Arrow schema of the columns.
        batches: Called only when the table has to be built; yields column dictionaries, one a record batch.
        cache_dir: See `cache_directory`.
        notes: Called after building; JSON-able facts to keep in the side file.

    Returns:
        The table, its notes, and whether it was taken from the cache.

    Raises:
        DistilError: The cache directory cannot be made, read or written. What `batches` raises comes through as it is.
    """
    path = cache_directory(cache_dir) / kind / f"{key}.arrow"
    side = path.with_suffix(".json")
    with _blaming(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        known = _trusted(path, side)
    if known is not None:
        return datasets.Dataset.from_file(str(path)), known["notes"], True

    def write(aside: Path) -> None:
        with _blaming(path.parent):
            sink = pa.OSFile(str(aside), "wb")
        with sink:
            with _blaming(path.parent):
                writer = pa.ipc.new_stream(sink, schema)
            for columns in batches():
                batch = pa.record_batch(columns, schema=schema)
                with _blaming(path.parent):
                    writer.write_batch(batch)
            # Not a `with`: on a full disk, closing fails as well, and would hide the first error.
            with _blaming(path.parent):
                writer.close()

    try:
        write_atomically(path, write, durable=False)  # one that a power cut damaged is built again
    except WriteError as error:
        with _blaming(path.parent):
            raise error
    kept = notes() if notes else {}
    with _blaming(path.parent):  # the side file comes last: a table without it is built again
        write_json(side, {"sha256": hash_file(path), "notes": kept}, durable=False)
    return datasets.Dataset.from_file(str(path)), kept, False


def is_cached(kind: str, key: str, cache_dir: str | Path | None = None) -> bool:
    """Whether the table `kind`/`key` is there and whole."""
    path = cache_directory(cache_dir) / kind / f"{key}.arrow"
    return _trusted(path, path.with_suffix(".json")) is not None


def drop_cached(kind: str, key: str, cache_dir: str | Path | None = None) -> None:
    """Remove the table `kind`/`key`, if it is there."""
    path = cache_directory(cache_dir) / kind / f"{key}.arrow"
    path.with_suffix(".json").unlink(missing_ok=True)  # first: without it, the table counts for nothing
    path.unlink(missing_ok=True)


@contextmanager
def _blaming(folder: Path) -> Iterator[None]:
    """What the system refuses in here is the cache directory's fault; a full disk, most often."""
    try:
        yield
    except (OSError, WriteError) as error:
        raise DistilError(
            f"Cannot use the cache directory {folder} ({error}): make room there, pass another cache_dir, or set the "
            f"environment variable {CACHE_VARIABLE}."
        ) from error


def _trusted(path: Path, side: Path) -> dict[str, Any] | None:
    """The side file's content if table and side file are both there and agree, else None."""
    if not (path.exists() and side.exists()):
        return None
    try:
        known = json.loads(side.read_text(encoding="utf-8"))
        sound = isinstance(known, dict) and "notes" in known and known.get("sha256") == hash_file(path)
    except (json.JSONDecodeError, UnicodeDecodeError):
        sound = False
    if not sound:
        logger.warning("cache file %s is damaged; it is built again", path)
        return None
    return known
