"""Files: hashed by their content, written aside and renamed when whole."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows, where nothing tells what a killed process left from what is being written: all stays
    fcntl = None  # type: ignore[assignment]

RUN_FILE = "haystack_distill.json"  # what a run writes beside its model: what it was made from, and what came of it
EXPORT_FOLDER = "onnx"  # in a reader directory: what runs elsewhere than in PyTorch (as on the Hugging Face hub)
EXPORT_RECORD = "export.json"  # in it: how it was made, how near it is to the model, and what it scores


def hash_of(*parts: Any) -> str:
    """SHA-256 (hex) over JSON-able parts, in order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()  # Python 3.10 has no hashlib.file_digest
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def write_aside(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`: nobody ever sees half a file.

    Args:
        path: The file; its directory is made if it is not there.
        write: Fills the file that it is given.
        durable: Whether the file is to be whole after a power cut too; False where its content is checked anyway.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _aside(path) as aside:
        write(aside)
        if durable:
            sync(aside)
        os.replace(aside, path)
    if durable:
        sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or a directory's list of names, is on the disk itself."""
    if os.name == "nt":  # there a file that is open for reading cannot be synced, nor any directory
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system or device that knows no such thing
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _aside(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """A new file or directory beside `path` for what is being written, and gone afterwards unless it was renamed.

    Whoever writes holds a lock on it, which the system lets go when the process dies: by that, what a killed process
    left is known, also where containers share a directory, a host name and process ids.
    """
    prefix = f".{path.name}.{socket.gethostname()}-"
    for left in path.parent.glob(f"{glob.escape(prefix)}*.tmp"):
        _remove_if_left(left)
    while True:
        # Not a name from tempfile: such files are their owner's alone, and here the umask shall decide.
        aside = path.with_name(f"{prefix}{os.getpid()}-{secrets.token_hex(4)}.tmp")
        if folder:
            aside.mkdir()
        else:
            os.close(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))
        descriptor = _locked(aside)
        if aside.exists():  # else another process found it before it was locked, and took it for left
            break
        _close(descriptor)
    try:
        yield aside
    finally:
        if folder:
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)
        _close(descriptor)


def _remove_if_left(aside: Path) -> None:
    descriptor = _locked(aside, wait=False)
    if descriptor is None:  # it is being written, or there are no locks here to tell by
        return
    if aside.is_dir():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.unlink(missing_ok=True)
    _close(descriptor)


def _locked(aside: Path, *, wait: bool = True) -> int | None:
    """A descriptor that holds a lock on a file or directory; None where there is none to be had."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(aside, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _close(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, aside and renamed."""
    text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=False) + "\n"
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def save_pretrained(directory: str | Path, *parts: Any) -> Path:
    """Let each part `save_pretrained` into a directory inside `directory`, then move all files up.

    Files of the same names that are there already are replaced, others stay.
    """
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    try:
        # Inside, not beside: the target may be where another file system begins.
        with _aside(target / "model", folder=True) as aside:
            for part in parts:
                part.save_pretrained(aside)
            files = list(aside.iterdir())
            for file in files:
                sync(file)
            for file in files:
                file.replace(target / file.name)
            sync(target)
    except BaseException:
        with contextlib.suppress(OSError):  # it was not empty before
            target.rmdir()
        raise
    return target
