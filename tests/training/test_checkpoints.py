"""Checkpoints: whole or not there, trusted only when they are what was written, and alone removed."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from haystack_distill.errors import DistilError
from haystack_distill.training.checkpoints import (
    Checkpoints,
    check_directory,
    directory_lock,
    problem_with,
    unfinished_run,
)
from haystack_distill.utils.atomic import write_json

RUN = "0123456789abcdef"
PARTS = ["model.safetensors", "optimizer.pt", "trainer_state.json", "complete"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run that was begun."""
    write_json(tmp_path / "out" / "checkpoints" / "run.json", {"run_id": RUN, "method": "train"})
    return tmp_path / "out" / "checkpoints"


def write(checkpoints: Checkpoints, step: int, best: int | None = None) -> None:
    written = checkpoints.staging / f"checkpoint-{step}"
    written.mkdir(parents=True)
    for name in PARTS[:-1]:
        (written / name).write_bytes(f"{name} at step {step}".encode() * 9)
    checkpoints.publish(step, best)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("keep", "best", "kept"),
    [
        (1, [None] * 4, ["checkpoint-4"]),
        (2, [None] * 4, ["checkpoint-3", "checkpoint-4"]),
        (1, [1, 1, 1, 1], ["checkpoint-1", "checkpoint-4"]),
        (2, [1, 2, 2, 2], ["checkpoint-2", "checkpoint-4"]),
        (3, [1, 1, 1, 1], ["checkpoint-1", "checkpoint-3", "checkpoint-4"]),
        (2, [1, 2, 3, 4], ["checkpoint-3", "checkpoint-4"]),
    ],
)
def test_the_newest_and_the_best_are_kept(folder: Path, keep: int, best: list[int | None], kept: list[str]) -> None:
    checkpoints = Checkpoints(folder, RUN, keep, best[0] is not None)
    for step in (1, 2, 3, 4):
        write(checkpoints, step, best[step - 1])
    assert names(folder) == kept
    assert checkpoints.newest() == folder / "checkpoint-4"


def test_an_old_one_is_there_until_the_new_one_is_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every renaming and every removal, a checkpoint can be used."""
    checkpoints = Checkpoints(folder, RUN, 1, False)
    write(checkpoints, 1)
    seen = []

    def look(call: Callable) -> Callable:
        def looking(*arguments: object, **named: object) -> object:
            result = call(*arguments, **named)
            seen.append([name for name in names(folder) if problem_with(folder / name, RUN) is None])
            return result

        return looking

    for name in ("os.replace", "os.fsync", "shutil.rmtree", "os.unlink"):
        module, function = name.split(".")
        monkeypatch.setattr(name, look(getattr(__import__(module), function)))
    write(checkpoints, 2)
    assert len(seen) > 6
    assert all(seen)
    assert names(folder) == ["checkpoint-2"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "empty"])
def test_a_damaged_one_is_not_trusted(folder: Path, part: str, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(folder, RUN, 2, False)
    write(checkpoints, 1)
    write(checkpoints, 2)
    path = folder / "checkpoint-2" / part
    content = path.read_bytes()
    flipped = bytes([content[30] ^ 1])
    damaged = {"cut": content[:-5], "flipped": content[:30] + flipped + content[31:], "empty": b""}
    path.write_bytes(damaged[damage]) if damage in damaged else path.unlink()
    assert checkpoints.newest() == folder / "checkpoint-1"
    assert f"checkpoint-2 {'has' if part == 'complete' or damage != 'missing' else 'lacks'}" in caplog.text
    assert part in caplog.text
    assert names(folder) == ["checkpoint-1"]  # what comes after it is done again

    path = folder / "checkpoint-1" / part
    path.write_bytes(b"")
    with pytest.raises(
        DistilError, match=f"no checkpoint in .* can be used .checkpoint-1 has .*{part}.*to start again"
    ):
        checkpoints.newest()
    assert names(folder) == ["checkpoint-1"]


def test_every_bit_of_the_list_of_files_counts(folder: Path) -> None:
    checkpoints = Checkpoints(folder, RUN, 1, True)
    write(checkpoints, 4, 4)
    marker = folder / "checkpoint-4" / "complete"
    content = marker.read_bytes()
    before = json.loads(content)
    for place in range(len(content)):
        marker.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            same = json.loads(marker.read_bytes()) == before  # white space
        except ValueError:
            same = False
        assert same or problem_with(folder / "checkpoint-4", RUN), place
    marker.write_bytes(content)
    assert problem_with(folder / "checkpoint-4", RUN) is None


def test_one_whose_best_is_lost_is_of_no_use(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(folder, RUN, 3, True)
    for step, best in ((1, 1), (2, 2), (3, 2)):
        write(checkpoints, step, best)
    (folder / "checkpoint-2" / "model.safetensors").unlink()
    with pytest.raises(DistilError, match=r"the best weights .* lacks model\.safetensors"):
        checkpoints.best(2)
    assert checkpoints.newest() == folder / "checkpoint-1"
    assert "checkpoint-3 needs the best one before it, and checkpoint-2 lacks model.safetensors" in caplog.text
    assert checkpoints.best(1) == folder / "checkpoint-1"


def test_one_of_another_run_is_not_trusted(folder: Path) -> None:
    write(Checkpoints(folder, "another", 2, False), 2)
    write(Checkpoints(folder, RUN, 2, False), 1)
    assert Checkpoints(folder, RUN, 2, False).newest() == folder / "checkpoint-1"


def test_what_is_not_ours_stays(folder: Path) -> None:
    checkpoints = Checkpoints(folder, RUN, 1, False)
    theirs = [folder / "checkpoint-1-backup" / "model.safetensors", folder / "epoch=3.ckpt", folder / "checkpoint-best"]
    for path in theirs:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    for step in (1, 2, 3):
        write(checkpoints, step)
    assert checkpoints.newest() == folder / "checkpoint-3"
    checkpoints.clear()
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted(theirs)


def test_a_folder_with_nothing_else_goes(folder: Path) -> None:
    checkpoints = Checkpoints(folder, RUN, 1, False)
    write(checkpoints, 1)
    checkpoints.clear()
    assert not folder.exists()


# --- the directory -----------------------------------------------------------------------------------------------


def test_checkpoints_of_something_else_are_in_the_way(tmp_path: Path) -> None:
    theirs = tmp_path / "checkpoints" / "checkpoint-4"
    theirs.mkdir(parents=True)
    for choice in ({"resume": True, "overwrite": False}, {"resume": False, "overwrite": True}):
        with pytest.raises(DistilError, match="checkpoint-4 was not written by a run of this package"):
            check_directory(tmp_path, **choice)
    assert theirs.exists()


@pytest.mark.parametrize("content", ["", '{"run_id"', "[]", '{"lr": 0.1}', "\xff"])
def test_a_run_file_of_something_else(tmp_path: Path, content: str) -> None:
    path = tmp_path / "checkpoints" / "run.json"
    path.parent.mkdir()
    path.write_text(content, encoding="latin-1")
    with pytest.raises(DistilError, match=r"run\.json is damaged or was not written by a run of this package"):
        unfinished_run(tmp_path)
    with pytest.raises(DistilError, match=r"run\.json is damaged"):
        check_directory(tmp_path, resume=True, overwrite=True)


def test_a_reader_is_not_written_over_without_a_word(tmp_path: Path) -> None:
    check_directory(tmp_path / "new", resume=False, overwrite=False)
    (tmp_path / "notes.txt").touch()
    check_directory(tmp_path, resume=False, overwrite=False)
    (tmp_path / "config.json").touch()
    for resume in (True, False):
        with pytest.raises(DistilError, match=r"holds a config\.json, which training would replace; add --overwrite"):
            check_directory(tmp_path, resume=resume, overwrite=False, remedies=("add --resume", "add --overwrite"))
    check_directory(tmp_path, resume=False, overwrite=True)


def _hold(directory: Path, pipe: Connection) -> None:
    with directory_lock(directory):
        pipe.send("held")
        pipe.recv()


def test_one_run_at_a_time_in_a_directory(tmp_path: Path) -> None:
    here, there = multiprocessing.Pipe()
    other = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path, there))
    other.start()
    assert here.recv() == "held"
    with pytest.raises(DistilError, match=f"another run is using {tmp_path}"), directory_lock(tmp_path):
        pass
    os.kill(other.pid or 0, signal.SIGKILL)
    other.join()
    with directory_lock(tmp_path):  # the system let go
        pass
    assert list(tmp_path.iterdir()) == []
