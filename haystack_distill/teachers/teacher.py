"""Teacher: the source of the teacher outputs that an objective needs."""

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
    from transformers import PretrainedConfig

    from haystack_distill.data.windows import Windows
    from haystack_distill.models.language_model import LanguageModel
    from haystack_distill.models.reader import Reader


class Teacher(ABC):
    """A source of teacher outputs for an objective. Its models are never changed.

    Order of the calls in a run: `check` and `fingerprint` before anything is computed, `prepare` once, then for each
    batch `cached` (while the batch is collated) and `outputs` (in the training step), within the context `active`.

    Attributes:
        token_types: Whether `outputs` needs `token_type_ids` in the batch.
        caches_logits: Whether `cached` returns `teacher_start_logits` and `teacher_end_logits`.
        config: The configuration of the model, for methods that compare layers with the student's.
    """

    token_types: bool = False
    caches_logits: bool = False
    config: PretrainedConfig | None = None

    @property
    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides the outputs, as JSON can hold it; a run is only resumed with an equal one."""

    def members(self) -> list[Teacher]:
        """The teachers that this one consists of, in order; by default it is a single one."""
        return [self]

    def models(self) -> list[Reader | LanguageModel]:
        """The models in memory that compute its outputs; by default those of its members.

        Override it in a teacher with models of its own: a student must not share their weights, and `torch_compile`
        compiles those that run in every step.
        """
        return [model for member in self.members() if member is not self for model in member.models()]

    def check(self, student: Reader, request: OutputRequest) -> None:  # noqa: B027  (nothing to check by default)
        """Check that this teacher can provide the requested outputs for a student.

        Args:
            student: The reader that is trained.
            request: The outputs that the objective needs.

        Raises:
            DistilError: It cannot provide them.
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
        """Prepare the teacher for a run: compute or load the outputs that are cached.

        Args:
            examples: The training examples, as `data.squad.load.load_examples` returns them.
            windows: The student's windows of these examples.
            cache_dir: See `utils.cache.cache_directory`.
            progress: Whether to display a progress bar while a model runs.
            processes: The processes of the run, or None for one.
        """

    def active(self) -> AbstractContextManager[Any]:
        """A context for the training loop, in which models that run in the step are in evaluation mode."""
        return contextlib.nullcontext()

    def cached(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs that are available without running a model.

        Args:
            batch: A collated batch of B of the student's windows.

        Returns:
            Tensors to add to the batch, by name; their first dimension is B. Empty if nothing is cached.
        """
        return {}

    @abstractmethod
    def outputs(self, batch: Mapping[str, Tensor], request: OutputRequest) -> ModelOutputs:
        """The teacher outputs for a batch, without gradients.

        Args:
            batch: A batch of B windows of up to L tokens, including the tensors of `cached`.
            request: The outputs that the objective needs.

        Returns:
            The requested outputs, position by position for the student's tokens: start and end logits (B, L), -inf
            for tokens without a teacher score; hidden states (B, L, H); attention scores (B, heads, L, L);
            queries, keys and values (B, L, H).
        """
