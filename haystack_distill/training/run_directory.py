"""A run and its directory: what it was made from, whether it may go on, and what it leaves behind."""

import contextlib
import json
import logging
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import PreTrainedModel

from haystack_distill.errors import DistilError
from haystack_distill.training.checkpoints import (
    BEGUN_FILE,
    FOLDER,
    Checkpoints,
    check_directory,
    clear_finished,
    directory_lock,
    finished_run,
    unfinished_run,
)
from haystack_distill.training.settings import TrainingSettings
from haystack_distill.utils.atomic import write_json
from haystack_distill.utils.code_fingerprint import NotComparable, code_fingerprint
from haystack_distill.utils.files import temporary_directory_errors
from haystack_distill.utils.hashing import hash_file, hash_json
from haystack_distill.utils.model_files import RUN_FILE
from haystack_distill.utils.model_fingerprint import student_record
from haystack_distill.utils.processes import run_on_main_process
from haystack_distill.utils.transformers_compat import load_model

logger = logging.getLogger(__name__)

NOT_COMPARABLE = "not comparable: "  # begins a value of a record that cannot say what it was, followed by why
NOT_RECORDED = "not recorded"  # stands for what an older record, or a newer one, does not have
_HASH = re.compile(r"[0-9a-f]{64}")
# How students began, by a hash over how a run left them: class, configuration and weights.
_LEFT_BY_RUNS: dict[str, Any] = {}


@dataclass(frozen=True)
class RunResult:
    """What came of a run.

    Attributes:
        steps: Optimiser steps.
        seconds: From reading the data to the end, teacher included.
        metrics: SQuAD metrics of the finished student on the dev data; empty without dev data.
        history: The log, one dictionary an entry: losses by part, learning rate, evaluations.
        directory: Where the student was saved, or None.
    """

    steps: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    directory: Path | None = None


class RunDirectory:
    """Where a run works: the output directory, or without one a temporary directory that goes when the run ends.

    Use it as a context manager around the run: until its end no other run can work in the directory.

    Args:
        output_dir: Where checkpoints, log and the finished model go, or None.
        record: Everything that decides the result, as JSON holds it. An unfinished run goes on only with the same.
        settings: See `TrainingSettings`.
        processes: This process, or all that `accelerate launch` began.

    Attributes:
        settings: What to train with. A run without an output directory could not be resumed, so it writes no
            checkpoints, unless `keep_best` takes the model from one.
        checkpoints: The run's checkpoints.
        finished: The record of this very run, where it is finished and was to be resumed; see `restore`.

    Raises:
        DistilError: Another run is at work there, what is there is not to be resumed or overwritten or was begun
            otherwise, or a setting needs an output directory.
    """

    def __init__(
        self, output_dir: Path | None, record: dict[str, Any], settings: TrainingSettings, processes: PartialState
    ) -> None:
        self.record = record
        self.processes = processes
        self.temporary = output_dir is None
        self.settings = settings
        self.finished: dict[str, Any] | None = None
        self._held = contextlib.ExitStack()
        if output_dir is not None:
            self.path = output_dir
            try:
                # The main process looks after the directory for all.
                self.run_id, self.finished = run_on_main_process(lambda: self._begin(settings), processes)
            except BaseException:
                self._held.close()
                raise
            return
        if settings.resume:
            raise DistilError("resume needs an output_dir to resume from")
        if settings.tensorboard:
            raise DistilError("tensorboard=True needs an output_dir to write to")
        if settings.checkpoint_every not in ("auto", None) and not settings.keep_best:
            raise DistilError("checkpoint_every needs an output_dir to write checkpoints to")
        if processes.num_processes > 1:
            raise DistilError("several processes need an output_dir to share")
        if not settings.keep_best:
            self.settings = replace(settings, checkpoint_every=None)
        with temporary_directory_errors():
            self.path = Path(tempfile.mkdtemp(prefix="haystack-distill-"))
        self.run_id = secrets.token_hex(8)

    def _begin(self, settings: TrainingSettings) -> tuple[str, dict[str, Any] | None]:
        """The id of the run that is begun or resumed, and its record if it is finished."""
        self._held.enter_context(directory_lock(self.path))
        check_directory(self.path, resume=settings.resume, overwrite=settings.overwrite)
        clear_finished(self.path)
        begun, finished = unfinished_run(self.path), finished_run(self.path)
        if settings.resume and begun is not None and self._of(begun["run_id"]).any():
            self._take_back_student(begun)
            require_same_run(f"cannot resume the run in {self.path}", begun, self.record)
            self._of(begun["run_id"]).clear_aside()
            return begun["run_id"], None
        if settings.resume and begun is None and finished is not None:
            own = self.record
            self._take_back_student(finished)
            try:
                require_same_run(f"the finished run in {self.path} is another one", finished, self.record)
                return finished["run_id"], finished
            except DistilError:
                if not settings.overwrite:
                    raise
                self.record = own  # another run, then, which begins with the student as it is
        if begun is not None:
            self._of(begun["run_id"]).clear()
        run_id = secrets.token_hex(8)
        write_json(self.path / FOLDER / BEGUN_FILE, {"run_id": run_id} | self.record)
        self._of(run_id).clear_aside()
        for place, _, why in _not_comparable(self.record):
            logger.warning("the run in %s cannot be resumed if it stops: its %s is %s", self.path, place, why)
        return run_id, None

    def _take_back_student(self, before: dict[str, Any]) -> None:
        """Record a student that is still as this run left it as it began: the run puts its weights back."""
        began = _LEFT_BY_RUNS.get(hash_json(self.record["student"]))
        if began is not None and json.loads(json.dumps(began)) == before.get("student"):
            self.record = self.record | {"student": began}

    @property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints while it lasts."""
        return self._of(self.run_id)

    def _of(self, run_id: str) -> Checkpoints:
        return Checkpoints(self.path / FOLDER, run_id, self.settings.keep_checkpoints, self.settings.keep_best)

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        if self.temporary:
            shutil.rmtree(self.path)
        self._held.close()

    def restore(self, model: PreTrainedModel) -> RunResult:
        """Give a model the weights of the finished run; return the run's result.

        Raises:
            DistilError: The weights are not those that the run wrote.
        """
        assert self.finished is not None
        problem = f"the weights in {self.path} are not those that the finished run there wrote"
        remedy = "put them back, or train anew with overwrite and without resume"
        if self.finished["weights"] != _weights_in(self.path):
            raise DistilError(f"{problem}; {remedy}")
        logger.info("the run in %s is finished: its result is taken as it is", self.path)
        try:
            weights = load_model(type(model), str(self.path))[0].state_dict()
            model.load_state_dict({name: weights[name] for name in model.state_dict()})
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise DistilError(f"{problem} ({error}); {remedy}") from error
        model.eval()
        names = ("steps", "seconds", "metrics", "history")
        return RunResult(**{name: self.finished[name] for name in names}, directory=self.path)

    def finish(self, result: RunResult, save: Callable[[Path], object]) -> RunResult:
        """Let `save` write the model, write the run's record, remove the checkpoints: they have served."""
        if self.temporary:
            return result
        self.processes.wait_for_everyone()  # until nobody needs a checkpoint any more
        if self.processes.is_main_process:
            save(self.path)
            finished = {
                "run_id": self.run_id,
                "status": "finished",
                "versions": versions(),
                "weights": _weights_in(self.path),
                "metrics": result.metrics,
                "steps": result.steps,
                "seconds": result.seconds,
            }
            write_json(self.path / RUN_FILE, self.record | finished | {"history": result.history})
            self.checkpoints.clear()
        self.processes.wait_for_everyone()  # until the model is there to be loaded
        return replace(result, directory=self.path)


def _weights_in(directory: Path) -> dict[str, str]:
    """The hashes of a model's files of weights."""
    return {path.name: hash_file(path) for path in sorted(directory.glob("model*.safetensors"))}


def versions(*more: str) -> dict[str, str]:
    """Versions of what a result depends on, and of the packages named."""
    try:
        own = version("haystack-distill")
    except PackageNotFoundError:
        own = "not installed"
    return {
        "haystack-distill": own,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "datasets": datasets.__version__,
        **{name: version(name) for name in more},
    }


def settings_record(settings: TrainingSettings) -> dict[str, Any]:
    """The settings that decide the weights; how a run is shown or kept may change when it is resumed."""
    shown = ("resume", "overwrite", "progress", "tensorboard", "log_every", "keep_checkpoints", "checkpoint_every")
    decisive = asdict(settings) | {"evaluate_every": settings.evaluation_interval}
    return {name: value for name, value in decisive.items() if name not in shown}


def recorded(arguments: dict[str, Any]) -> dict[str, Any]:
    """A method's arguments as JSON can hold them; a function by its name."""
    return {name: _name(value) if callable(value) else value for name, value in arguments.items()}


def code_of(arguments: dict[str, Any]) -> dict[str, str]:
    """Fingerprints of the functions among a method's arguments."""
    return {name: _fingerprint(value) for name, value in arguments.items() if callable(value)}


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _fingerprint(function: Callable[..., Any]) -> str:
    try:
        return code_fingerprint(function)
    except NotComparable as error:
        return f"{NOT_COMPARABLE}{error}"


@contextlib.contextmanager
def student_may_come_back(student: PreTrainedModel, directory: RunDirectory) -> Iterator[None]:
    """Remember how a student began: it may be handed in again, half trained after a stop or trained, to resume."""
    try:
        yield
    finally:
        # Of several processes, one may be alone with its error, and sharded weights need all.
        if not directory.temporary and directory.processes.num_processes == 1:
            with contextlib.suppress(RuntimeError):  # a device that failed; the first error is the one to see
                _LEFT_BY_RUNS[hash_json(student_record(student))] = directory.record["student"]


def require_same_run(refusal: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Check that what is to be resumed was begun as it would be now.

    Args:
        refusal: How the error begins: what cannot be done.
        before: The record that was written when the run began.
        now: The record of the run as it is asked for.

    Raises:
        DistilError: They differ, or something in them cannot be compared; by name.
    """
    here = json.loads(json.dumps(now))
    before = {name: value for name, value in before.items() if name in here}  # not what came of the run
    again = "start again with overwrite and without resume"
    remedy = f"Run it as it was begun, or {again}"
    unknown = [*_not_comparable(before), *_not_comparable(here)]
    if unknown:
        raise DistilError(f"{refusal}: its {unknown[0][0]} is {unknown[0][2]}. {remedy}")
    leaves = [*differences(before, here)]
    changed = [leaf for leaf in leaves if leaf[1] not in (leaf[2], NOT_RECORDED)]
    new = [place for place, then, _ in leaves if then == NOT_RECORDED]
    if new and not changed:
        raise DistilError(
            f"{refusal}: it was begun by an earlier version of haystack-distill, which did not record its "
            f"{', '.join(new)}. Finish it with that version, or {again}"
        )
    if changed:
        names = ", ".join(place for place, _, _ in changed)
        alone = len(changed) == 1
        values = "; ".join(
            f"{'' if alone else f'{place}: '}then {then!r}, now {is_now!r}"
            for place, then, is_now in changed
            if not _is_hash(then, is_now)
        )
        shown = f" ({values})" if values else ""
        raise DistilError(f"{refusal}: its {names} {'differs' if alone else 'differ'} from now{shown}. {remedy}")


def differences(before: Any, now: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The leaves of two nested dictionaries: where they are (dotted), and what stands there in each.

    `NOT_RECORDED` stands where one of them has no such name.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*before, *now]):
            sides = before.get(name, NOT_RECORDED), now.get(name, NOT_RECORDED)
            yield from differences(*sides, f"{place}.{name}" if place else name)
    else:
        yield place, before, now


def _not_comparable(record: dict[str, Any]) -> list[tuple[str, Any, str]]:
    leaves = differences(record, record)
    return [leaf for leaf in leaves if isinstance(leaf[1], str) and leaf[1].startswith(NOT_COMPARABLE)]


def _is_hash(*values: Any) -> bool:
    """Whether there is nothing in the values for anyone to read."""
    return all(isinstance(value, str) and _HASH.fullmatch(value) for value in values)
