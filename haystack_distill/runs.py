"""A run and its directory: what it was made from, whether it may go on, and what it leaves behind."""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from accelerate import PartialState

from haystack_distill.errors import DistilError
from haystack_distill.files import RUN_FILE, needing_tmpdir, write_json
from haystack_distill.inspection import json_in
from haystack_distill.loop import whole_checkpoints
from haystack_distill.settings import TrainingSettings


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

    Use it as a context manager around the run.

    Args:
        output_dir: Where checkpoints, log and the finished model go, or None.
        record: Everything that decides the result, as JSON holds it. An unfinished run goes on only with the same.
        settings: See `TrainingSettings`.
        processes: This process, or all that `accelerate launch` began.

    Attributes:
        settings: What to train with. A run without an output directory could not be resumed, so it writes no
            checkpoints, unless `keep_best` takes the model from one.

    Raises:
        DistilError: An unfinished run is there and is not to be resumed or was begun otherwise, or a setting needs an
            output directory.
    """

    def __init__(
        self, output_dir: Path | None, record: dict[str, Any], settings: TrainingSettings, processes: PartialState
    ) -> None:
        self.record = record
        self.processes = processes
        self.temporary = output_dir is None
        self.settings = settings
        if output_dir is not None:
            self.path = output_dir
            if processes.is_main_process:  # it looks after the directory for all
                self._begin(settings)
            return
        if settings.resume:
            raise DistilError("resume needs an output_dir to resume from")
        if settings.tensorboard:
            raise DistilError("tensorboard=True needs an output_dir to write to")
        if processes.num_processes > 1:
            raise DistilError("several processes need an output_dir to share")
        if not settings.keep_best:
            self.settings = replace(settings, checkpoint_every=None)
        with needing_tmpdir():
            self.path = Path(tempfile.mkdtemp(prefix="haystack-distill-"))

    def _begin(self, settings: TrainingSettings) -> None:
        begun = self.checkpoints / "run.json"
        if not (begun.exists() and whole_checkpoints(self.checkpoints)):  # else there is nothing to lose
            write_json(begun, self.record)
            return
        if not settings.resume:
            raise DistilError(
                f"{self.path} holds the checkpoints of a run that did not finish; set resume=True to go on with it, or "
                "remove its directory 'checkpoints' to start again"
            )
        before = json_in(self.checkpoints, begun.name, f"remove {self.checkpoints} to start again") or {}
        here = json.loads(json.dumps(self.record))
        changed = [name for name in here if here[name] != before.get(name)]
        if changed:
            raise DistilError(
                f"cannot resume the run in {self.path}: its {', '.join(changed)} differ from now "
                f"({'; '.join(f'{name}: then {before.get(name)}, now {here[name]}' for name in changed)}). Run it as "
                "it was begun, or remove its directory 'checkpoints' to start again"
            )

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are while the run lasts."""
        return self.path / "checkpoints"

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        if self.temporary:
            shutil.rmtree(self.path)

    def finish(self, result: RunResult, save: Callable[[Path], object]) -> RunResult:
        """Let `save` write the model, write the run's record, remove the checkpoints: they have served."""
        if self.temporary:
            return result
        self.processes.wait_for_everyone()  # until nobody needs a checkpoint any more
        if self.processes.is_main_process:
            save(self.path)
            finished = {
                "status": "finished",
                "versions": versions(),
                "metrics": result.metrics,
                "steps": result.steps,
                "seconds": result.seconds,
            }
            write_json(self.path / RUN_FILE, self.record | finished | {"history": result.history})
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.processes.wait_for_everyone()  # until the model is there to be loaded
        return replace(result, directory=self.path)


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


def settings_that_matter(settings: TrainingSettings) -> dict[str, Any]:
    """The settings that decide the weights; how a run is shown or kept may change when it is resumed."""
    shown = ("resume", "progress", "tensorboard", "log_every", "keep_checkpoints", "checkpoint_every")
    return {name: value for name, value in asdict(settings).items() if name not in shown}


def recorded(arguments: dict[str, Any]) -> dict[str, Any]:
    """A method's arguments as JSON can hold them; a function by its name."""
    return {
        name: getattr(value, "__qualname__", repr(value)) if callable(value) else value
        for name, value in arguments.items()
    }
