"""What every objective has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from haystack_distill.models.outputs import ModelOutputs


class Objective(nn.Module, ABC):
    """What a student is taught: a module that turns the outputs of a step into named losses.

    Trainable parts (projections between widths) are its parameters, so that optimiser and checkpoint see them.

    Attributes:
        weights: the weight of each named loss. The total is the sum over names of weight * mean over windows.
        needs_teacher: whether a live teacher runs in the step (its outputs then go to `forward`).
        needs_hidden_states: whether student and teacher have to return their hidden states.
        attention_layers: the student's layers (1-based) whose attention scores are needed.
        teacher_attention_layers: the teacher's layers (1-based) whose attention scores are needed.
    """

    weights: dict[str, float]
    needs_teacher: bool = False
    needs_hidden_states: bool = False
    attention_layers: tuple[int, ...] = ()
    teacher_attention_layers: tuple[int, ...] = ()

    @abstractmethod
    def forward(
        self, student: ModelOutputs, batch: Mapping[str, Tensor], teacher: ModelOutputs | None = None
    ) -> dict[str, Tensor]:
        """The unweighted losses of a batch: for each name in `weights` one value per window, shape (B,).

        Args:
            student: what the student said about the batch.
            batch: input_ids, attention_mask, start_positions, end_positions (B,), labelled (B,) bool, context_mask
                (B, L) bool (the context tokens and the no-answer position), and for prediction-layer distillation
                teacher_start_logits, teacher_end_logits (B, L), -inf where the teacher says nothing.
            teacher: what a live teacher said about the same inputs, when `needs_teacher`.
        """
