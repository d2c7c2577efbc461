"""Whether a job can read its input and write its output, found out before it begins."""

from collections.abc import Sequence
from pathlib import Path

from haystack_distill.errors import DataError, DistilError
from haystack_distill.utils.files import is_stream, require_writable


def require_readable(path: Path) -> None:
    """Check that a file is there and can be read.

    Raises:
        DataError: it cannot.
    """
    try:
        if path.is_dir():
            raise DataError(f"{path} is a directory: give the file in it")
        if not path.exists():
            raise DataError(f"{path}: no such file")
        with open(path, "rb"):
            pass
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def require_output(output: Path, sources: Sequence[Path], overwrite: bool) -> None:
    """Check that an output can be written, and that it is none of the files it is made from.

    Args:
        output: a file, or a device or pipe, which is not checked.
        sources: what it is made from.
        overwrite: whether a file that exists may be replaced.

    Raises:
        DistilError: it cannot.
    """
    if is_stream(output):
        return
    try:
        if not output.parent.is_dir():
            raise DistilError(f"the directory {output.parent} does not exist: make it, or choose another output_path")
        if output.exists():
            if any(output.samefile(source) for source in sources):
                raise DistilError(f"{output} is the input: choose another output_path")
            if output.is_dir() or not overwrite:
                raise DistilError(f"{output} exists: choose another output_path, or pass overwrite to replace a file")
        require_writable(output, directory=False)
    except OSError as error:
        raise DistilError(
            f"{output}: cannot be written ({error.strerror or error}): choose another output_path"
        ) from error
