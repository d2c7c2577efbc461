"""Data files as bytes: plain or gzip, with checks for UTF-8 and replacement of lone surrogates."""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from haystack_distill.errors import DataError

BLOCK = 2**20  # bytes
# An escaped backslash, a surrogate pair or a lone surrogate: every escape that matters to finding lone surrogates.
_ESCAPE = re.compile(
    rb"\\(?:\\|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<lone>u[dD][89a-fA-F][0-9a-fA-F]{2}))"
)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_HIGH = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")
_PAIR = 12  # bytes of an escaped pair


class SurrogateReplacer(io.RawIOBase):
    r"""A binary stream of JSON from `file` in which each lone surrogate (`\ud83d` without its pair) becomes U+FFFD.

    A lone surrogate is not a character: parsers either refuse it or silently change it. The replacement has the same
    length in bytes and in code points, so offsets stay valid.

    Attributes:
        replaced: How many surrogates were replaced so far.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.replaced = 0
        self._file = file
        self._rest = b""  # read, but it may end within a pair
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """Whether the stream can be read: always."""
        return True

    def readinto(self, into: Any) -> int:
        """Read the next bytes into a buffer; returns their number, 0 at the end."""
        while not self._ready:
            block = self._file.read(BLOCK)
            whole = self._rest + block
            if not whole:
                return 0
            end = _end_of_pairs(whole) if block else len(whole)
            self._ready, self._rest = memoryview(self._replace(whole[:end])), whole[end:]
        part = self._ready[: len(into)]
        into[: len(part)] = part
        self._ready = self._ready[len(part) :]
        return len(part)

    def _replace(self, raw: bytes) -> bytes:
        return _ESCAPE.sub(self._replacement, raw) if _SURROGATE.search(raw) else raw

    def _replacement(self, match: re.Match[bytes]) -> bytes:
        if not match["lone"]:
            return match[0]
        self.replaced += 1
        return rb"\ufffd"


def _end_of_pairs(raw: bytes) -> int:
    """Where `raw` can be split: neither within an escape nor within a surrogate pair."""
    end = raw.find(b"\\", max(0, len(raw) - _PAIR))
    if end < 0:
        return len(raw)
    end = len(raw[:end].rstrip(b"\\"))
    if _HIGH.search(raw, max(0, end - _PAIR // 2), end):
        end = len(raw[: end - _PAIR // 2].rstrip(b"\\"))
    return end


def is_gzip(path: Path) -> bool:
    """Whether a file is gzip, by its name or its first bytes."""
    with open(path, "rb") as raw:
        return raw.read(2) == b"\x1f\x8b" or path.name.endswith(".gz")


@contextmanager
def open_data(path: Path) -> Iterator[BinaryIO]:
    """Open a plain or gzip file for reading, after any byte order mark.

    Raises:
        DataError: It cannot be read, or is not valid gzip.
    """
    try:
        packed = is_gzip(path)
        with open(path, "rb") as raw, gzip.open(raw) if packed else raw as file:
            if file.read(3) != codecs.BOM_UTF8:
                file.seek(0)
            yield file  # type: ignore[misc]  # GzipFile has the methods of BinaryIO that are used
    except EOFError as error:
        raise DataError(f"{path}: the gzip file is truncated: download or write it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: not a valid gzip file ({error}): download or write it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}): check the path") from error


def require_utf8(path: Path) -> None:
    """Check that a file is UTF-8.

    Raises:
        DataError: It is not; the message names the byte.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open_data(path) as file:
        done = file.tell()
        while True:
            block = file.read(BLOCK)
            waiting = len(decoder.getstate()[0])  # bytes of an incomplete character at the end of the last block
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: not UTF-8 (at byte {done - waiting + error.start}): convert it from its "
                    "encoding, for example with `iconv -f WINDOWS-1252 -t UTF-8`"
                ) from error
            if not block:
                return
            done += len(block)
