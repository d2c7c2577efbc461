"""The checkpoints of a run: whole or not there, checked before one is trusted, and removed when they have served.

What a run leaves in its directory while it lasts:

    checkpoints/
        run.json              which run this is, and what it was made from
        checkpoint-<step>/    with `complete` in it: the run's id and the hashes of all other files
        .haystack-distill/    what is being written or removed

Nothing else in there is touched: it may be the user's. This module imports no torch, so that a command can look at a
directory before anything is loaded.
"""

import contextlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from haystack_distill.errors import DistilError
from haystack_distill.utils.atomic import sync, write_json
from haystack_distill.utils.files import writing
from haystack_distill.utils.hashing import hash_file, hash_json
from haystack_distill.utils.model_files import RUN_FILE

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
BEGUN_FILE = "run.json"
COMPLETE = "complete"  # written last into a checkpoint
_ASIDE = ".haystack-distill"
_LOCK = ".haystack-distill.lock"
_NAME = re.compile(r"checkpoint-(\d+)")
_READER_FILES = ("config.json", "model.safetensors", RUN_FILE)  # what a finished run writes, and a reader has


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Where they are.
        run: The run's id, which each of them bears.
        keep: How many are kept: the newest, the best, and the newest of the others.
        keep_best: Whether a checkpoint is of use only together with the best one so far.
    """

    def __init__(self, folder: Path, run: str, keep: int = 1, keep_best: bool = False) -> None:
        self.folder = folder
        self.run = run
        self.keep = keep
        self.keep_best = keep_best

    @property
    def aside(self) -> Path:
        """Where a checkpoint is written, under the name that it will have."""
        return self.folder / _ASIDE

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.folder / f"checkpoint-{step}"

    def publish(self, step: int, best: int | None) -> None:
        """Let a checkpoint that was written aside appear as a whole, then remove those that are not kept.

        Args:
            step: Whose it is.
            best: The step of the best checkpoint so far, this one included; None where none is chosen.
        """
        written = self.aside / f"checkpoint-{step}"
        seal(written, self.run, best)
        if self.path(step).exists():  # a run that was killed after its last step saves that step again
            shutil.rmtree(written)
            return
        os.replace(written, self.path(step))
        sync(self.folder)
        kept = {step} if best is None else {step, best}
        others = [other for other in reversed(_steps_in(self.folder)) if other not in kept]
        for other in others[max(0, self.keep - len(kept)) :]:
            self._remove(self.path(other))

    def any(self) -> bool:
        """Whether there are checkpoints, whole or not."""
        return bool(_steps_in(self.folder))

    def newest(self) -> Path | None:
        """The newest checkpoint that can be used; newer ones are removed, for their steps are done again.

        Raises:
            DistilError: There are checkpoints, and none of them can be used.
        """
        problems: dict[int, str] = {}
        for step in reversed(_steps_in(self.folder)):
            problem = self._problem(step)
            if problem is None:
                for damaged, why in problems.items():
                    logger.warning("%s %s; going on from step %s instead", self.path(damaged), why, step)
                    self._remove(self.path(damaged))
                return self.path(step)
            problems[step] = problem
        if not problems:
            return None
        found = "; ".join(f"checkpoint-{step} {problem}" for step, problem in problems.items())
        raise DistilError(
            f"no checkpoint in {self.folder} can be used: {found}. Put back what is missing, or remove {self.folder} "
            "to start again"
        )

    def best(self, step: int) -> Path:
        """The best checkpoint, which is that of a step.

        Raises:
            DistilError: It is not whole.
        """
        problem = problem_with(self.path(step), self.run)
        if problem is not None:
            raise DistilError(
                f"the best weights cannot be taken from {self.path(step)}: it {problem}. Put it back and resume the "
                "run, or resume it without: it continues from an earlier checkpoint, if there is one"
            )
        return self.path(step)

    def clear(self) -> None:
        """Remove what the run wrote in here, and the folder if nothing else is in it."""
        for step in _steps_in(self.folder):
            self._remove(self.path(step))
        self.clear_aside()
        (self.folder / BEGUN_FILE).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something of the user's is in there, or it was never made
            self.folder.rmdir()

    def clear_aside(self) -> None:
        """Remove what a killed run was writing or removing."""
        if self.aside.exists():
            shutil.rmtree(self.aside)

    def _problem(self, step: int) -> str | None:
        problem = problem_with(self.path(step), self.run)
        if problem is None and self.keep_best:
            best = _marker(self.path(step))["best"]
            before = None if best == step else problem_with(self.path(best), self.run)
            problem = before and f"needs the best one before it, and checkpoint-{best} {before}"
        return problem

    def _remove(self, checkpoint: Path) -> None:
        """Under its name a checkpoint is whole, so it leaves that name first."""
        self.aside.mkdir(exist_ok=True)
        aside = self.aside / f"removed-{secrets.token_hex(4)}"
        os.replace(checkpoint, aside)
        shutil.rmtree(aside)


def seal(checkpoint: Path, run: str, best: int | None) -> None:
    """Put a checkpoint's files on the disk, and last the file that says which they are."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    for path in files:
        sync(path)
    for folder in {path.parent for path in files} - {checkpoint}:
        sync(folder)
    hashes = {path.relative_to(checkpoint).as_posix(): [path.stat().st_size, hash_file(path)] for path in files}
    content = {"run": run, "best": best, "files": hashes}
    write_json(checkpoint / COMPLETE, {"content": content, "sha256": hash_json(content)})


def problem_with(checkpoint: Path, run: str) -> str | None:
    """Why a checkpoint cannot be used, in words that follow its name, or None."""
    try:
        content = _marker(checkpoint)
    except (OSError, ValueError, KeyError, TypeError):
        missing = not (checkpoint / COMPLETE).exists()
        return f"has no file {COMPLETE!r}" if missing else f"has a damaged file {COMPLETE!r}"
    if content["run"] != run:
        return "is of another run"
    for name, (size, digest) in content["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return f"lacks {name}"
        if path.stat().st_size != size:
            return f"has {path.stat().st_size} of the {size} bytes of {name}"
        if hash_file(path) != digest:
            return f"has a damaged {name}"
    return None


def _marker(checkpoint: Path) -> dict[str, Any]:
    marker = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
    content: dict[str, Any] = marker["content"]
    if marker["sha256"] != hash_json(content):
        raise ValueError("damaged")
    return content


def _steps_in(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, in order; `checkpoint-4-backup` is none."""
    names = (_NAME.fullmatch(path.name) for path in folder.glob("checkpoint-*") if path.is_dir())
    return sorted(int(name[1]) for name in names if name)


def clear_finished(directory: Path) -> None:
    """Remove the checkpoints of a run that was killed when its result was written."""
    begun, finished = unfinished_run(directory), finished_run(directory)
    if begun is not None and finished is not None and begun["run_id"] == finished["run_id"]:
        Checkpoints(directory / FOLDER, begun["run_id"]).clear()


def unfinished_run(directory: Path) -> dict[str, Any] | None:
    """What the run was begun with that an output directory holds and that did not finish, or None.

    Raises:
        DistilError: The file that says so is damaged, or is not ours.
    """
    path = directory / FOLDER / BEGUN_FILE
    record = _record_of(path)
    if record is None and path.exists():
        raise DistilError(
            f"{path} is damaged or was not written by a run of this package: choose another output directory, or move "
            f"{path.parent} away"
        )
    return record


def finished_run(directory: Path) -> dict[str, Any] | None:
    """The record of the finished run whose result an output directory holds, or None."""
    record = _record_of(directory / RUN_FILE)
    return record if record is not None and {"history", "weights"} <= record.keys() else None


def _record_of(path: Path) -> dict[str, Any] | None:
    """What a file says of a run, if it is a whole file of ours."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"run_id", "method"} <= record.keys() else None


def check_directory(
    directory: Path, *, resume: bool, overwrite: bool, say: tuple[str, str] = ("set resume=True", "set overwrite=True")
) -> None:
    """Check that a run may work in an output directory.

    Args:
        directory: The output directory; it need not exist.
        resume: Whether the run may go on with an unfinished run there.
        overwrite: Whether it may replace what is there.
        say: What to do to say the one and the other, where this is called.

    Raises:
        DistilError: Something there would be lost.
    """
    begun, finished = unfinished_run(directory), finished_run(directory)
    if begun is not None and finished is not None and begun["run_id"] == finished["run_id"]:
        begun = None  # it was killed at its very end
    elif begun is None and _steps_in(directory / FOLDER):
        first = directory / FOLDER / f"checkpoint-{_steps_in(directory / FOLDER)[0]}"
        raise DistilError(
            f"{first} is not of a run of this package, and would be in the way: choose another output directory, or "
            "move it away"
        )
    if overwrite:
        return
    if begun is not None and not resume and _steps_in(directory / FOLDER):
        raise DistilError(
            f"{directory} holds the checkpoints of a run that did not finish: {say[0]} to go on with it, or "
            f"{say[1]} to start again"
        )
    there = next((name for name in _READER_FILES if (directory / name).exists()), None)
    if there is None or (resume and (begun is not None or finished is not None)):
        return
    if finished is not None:
        raise DistilError(
            f"{directory} holds the result of a finished run: {say[1]} to train anew in its place, {say[0]} to take "
            "the result as it is if it is of the same run, or choose another output directory"
        )
    raise DistilError(
        f"{directory} holds a {there}, which training would replace: {say[1]} if it may, or choose another output "
        "directory"
    )


@contextlib.contextmanager
def directory_lock(directory: Path) -> Iterator[None]:
    """Keep other runs out of a directory meanwhile; the system lets go when this process dies.

    Raises:
        DistilError: Another run is at work there, or the directory cannot be written to.
    """
    lock = FileLock(directory / _LOCK)
    with writing(directory):
        made = not directory.exists()
        directory.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise DistilError(
                f"another run is at work in {directory}: wait until it is done, or choose another output directory"
            ) from None
    try:
        yield
    finally:
        (directory / _LOCK).unlink(missing_ok=True)
        if made:  # a run that failed before it wrote anything leaves nothing; one that wrote something, all of it
            with contextlib.suppress(OSError):
                directory.rmdir()
        lock.release()
