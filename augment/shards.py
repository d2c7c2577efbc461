"""Several machines: each makes a shard, and the shards joined are what one machine would have made."""

import gzip
import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from augment.job import write_squad_file
from haystack_distill.errors import DataError, DistilError

_BLOCK = 2**20


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of "i/n".

    Raises:
        DistilError: not that, or i is not one of 1..n.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise DistilError(f"shard must be i/n with i from 1 to n, such as 2/4, not {text!r}")
    return int(found[1]), int(found[2])


def merge_shards(shards: list[Path], output: Path) -> None:
    """Join all shards of a job, given in any order, to the file that one machine would have written.

    Raises:
        DataError: a file is not a shard, one is missing, or one is there twice.
    """
    with ExitStack() as files:
        opened: dict[int, IO[bytes]] = {}
        number = None
        for path in shards:
            if not path.is_file():
                raise DataError(f"{path}: no such file")
            opener: Any = gzip.open if path.name.endswith(".gz") else open
            file: IO[bytes] = files.enter_context(opener(path, "rb"))
            shard = _shard_of(path, file.readline(_BLOCK))
            if shard[0] in opened:
                raise DataError(f"{path}: shard {shard[0]}/{shard[1]} was given twice")
            if number not in (None, shard[1]):
                raise DataError(f"{path}: shard {shard[0]}/{shard[1]} is of another job: there are shards of {number}")
            number = shard[1]
            opened[shard[0]] = file
        missing = [str(i) for i in range(1, (number or 0) + 1) if i not in opened]
        if missing:
            raise DataError(f"shard {', '.join(missing)} of {number} is missing: give all of them")

        def fill(target: IO[bytes]) -> None:
            target.write(b'{"version":"v2.0","data":[')
            in_turn = [opened[i] for i in sorted(opened)]
            copied = 0
            while _copy_article(in_turn[copied % len(in_turn)], target, b",\n" if copied else b"\n"):
                copied += 1
            if any(file.readline(_BLOCK) not in (b"]}\n", b"") for file in in_turn):
                raise DataError("the shards do not fit together: they are not all of one input")
            target.write(b"\n]}\n")

        write_squad_file(output, fill)


def _shard_of(path: Path, line: bytes) -> tuple[int, int]:
    try:
        return parse_shard(json.loads(line.decode("utf-8").strip() + "]}")["shard"])
    except (ValueError, KeyError) as error:
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
