"""Triple loss: soft targets, labels and the cosine of the last hidden states, on questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from transformers import PretrainedConfig

from haystack_distill.models.outputs import ModelOutputs, OutputRequest
from haystack_distill.objectives.answer_losses import soft_answer_loss
from haystack_distill.objectives.intermediate_layers import hidden_states_of
from haystack_distill.objectives.labels import ObjectiveWithLabels, label_loss
from haystack_distill.objectives.losses import cosine_loss
from haystack_distill.objectives.method import (
    Method,
    check_final_temperature,
    check_temperature,
    check_weights,
    refuse_without_effect,
    require_teacher,
)
from haystack_distill.objectives.objective import LossTerm
from haystack_distill.objectives.softened import SoftenedObjective
from haystack_distill.objectives.states import require_same_width


@dataclass(frozen=True)
class TripleLoss(Method):
    """Triple loss: the teacher's answers, the labels and the direction of the teacher's last hidden states.

    DistilBERT's triple loss (Sanh et al. 2019, arXiv 1910.01108) with the answers in place of the words of a language
    model:

    total = soft_target_weight * T^2 * soft_targets + label_weight * labels + cosine_weight * cosine

    "soft_targets" is the KL divergence of start and end, softened by T; "labels" the cross entropy of the annotated
    answer; "cosine" 1 - cosine of the last hidden states, mean over tokens. The default weights and T are those of
    `MaskedLanguageModel`. A loss of weight 0 is neither computed nor returned. The cosine needs student and teacher of
    one width, and on a corpus of one tokenizer; on questions the pieces must be the same (`teachers.LiveTeacher`).

    Args:
        temperature: T, softens the distributions of teacher and student alike.
        soft_target_weight: Weight of the teacher's distribution; 0 leaves it out.
        label_weight: Weight of the labels; 0 leaves them out.
        cosine_weight: Weight of the cosine of the last hidden states; 0 leaves it out.
        final_temperature: T in the last step, reached linearly; None for the same T in all steps.

    Raises:
        DistilError: A weight or the temperature is wrong or would have no effect, or all weights are 0.

    Example:
        >>> TripleLoss().loss_weights
        {'soft_targets': 20.0, 'labels': 2.0, 'cosine': 1.0}
    """

    temperature: float = 2.0
    soft_target_weight: float = 5.0
    label_weight: float = 2.0
    cosine_weight: float = 1.0
    final_temperature: float | None = None

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_weights(self, "soft_target_weight", "label_weight", "cosine_weight")
        if self.soft_target_weight == 0:
            for option in ("temperature", "final_temperature"):
                refuse_without_effect(self, option, "soft_target_weight=0 leaves out the soft targets")
        check_final_temperature(self)

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weights above 0 by term, T^2 of the first step included."""
        return self.loss_weights_at(self.temperature)

    def loss_weights_at(self, temperature: float) -> dict[str, float]:
        """The weights above 0 by term at a temperature."""
        weights = {
            "soft_targets": self.soft_target_weight * temperature**2,
            "labels": self.label_weight,
            "cosine": self.cosine_weight,
        }
        return {name: float(weight) for name, weight in weights.items() if weight > 0}

    def objective(self, student: PretrainedConfig, teacher: PretrainedConfig | None) -> TripleLossObjective:
        """Create the objective; see `Method.objective`.

        Raises:
            DistilError: With the cosine: there is no teacher, or the widths differ.
        """
        if self.cosine_weight:
            require_same_width(student, require_teacher(self, teacher), "set cosine_weight=0, or use representation")
        return TripleLossObjective(self)


class TripleLossObjective(SoftenedObjective, ObjectiveWithLabels):
    """The objective of `TripleLoss`. Its terms are "soft_targets", "labels" and "cosine", those with a weight above 0.

    Args:
        options: The options of the method.
    """

    def __init__(self, options: TripleLoss) -> None:
        super().__init__()
        self.options = options
        self.begin_step(0.0)
        states = "cosine" in self.weights
        soft = "soft_targets" in self.weights
        self.student_request = OutputRequest(logits=soft or "labels" in self.weights, hidden_states=states)
        self.teacher_request = OutputRequest(logits=soft, hidden_states=states)

    def forward(
        self, student: ModelOutputs, teacher: ModelOutputs | None, batch: Mapping[str, Tensor]
    ) -> dict[str, LossTerm]:
        """The unweighted terms; see `Objective.forward`.

        Raises:
            DistilError: Outputs of student or teacher are missing.
        """
        losses: dict[str, Tensor] = {}
        if "soft_targets" in self.weights:
            losses["soft_targets"] = soft_answer_loss(student, teacher, batch, self.temperature)
        if "labels" in self.weights:
            losses["labels"] = label_loss(student, batch)
        if "cosine" in self.weights:
            last = hidden_states_of(student, "student")[-1], hidden_states_of(teacher, "teacher")[-1]
            losses["cosine"] = cosine_loss(*last, batch["attention_mask"])
        masks = self.masks(batch)
        return {name: LossTerm(values, masks[name]) for name, values in losses.items()}
