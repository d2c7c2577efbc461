"""Teacher: the one channel from a teacher to an objective."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from torch import Tensor

from haystack_distill.models.outputs import ModelOutputs, OutputRequest

if TYPE_CHECKING:
    import datasets

    from haystack_distill.data.windows import Windows
    from haystack_distill.models.reader import Reader


class Teacher(ABC):
    """Gives the outputs that an objective learns from. The model behind it is never changed.

    A run calls `check` and `fingerprint` before anything is computed, `prepare` once, and then, for each batch,
    `cached` (while the batch is made) and `outputs` (in the step).

    Attributes:
        token_types: whether `outputs` needs `token_type_ids` in the batch.
    """

    token_types: bool = False

    @property
    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What decides the outputs, as JSON can hold it: a run is only resumed with the same."""

    def check(self, student: Reader, request: OutputRequest) -> None:  # noqa: B027  (nothing to check by default)
        """Check that this teacher can give a student what is requested.

        Raises:
            DistilError: It cannot.
        """

    def prepare(  # noqa: B027  (nothing to prepare by default)
        self,
        examples: datasets.Dataset,
        windows: Windows,
        *,
        cache_dir: str | Path | None = None,
        progress: bool = True,
        processes: PartialState | None = None,
    ) -> None:
        """Get ready for a run, once.

        Args:
            examples: the examples that are trained on.
            windows: the student's windows of them.
            cache_dir: see `utils.cache.cache_directory`.
            progress: whether to show a bar where a model runs.
            processes: the processes of the run, if there are several.
        """

    def active(self) -> AbstractContextManager[Any]:
        """A context around the training loop: models that run in the step are in evaluation mode in it."""
        return contextlib.nullcontext()

    def cached(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs that are known without running a model, as tensors to add to the batch."""
        return {}

    @abstractmethod
    def outputs(self, batch: Mapping[str, Tensor], request: OutputRequest) -> ModelOutputs:
        """The outputs for a batch, without gradients.

        Args:
            batch: a batch of the student's windows, with what `cached` added.
            request: which outputs are needed.
        """
