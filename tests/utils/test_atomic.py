"""Atomic writes: a file is complete or not there, whatever happens while it is written."""

import errno
import os
import socket
from pathlib import Path

import pytest

from haystack_distill.errors import WriteError
from haystack_distill.utils.atomic import save_pretrained, sync, write_atomically, write_json


def test_an_atomic_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_atomically(path, lambda aside: aside.write_text("old") and None)

    def fail(aside: Path) -> None:
        aside.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]
    assert path.stat().st_mode & 0o777 == 0o644  # others may read a shared cache


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """Whatever process has its number now: in a container that is started again, they are the same."""
    left = [tmp_path / f".file.{socket.gethostname()}-{process}-abcd.tmp" for process in (1, os.getpid(), 99999999)]
    for path in left[:2]:
        path.touch()
    left[2].mkdir()
    (left[2] / "part").touch()
    of_another_host = tmp_path / ".file.elsewhere-1-abcd.tmp"
    of_another_host.touch()
    write_atomically(tmp_path / "file", lambda aside: aside.write_text("new"))
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "file", of_another_host])


@pytest.mark.parametrize("folder", [False, True])
def test_what_another_container_is_writing_is_left_alone(
    folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same host name, and with a process id that is not in use here."""

    class Part:
        def save_pretrained(self, aside: Path) -> None:
            (aside / "part").write_text("theirs")
            write_and_look(aside)

    class Other:
        def save_pretrained(self, aside: Path) -> None:
            (aside / "other").write_text("ours")

    def write_and_look(aside: Path) -> None:
        monkeypatch.undo()
        if folder:
            save_pretrained(tmp_path / "target", Other())
        else:
            write_atomically(tmp_path / "target", lambda ours: ours.write_text("ours"))
        assert aside.exists()

    monkeypatch.setattr(os, "getpid", lambda: 99999999)
    if folder:
        save_pretrained(tmp_path / "target", Part())
        assert sorted(path.name for path in (tmp_path / "target").iterdir()) == ["other", "part"]
    else:
        write_atomically(tmp_path / "target", lambda aside: (aside.write_text("theirs"), write_and_look(aside)))
        assert (tmp_path / "target").read_text() == "theirs"


def test_a_file_is_on_the_disk_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        done.append(("rename", Path(source)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_atomically(tmp_path / "file", lambda aside: aside.write_text("new"))
    aside = done[0][1]
    assert aside.name.endswith(".tmp")
    assert done == [("sync", aside), ("rename", aside), ("sync", tmp_path)]
    done.clear()
    write_atomically(tmp_path / "file", lambda aside: aside.write_text("new"), durable=False)
    assert [what for what, _ in done] == ["rename"]
    sync(Path(os.devnull))  # it knows no such thing


def test_a_model_is_written_inside_its_directory(tmp_path: Path) -> None:
    """Beside it another file system may begin, and the directory above may be somebody else's."""
    seen = []

    class Part:
        def save_pretrained(self, aside: Path) -> None:
            seen.append(aside.parent)
            (aside / "part").touch()

    class Broken:
        def save_pretrained(self, aside: Path) -> None:
            raise OSError("disk full")

    save_pretrained(tmp_path / "reader", Part())
    assert seen == [tmp_path / "reader"]
    assert [path.name for path in (tmp_path / "reader").iterdir()] == ["part"]
    for target in ("reader", "new"):
        with pytest.raises(OSError, match="disk full"):
            save_pretrained(tmp_path / target, Part(), Broken())
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["reader", "reader/part"]


def test_write_json_keeps_unicode_and_order(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"z": "é", "a": 1})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "z": "é",\n  "a": 1\n}\n'


def test_a_directory_that_is_a_mount_is_written_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "mount"
    target.mkdir()
    rename = os.replace

    def of_one_disk(source: Path, to: Path) -> None:
        if Path(source).is_relative_to(target) != Path(to).is_relative_to(target):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, to)

    class Part:
        def save_pretrained(self, directory: Path) -> None:
            (directory / "part").write_text("whole")

    monkeypatch.setattr(os, "replace", of_one_disk)
    save_pretrained(target, Part())
    assert [path.name for path in target.iterdir()] == ["part"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),  # safetensors
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),  # torch
    ],
)
def test_whoever_writes_a_full_disk_is_named(error: Exception, tmp_path: Path) -> None:
    class Part:
        def save_pretrained(self, directory: Path) -> None:
            (directory / "half").write_text("ha")
            raise error

    with pytest.raises(WriteError, match=r"cannot write .*reader \(.*\): make room there or choose another place"):
        save_pretrained(tmp_path / "reader", Part())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match="a bug"):
        save_pretrained(tmp_path / "reader", type("Bug", (), {"save_pretrained": _bug})())


def _bug(*_: object) -> None:
    raise RuntimeError("a bug")
