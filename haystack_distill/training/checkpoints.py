"""The checkpoints of a run: written atomically, verified before they are loaded, removed once the run has finished.

The files of an unfinished run in its output directory:

    checkpoints/
        run.json              the id and the record of the run
        checkpoint-<step>/    with the file `complete`: the run's id and the hashes of all other files
        .haystack-distill/    staging: checkpoints that are being written or removed

Other files in there may be the user's and are never touched. This module does not import torch, so that a command can
check a directory before anything is loaded.
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
UNFINISHED_RUN_FILE = "run.json"
COMPLETE = "complete"  # the last file that is written into a checkpoint
_STAGING = ".haystack-distill"
_LOCK = ".haystack-distill.lock"
_NAME = re.compile(r"checkpoint-(\d+)")
_READER_FILES = ("config.json", "model.safetensors", RUN_FILE)  # of a finished run, or of any saved reader


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: The directory of the checkpoints.
        run: The id of the run, which is stored in each checkpoint.
        keep: How many checkpoints are kept: the newest, the best, and the newest of the others.
        keep_best: Whether a checkpoint can only be used together with the best one so far.
    """

    def __init__(self, folder: Path, run: str, keep: int = 1, keep_best: bool = False) -> None:
        self.folder = folder
        self.run = run
        self.keep = keep
        self.keep_best = keep_best

    @property
    def staging(self) -> Path:
        """The directory in which a checkpoint is written before it is published, under its final name."""
        return self.folder / _STAGING

    def path(self, step: int) -> Path:
        """The directory of the checkpoint of a step."""
        return self.folder / f"checkpoint-{step}"

    def publish(self, step: int, best: int | None) -> None:
        """Move a checkpoint out of staging atomically, then remove those that need not be kept.

        Args:
            step: The step of the checkpoint.
            best: The step of the best checkpoint so far, this one included; None if the best is not kept.
        """
        written = self.staging / f"checkpoint-{step}"
        seal(written, self.run, best)
        if self.path(step).exists():  # a run that was killed after its last step saves it again
            shutil.rmtree(written)
            return
        os.replace(written, self.path(step))
        sync(self.folder)
        kept = {step} if best is None else {step, best}
        others = [other for other in reversed(_steps_in(self.folder)) if other not in kept]
        for other in others[max(0, self.keep - len(kept)) :]:
            self._remove(self.path(other))

    def any(self) -> bool:
        """Whether there are checkpoints, complete or not."""
        return bool(_steps_in(self.folder))

    def newest(self) -> Path | None:
        """The newest checkpoint that can be used, or None without checkpoints.

        Newer ones that cannot be used are removed, because their steps will be trained again.

        Raises:
            DistilError: There are checkpoints, but none of them can be used.
        """
        problems: dict[int, str] = {}
        for step in reversed(_steps_in(self.folder)):
            problem = self._problem(step)
            if problem is None:
                for damaged, why in problems.items():
                    logger.warning("%s %s; resuming from step %s instead", self.path(damaged), why, step)
                    self._remove(self.path(damaged))
                return self.path(step)
            problems[step] = problem
        if not problems:
            return None
        found = "; ".join(f"checkpoint-{step} {problem}" for step, problem in problems.items())
        raise DistilError(
            f"no checkpoint in {self.folder} can be used ({found}); restore the missing files, or remove {self.folder} "
            "to start again"
        )

    def best(self, step: int) -> Path:
        """The best checkpoint.

        Args:
            step: Its step.

        Raises:
            DistilError: It is missing or damaged.
        """
        problem = problem_with(self.path(step), self.run)
        if problem is not None:
            raise DistilError(
                f"the best weights cannot be loaded from {self.path(step)}, because it {problem}; restore it and "
                "resume the run, or resume the run without it, from an earlier checkpoint if there is one"
            )
        return self.path(step)

    def clear(self) -> None:
        """Remove the files of the run, and the folder if nothing else is in it."""
        for step in _steps_in(self.folder):
            self._remove(self.path(step))
        self.clear_staging()
        (self.folder / UNFINISHED_RUN_FILE).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds files of the user's, or does not exist
            self.folder.rmdir()

    def clear_staging(self) -> None:
        """Remove what a killed run left in staging."""
        if self.staging.exists():
            shutil.rmtree(self.staging)

    def _problem(self, step: int) -> str | None:
        problem = problem_with(self.path(step), self.run)
        if problem is None and self.keep_best:
            best = _marker(self.path(step))["best"]
            before = None if best == step else problem_with(self.path(best), self.run)
            problem = before and f"needs the best one before it, and checkpoint-{best} {before}"
        return problem

    def _remove(self, checkpoint: Path) -> None:
        """Move a checkpoint to staging and delete it there: under its own name it is always complete."""
        self.staging.mkdir(exist_ok=True)
        removed = self.staging / f"removed-{secrets.token_hex(4)}"
        os.replace(checkpoint, removed)
        shutil.rmtree(removed)


def seal(checkpoint: Path, run: str, best: int | None) -> None:
    """Flush the files of a checkpoint to disk, then write the file `complete` with their sizes and hashes.

    Args:
        checkpoint: The directory of the checkpoint.
        run: The id of the run.
        best: The step of the best checkpoint so far, or None.
    """
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    for path in files:
        sync(path)
    for folder in {path.parent for path in files} - {checkpoint}:
        sync(folder)
    hashes = {path.relative_to(checkpoint).as_posix(): [path.stat().st_size, hash_file(path)] for path in files}
    content = {"run": run, "best": best, "files": hashes}
    write_json(checkpoint / COMPLETE, {"content": content, "sha256": hash_json(content)})


def problem_with(checkpoint: Path, run: str) -> str | None:
    """Why a checkpoint cannot be used, as a verb phrase that follows its name; None if it can."""
    try:
        content = _marker(checkpoint)
    except (OSError, ValueError, KeyError, TypeError):
        missing = not (checkpoint / COMPLETE).exists()
        return f"has no file {COMPLETE!r}" if missing else f"has a damaged file {COMPLETE!r}"
    if content["run"] != run:
        return "belongs to another run"
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
    """The steps of the checkpoints in a folder, in order; `checkpoint-4-backup` does not count."""
    names = (_NAME.fullmatch(path.name) for path in folder.glob("checkpoint-*") if path.is_dir())
    return sorted(int(name[1]) for name in names if name)


def clear_finished(directory: Path) -> None:
    """Remove the checkpoints of a run that was killed after its result was written."""
    unfinished, finished = unfinished_run(directory), finished_run(directory)
    if unfinished is not None and finished is not None and unfinished["run_id"] == finished["run_id"]:
        Checkpoints(directory / FOLDER, unfinished["run_id"]).clear()


def unfinished_run(directory: Path) -> dict[str, Any] | None:
    """The record of the unfinished run in an output directory, or None.

    Raises:
        DistilError: The file of the record is damaged, or was not written by this package.
    """
    path = directory / FOLDER / UNFINISHED_RUN_FILE
    record = _record_of(path)
    if record is None and path.exists():
        raise DistilError(
            f"{path} is damaged or was not written by a run of this package; choose another output directory, or move "
            f"{path.parent} away"
        )
    return record


def finished_run(directory: Path) -> dict[str, Any] | None:
    """The record of the finished run in an output directory, or None."""
    record = _record_of(directory / RUN_FILE)
    return record if record is not None and {"history", "weights"} <= record.keys() else None


def _record_of(path: Path) -> dict[str, Any] | None:
    """The record of a run in a file, or None if there is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"run_id", "method"} <= record.keys() else None


def check_directory(
    directory: Path,
    *,
    resume: bool,
    overwrite: bool,
    remedies: tuple[str, str] = ("set resume=True", "set overwrite=True"),
) -> None:
    """Check that a run may use an output directory.

    Args:
        directory: The output directory; it need not exist.
        resume: Whether an unfinished run in it may be resumed.
        overwrite: Whether its content may be replaced.
        remedies: How the caller sets `resume` and `overwrite`, for the error messages.

    Raises:
        DistilError: Content of the directory would be lost.
    """
    set_resume, set_overwrite = remedies
    unfinished, finished = unfinished_run(directory), finished_run(directory)
    if unfinished is not None and finished is not None and unfinished["run_id"] == finished["run_id"]:
        unfinished = None  # it was killed just before its checkpoints were removed
    elif unfinished is None and _steps_in(directory / FOLDER):
        first = directory / FOLDER / f"checkpoint-{_steps_in(directory / FOLDER)[0]}"
        raise DistilError(
            f"{first} was not written by a run of this package, which would write to the same place; choose another "
            "output directory, or move it away"
        )
    if overwrite:
        return
    if unfinished is not None and not resume and _steps_in(directory / FOLDER):
        raise DistilError(
            f"{directory} holds the checkpoints of a run that did not finish; {set_resume} to resume it, or "
            f"{set_overwrite} to start again"
        )
    there = next((name for name in _READER_FILES if (directory / name).exists()), None)
    if there is None or (resume and (unfinished is not None or finished is not None)):
        return
    if finished is not None:
        raise DistilError(
            f"{directory} holds the result of a finished run; {set_overwrite} to train again and replace it, "
            f"{set_resume} to load it if it is the result of the same run, or choose another output directory"
        )
    raise DistilError(
        f"{directory} holds a {there}, which training would replace; {set_overwrite} to allow it, or choose another "
        "output directory"
    )


@contextlib.contextmanager
def directory_lock(directory: Path) -> Iterator[None]:
    """Lock a directory against other runs; the operating system releases the lock if this process dies.

    Raises:
        DistilError: Another run is using the directory, or it cannot be written to.
    """
    lock = FileLock(directory / _LOCK)
    with writing(directory):
        created = not directory.exists()
        directory.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise DistilError(
                f"another run is using {directory}; wait until it has finished, or choose another output directory"
            ) from None
    try:
        yield
    finally:
        (directory / _LOCK).unlink(missing_ok=True)
        if created:  # a run that failed before it wrote anything leaves no empty directory
            with contextlib.suppress(OSError):
                directory.rmdir()
        lock.release()
