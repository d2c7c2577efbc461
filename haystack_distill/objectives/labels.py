"""Training on labels only, without a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from transformers import PretrainedConfig

from haystack_distill.models.outputs import ModelOutputs
from haystack_distill.objectives.losses import hard_label_loss
from haystack_distill.objectives.method import Method
from haystack_distill.objectives.objective import LossTerm, Objective


@dataclass(frozen=True)
class Labels(Method):
    """Labels: cross entropy of the annotated start and end, without a teacher."""

    needs_teacher: ClassVar[bool] = False

    def objective(self, student: PretrainedConfig, teacher: PretrainedConfig | None = None) -> LabelsObjective:
        """Create the objective; see `Method.objective`."""
        return LabelsObjective()


def label_loss(student: ModelOutputs, batch: Mapping[str, Tensor]) -> Tensor:
    """The mean of the cross entropies of the annotated start and end.

    Args:
        student: The student's outputs with start and end logits, (B, L).
        batch: `attention_mask` (B, L), `start_positions`, `end_positions`, `labelled` (B,).

    Returns:
        The loss of each window in nats, (B,); 0 for unlabelled windows.
    """
    unlabelled = ~batch["labelled"].bool()
    # The positions of unlabelled windows are undefined and may be out of range.
    start, end = (batch[name].masked_fill(unlabelled, 0) for name in ("start_positions", "end_positions"))
    return span_loss(student, start, end, batch["attention_mask"]).masked_fill(unlabelled, 0.0)


def span_loss(student: ModelOutputs, start: Tensor, end: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean of the cross entropies of a start and an end.

    Args:
        student: The student's outputs with start and end logits, (B, L).
        start: The first token of each window's span, (B,), not in padding.
        end: The last token, (B,), not in padding.
        attention_mask: 1 or True for tokens, 0 or False for padding, (B, L).

    Returns:
        The loss of each window in nats, (B,).
    """
    assert student.start_logits is not None
    assert student.end_logits is not None
    mask = attention_mask.bool()
    return (hard_label_loss(student.start_logits, start, mask) + hard_label_loss(student.end_logits, end, mask)) / 2


class ObjectiveWithLabels(Objective):
    """An objective one term of which may be "labels", the label loss. Base class of several methods' objectives."""

    def masks(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Labelled windows have the term "labels", where there is one; the others are as in `Objective.masks`."""
        masks = super().masks(batch)
        return masks | {"labels": batch["labelled"].bool()} if "labels" in masks else masks


class LabelsObjective(Objective):
    """The objective of `Labels`. Its one term, "labels", is the mean of the cross entropies of start and end."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = {"labels": 1.0}

    def masks(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Labelled windows have the term; see `Objective.masks`."""
        return {"labels": batch["labelled"].bool()}

    def forward(
        self, student: ModelOutputs, teacher: ModelOutputs | None, batch: Mapping[str, Tensor]
    ) -> dict[str, LossTerm]:
        """The unweighted term; see `Objective.forward`. A teacher's outputs are ignored."""
        return {"labels": LossTerm(label_loss(student, batch), self.masks(batch)["labels"])}
