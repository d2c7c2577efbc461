"""General distillation of the predictions of a masked language model: DistilBERT's triple loss."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from transformers import PretrainedConfig

from haystack_distill.errors import DistilError
from haystack_distill.models.outputs import ModelOutputs
from haystack_distill.objectives.losses import cosine_loss, masked_word_loss, soft_target_loss
from haystack_distill.objectives.objective import Objective
from haystack_distill.utils.checks import is_number


class LanguageModelObjective(Objective):
    """Teach a student what a masked language model expects (DistilBERT, Sanh et al. 2019, arXiv 1910.01108).

    "soft_targets": KL divergence of teacher and student over the vocabulary at each token, both softened by T.
    "masked_words": cross entropy of the words that were masked.
    "cosine": 1 - cosine of the last hidden states.

    total = soft_target_weight * T^2 * soft_targets + masked_word_weight * masked_words + cosine_weight * cosine

    The default weights and T are those of the training script that made DistilBERT. A loss of weight 0 is neither
    computed nor returned.

    Args:
        student_config: the student's configuration.
        teacher_config: the teacher's configuration.
        temperature: T > 0.
        soft_target_weight: 0 or more.
        masked_word_weight: 0 or more.
        cosine_weight: 0 or more.

    Raises:
        DistilError: a weight is wrong, or the vocabularies or (for the cosine) the widths differ.
    """

    def __init__(
        self,
        student_config: PretrainedConfig,
        teacher_config: PretrainedConfig,
        temperature: float = 2.0,
        soft_target_weight: float = 5.0,
        masked_word_weight: float = 2.0,
        cosine_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not (is_number(temperature) and temperature > 0):
            raise DistilError(f"temperature has to be greater than 0 and a number, not {temperature!r}.")
        weights = {
            "soft_target_weight": soft_target_weight,
            "masked_word_weight": masked_word_weight,
            "cosine_weight": cosine_weight,
        }
        for name, weight in weights.items():
            if not (is_number(weight) and weight >= 0):
                raise DistilError(f"{name} has to be 0 or more and a number, not {weight!r}.")
        weights["soft_target_weight"] *= temperature**2
        names = ("soft_targets", "masked_words", "cosine")
        self.weights = {name: weight for name, weight in zip(names, weights.values(), strict=True) if weight > 0}
        if not self.weights:
            raise DistilError("There is nothing to learn: one of the three weights has to be greater than 0.")
        if student_config.vocab_size != teacher_config.vocab_size:
            raise DistilError(
                f"The student's vocabulary has {student_config.vocab_size} entries and the teacher's "
                f"{teacher_config.vocab_size}: what they expect cannot be compared. Use a student with the teacher's "
                "vocabulary."
            )
        if "cosine" in self.weights and student_config.hidden_size != teacher_config.hidden_size:
            raise DistilError(
                f"The student is {student_config.hidden_size} wide and the teacher {teacher_config.hidden_size}: the "
                "cosine of their hidden states needs equal widths. Set cosine_weight=0, or distil the layers, whose "
                "losses have projections between widths."
            )
        self.temperature = temperature
        self.needs_teacher = True
        self.needs_hidden_states = "cosine" in self.weights

    def forward(
        self, student: ModelOutputs, batch: Mapping[str, Tensor], teacher: ModelOutputs | None = None
    ) -> dict[str, Tensor]:
        """The unweighted losses of each window; see `Objective.forward`.

        The batch holds input_ids, attention_mask and labels (B, L): the token that was hidden, or -100.
        """
        assert teacher is not None
        if student.token_logits is None or teacher.token_logits is None:
            raise DistilError("Student and teacher both need a head for masked language modelling.")
        mask = batch["attention_mask"]
        losses: dict[str, Tensor] = {}
        if "soft_targets" in self.weights:
            logits = student.token_logits, teacher.token_logits
            losses["soft_targets"] = soft_target_loss(*logits, mask, self.temperature)
        if "masked_words" in self.weights:
            losses["masked_words"] = masked_word_loss(student.token_logits, batch["labels"])
        if "cosine" in self.weights:
            assert student.hidden_states is not None
            assert teacher.hidden_states is not None
            losses["cosine"] = cosine_loss(student.hidden_states[-1], teacher.hidden_states[-1], mask)
        return losses
