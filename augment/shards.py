"""Several machines: each makes a shard, and the shards joined are what one machine would have made."""

import gzip
import json
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from augment.job import PACKING
from augment.paths import require_readable
from augment.settings import parse_shard
from haystack_distill.data.squad.json_files import write_compressed
from haystack_distill.errors import DataError
from haystack_distill.utils.atomic import write_atomically

_BLOCK = 2**20
_HEADER = 2**12


def merge_shards(shards: list[Path], output: Path) -> None:
    """Join all shards of a job, given in any order, to the file that one machine would have written.

    Raises:
        DataError: a file is not a shard or is damaged, one is missing, or is there twice, or is of another job.
    """
    try:
        with ExitStack() as files:
            in_turn = _opened(shards, files)

            def fill(target: IO[bytes]) -> None:
                target.write(b'{"version":"v2.0","data":[')
                copied = 0
                while _copy_article(in_turn[copied % len(in_turn)], target, b",\n" if copied else b"\n"):
                    copied += 1
                if any(file.readline(_BLOCK) not in (b"]}\n", b"") for file in in_turn):
                    raise DataError("the shards do not fit together: they are not all of one input")
                target.write(b"\n]}\n")

            packed = output.name.endswith(".gz")
            write_atomically(output, lambda aside: write_compressed(aside, fill, packed=packed, level=PACKING))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"a packed shard is damaged ({error}): make it again") from error


def _opened(shards: list[Path], files: ExitStack) -> list[IO[bytes]]:
    """The shards in their order, each read up to its first article."""
    opened: dict[int, IO[bytes]] = {}
    first: dict[str, Any] = {}
    for path in shards:
        require_readable(path)
        opener: Any = gzip.open if path.name.endswith(".gz") else open
        file: IO[bytes] = files.enter_context(opener(path, "rb"))
        header = _header_of(path, file.readline(_HEADER))
        number, of = parse_shard(header["shard"])
        first = first or {"of": of, "job": header["job"]}
        if first != {"of": of, "job": header["job"]}:
            raise DataError(
                f"{path}: a shard of another job than {shards[0]}: of another input, or with other settings"
            )
        if number in opened:
            raise DataError(f"{path}: shard {number}/{of} was given twice")
        opened[number] = file
    missing = [str(number) for number in range(1, first["of"] + 1) if number not in opened]
    if missing:
        raise DataError(f"shard {', '.join(missing)} of {first['of']} is missing: give all of them")
    return [opened[number] for number in sorted(opened)]


def _header_of(path: Path, line: bytes) -> dict[str, Any]:
    try:
        header = json.loads(line.decode("utf-8").strip() + "]}")
        parse_shard(header["shard"])
        return {"shard": header["shard"], "job": header["job"]}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a shard; make one with --shard i/n") from error


def _copy_article(source: IO[bytes], target: IO[bytes], separator: bytes) -> bool:
    """Copy one line, which is one article, without ever holding it whole; False where there is none left."""
    block = source.readline(_BLOCK)
    if block == b"]}\n":
        return False
    target.write(separator)
    while not block.endswith(b"\n"):
        more = source.readline(_BLOCK)
        if not more:
            raise DataError(f"{getattr(source, 'name', 'a shard')}: the file is cut off; make this shard again")
        target.write(block[:-1])  # the last byte may be the comma
        block = block[-1:] + more
    target.write(block[:-1].removesuffix(b","))
    return True
