"""Patient distillation: labels, the teacher's answers, and the direction of its hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from transformers import PretrainedConfig

from haystack_distill.errors import DistilError
from haystack_distill.models.outputs import ModelOutputs, OutputRequest
from haystack_distill.objectives.answer_losses import soft_answer_loss
from haystack_distill.objectives.intermediate_layers import check_layer_mapping, hidden_states_of, resolve_layer_mapping
from haystack_distill.objectives.labels import ObjectiveWithLabels, label_loss
from haystack_distill.objectives.losses import normalised_state_loss
from haystack_distill.objectives.method import (
    Method,
    check_final_temperature,
    check_temperature,
    refuse_without_effect,
    require_teacher,
)
from haystack_distill.objectives.objective import LossTerm
from haystack_distill.objectives.softened import SoftenedObjective
from haystack_distill.objectives.states import chosen_tokens, require_same_width
from haystack_distill.utils.checks import check_argument, is_number


@dataclass(frozen=True)
class Patient(Method):
    """Patient distillation: labels, the teacher's answers, and the direction of its hidden states.

    Patient knowledge distillation (PKD, Sun et al. 2019, arXiv 1908.09355), equations 7 and 8:

    total = (1 - distillation_loss_weight) * labels + distillation_loss_weight * T^2 * distillation
            + patient_loss_weight * patient

    "patient" is the squared distance of hidden states that are normalised to length 1, summed over the mapped layers:
    from 0 to 4 for each. "distillation" is the KL divergence of start and end, as in `PredictionLayer`. A loss of
    weight 0 is neither computed nor returned. Student and teacher must have the same width, and
    tokenizers with the same pieces (`teachers.LiveTeacher`).

    Args:
        layer_mapping: The teacher layer of each student layer: "skip" (evenly spread, PKD-Skip), "last" (the teacher's
            last layers, PKD-Last), both without the last layer of either, which the answers train; "uniform" (evenly
            spread, with the last layer), or for each student layer a teacher layer, counted from 1, or None.
        tokens: The tokens whose hidden states are compared: "all", or "first" as in the paper.
        temperature: T, softens the distributions of teacher and student alike.
        distillation_loss_weight: From 0 (no soft targets) to 1 (no labels).
        patient_loss_weight: Weight of the hidden states, beta in the paper. The paper's values, 10 to 1000, belong to
            its code's mean over the dimensions of a hidden state; this is the sum, as in its equation.
        final_temperature: T in the last step, reached linearly; None for the same T in all steps.

    Raises:
        DistilError: An option is out of range, or the temperature would have no effect.
    """

    layer_mapping: Literal["uniform", "last", "skip"] | Sequence[int | None] = "skip"
    tokens: Literal["all", "first"] = "all"
    temperature: float = 2.0
    distillation_loss_weight: float = 0.5
    patient_loss_weight: float = 1.0
    final_temperature: float | None = None

    def __post_init__(self) -> None:
        check_layer_mapping(self.layer_mapping)
        check_argument("tokens", self.tokens, self.tokens in ("all", "first"), '"all" or "first"')
        check_temperature(self.temperature)
        weight = self.distillation_loss_weight
        check_argument(
            "distillation_loss_weight",
            weight,
            is_number(weight) and 0 <= weight <= 1,
            "a number from 0 (no soft targets) to 1 (no labels)",
        )
        weight = self.patient_loss_weight
        check_argument("patient_loss_weight", weight, is_number(weight) and weight > 0, "a number above 0")
        if self.distillation_loss_weight == 0:
            for option in ("temperature", "final_temperature"):
                refuse_without_effect(self, option, "distillation_loss_weight=0 leaves out the soft targets")
        check_final_temperature(self)

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weights above 0 by term, T^2 of the first step included."""
        return self.loss_weights_at(self.temperature)

    def loss_weights_at(self, temperature: float) -> dict[str, float]:
        """The weights above 0 by term at a temperature."""
        weights = {
            "labels": 1.0 - self.distillation_loss_weight,
            "distillation": self.distillation_loss_weight * temperature**2,
            "patient": float(self.patient_loss_weight),
        }
        return {name: weight for name, weight in weights.items() if weight > 0}

    def objective(self, student: PretrainedConfig, teacher: PretrainedConfig | None) -> PatientObjective:
        """Create the objective; see `Method.objective`.

        Raises:
            DistilError: There is no teacher, the widths differ, or the mapping does not suit the two depths.
        """
        teacher = require_teacher(self, teacher)
        require_same_width(student, teacher, "use the method intermediate_layers or representation, which project")
        return PatientObjective(self, student, teacher)


class PatientObjective(SoftenedObjective, ObjectiveWithLabels):
    """The objective of `Patient`. Its terms are those of "labels", "distillation" and "patient" with a weight above 0.

    Args:
        options: The options of the method.
        student_config: The student's configuration.
        teacher_config: The teacher's configuration.

    Attributes:
        layer_mapping: For each student layer a teacher layer (1 = first) or None.

    Raises:
        DistilError: The mapping does not suit the two depths.
    """

    def __init__(self, options: Patient, student_config: PretrainedConfig, teacher_config: PretrainedConfig) -> None:
        super().__init__()
        self.options, self.tokens = options, options.tokens
        self.begin_step(0.0)
        depths = student_config.num_hidden_layers, teacher_config.num_hidden_layers
        self.layer_mapping = resolve_layer_mapping(options.layer_mapping, *depths)
        if options.layer_mapping == "last":
            self.layer_mapping[-1] = None
            if not any(self.layer_mapping):
                raise DistilError(
                    'layer_mapping="last" leaves out the only layer of the student; use "uniform" or a list'
                )
        logits = {"labels", "distillation"} & self.weights.keys()
        self.student_request = OutputRequest(logits=bool(logits), hidden_states=True)
        self.teacher_request = OutputRequest(logits="distillation" in self.weights, hidden_states=True)

    def forward(
        self, student: ModelOutputs, teacher: ModelOutputs | None, batch: Mapping[str, Tensor]
    ) -> dict[str, LossTerm]:
        """The unweighted terms; see `Objective.forward`.

        Raises:
            DistilError: Outputs of student or teacher are missing.
        """
        own, target = hidden_states_of(student, "student"), hidden_states_of(teacher, "teacher")
        tokens = chosen_tokens(batch["attention_mask"], self.tokens)
        pairs = [(number, layer) for number, layer in enumerate(self.layer_mapping, start=1) if layer is not None]
        per_layer = [normalised_state_loss(own[number], target[layer], tokens) for number, layer in pairs]
        losses = {"patient": sum(per_layer[1:], per_layer[0])}
        if "labels" in self.weights:
            losses["labels"] = label_loss(student, batch)
        if "distillation" in self.weights:
            losses["distillation"] = soft_answer_loss(student, teacher, batch, self.temperature)
        masks = self.masks(batch)
        return {name: LossTerm(values, masks[name]) for name, values in losses.items()}
