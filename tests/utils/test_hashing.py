"""Hashes of values and of files."""

from pathlib import Path

from haystack_distill.utils.hashing import hash_file, hash_json


def test_hash_file_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert hash_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_hash_json_separates_its_parts() -> None:
    assert hash_json({"a": 1, "b": 2}) == hash_json({"b": 2, "a": 1})
    assert (
        len({hash_json("a", "b"), hash_json("b", "a"), hash_json("ab"), hash_json(["a", "b"]), hash_json("a", None)})
        == 5
    )
