"""Hard targets: the teacher's best span is the label of windows without one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PretrainedConfig

from haystack_distill.errors import DistilError
from haystack_distill.models.outputs import ModelOutputs, OutputRequest
from haystack_distill.models.span_decoding import best_spans, log_partition
from haystack_distill.objectives.answer_losses import answer_logits_of
from haystack_distill.objectives.labels import span_loss
from haystack_distill.objectives.method import Method
from haystack_distill.objectives.objective import LossTerm, Objective, has_teacher
from haystack_distill.utils.checks import check_argument, is_integer, is_number

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HardTargets(Method):
    """Hard targets: the teacher's best span as the label of windows without one.

    The hard predictions of Mukherjee & Awadallah 2019 (arXiv 1910.01769) and the pseudo-labels of Tang et al. 2019
    (arXiv 1903.12136): one cross entropy, the mean of start and end, over labelled and pseudo-labelled windows alike.
    The teacher's best span is decoded as a reader does, see `teacher_spans`.

    Args:
        use_labels: Whether labelled windows learn their label; otherwise they learn the teacher's span, too.
        confidence_threshold: A window learns the teacher's span only where the teacher's probability of it is at least
            this, above 0 and below 1; None uses all windows. Needs cached teacher logits.
        max_span_length: Longest span of the teacher, in the student's tokens.

    Raises:
        DistilError: An option is out of range.
    """

    use_labels: bool = True
    confidence_threshold: float | None = None
    max_span_length: int = 30

    def __post_init__(self) -> None:
        check_argument("use_labels", self.use_labels, isinstance(self.use_labels, bool), "True or False")
        threshold = self.confidence_threshold
        check_argument(
            "confidence_threshold",
            threshold,
            threshold is None or (is_number(threshold) and 0 < threshold < 1),
            "a number between 0 and 1, or None",
        )
        length = self.max_span_length
        check_argument("max_span_length", length, is_integer(length, 1), "a whole number of at least 1")

    def objective(
        self, student: PretrainedConfig | None = None, teacher: PretrainedConfig | None = None
    ) -> HardTargetsObjective:
        """Create the objective; see `Method.objective`."""
        return HardTargetsObjective(self)


class TeacherSpans(NamedTuple):
    """The teacher's best span in each of B windows.

    Attributes:
        start: Position of the first token, (B,).
        end: Position of the last token, (B,).
        probability: Of the span among all starts and all ends of its window, (B,).
    """

    start: Tensor
    end: Tensor
    probability: Tensor


def teacher_spans(start_logits: Tensor, end_logits: Tensor, context_mask: Tensor, max_length: int) -> TeacherSpans:
    """The best span of each window: the largest start logit plus end logit.

    A span begins and ends in the context, start <= end, or is the no-answer position alone. The probability is the
    product of those of start and end, over the context and the no-answer position.

    Args:
        start_logits: The teacher's, (B, L); -inf for tokens without a teacher score.
        end_logits: Likewise.
        context_mask: True for the context and, before it, the no-answer position, (B, L).
        max_length: Longest span, in tokens.
    """
    allowed = context_mask.bool()
    start_logits, end_logits = start_logits.detach().float(), end_logits.detach().float()
    no_answer = allowed.int().argmax(dim=1, keepdim=True)  # the first position of the mask
    context = allowed.scatter(1, no_answer, False)
    scores, starts, ends = best_spans(start_logits, end_logits, context, 1, max_length)
    no_answer_scores = start_logits.gather(1, no_answer) + end_logits.gather(1, no_answer)
    answered = scores > no_answer_scores
    best = torch.where(answered, scores, no_answer_scores).squeeze(1)
    partition = log_partition(start_logits, allowed) + log_partition(end_logits, allowed)
    return TeacherSpans(
        torch.where(answered, starts, no_answer).squeeze(1),
        torch.where(answered, ends, no_answer).squeeze(1),
        (best - partition).exp(),
    )


class HardTargetsObjective(Objective):
    """The objective of `HardTargets`. Its one term, "hard_targets", is the mean of the cross entropies of start and
    end.

    Args:
        options: The options of the method.
    """

    def __init__(self, options: HardTargets) -> None:
        super().__init__()
        self.options = options
        self.weights = {"hard_targets": 1.0}
        self.teacher_request = OutputRequest(logits=True)
        self.reads_cached_logits = options.confidence_threshold is not None
        self.needs_unlabelled = "use_labels=False" if options.use_labels else None

    def masks(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Windows whose label is used or whose span the teacher is confident of; see `Objective.masks`.

        Raises:
            DistilError: There is a confidence threshold, and the batch has no cached teacher logits.
        """
        threshold = self.options.confidence_threshold
        if threshold is None:
            return {"hard_targets": self._uses_label(batch) | has_teacher(batch)}
        if "teacher_start_logits" not in batch:
            raise DistilError(
                "confidence_threshold needs cached teacher logits in the batch; use a CachedTeacher, or leave "
                "confidence_threshold out"
            )
        spans = self._spans(batch["teacher_start_logits"], batch["teacher_end_logits"], batch)
        return {"hard_targets": self._uses_label(batch) | has_teacher(batch) & (spans.probability >= threshold)}

    def check_windows(self, batches: Callable[[], Iterable[Mapping[str, Tensor]]]) -> None:
        """Log how many windows reach the confidence threshold; see `Objective.check_windows`.

        Raises:
            DistilError: None of those that have no label of their own does.
        """
        threshold, found = self.options.confidence_threshold, [torch.zeros(0)]
        assert threshold is not None  # without one, no cached logits are read
        for batch in batches():
            spans = self._spans(batch["teacher_start_logits"], batch["teacher_end_logits"], batch)
            found.append(spans.probability[has_teacher(batch) & ~self._uses_label(batch)])
        confidences = torch.cat(found)
        reached = int((confidences >= threshold).sum())
        if len(confidences) and not reached:
            raise DistilError(
                f"confidence_threshold={threshold:g}: the teacher is nowhere so confident, at most "
                f"{confidences.max():.3f} in {len(confidences)} windows, so none of them would be learnt from; lower it"
            )
        logger.info(
            "the teacher reaches confidence_threshold=%s in %d of %d windows", threshold, reached, len(confidences)
        )

    def forward(
        self, student: ModelOutputs, teacher: ModelOutputs | None, batch: Mapping[str, Tensor]
    ) -> dict[str, LossTerm]:
        """The unweighted term; see `Objective.forward`.

        Raises:
            DistilError: There are no teacher logits.
        """
        spans = self._spans(*answer_logits_of(teacher, "teacher"), batch)
        labelled = self._uses_label(batch)
        start = torch.where(labelled, batch["start_positions"], spans.start)
        end = torch.where(labelled, batch["end_positions"], spans.end)
        values = span_loss(student, start, end, batch["attention_mask"])
        return {"hard_targets": LossTerm(values, self.masks(batch)["hard_targets"])}

    def _spans(self, start_logits: Tensor, end_logits: Tensor, batch: Mapping[str, Tensor]) -> TeacherSpans:
        return teacher_spans(start_logits, end_logits, batch["context_mask"], self.options.max_span_length)

    def _uses_label(self, batch: Mapping[str, Tensor]) -> Tensor:
        labelled = batch["labelled"].bool()
        return labelled if self.options.use_labels else torch.zeros_like(labelled)
