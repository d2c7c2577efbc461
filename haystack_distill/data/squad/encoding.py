"""Data files as bytes: opened plain or packed, checked to be UTF-8, rid of half surrogate pairs."""

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

BLOCK = 2**20
# An escaped backslash, a whole pair or half of one: every escape at which a search for halves could go wrong.
_ESCAPE = re.compile(
    rb"\\(?:\\|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>u[dD][89a-fA-F][0-9a-fA-F]{2}))"
)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_HIGH = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")
_PAIR = 12  # bytes of an escaped pair


class SurrogateReplacer(io.RawIOBase):
    r"""JSON as it is read from `file`, each half of a surrogate pair (`\ud83d` alone) replaced by U+FFFD.

    Half a pair is no character: parsers either refuse it or write something else without a word. The replacement is
    as long, in bytes and in code points, so offsets hold. `replaced` counts what was replaced so far.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.replaced = 0
        self._file = file
        self._rest = b""  # read, but not known to end with a whole pair
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """It is, always."""
        return True

    def readinto(self, into: Any) -> int:
        """Fill `into` with what comes next; 0 at the end."""
        while not self._ready:
            block = self._file.read(BLOCK)
            whole = self._rest + block
            if not whole:
                return 0
            end = _end_of_pairs(whole) if block else len(whole)
            self._ready, self._rest = memoryview(self._mended(whole[:end])), whole[end:]
        part = self._ready[: len(into)]
        into[: len(part)] = part
        self._ready = self._ready[len(part) :]
        return len(part)

    def _mended(self, raw: bytes) -> bytes:
        return _ESCAPE.sub(self._replacement, raw) if _SURROGATE.search(raw) else raw

    def _replacement(self, match: re.Match[bytes]) -> bytes:
        if not match["half"]:
            return match[0]
        self.replaced += 1
        return rb"\ufffd"


def _end_of_pairs(raw: bytes) -> int:
    """Where `raw` can be cut: neither within an escape nor between the halves of a pair."""
    end = raw.find(b"\\", max(0, len(raw) - _PAIR))
    if end < 0:
        return len(raw)
    end = len(raw[:end].rstrip(b"\\"))
    if _HIGH.search(raw, max(0, end - _PAIR // 2), end):
        end = len(raw[: end - _PAIR // 2].rstrip(b"\\"))
    return end


def is_gzip(path: Path) -> bool:
    """Whether a file is gzip, by its name or by how it begins."""
    with open(path, "rb") as raw:
        return raw.read(2) == b"\x1f\x8b" or path.name.endswith(".gz")


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a plain or gzip file for reading, past a byte order mark; what goes wrong in reading it is a DataError."""
    try:
        packed = is_gzip(path)
        with open(path, "rb") as raw, gzip.open(raw) if packed else raw as file:
            if file.read(3) != codecs.BOM_UTF8:
                file.seek(0)
            yield file  # type: ignore[misc]  # GzipFile is a BinaryIO in all that is used here
    except EOFError as error:
        raise DataError(f"{path}: the gzip file is cut off (truncated): fetch or write it again.") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: not a sound gzip file ({error}): fetch or write it again.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error


def require_utf8(path: Path) -> None:
    """Check that a file is UTF-8.

    Raises:
        DataError: it is not; the message names the byte.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    with opened(path) as file:
        done = file.tell()
        while True:
            block = file.read(BLOCK)
            waiting = len(decoder.getstate()[0])  # bytes of a character that the last block began
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: not UTF-8 (at byte {done - waiting + error.start}): convert it from the encoding that it "
                    f"has, such as `iconv -f WINDOWS-1252 -t UTF-8`, and give the converted file."
                ) from error
            if not block:
                return
            done += len(block)
