"""Prediction-layer distillation: the student learns the teacher's start and end logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from haystack_distill.errors import DistilError
from haystack_distill.models.outputs import ModelOutputs
from haystack_distill.objectives.labels import label_loss
from haystack_distill.objectives.losses import kl_div_loss, mse_logits_loss
from haystack_distill.objectives.objective import Objective
from haystack_distill.utils.checks import is_number

DistillationLoss = Callable[[Tensor, Tensor, Tensor, float], Tensor]

# Low enough to have probability 0 at any sane temperature, and finite, so that 0 times it is 0 and not NaN.
_MASKED_LOGIT = -1e9


class PredictionLayerObjective(Objective):
    """Teach a student the teacher's logits and, as far as there are any, the labels.

    total = distillation_loss_weight * T^2 * distillation + (1 - distillation_loss_weight) * labels

    as in Hinton et al. 2015 (arXiv 1503.02531): T^2 keeps the size of the soft gradient when the temperature T changes.
    T^2 belongs to "kl_div" only. Both losses are means over start and end. A window without a label has no labels loss.

    A loss of your own is a callable `loss(student_logits, teacher_logits, mask, temperature) -> Tensor`, called once
    for the start and once for the end. The logits are float32 (B, L) and finite: padding in the student's, and every
    token the teacher says nothing about in the teacher's, is -1e9, which a softmax turns to 0. `mask` (B, L) is True
    for the tokens the teacher scores. It returns one value per window, (B,), and scales itself: no T^2 is applied.

    Args:
        temperature: T > 0. With "mse" it has no meaning and has to be 1.
        distillation_loss_weight: 0 (labels only) to 1 (teacher only).
        distillation_loss: "kl_div", "mse" or a callable.

    Raises:
        DistilError: an argument is out of range, or the temperature would have no effect.

    Example:
        >>> objective = PredictionLayerObjective(temperature=2.0, distillation_loss_weight=0.75)
        >>> objective.weights
        {'distillation': 3.0, 'labels': 0.25}
    """

    def __init__(
        self,
        temperature: float = 1.0,
        distillation_loss_weight: float = 0.5,
        distillation_loss: str | DistillationLoss = "kl_div",
    ) -> None:
        super().__init__()
        if not (is_number(temperature) and temperature > 0):
            raise DistilError(f"temperature has to be greater than 0 and a number, not {temperature!r}.")
        if not (is_number(distillation_loss_weight) and 0 <= distillation_loss_weight <= 1):
            raise DistilError(
                "distillation_loss_weight has to be between 0 (labels only) and 1 (teacher only), "
                f"not {distillation_loss_weight!r}."
            )
        if distillation_loss not in ("kl_div", "mse") and not callable(distillation_loss):
            raise DistilError(f'distillation_loss has to be "kl_div", "mse" or a callable, not {distillation_loss!r}.')
        if distillation_loss == "mse" and temperature != 1:
            raise DistilError(
                f'distillation_loss="mse" compares unscaled logits, so temperature={temperature} would have no effect: '
                'leave it at 1, or use "kl_div".'
            )
        self.temperature = temperature
        self.distillation_loss = distillation_loss
        scale = temperature**2 if distillation_loss == "kl_div" else 1.0
        self.weights = {
            "distillation": distillation_loss_weight * scale,
            "labels": 1.0 - distillation_loss_weight,
        }

    def forward(
        self, student: ModelOutputs, batch: Mapping[str, Tensor], teacher: ModelOutputs | None = None
    ) -> dict[str, Tensor]:
        """The unweighted losses of each window; see `Objective.forward`. The teacher's logits come in the batch."""
        start = self._distillation(student.start_logits, batch["teacher_start_logits"], batch)
        end = self._distillation(student.end_logits, batch["teacher_end_logits"], batch)
        return {"distillation": (start + end) / 2, "labels": label_loss(student, batch)}

    def _distillation(
        self, student_logits: Tensor | None, teacher_logits: Tensor, batch: Mapping[str, Tensor]
    ) -> Tensor:
        assert student_logits is not None
        tokens, context = batch["attention_mask"].bool(), batch["context_mask"].bool()
        if self.distillation_loss == "kl_div":
            return kl_div_loss(student_logits, teacher_logits, tokens, context, self.temperature)
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
                f"distillation_loss has to return one value per window, shape ({len(student_logits)},), not {got}: "
                "reduce over tokens, not over windows."
            )
        return loss
