"""Distillation of the prediction layer: the teacher's start and end logits are the targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PretrainedConfig

from haystack_distill.errors import DistilError
from haystack_distill.models.outputs import ModelOutputs, OutputRequest
from haystack_distill.objectives.labels import ObjectiveWithLabels, label_loss
from haystack_distill.objectives.losses import (
    correlation_loss,
    jensen_shannon_loss,
    kl_div_loss,
    mse_logits_loss,
    window_temperatures,
)
from haystack_distill.objectives.method import (
    Method,
    check_final_temperature,
    check_temperature,
    refuse_without_effect,
    temperature_at,
)
from haystack_distill.objectives.objective import LossTerm
from haystack_distill.utils.checks import check_argument, is_number

DistillationLoss = Callable[[Tensor, Tensor, Tensor, float], Tensor]

# Of probabilities, at a temperature.
_OF_PROBABILITIES = {"kl_div": kl_div_loss, "jensen_shannon": jensen_shannon_loss, "correlation": correlation_loss}

# Low enough for probability 0 at any usable temperature; finite, because 0 * inf would be NaN.
_MASKED_LOGIT = -1e9


@dataclass(frozen=True)
class PredictionLayer(Method):
    """Prediction layer: the teacher's start and end logits and, where there are any, the labels.

    total = distillation_loss_weight * T^2 * distillation + (1 - distillation_loss_weight) * labels

    as in Hinton et al. 2015 (arXiv 1503.02531): T^2 keeps the size of the soft gradient when the temperature T changes.
    T^2 belongs to the divergences, "kl_div" and "jensen_shannon". Both losses are means over start and end. A window
    without a label has no labels loss.

    A loss of your own is a callable `loss(student_logits, teacher_logits, mask, temperature) -> Tensor`, called once
    for the start and once for the end. The logits are float32 (B, L) and finite: padding in the student's, and every
    token without a teacher score in the teacher's, is -1e9, which a softmax turns to 0. `mask` (B, L) is True for the
    tokens with a teacher score. It returns one value per window, (B,), and scales itself: no T^2 is applied.

    The temperature may run linearly over the steps (`final_temperature`), and be lower in windows on which student and
    teacher disagree (`flsw_beta`, see `objectives.losses.window_temperatures`); T^2 follows it.

    Args:
        temperature: T, softens the distributions of teacher and student alike; not with "mse".
        distillation_loss_weight: From 0 (labels only) to 1 (teacher only).
        distillation_loss: How the two are compared: "kl_div" or "jensen_shannon" (divergences of the distributions),
            "correlation" (1 - Pearson's correlation of the probabilities, as in DIST), "mse" (the logits themselves),
            or, in Python, a callable.
        final_temperature: T in the last step, reached linearly; None for the same T in all steps.
        flsw_beta: How much lower T is in a window on which student and teacher disagree: beta * (1 - cosine of their
            logits less their means)^gamma; below the temperature; with "kl_div" only.
        flsw_gamma: The exponent gamma, above 0; with `flsw_beta` only.

    Raises:
        DistilError: An option is out of range, or the temperature would have no effect.

    Example:
        >>> PredictionLayer(temperature=2.0, distillation_loss_weight=0.75).objective().weights
        {'distillation': 3.0, 'labels': 0.25}
    """

    temperature: float = 1.0
    distillation_loss_weight: float = 0.5
    distillation_loss: Literal["kl_div", "mse", "jensen_shannon", "correlation"] | DistillationLoss = "kl_div"
    final_temperature: float | None = None
    flsw_beta: float = 0.0
    flsw_gamma: float = 1.0

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        weight = self.distillation_loss_weight
        check_argument(
            "distillation_loss_weight",
            weight,
            is_number(weight) and 0 <= weight <= 1,
            "a number from 0 (labels only) to 1 (teacher only)",
        )
        loss = self.distillation_loss
        known = ("mse", *_OF_PROBABILITIES)
        words = ", ".join(f'"{word}"' for word in known)
        check_argument("distillation_loss", loss, loss in known or callable(loss), f"{words} or a callable")
        final, beta, gamma = self.final_temperature, self.flsw_beta, self.flsw_gamma
        check_final_temperature(self)
        check_argument("flsw_beta", beta, is_number(beta) and beta >= 0, "a number of 0 or more")
        check_argument("flsw_gamma", gamma, is_number(gamma) and gamma > 0, "a number above 0")
        self._require_effects()
        lowest = self.temperature if final is None else min(self.temperature, final)
        if beta >= lowest:
            raise DistilError(
                f"flsw_beta={beta} could lower a temperature of {lowest} to 0; set it below the temperature"
            )

    def _require_effects(self) -> None:
        """Check that no option of the teacher's loss is without effect.

        Raises:
            DistilError: One is.
        """
        if self.distillation_loss_weight == 0:
            refuse_without_effect(self, "distillation_loss", "distillation_loss_weight=0 learns from labels only")
        neutral = {"temperature": 1, "final_temperature": None, "flsw_beta": 0}
        given = {name: getattr(self, name) for name, value in neutral.items() if getattr(self, name) != value}
        for name, value in given.items():
            if self.distillation_loss_weight == 0:
                raise DistilError(
                    f"distillation_loss_weight=0 learns from labels only, so {name}={value} would have no effect; "
                    "leave it out"
                )
            if self.distillation_loss == "mse":
                raise DistilError(
                    f'distillation_loss="mse" compares unscaled logits, so {name}={value} would have no effect; leave '
                    'it out, or use "kl_div"'
                )
        if self.flsw_beta and self.distillation_loss != "kl_div":
            raise DistilError('flsw_beta has an effect with "kl_div" only; leave it out with another loss')
        if self.flsw_gamma != 1 and not self.flsw_beta:
            raise DistilError(f"flsw_gamma={self.flsw_gamma} has no effect without flsw_beta; set flsw_beta too")

    def objective(
        self, student: PretrainedConfig | None = None, teacher: PretrainedConfig | None = None
    ) -> PredictionLayerObjective:
        """Create the objective; see `Method.objective`."""
        return PredictionLayerObjective(self)


class PredictionLayerObjective(ObjectiveWithLabels):
    """The objective of `PredictionLayer`. Its terms are "distillation" and "labels".

    Args:
        options: The options of the method.
    """

    def __init__(self, options: PredictionLayer) -> None:
        super().__init__()
        self.options = options
        self.distillation_loss = loss = options.distillation_loss
        self._of_probabilities = _OF_PROBABILITIES.get(loss) if isinstance(loss, str) else None
        self.begin_step(0.0)
        self.teacher_request = OutputRequest(logits=True)

    def begin_step(self, progress: float) -> None:
        """Set the temperature of this step, and the weight T^2 with it; see `Objective.begin_step`."""
        options = self.options
        self.temperature = temperature_at(options, progress)
        # Where each window has a temperature of its own, T^2 is in the term.
        squared = options.distillation_loss in ("kl_div", "jensen_shannon") and not options.flsw_beta
        self.weights = {
            "distillation": options.distillation_loss_weight * (self.temperature**2 if squared else 1.0),
            "labels": 1.0 - options.distillation_loss_weight,
        }

    def forward(
        self, student: ModelOutputs, teacher: ModelOutputs | None, batch: Mapping[str, Tensor]
    ) -> dict[str, LossTerm]:
        """The unweighted terms; see `Objective.forward`.

        Raises:
            DistilError: There are no teacher logits, or a callable loss does not return one value per window.
        """
        if teacher is None or teacher.start_logits is None or teacher.end_logits is None:
            raise DistilError("prediction-layer distillation needs the teacher's start and end logits; give a teacher")
        start = self._distillation(student.start_logits, teacher.start_logits, batch)
        end = self._distillation(student.end_logits, teacher.end_logits, batch)
        values = {"distillation": (start + end) / 2, "labels": label_loss(student, batch)}
        return {name: LossTerm(values[name], mask) for name, mask in self.masks(batch).items()}

    def _distillation(
        self, student_logits: Tensor | None, teacher_logits: Tensor, batch: Mapping[str, Tensor]
    ) -> Tensor:
        assert student_logits is not None
        tokens, context = batch["attention_mask"].bool(), batch["context_mask"].bool()
        beta, gamma = self.options.flsw_beta, self.options.flsw_gamma
        if beta:
            own = window_temperatures(student_logits, teacher_logits, context, self.temperature, beta, gamma)
            return own**2 * kl_div_loss(student_logits, teacher_logits, tokens, context, own)
        if self._of_probabilities is not None:
            return self._of_probabilities(student_logits, teacher_logits, tokens, context, self.temperature)
        if self.distillation_loss == "mse":
            return mse_logits_loss(student_logits, teacher_logits, context)
        assert callable(self.distillation_loss)
        scored = context & ~torch.isneginf(teacher_logits)
        loss = self.distillation_loss(
            student_logits.float().masked_fill(~tokens, _MASKED_LOGIT),
            teacher_logits.detach().float().masked_fill(~scored, _MASKED_LOGIT),
            scored,
            self.temperature,
        )
        if not isinstance(loss, Tensor) or loss.shape != student_logits.shape[:1]:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise DistilError(
                f"distillation_loss must return one value per window, shape ({len(student_logits)},), not {got}; "
                "reduce over tokens, not over windows"
            )
        return loss
