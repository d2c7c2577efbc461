"""The output directory of a run: starting, resuming or restoring the run, and saving its result."""

import contextlib
import json
import logging
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors import SafetensorError
from transformers import PreTrainedModel

from haystack_distill.errors import DistilError
from haystack_distill.models.heads import Heads
from haystack_distill.models.reader import Reader
from haystack_distill.models.trained_weights import restore_trained
from haystack_distill.training.checkpoints import (
    FOLDER,
    UNFINISHED_RUN_FILE,
    Checkpoints,
    check_directory,
    clear_finished,
    directory_lock,
    finished_run,
    unfinished_run,
)
from haystack_distill.training.run_record import head_names, not_comparable, require_same_run, versions
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.utils.atomic import write_json
from haystack_distill.utils.files import temporary_directory_errors
from haystack_distill.utils.hashing import hash_file, hash_json
from haystack_distill.utils.model_files import HEADS_FOLDER, RUN_FILE, TRAINED_RECORD, TRAINED_WEIGHTS
from haystack_distill.utils.model_fingerprint import student_record
from haystack_distill.utils.processes import run_on_main_process
from haystack_distill.utils.transformers_compat import load_model

logger = logging.getLogger(__name__)

# The record of a student as it was before its run, by the hash of its record after that run. A student in memory may be
# passed in again, trained or half trained, to resume the run: its record must then be that of the untrained student.
_INITIAL_STUDENTS: dict[str, Any] = {}


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        steps: Optimiser steps.
        seconds: The time from reading the data to the end, including the teacher.
        metrics: SQuAD metrics of the finished student on the dev data; empty without dev data.
        history: The log, one dictionary per entry: loss components, learning rate, evaluation metrics.
        directory: Where the student was saved, or None.
        trained: The number of weights that the optimiser has changed, those of projections and filters included; None
            for a finished run of a version that did not count them.
        heads: A reader for each head that sources of the data have of their own, by its name; they share the encoder of
            the student. Each is saved in `heads/<name>` of the directory.
    """

    steps: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    directory: Path | None = None
    trained: int | None = None
    heads: dict[str, Reader] = field(default_factory=dict)


class RunDirectory:
    """The directory a run writes to: its output directory, or a temporary one that is removed when the run ends.

    Use it as a context manager around the run: no other run can use the directory until the context ends.

    Args:
        output_dir: Where checkpoints, log and the finished model go, or None.
        record: Everything that decides the result, as JSON holds it. A run is only resumed with an equal record.
        settings: See `TrainingSettings`.
        processes: This process, or all that `accelerate launch` started.

    Attributes:
        settings: The settings to train with. A run without an output directory cannot be resumed, so it writes no
            checkpoints, unless `keep_best` restores the best weights from one.
        finished: The record of this run where it is to be resumed but has finished already; see `restore`.

    Raises:
        DistilError: Another run is using the directory, the directory has content that may be neither resumed nor
            overwritten, the run there is a different one, or a setting needs an output directory.
    """

    def __init__(
        self, output_dir: Path | None, record: dict[str, Any], settings: TrainingSettings, processes: PartialState
    ) -> None:
        self.record = record
        self.processes = processes
        self.temporary = output_dir is None
        self.settings = settings
        self.finished: dict[str, Any] | None = None
        self._lock = contextlib.ExitStack()
        if output_dir is not None:
            self.path = output_dir
            try:
                # Only the main process reads and writes the directory.
                self.run_id, self.finished = run_on_main_process(lambda: self._start(settings), processes)
            except BaseException:
                self._lock.close()
                raise
            return
        if settings.resume:
            raise DistilError("resume=True needs an output_dir to resume from; set one")
        if settings.tensorboard:
            raise DistilError("tensorboard=True needs an output_dir to write to; set one")
        if settings.checkpoint_every not in ("auto", None) and not settings.keep_best:
            raise DistilError("checkpoint_every needs an output_dir to write checkpoints to; set one")
        if processes.num_processes > 1:
            raise DistilError("a run of several processes needs an output_dir that they share; set one")
        if not settings.keep_best:
            self.settings = replace(settings, checkpoint_every=None)
        with temporary_directory_errors():
            self.path = Path(tempfile.mkdtemp(prefix="haystack-distill-"))
        self.run_id = secrets.token_hex(8)

    def _start(self, settings: TrainingSettings) -> tuple[str, dict[str, Any] | None]:
        """The id of the run that is started or resumed, and its record if it has finished."""
        self._lock.enter_context(directory_lock(self.path))
        check_directory(self.path, resume=settings.resume, overwrite=settings.overwrite)
        clear_finished(self.path)
        unfinished, finished = unfinished_run(self.path), finished_run(self.path)
        if settings.resume and unfinished is not None and self._checkpoints_of(unfinished["run_id"]).any():
            self._restore_student_record(unfinished)
            require_same_run(f"cannot resume the run in {self.path}", unfinished, self.record)
            self._checkpoints_of(unfinished["run_id"]).clear_staging()
            return unfinished["run_id"], None
        if settings.resume and unfinished is not None and self._is_of(unfinished):
            raise DistilError(
                f"the student has the weights of the run in {self.path}, which stopped before its first checkpoint; "
                "pass the student as it was at the start, or train it further without resume and with overwrite"
            )
        if settings.resume and unfinished is not None and not settings.overwrite and not self._has_begun(unfinished):
            # Another run, which stopped before its first checkpoint. What it was allowed to replace, this one is not.
            self._checkpoints_of(unfinished["run_id"]).clear()
            check_directory(self.path, resume=True, overwrite=False)
            unfinished = None
        if settings.resume and unfinished is None and finished is not None:
            own = self.record
            self._restore_student_record(finished)
            try:
                require_same_run(f"the finished run in {self.path} is a different one", finished, self.record)
                return finished["run_id"], finished
            except DistilError:
                if not settings.overwrite:
                    raise
                self.record = own  # a new run, which starts from the student as it is now
        rewrite = settings.resume and unfinished is not None  # those of a run that was killed while it saved its result
        for name in head_names(self.record):
            check_directory(self.path / HEADS_FOLDER / name, resume=False, overwrite=rewrite or settings.overwrite)
        if unfinished is not None:
            self._checkpoints_of(unfinished["run_id"]).clear()
        run_id = secrets.token_hex(8)
        write_json(self.path / FOLDER / UNFINISHED_RUN_FILE, {"run_id": run_id} | self.record)
        self._checkpoints_of(run_id).clear_staging()
        for place, why in not_comparable(self.record):
            logger.warning("the run in %s cannot be resumed if it stops: its %s is %s", self.path, place, why)
        return run_id, None

    def _has_begun(self, before: dict[str, Any]) -> bool:
        """Whether another start of this run wrote a record."""
        try:
            require_same_run("", before, self.record)
        except DistilError:
            return False
        return True

    def _restore_student_record(self, before: dict[str, Any]) -> None:
        """Record the initial student where the student has the weights that this run left: they will be replaced."""
        if self._is_of(before):
            self.record = self.record | {"student": before["student"]}

    def _is_of(self, before: dict[str, Any]) -> bool:
        """Whether the student has weights that another run left, and not those that it began with."""
        initial = _INITIAL_STUDENTS.get(hash_json(self.record["student"]))
        own = json.loads(json.dumps(self.record["student"]))
        return initial is not None and json.loads(json.dumps(initial)) == before.get("student") != own

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of the run, which exist until it has finished."""
        return self._checkpoints_of(self.run_id)

    def _checkpoints_of(self, run_id: str) -> Checkpoints:
        return Checkpoints(self.path / FOLDER, run_id, self.settings.keep_checkpoints, self.settings.keep_best)

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        if self.temporary:
            shutil.rmtree(self.path)
        self._lock.close()

    def restore(self, model: PreTrainedModel, heads: Heads | None = None) -> RunResult:
        """Load the weights of the finished run into a model.

        Args:
            model: The student's model.
            heads: Its heads, where sources of the data have their own.

        Returns:
            The result of the run.

        Raises:
            DistilError: The weights in the directory are not those that the run saved.
        """
        assert self.finished is not None
        problem = f"the weights in {self.path} are not those that the finished run saved there"
        remedy = "restore them, or train again with overwrite and without resume"
        if self.finished["weights"] != _weight_hashes(self.path, head_names(self.finished)):
            raise DistilError(f"{problem}; {remedy}")
        logger.info("the run in %s has finished already; its result is returned", self.path)
        try:
            if (self.path / TRAINED_RECORD).exists():
                restore_trained(model, self.path)
            else:
                weights = load_model(type(model), str(self.path))[0].state_dict()
                model.load_state_dict({name: weights[name] for name in model.state_dict()})
            if heads is not None:
                heads.restore(self.path)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise DistilError(f"{problem} ({error}); {remedy}") from error
        model.eval()
        names = ("steps", "seconds", "metrics", "history")
        values = {name: self.finished[name] for name in names}
        return RunResult(**values, directory=self.path, trained=self.finished.get("trained"))

    def finish(self, result: RunResult, save: Callable[[Path], Sequence[str]]) -> RunResult:
        """Save the model and the record of the run, then remove its checkpoints.

        What the finished run that was there before left beside its model is removed where this one has no such thing.

        Args:
            result: The result of the run.
            save: Saves the model to a directory, and returns the names of the files for a later run.

        Returns:
            The result with the directory in it.
        """
        if self.temporary:
            return result
        self.processes.wait_for_everyone()  # until no process needs a checkpoint any more
        if self.processes.is_main_process:
            left, names, before = save(self.path), head_names(self.record), finished_run(self.path) or {}
            for name in set(head_names(before)) - set(names):
                shutil.rmtree(self.path / HEADS_FOLDER / name, ignore_errors=True)
            for name in set(before.get("left", ())) - set(left):
                (self.path / Path(name).name).unlink(missing_ok=True)
            finished = {
                "run_id": self.run_id,
                "status": "finished",
                "versions": versions(),
                "weights": _weight_hashes(self.path, names),
                "metrics": result.metrics,
                "steps": result.steps,
                "seconds": result.seconds,
                "trained": result.trained,
                "left": list(left),
            }
            write_json(self.path / RUN_FILE, self.record | finished | {"history": result.history})
            self.checkpoints.clear()
        self.processes.wait_for_everyone()  # until the model can be loaded
        return replace(result, directory=self.path)


def _weight_hashes(directory: Path, heads: Sequence[str] = ()) -> dict[str, str]:
    """SHA-256 of each weight file of a saved model, by file name, and of the readers of its heads."""
    files: list[Path] = []
    for folder in (directory, *(directory / HEADS_FOLDER / name for name in heads)):
        files += [*folder.glob("model*.safetensors"), *folder.glob(TRAINED_WEIGHTS)]
    return {path.relative_to(directory).as_posix(): hash_file(path) for path in sorted(files)}


@contextlib.contextmanager
def remember_initial_student(student: PreTrainedModel, directory: RunDirectory) -> Iterator[None]:
    """Remember the initial student when a run ends or stops: the trained one may be passed in again to resume."""
    try:
        yield
    finally:
        # Of several processes, one may be the only one with an error, and sharded weights need all of them.
        if not directory.temporary and directory.processes.num_processes == 1:
            with contextlib.suppress(RuntimeError):  # a device that failed; the first error is the one to report
                _INITIAL_STUDENTS[hash_json(student_record(student))] = directory.record["student"]
