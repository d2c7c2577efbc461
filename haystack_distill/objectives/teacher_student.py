"""Teacher-student loss: the student's own loss and the distance to the teacher's answers, with independent weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from transformers import PretrainedConfig

from haystack_distill.models.outputs import ModelOutputs, OutputRequest
from haystack_distill.objectives.answer_losses import answer_logit_loss, soft_answer_loss
from haystack_distill.objectives.labels import ObjectiveWithLabels, label_loss
from haystack_distill.objectives.method import (
    Method,
    check_final_temperature,
    check_temperature,
    check_weights,
    refuse_without_effect,
)
from haystack_distill.objectives.objective import LossTerm
from haystack_distill.objectives.softened import SoftenedObjective
from haystack_distill.utils.checks import check_argument


@dataclass(frozen=True)
class TeacherStudent(Method):
    """Teacher-student loss: labels and the teacher's answers, with independent weights.

    The loss in the documentation of NLP Architect (Intel AI Lab), with its names and defaults:

    total = loss_w * labels + dist_w * distillation

    "labels" is the cross entropy of start and end. "distillation" is the KL divergence of teacher and student, both
    softened by the temperature T, or the mean squared difference of their logits. Both are means over start and end.
    The formula has no factor T^2, so that the gradient of the soft targets shrinks with T^2; `temperature_squared` adds
    the factor of Hinton et al. 2015 (arXiv 1503.02531), as `PredictionLayer` and NLP Architect's code have it. A loss
    of weight 0 is neither computed nor returned.

    The same loss for models and training loops of other kinds is `TeacherStudentLoss`.

    Args:
        loss_w: Weight of the student's own loss, the labels.
        dist_w: Weight of the distance to the teacher.
        loss_function: How student and teacher are compared: "kl" (as distributions) or "mse" (the logits themselves).
        temperature: T, softens the distributions of teacher and student alike; with "kl" only.
        temperature_squared: Whether the KL divergence is multiplied by T^2.
        final_temperature: T in the last step, reached linearly; None for the same T in all steps.

    Raises:
        DistilError: An option is wrong or would have no effect.

    Example:
        >>> TeacherStudent(temperature=2.0).loss_weights
        {'labels': 1.0, 'distillation': 0.1}
    """

    loss_w: float = 1.0
    dist_w: float = 0.1
    loss_function: Literal["kl", "mse"] = "kl"
    temperature: float = 1.0
    temperature_squared: bool = False
    final_temperature: float | None = None

    def __post_init__(self) -> None:
        check_weights(self, "loss_w", "dist_w")
        check_argument("loss_function", self.loss_function, self.loss_function in ("kl", "mse"), '"kl" or "mse"')
        check_temperature(self.temperature)
        squared = self.temperature_squared
        check_argument("temperature_squared", squared, isinstance(squared, bool), "True or False")
        if self.dist_w == 0:
            for option in ("loss_function", "temperature", "final_temperature", "temperature_squared"):
                refuse_without_effect(self, option, "dist_w=0 leaves out the teacher")
        if self.loss_function == "mse":
            for option in ("temperature", "final_temperature", "temperature_squared"):
                refuse_without_effect(self, option, 'loss_function="mse" compares unscaled logits')
        if self.temperature == 1 and self.final_temperature is None:
            refuse_without_effect(self, "temperature_squared", "T^2 is 1 at temperature=1")
        check_final_temperature(self)

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weights above 0 by term, T^2 of the first step included where it is asked for."""
        return self.loss_weights_at(self.temperature)

    def loss_weights_at(self, temperature: float) -> dict[str, float]:
        """The weights above 0 by term at a temperature."""
        scale = temperature**2 if self.temperature_squared else 1.0
        weights = {"labels": float(self.loss_w), "distillation": self.dist_w * scale}
        return {name: weight for name, weight in weights.items() if weight > 0}

    def objective(
        self, student: PretrainedConfig | None = None, teacher: PretrainedConfig | None = None
    ) -> TeacherStudentObjective:
        """Create the objective; see `Method.objective`."""
        return TeacherStudentObjective(self)


class TeacherStudentObjective(SoftenedObjective, ObjectiveWithLabels):
    """The objective of `TeacherStudent`. Its terms are those of "labels" and "distillation" with a weight above 0.

    Args:
        options: The options of the method.
    """

    def __init__(self, options: TeacherStudent) -> None:
        super().__init__()
        self.options, self.loss_function = options, options.loss_function
        self.begin_step(0.0)
        self.teacher_request = OutputRequest(logits="distillation" in self.weights)

    def forward(
        self, student: ModelOutputs, teacher: ModelOutputs | None, batch: Mapping[str, Tensor]
    ) -> dict[str, LossTerm]:
        """The unweighted terms; see `Objective.forward`.

        Raises:
            DistilError: There are no teacher logits.
        """
        losses: dict[str, Tensor] = {}
        if "labels" in self.weights:
            losses["labels"] = label_loss(student, batch)
        if "distillation" in self.weights:
            if self.loss_function == "kl":
                losses["distillation"] = soft_answer_loss(student, teacher, batch, self.temperature)
            else:
                losses["distillation"] = answer_logit_loss(student, teacher, batch)
        masks = self.masks(batch)
        return {name: LossTerm(values, masks[name]) for name, values in losses.items()}
