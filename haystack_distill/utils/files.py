"""Paths, temporary directories, and errors of writing that name the place and the remedy."""

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from haystack_distill.errors import DistilError, WriteError


def expand_user(path: str | Path) -> Path:
    """A path in which `~` stands for the home directory; one that names no user's stays as it is written.

    Raises:
        DistilError: There is no home directory: HOME is not set and the system does not know who this is.
    """
    found = Path(os.path.expanduser(path))
    if found.parts[:1] == ("~",):  # else a directory of that name would be made
        raise DistilError(f"{path} begins with ~, but there is no home directory: set HOME, or write the path out")
    return found


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
        reason = system_reason(error)
        if reason is None:
            raise
        full = not isinstance(error, OSError) or error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "make room there or choose another place" if full else "choose another place"
        raise WriteError(f"cannot write {path} ({reason}): {remedy}") from error


def system_reason(error: Exception) -> str | None:
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


def is_stream(path: Path) -> bool:
    """Whether a path is a device, a pipe or a file that this process has open: nothing to rename another file to."""
    open_already = str(path) in ("/dev/stdout", "/dev/stderr") or str(path.parent) in ("/dev/fd", "/proc/self/fd")
    return open_already or (path.exists() and not path.is_file() and not path.is_dir())


@contextlib.contextmanager
def temporary_directory_errors() -> Iterator[None]:
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


def temporary_directory() -> tempfile.TemporaryDirectory:
    """A directory for what is needed for a while, to be used with `with`.

    Raises:
        WriteError: There is no place for one.
    """
    with temporary_directory_errors():
        return tempfile.TemporaryDirectory(prefix="haystack-distill-")
