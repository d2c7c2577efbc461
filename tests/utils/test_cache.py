"""Arrow tables on disk: trusted only when they are what was written."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from filelock import FileLock

from haystack_distill.utils.cache import CACHE_VARIABLE, cache_directory, cached_table

SCHEMA = pa.schema({"word": pa.string(), "numbers": pa.list_(pa.int32())})
ROWS = {"word": ["a", "b", "c"], "numbers": [[1], [], [2, 3]]}


class Builder:
    """Batches of a table, and how often they were asked for."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Iterator[dict[str, Any]]:
        self.times += 1
        for row in range(3):
            yield {name: values[row : row + 1] for name, values in ROWS.items()}


def test_a_table_is_built_once(tmp_path: Path) -> None:
    build = Builder()
    table, notes, cached = cached_table("words", "k", SCHEMA, build, tmp_path, notes=lambda: {"seen": 3})
    assert (table.to_dict(), notes, cached) == (ROWS, {"seen": 3}, False)
    table, notes, cached = cached_table("words", "k", SCHEMA, build, tmp_path, notes=lambda: {"seen": 4})
    assert (table.to_dict(), notes, cached) == (ROWS, {"seen": 3}, True)
    assert build.times == 1
    assert table.cache_files  # memory-mapped, not read into memory
    assert sorted(path.name for path in (tmp_path / "words").iterdir()) == ["k.arrow", "k.json"]


def test_of_several_processes_one_builds(tmp_path: Path) -> None:
    """The second one asks while the first one builds, and gets what that has built."""
    code = (
        "import sys, time, pyarrow as pa; from pathlib import Path; from haystack_distill.utils.cache import cached_table\n"
        "def build():\n"
        "    Path(sys.argv[1], 'began').touch(); time.sleep(1); yield {'word': [sys.argv[2]]}\n"
        "schema = pa.schema({'word': pa.string()})\n"
        "table, _, found = cached_table('words', 'k', schema, build, sys.argv[1]); print(table['word'][0], found)"
    )

    def start(name: str) -> subprocess.Popen:
        command = [sys.executable, "-c", code, str(tmp_path), name]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    first = start("first")
    while not (tmp_path / "began").exists():
        assert first.poll() is None
        time.sleep(0.01)
    build = Builder()
    table, _, found = cached_table("words", "k", pa.schema({"word": pa.string()}), build, tmp_path)
    assert (table["word"][0], found, build.times) == ("first", True, 0)
    assert first.communicate()[0].split() == ["first", "False"]
    assert sorted(path.name for path in (tmp_path / "words").iterdir()) == ["k.arrow", "k.json"]


@pytest.mark.parametrize("error", [OSError("no locks"), NotImplementedError("no locks")])
def test_a_file_system_without_locks(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(FileLock, "acquire", acquire)
    build = Builder()
    assert cached_table("words", "k", SCHEMA, build, tmp_path)[0].to_dict() == ROWS
    assert build.times == 1


def test_an_empty_table(tmp_path: Path) -> None:
    for cached in (False, True):
        table, _, from_cache = cached_table("words", "none", SCHEMA, list, tmp_path)
        assert len(table) == 0
        assert from_cache is cached


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"\x03", b"\x04", 1)),
        lambda path: path.unlink(),
        lambda path: path.with_suffix(".json").unlink(),
        lambda path: path.with_suffix(".json").write_text('{"sha'),
        lambda path: path.with_suffix(".json").write_bytes(b"\xff\xfe"),
        lambda path: path.with_suffix(".json").write_text("[]"),
        lambda path: path.with_suffix(".json").write_text(json.dumps({"sha256": "0" * 64, "notes": {}})),
    ],
    ids=["cut off", "bit flip", "gone", "no side file", "half a side file", "no text", "a list", "another hash"],
)
def test_a_damaged_table_is_built_again(tmp_path: Path, damage: Any) -> None:
    build = Builder()
    cached_table("words", "k", SCHEMA, build, tmp_path)
    damage(tmp_path / "words" / "k.arrow")
    table, _, cached = cached_table("words", "k", SCHEMA, build, tmp_path)
    assert (table.to_dict(), cached, build.times) == (ROWS, False, 2)
    assert cached_table("words", "k", SCHEMA, build, tmp_path)[2]


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> Iterator[dict[str, Any]]:
        yield {name: values[:1] for name, values in ROWS.items()}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_table("words", "k", SCHEMA, fail, tmp_path)
    assert list((tmp_path / "words").iterdir()) == []


def test_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "~/somewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "somewhere"
    assert cache_directory(tmp_path / "here") == tmp_path / "here"
    monkeypatch.delenv(CACHE_VARIABLE)
    assert cache_directory() == tmp_path / ".cache" / "haystack-distill"
