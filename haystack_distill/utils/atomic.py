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
except ImportError:  # Windows, where nothing tells what a killed process left from what is being written: all stays
    fcntl = None  # type: ignore[assignment]

from haystack_distill.utils.files import expand_user, is_stream, writing


def write_atomically(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
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


def write_json(path: Path, content: Any, *, durable: bool = True) -> None:
    """Write `content` as indented JSON, aside and renamed; `durable` as for `write_atomically`."""
    text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=False) + "\n"
    write_atomically(path, lambda aside: aside.write_text(text, encoding="utf-8"), durable=durable)


def inherit_permissions(file: Path) -> None:
    """Let the umask decide who may read a file: safetensors writes files that are their owner's alone."""
    file.chmod(file.parent.stat().st_mode & 0o666)


def save_pretrained(directory: str | Path, *parts: Any) -> Path:
    """Let each part `save_pretrained` into a hidden directory inside `directory`, then move all files up.

    Files of the same names that are there already are replaced, others stay.

    Raises:
        WriteError: The system does not let it be written.
    """
    target = expand_user(directory)
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
                        inherit_permissions(file)
                    sync(file)
                for file in files:
                    file.replace(target / file.name)
                sync(target)
        finally:
            if made and not any(target.iterdir()):
                target.rmdir()
    return target


def move_into_place(made: Path, path: Path) -> None:
    """Rename a finished file to `path`, or copy it where that is a device or a pipe.

    Raises:
        OSError: The system does not let it be written.
    """
    if not is_stream(path):
        os.replace(made, path)
        return
    with open(made, "rb") as source, open(path, "wb") as target:
        shutil.copyfileobj(source, target)


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
