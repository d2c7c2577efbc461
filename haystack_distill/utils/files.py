"""Files: hashed by their content, written aside and renamed when whole."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows, where nothing tells what a killed process left from what is being written: all stays
    fcntl = None  # type: ignore[assignment]

from haystack_distill.errors import DistilError, WriteError

RUN_FILE = "haystack_distill.json"  # what a run writes beside its model: what it was made from, and what came of it
EXPORT_FOLDER = "onnx"  # in a reader directory: what runs elsewhere than in PyTorch (as on the Hugging Face hub)
EXPORT_RECORD = "export.json"  # in it: how it was made, how near it is to the model, and what it scores


def expanded(path: str | Path) -> Path:
    """A path in which `~` stands for the home directory; one that names no user's stays as it is written.

    Raises:
        DistilError: There is no home directory: HOME is not set and the system does not know who this is.
    """
    found = Path(os.path.expanduser(path))
    if found.parts[:1] == ("~",):  # else a directory of that name would be made
        raise DistilError(f"{path} begins with ~, but there is no home directory: set HOME, or write the path out")
    return found


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


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system refuses in here, to whichever library, is a `WriteError` that names `path`.

    Raises:
        WriteError: The disk is full, the place is read-only, a file is where a directory is wanted, and the like.
    """
    try:
        yield
    except DistilError:
        raise
    except Exception as error:
        reason = refusal_of(error)
        if reason is None:
            raise
        full = not isinstance(error, OSError) or error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "make room there or choose another place" if full else "choose another place"
        raise WriteError(f"cannot write {path} ({reason}): {remedy}") from error


def refusal_of(error: Exception) -> str | None:
    """What the system said, where an error is about that; None for all others.

    Libraries in Rust (safetensors, tokenizers) and C++ (torch) hand it on in words alone.
    """
    if isinstance(error, OSError):
        return None if error.errno is None else error.strerror or str(error)
    in_rust = re.search(r"\(os error (\d+)\)", str(error))
    if in_rust:
        return os.strerror(int(in_rust[1]))
    if isinstance(error, RuntimeError) and re.search("inline_container|PytorchStreamWriter", str(error)):
        return "the file could not be written to its end"
    return None


def require_writable(path: Path, *, directory: bool = True) -> None:
    """Check that a directory, or with `directory=False` a file, can be written, before the work for it begins.

    Nothing is made but a file without a name, which is gone at once.

    Raises:
        WriteError: It cannot.
    """
    with writing(path):
        if not directory and is_stream(path):
            return
        if not directory and path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a directory")
        wanted = path if directory else Path(os.path.realpath(path)).parent
        there = next(place for place in (wanted, *wanted.parents) if place.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{there} is a file")
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(bytes(4096))
            probe.flush()


@contextlib.contextmanager
def needing_tmpdir() -> Iterator[None]:
    """Where a temporary directory is made.

    Raises:
        WriteError: There is no place for one.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"cannot make a temporary directory ({error.strerror or error}): set the environment variable TMPDIR to "
            "a directory with room that can be written to"
        ) from error


def scratch_directory() -> tempfile.TemporaryDirectory:
    """A directory for what is needed for a while, to be used with `with`.

    Raises:
        WriteError: There is no place for one.
    """
    with needing_tmpdir():
        return tempfile.TemporaryDirectory(prefix="haystack-distill-")


def write_aside(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`: nobody ever sees half a file.

    Through a symbolic link the file that it leads to is replaced; a device or a pipe is written into as it is.

    Args:
        path: The file; its directory is made if it is not there.
        write: Fills the file that it is given.
        durable: Whether the file is to be whole after a power cut too; False where its content is checked anyway.

    Raises:
        WriteError: The system does not let it be written; what was there before is there still.
    """
    with writing(path):
        if is_stream(path):
            write(path)
            return
        place = Path(os.path.realpath(path)) if path.is_symlink() else path
        place.parent.mkdir(parents=True, exist_ok=True)
        with _aside(place) as aside:
            write(aside)
            if durable:
                sync(aside)
            os.replace(aside, place)
        if durable:
            sync(place.parent)


def into_place(made: Path, path: Path) -> None:
    """Rename a finished file to `path`, or copy it where that is a device or a pipe.

    Raises:
        OSError: The system does not let it be written.
    """
    if not is_stream(path):
        os.replace(made, path)
        return
    with open(made, "rb") as source, open(path, "wb") as target:
        shutil.copyfileobj(source, target)


def is_stream(path: Path) -> bool:
    """Whether a path is a device, a pipe or a file that this process has open: nothing to rename another file to."""
    open_already = str(path) in ("/dev/stdout", "/dev/stderr") or str(path.parent) in ("/dev/fd", "/proc/self/fd")
    return open_already or (path.exists() and not path.is_file() and not path.is_dir())


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


def write_json(path: Path, content: Any, *, durable: bool = True) -> None:
    """Write `content` as indented JSON, aside and renamed; `durable` as for `write_aside`."""
    text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=False) + "\n"
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"), durable=durable)


def readable_as_its_folder(file: Path) -> None:
    """Let the umask decide who may read a file: safetensors writes files that are their owner's alone."""
    file.chmod(file.parent.stat().st_mode & 0o666)


def save_pretrained(directory: str | Path, *parts: Any) -> Path:
    """Let each part `save_pretrained` into a hidden directory inside `directory`, then move all files up.

    Files of the same names that are there already are replaced, others stay.

    Raises:
        WriteError: The system does not let it be written.
    """
    target = expanded(directory)
    with writing(target):
        made = not target.exists()
        target.mkdir(parents=True, exist_ok=True)
        try:
            # Inside, not beside: the target may be where another file system begins.
            with _aside(target / "model", folder=True) as aside:
                for part in parts:
                    part.save_pretrained(aside)
                files = list(aside.iterdir())
                for file in files:
                    if file.is_file():
                        readable_as_its_folder(file)
                    sync(file)
                for file in files:
                    file.replace(target / file.name)
                sync(target)
        finally:
            if made and not any(target.iterdir()):
                target.rmdir()
    return target
