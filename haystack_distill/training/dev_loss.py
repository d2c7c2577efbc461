"""The loss on dev data, which an evaluation collects beside its answers."""

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

from haystack_distill.models.outputs import ModelOutputs
from haystack_distill.objectives.labels import label_loss


class DevLoss:
    """The mean cross entropy of the labels over the labelled windows of one evaluation.

    Args:
        processes: The processes that share the evaluation.
    """

    def __init__(self, processes: PartialState) -> None:
        self.processes = processes
        self.total = 0.0
        self.windows = 0

    def add(self, batch: dict[str, Tensor], start_logits: Tensor, end_logits: Tensor) -> None:
        """Add the windows of a batch.

        Args:
            batch: `attention_mask` (B, L), `start_positions`, `end_positions`, `labelled` (B,).
            start_logits: (B, L).
            end_logits: (B, L).
        """
        losses = label_loss(ModelOutputs(start_logits, end_logits), batch)
        self.total += float(losses.sum(dtype=torch.float64))
        self.windows += int(batch["labelled"].sum())

    def mean(self) -> float:
        """The mean in nats, over the windows of all processes."""
        found = [(self.total, self.windows)]
        if self.processes.num_processes > 1:
            found = gather_object(found)
        return sum(total for total, _ in found) / max(1, sum(windows for _, windows in found))
