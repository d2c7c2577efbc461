"""Losses of the start and end logits of a batch that several methods share, each the mean over start and end."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from haystack_distill.errors import DistilError
from haystack_distill.models.outputs import ModelOutputs
from haystack_distill.objectives.losses import kl_div_loss, mse_logits_loss


def answer_logits_of(outputs: ModelOutputs | None, who: str) -> tuple[Tensor, Tensor]:
    """The start and end logits that an objective requested, each (B, L).

    Args:
        outputs: The outputs of student or teacher.
        who: "student" or "teacher", for the message.

    Raises:
        DistilError: They are missing.
    """
    if outputs is None or outputs.start_logits is None or outputs.end_logits is None:
        raise DistilError(f"the objective needs the {who}'s start and end logits; use a reader as the {who}")
    return outputs.start_logits, outputs.end_logits


def soft_answer_loss(
    student: ModelOutputs, teacher: ModelOutputs | None, batch: Mapping[str, Tensor], temperature: float = 1.0
) -> Tensor:
    """The mean of `losses.kl_div_loss` over start and end, without the factor T^2.

    Args:
        student: The student's outputs with start and end logits, (B, L).
        teacher: The teacher's, (B, L); -inf for tokens without a teacher score.
        batch: `attention_mask`, `context_mask` (B, L).
        temperature: T > 0; higher is softer.

    Returns:
        The divergence of each window in nats, (B,).

    Raises:
        DistilError: The logits of student or teacher are missing.
    """
    masks = batch["attention_mask"].bool(), batch["context_mask"].bool()
    pairs = zip(answer_logits_of(student, "student"), answer_logits_of(teacher, "teacher"), strict=True)
    start, end = (kl_div_loss(own, target, *masks, temperature) for own, target in pairs)
    return (start + end) / 2


def answer_logit_loss(student: ModelOutputs, teacher: ModelOutputs | None, batch: Mapping[str, Tensor]) -> Tensor:
    """The mean of `losses.mse_logits_loss` over start and end.

    Args:
        student: The student's outputs with start and end logits, (B, L).
        teacher: The teacher's, (B, L); tokens with -inf are left out.
        batch: `context_mask` (B, L).

    Returns:
        The mean squared difference of each window, (B,).

    Raises:
        DistilError: The logits of student or teacher are missing.
    """
    pairs = zip(answer_logits_of(student, "student"), answer_logits_of(teacher, "teacher"), strict=True)
    start, end = (mse_logits_loss(own, target, batch["context_mask"]) for own, target in pairs)
    return (start + end) / 2
