"""Atomic writes: a file is written under a temporary name and renamed when it is complete."""

import contextlib
import errno
import glob
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
except (
    ImportError
):  # Windows: without locks, files of killed processes cannot be distinguished from live ones, and stay
    fcntl = None  # type: ignore[assignment]

from haystack_distill.utils.files import expand_user, is_stream, writing


def write_atomically(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Let `write` fill a temporary file next to `path`, then rename it, so that no reader ever sees a partial file.

    A symbolic link is followed and its target replaced; a device or a pipe is written directly.

    Args:
        path: The file; its directory is created if necessary.
        write: Writes the content to the path that it is given.
        durable: Whether the file has to survive a power cut; False where its content is verified anyway.

    Raises:
        WriteError: The file cannot be written; an existing file is unchanged.
    """
    with writing(path):
        if is_stream(path):
            write(path)
            return
        place = Path(os.path.realpath(path)) if path.is_symlink() else path
        place.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(place) as temporary:
            write(temporary)
            if durable:
                sync(temporary)
            os.replace(temporary, place)
        if durable:
            sync(place.parent)


def write_json(path: Path, content: Any, *, durable: bool = True) -> None:
    """Write `content` atomically as indented JSON; `durable` as for `write_atomically`."""
    text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), durable=durable)


def inherit_permissions(file: Path) -> None:
    """Give a file the permissions of its directory: safetensors writes files that only their owner can read."""
    file.chmod(file.parent.stat().st_mode & 0o666)


def save_pretrained(directory: str | Path, *parts: Any, replacing: Callable[[Path], object] | None = None) -> Path:
    """Save each part with its `save_pretrained` to a hidden directory inside `directory`, then move the files up.

    Existing files of the same names are replaced, other files are kept.

    Args:
        directory: Where to.
        parts: What is saved.
        replacing: Called with the hidden directory once everything is in it, before the first file is replaced.

    Raises:
        WriteError: The directory cannot be written.
    """
    target = expand_user(directory)
    with writing(target):
        made = not target.exists()
        target.mkdir(parents=True, exist_ok=True)
        try:
            # Inside, not next to it: the target may be a mount point.
            with _temporary(target / "model", folder=True) as temporary:
                for part in parts:
                    part.save_pretrained(temporary)
                files = list(temporary.iterdir())
                for file in files:
                    if file.is_file():
                        inherit_permissions(file)
                    sync(file)
                if replacing is not None:
                    replacing(temporary)
                for file in files:
                    file.replace(target / file.name)
                sync(target)
        finally:
            if made and not any(target.iterdir()):
                target.rmdir()
    return target


def move_into_place(made: Path, path: Path) -> None:
    """Rename a finished file to `path`, or copy it if `path` is a device or a pipe.

    Raises:
        OSError: `path` cannot be written.
    """
    if not is_stream(path):
        os.replace(made, path)
        return
    with open(made, "rb") as source, open(path, "wb") as target:
        shutil.copyfileobj(source, target)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a directory, to the disk."""
    if os.name == "nt":  # where neither directories nor files opened for reading can be flushed
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not supported by this file system or device
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _temporary(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """A new temporary file or directory next to `path`, deleted on exit unless it was renamed.

    The writer holds a lock on it, which the system releases when the process dies. This identifies the leftovers of
    killed processes even where containers share a directory, a host name and process ids.
    """
    prefix = f".{path.name}.{socket.gethostname()}-"
    for leftover in path.parent.glob(f"{glob.escape(prefix)}*.tmp"):
        _remove_if_abandoned(leftover)
    while True:
        # Not from tempfile, whose files only their owner can read: the umask decides here.
        temporary = path.with_name(f"{prefix}{os.getpid()}-{secrets.token_hex(4)}.tmp")
        if folder:
            temporary.mkdir()
        else:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))
        descriptor = _lock(temporary)
        if temporary.exists():  # else another process removed it before it was locked
            break
        _close(descriptor)
    try:
        yield temporary
    finally:
        if folder:
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        _close(descriptor)


def _remove_if_abandoned(temporary: Path) -> None:
    descriptor = _lock(temporary, wait=False)
    if descriptor is None:  # it is in use, or this system has no locks
        return
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.unlink(missing_ok=True)
    _close(descriptor)


def _lock(temporary: Path, *, wait: bool = True) -> int | None:
    """A descriptor that holds a lock on a file or directory, or None if it cannot be locked."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(temporary, os.O_RDONLY)
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
