"""Self-distillation: the branches of a reader with early exits learn from its own last layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PretrainedConfig

from haystack_distill.errors import DistilError
from haystack_distill.models.outputs import ModelOutputs, OutputRequest, require_exits
from haystack_distill.objectives.answer_losses import answer_logits_of
from haystack_distill.objectives.labels import ObjectiveWithLabels, label_loss
from haystack_distill.objectives.losses import binary_divergence, kl_div_loss, level_loss
from haystack_distill.objectives.method import Method, check_temperature, refuse_without_effect
from haystack_distill.objectives.objective import LossTerm
from haystack_distill.utils.checks import check_argument, is_number


@dataclass(frozen=True)
class SelfDistillation(Method):
    """Self-distillation: the branches of a reader with early exits learn from its own last layer.

    FastBERT (Liu et al. 2020, arXiv 2004.02178), section 3.3, for readers that `students.early_exit` makes. No teacher
    and no labels are needed. The divergence is that of `prediction_layer`, KL(last layer || branch); the paper's is the
    other way round. `level_loss_weight` is not in the paper, which classifies: a reader compares the logits of windows
    that left at different layers. Nor are the matchers (`models.matching`): each learns the probability that the window
    holds an answer by the last layer, 1 - p(start at the no-answer) p(end at the no-answer). For them the data should
    have questions with passages that do not answer them; a reader that never learnt "no answer" has nothing to teach.

    Args:
        temperature: T of both distributions, the last layer's and the branch's; higher is softer.
        level_loss_weight: Weight of the squared difference of the logarithms of the sums of exponentials of the logits,
            to which the divergence is blind.
        match_loss_weight: Weight of the divergence of the matchers from the last layer, of a reader that has matchers.
        label_loss_weight: Weight of the cross entropy of the labels, for each branch and, with backbone, the last
            layer.
        backbone: Whether the layers and the last head learn too; otherwise they are frozen. What they learn are the
            labels, or the answers of a teacher where a method for these is added.

    Raises:
        DistilError: An option is out of range.
    """

    needs_teacher: ClassVar[bool] = False

    temperature: float = 1.0
    level_loss_weight: float = 0.1
    match_loss_weight: float = 1.0
    label_loss_weight: float = 0.0
    backbone: bool = False

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        for name in ("level_loss_weight", "match_loss_weight", "label_loss_weight"):
            weight = getattr(self, name)
            check_argument(name, weight, is_number(weight) and weight >= 0, "a number of 0 or more")
        check_argument("backbone", self.backbone, isinstance(self.backbone, bool), "True or False")

    def objective(
        self, student: PretrainedConfig, teacher: PretrainedConfig | None = None
    ) -> SelfDistillationObjective:
        """Create the objective; see `Method.objective`.

        Raises:
            DistilError: The student has no early exits, or no matchers where `match_loss_weight` is set.
        """
        require_exits(student)
        matchers = bool(getattr(student, "match_size", 0))
        if not matchers and self.match_loss_weight:
            refuse_without_effect(self, "match_loss_weight", "the student has no matchers (match_size is 0)")
        return SelfDistillationObjective(self, matchers=matchers)


class SelfDistillationObjective(ObjectiveWithLabels):
    """The objective of `SelfDistillation`. Its terms are sums over the branches, "exits", "level" and "labels",
    and over the matchers, "matches"; those of weight 0 are left out.

    Args:
        options: The options of the method.
        matchers: Whether the student has any.
    """

    def __init__(self, options: SelfDistillation, *, matchers: bool = False) -> None:
        super().__init__()
        self.options = options
        weights = {
            "exits": float(options.temperature) ** 2,
            "level": float(options.level_loss_weight),
            "matches": float(options.match_loss_weight) * matchers,
            "labels": float(options.label_loss_weight),
        }
        self.weights = {name: weight for name, weight in weights.items() if weight}
        backbone = options.backbone
        self.student_request = OutputRequest(logits=backbone, exits=True, exit_gradients=backbone)
        self.keeps_answers = not backbone

    def forward(
        self, student: ModelOutputs, teacher: ModelOutputs | None, batch: Mapping[str, Tensor]
    ) -> dict[str, LossTerm]:
        """The unweighted terms; see `Objective.forward`. A teacher's outputs are ignored.

        Raises:
            DistilError: There are no outputs of branches.
        """
        if student.exits is None or ("matches" in self.weights and not student.matches):
            raise DistilError("the objective needs the outputs of branches; use a reader of students.early_exit")
        last, tokens = answer_logits_of(student, "student"), batch["attention_mask"].bool()
        exits, level, labels, matches = [], [], [], []
        for own in student.exits:
            for logits, target in zip(own, last, strict=True):
                exits.append(kl_div_loss(logits, target, tokens, tokens, self.options.temperature) / 2)
                if "level" in self.weights:
                    level.append(level_loss(logits, target, tokens) / 2)
            if "labels" in self.weights:
                labels.append(label_loss(ModelOutputs(*own), batch))
        if labels and self.options.backbone:
            labels.append(label_loss(student, batch))
        if "matches" in self.weights:
            target = answer_probability(*last, tokens)
            matches = [binary_divergence(log_odds, target) for log_odds in student.matches or ()]
        masks = self.masks(batch)
        values = {"exits": exits, "level": level, "matches": matches, "labels": labels}
        return {name: LossTerm(torch.stack(values[name]).sum(dim=0), masks[name]) for name in self.weights}


def answer_probability(start_logits: Tensor, end_logits: Tensor, tokens: Tensor) -> Tensor:
    """The probability that windows hold an answer, (B,): that not both start and end are at the no-answer position.

    Args:
        start_logits: (B, L), the no-answer first.
        end_logits: (B, L).
        tokens: True for tokens, False for padding, (B, L).
    """
    starts, ends = (
        logits.detach().float().masked_fill(~tokens, -torch.inf).log_softmax(dim=1)[:, 0]
        for logits in (start_logits, end_logits)
    )
    return -torch.expm1(starts + ends)
