"""Learning from labels: the answers people marked."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from haystack_distill.models.outputs import ModelOutputs
from haystack_distill.objectives.losses import hard_label_loss
from haystack_distill.objectives.objective import Objective


def label_loss(student: ModelOutputs, batch: Mapping[str, Tensor]) -> Tensor:
    """The mean of the start and the end cross entropy of each window, (B,); 0 where `labelled` is False.

    Args:
        student: the student's outputs.
        batch: attention_mask (B, L), start_positions, end_positions, labelled (B,).
    """
    assert student.start_logits is not None
    assert student.end_logits is not None
    mask = batch["attention_mask"].bool()
    unlabelled = ~batch["labelled"].bool()
    # Whatever stands where there is no label must not be looked up.
    start, end = (batch[name].masked_fill(unlabelled, 0) for name in ("start_positions", "end_positions"))
    loss = (hard_label_loss(student.start_logits, start, mask) + hard_label_loss(student.end_logits, end, mask)) / 2
    return loss.masked_fill(unlabelled, 0.0)


class LabelObjective(Objective):
    """Teach a student the labels alone: ordinary training, without a teacher.

    Its one loss is "labels", the mean of the cross entropies of start and end; 0 for windows without a label.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights = {"labels": 1.0}

    def forward(
        self, student: ModelOutputs, batch: Mapping[str, Tensor], teacher: ModelOutputs | None = None
    ) -> dict[str, Tensor]:
        """The unweighted loss of each window; see `Objective.forward`. A teacher is not looked at."""
        return {"labels": label_loss(student, batch)}
