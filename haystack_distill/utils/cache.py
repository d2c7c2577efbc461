"""Arrow tables cached on disk: written atomically, and verified before they are used.

Everything that this package derives (examples read from JSON, token windows, teacher outputs) is an Arrow stream file
in one cache directory, named by the SHA-256 of its inputs. A JSON file next to it records the SHA-256 of its bytes; a
table that does not match its record is rebuilt.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from filelock import FileLock, Timeout
from packaging.version import Version

from haystack_distill.errors import DistilError, WriteError
from haystack_distill.utils.atomic import write_atomically, write_json
from haystack_distill.utils.files import expand_user
from haystack_distill.utils.hashing import hash_file

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "HAYSTACK_DISTILL_CACHE"
# For `datasets.load_dataset` with a hub name: before version 4 it asks whether to run code from the repository.
NO_CODE: dict[str, Any] = {} if Version(datasets.__version__) >= Version("4.0.0") else {"trust_remote_code": False}


def cache_directory(cache_dir: str | Path | None = None) -> Path:
    """The directory of all caches: `cache_dir`, else `$HAYSTACK_DISTILL_CACHE`, else `~/.cache/haystack-distill`.

    Raises:
        DistilError: The default is used and there is no home directory: HOME is not set and the user is unknown, as in
            a container that runs under an arbitrary user id.
    """
    chosen = cache_dir or os.environ.get(CACHE_VARIABLE) or Path("~", ".cache", "haystack-distill")
    try:
        return expand_user(chosen)
    except DistilError as error:
        raise DistilError(
            f"no home directory for the cache ({error}): set HOME, pass another cache_dir, or set the "
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
    """The memory-mapped table `kind`/`key`, built from `batches()` where it is missing or damaged.

    Of several processes that need it at the same time, one builds it and the others wait for it.

    Args:
        kind: Subdirectory of the cache; each kind of table has its own.
        key: SHA-256 of everything the table depends on.
        schema: Arrow schema of the columns.
        batches: Yields one dictionary of columns per record batch. Called only if the table has to be built.
        cache_dir: The cache directory, see `cache_directory`.
        notes: Returns metadata, serialisable as JSON, to keep next to the table. Called after the table was built.

    Returns:
        The table, its notes, and whether it came from the cache.

    Raises:
        DistilError: The cache directory cannot be created, read or written. Errors of `batches` are not wrapped.
    """
    path = cache_directory(cache_dir) / kind / f"{key}.arrow"
    record = path.with_suffix(".json")
    with _cache_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        known = _verified(path, record)
    if known is not None:
        return datasets.Dataset.from_file(str(path)), known["notes"], True
    with _only_one(path):
        with _cache_errors(path.parent):
            known = _verified(path, record, warn=False)
        if known is None:
            return _built(path, record, schema, batches, notes)
    return datasets.Dataset.from_file(str(path)), known["notes"], True


def _built(
    path: Path,
    record: Path,
    schema: pa.Schema,
    batches: Callable[[], Iterable[dict[str, Any]]],
    notes: Callable[[], dict[str, Any]] | None,
) -> tuple[datasets.Dataset, dict[str, Any], bool]:
    def write(temporary: Path) -> None:
        with _cache_errors(path.parent):
            sink = pa.OSFile(str(temporary), "wb")
        with sink:
            with _cache_errors(path.parent):
                writer = pa.ipc.new_stream(sink, schema)
            for columns in batches():
                batch = pa.record_batch(columns, schema=schema)
                with _cache_errors(path.parent):
                    writer.write_batch(batch)
            # Not a `with`: on a full disk closing fails too, which would hide the first error.
            with _cache_errors(path.parent):
                writer.close()

    try:
        write_atomically(path, write, durable=False)  # a damaged table is rebuilt
    except WriteError as error:
        with _cache_errors(path.parent):
            raise error
    metadata = notes() if notes else {}
    with _cache_errors(path.parent):  # last: a table without its record is rebuilt
        write_json(record, {"sha256": hash_file(path), "notes": metadata}, durable=False)
    return datasets.Dataset.from_file(str(path)), metadata, False


def is_cached(kind: str, key: str, cache_dir: str | Path | None = None) -> bool:
    """Whether the table `kind`/`key` exists and is intact."""
    path = cache_directory(cache_dir) / kind / f"{key}.arrow"
    return _verified(path, path.with_suffix(".json")) is not None


def drop_cached(kind: str, key: str, cache_dir: str | Path | None = None) -> None:
    """Remove the table `kind`/`key` if it exists."""
    path = cache_directory(cache_dir) / kind / f"{key}.arrow"
    path.with_suffix(".json").unlink(missing_ok=True)  # first: without its record, the table is not used
    path.unlink(missing_ok=True)


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Wait until no other process builds a table; on a file system without locks, build it beside the others."""
    file = path.with_suffix(".lock")
    lock = FileLock(file)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning("waiting for another process that writes %s; if there is none, remove %s", path, file)
            lock.acquire()
    except (OSError, NotImplementedError):
        logger.debug("no lock for %s: several processes may build it at the same time", path)
    try:
        yield
    finally:
        if lock.is_locked:
            lock.release()
            with suppress(OSError):  # on Windows it stays while another process waits for it
                file.unlink(missing_ok=True)


@contextmanager
def _cache_errors(folder: Path) -> Iterator[None]:
    """Raise errors of the file system, most often a full disk, as a DistilError that names the cache directory."""
    try:
        yield
    except (OSError, WriteError) as error:
        raise DistilError(
            f"cannot use the cache directory {folder} ({error}): make room there, pass another cache_dir, or set the "
            f"environment variable {CACHE_VARIABLE}"
        ) from error


def _verified(path: Path, record: Path, *, warn: bool = True) -> dict[str, Any] | None:
    """The record of a table if both exist and match, else None; with a warning where it is damaged."""
    if not (path.exists() and record.exists()):
        return None
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        intact = isinstance(known, dict) and "notes" in known and known.get("sha256") == hash_file(path)
    except (json.JSONDecodeError, UnicodeDecodeError):
        intact = False
    if not intact:
        if warn:
            logger.warning("cache file %s is damaged and is rebuilt", path)
        return None
    return known
