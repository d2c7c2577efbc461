"""Files: whole or not at all, and hashed by their content."""

from pathlib import Path

import pytest

from haystack_distill.files import expanded, file_hash, hash_of, write_aside, write_json


def test_write_aside_replaces_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_aside(path, lambda aside: aside.write_text("old") and None)

    def fail(aside: Path) -> None:
        aside.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_aside(path, fail)
    assert path.read_text() == "old"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]
    assert path.stat().st_mode & 0o777 == 0o644  # others may read a shared cache


def test_write_json_keeps_unicode_and_order(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"z": "é", "a": 1})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "z": "é",\n  "a": 1\n}\n'


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/a") == expanded(Path("~/a")) == tmp_path / "a"
    assert expanded("~nobody-here/a") == Path("~nobody-here/a")  # pathlib would raise
    assert expanded("a/~") == Path("a/~")


def test_file_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_hash(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_hash_of_tells_parts_apart() -> None:
    assert hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1})
    assert len({hash_of("a", "b"), hash_of("b", "a"), hash_of("ab"), hash_of(["a", "b"]), hash_of("a", None)}) == 5
