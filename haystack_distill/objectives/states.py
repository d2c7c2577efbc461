"""What objectives share that compare hidden states: which tokens and windows, and the widths."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from transformers import PretrainedConfig

from haystack_distill.errors import DistilError
from haystack_distill.objectives.objective import has_teacher


def chosen_tokens(attention_mask: Tensor, tokens: str) -> Tensor:
    """The tokens whose hidden states are compared, (B, L) bool.

    Args:
        attention_mask: 1 or True for tokens, 0 or False for padding, (B, L).
        tokens: "all" for all that are not padding, "first" for the first of each window.
    """
    chosen = attention_mask.bool()
    if tokens == "first":
        chosen = chosen & (chosen.cumsum(dim=1) == 1)
    return chosen


def chosen_windows(batch: Mapping[str, Tensor], windows: str) -> Tensor:
    """The windows that have a loss, (B,) bool: those with a teacher.

    Args:
        batch: `weight` (B,); with questions also `labelled` (B,).
        windows: "all", or "unlabelled" for those without a label.
    """
    if windows == "all":
        return has_teacher(batch)
    return has_teacher(batch) & ~batch["labelled"].bool()


def require_same_width(student: PretrainedConfig, teacher: PretrainedConfig, remedy: str) -> None:
    """Check that the hidden states of student and teacher can be compared as they are.

    Args:
        student: The student's configuration.
        teacher: The teacher's configuration.
        remedy: What to do otherwise, for the message.

    Raises:
        DistilError: The widths differ.
    """
    if student.hidden_size != teacher.hidden_size:
        raise DistilError(
            f"the student is {student.hidden_size} wide and the teacher {teacher.hidden_size}, so their hidden states "
            f"cannot be compared as they are; {remedy}"
        )
