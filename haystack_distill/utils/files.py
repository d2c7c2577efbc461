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
    """A path with `~` replaced by the home directory; `~name` of an unknown user stays as it is.

    Raises:
        DistilError: There is no home directory: HOME is not set and the user is unknown.
    """
    found = Path(os.path.expanduser(path))
    if found.parts[:1] == ("~",):  # else a directory named "~" would be created
        raise DistilError(f"{path} begins with ~, but there is no home directory: set HOME, or write out the path")
    return found


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise errors of the file system, from whichever library, as a `WriteError` that names `path`.

    Raises:
        WriteError: The disk is full, the file system is read-only, a file stands where a directory should, and so on.
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
    """The reason that the operating system gave for an error; None for other errors.

    Libraries in Rust (safetensors, tokenizers) and C++ (torch) pass it on in the message only.
    """
    if isinstance(error, OSError):
        return None if error.errno is None else error.strerror or str(error)
    in_rust = re.search(r"\(os error (\d+)\)", str(error))
    if in_rust:
        return os.strerror(int(in_rust[1]))
    if isinstance(error, RuntimeError) and re.search("inline_container|PytorchStreamWriter", str(error)):
        return "the file could not be written completely"
    return None


def require_writable(path: Path, *, directory: bool = True) -> None:
    """Check that a directory, or with `directory=False` a file, can be written, before a long computation.

    Nothing is created except an unnamed temporary file, which is deleted at once.

    Raises:
        WriteError: It cannot be written.
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
    """Whether a path is a device, a pipe or an open file of this process, which a rename cannot replace."""
    open_already = str(path) in ("/dev/stdout", "/dev/stderr") or str(path.parent) in ("/dev/fd", "/proc/self/fd")
    return open_already or (path.exists() and not path.is_file() and not path.is_dir())


@contextlib.contextmanager
def temporary_directory_errors() -> Iterator[None]:
    """Raise errors of creating a temporary directory as a `WriteError` that names TMPDIR.

    Raises:
        WriteError: There is no writable place for one.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"cannot create a temporary directory ({error.strerror or error}): set the environment variable TMPDIR to "
            "a writable directory with free space"
        ) from error


def temporary_directory() -> tempfile.TemporaryDirectory:
    """A temporary directory as a context manager, deleted on exit.

    Raises:
        WriteError: There is no writable place for one.
    """
    with temporary_directory_errors():
        return tempfile.TemporaryDirectory(prefix="haystack-distill-")
