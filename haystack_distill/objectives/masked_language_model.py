"""Distillation of the predictions of a masked language model with DistilBERT's triple loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from transformers import PretrainedConfig

from haystack_distill.data.text_windows import NO_LABEL
from haystack_distill.errors import DistilError
from haystack_distill.models.outputs import ModelOutputs, OutputRequest
from haystack_distill.objectives.losses import cosine_loss, masked_word_loss, soft_target_loss
from haystack_distill.objectives.method import (
    Method,
    check_final_temperature,
    check_temperature,
    check_weights,
    refuse_without_effect,
    require_teacher,
)
from haystack_distill.objectives.objective import CORPUS, LossTerm
from haystack_distill.objectives.softened import SoftenedObjective
from haystack_distill.utils.checks import check_argument


@dataclass(frozen=True)
class MaskedLanguageModel(Method):
    """Masked language model: the teacher's predictions for the tokens of plain text.

    DistilBERT's triple loss (Sanh et al. 2019, arXiv 1910.01108), on a corpus:

    "soft_targets": KL divergence of teacher and student over the vocabulary, both softened by T, mean over tokens.
    "masked_words": cross entropy of the masked words (BERT, Devlin et al. 2019, arXiv 1810.04805).
    "cosine": 1 - cosine of the last hidden states.

    total = soft_target_weight * T^2 * soft_targets + masked_word_weight * masked_words + cosine_weight * cosine

    The default weights and T are those of the training script of DistilBERT. A loss of weight 0 is neither
    computed nor returned. The soft targets need a masked-language-model head of student and teacher and the same
    vocabulary, the masked words one of the student, the cosine none. With the masked words alone, the method is BERT's
    training on text, without a teacher.

    Args:
        temperature: T, softens the distributions of teacher and student over the vocabulary.
        soft_target_weight: Weight of the teacher's distribution; 0 leaves it out.
        soft_target_tokens: The tokens whose distributions are compared: "all", or "masked" for the masked words alone
            (`restrict_ce_to_mask` in the training script of DistilBERT).
        masked_word_weight: Weight of the masked words; 0 leaves it out.
        cosine_weight: Weight of the cosine of the last hidden states; 0 leaves it out.
        final_temperature: T in the last step, reached linearly; None for the same T in all steps.

    Raises:
        DistilError: A weight or the temperature is wrong or would have no effect, or all weights are 0.
    """

    needs_teacher: ClassVar[bool] = False
    needs_corpus: ClassVar[bool] = True

    temperature: float = 2.0
    soft_target_weight: float = 5.0
    masked_word_weight: float = 2.0
    cosine_weight: float = 1.0
    soft_target_tokens: Literal["all", "masked"] = "all"
    final_temperature: float | None = None

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_weights(self, "soft_target_weight", "masked_word_weight", "cosine_weight")
        tokens = self.soft_target_tokens
        check_argument("soft_target_tokens", tokens, tokens in ("all", "masked"), '"all" or "masked"')
        if self.soft_target_weight == 0:
            for option in ("temperature", "final_temperature", "soft_target_tokens"):
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
            "masked_words": self.masked_word_weight,
            "cosine": self.cosine_weight,
        }
        return {name: weight for name, weight in weights.items() if weight > 0}

    def objective(self, student: PretrainedConfig, teacher: PretrainedConfig | None) -> MaskedLanguageModelObjective:
        """Create the objective; see `Method.objective`.

        Raises:
            DistilError: There is no teacher, or, with the soft targets, the vocabularies or, with the cosine loss, the
                widths differ.
        """
        if not (self.soft_target_weight or self.cosine_weight):
            return MaskedLanguageModelObjective(self)  # the text alone teaches
        teacher = require_teacher(self, teacher)
        if self.soft_target_weight and student.vocab_size != teacher.vocab_size:
            raise DistilError(
                f"the student's vocabulary has {student.vocab_size} entries and the teacher's {teacher.vocab_size}, so "
                "their predictions cannot be compared; use a student with the teacher's vocabulary"
            )
        if self.cosine_weight and student.hidden_size != teacher.hidden_size:
            raise DistilError(
                f"the student is {student.hidden_size} wide and the teacher {teacher.hidden_size}, and the cosine of "
                "their hidden states needs equal widths; set cosine_weight=0, or distil the intermediate layers, "
                "whose losses have projections between widths"
            )
        return MaskedLanguageModelObjective(self)


class MaskedLanguageModelObjective(SoftenedObjective):
    """The objective of `MaskedLanguageModel`. Its terms are the losses with a weight above 0.

    Args:
        options: The options of the method.
    """

    data = frozenset({CORPUS})

    def __init__(self, options: MaskedLanguageModel) -> None:
        super().__init__()
        self.options = options
        self.begin_step(0.0)
        self.soft_target_tokens = options.soft_target_tokens
        cosine, soft_targets = "cosine" in self.weights, "soft_targets" in self.weights
        words = soft_targets or "masked_words" in self.weights
        self.student_request = OutputRequest(logits=words, hidden_states=cosine)
        self.teacher_request = OutputRequest(logits=soft_targets, hidden_states=cosine)

    def masks(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Windows with a masked word have the terms of masked words; see `Objective.masks`."""
        masked = (batch["labels"] != NO_LABEL).any(dim=1)
        terms = {"masked_words"} | ({"soft_targets"} if self.soft_target_tokens == "masked" else set())
        return {name: masked if name in terms else mask for name, mask in super().masks(batch).items()}

    def forward(
        self, student: ModelOutputs, teacher: ModelOutputs | None, batch: Mapping[str, Tensor]
    ) -> dict[str, LossTerm]:
        """The unweighted terms; see `Objective.forward`.

        Raises:
            DistilError: The student or the teacher has no masked-language-model head that a term needs.
        """
        needed = [(self.student_request, student, "student"), (self.teacher_request, teacher, "teacher")]
        for request, outputs, who in needed:
            if request.logits and (outputs is None or outputs.token_logits is None):
                raise DistilError(
                    f"the {who} needs a head for masked language modelling; use a masked language model, or set the "
                    "weights of soft targets and masked words to 0"
                )
        mask = batch["attention_mask"]
        losses: dict[str, Tensor] = {}
        if "soft_targets" in self.weights:
            assert teacher is not None
            assert teacher.token_logits is not None
            assert student.token_logits is not None
            logits = student.token_logits, teacher.token_logits
            tokens = mask if self.soft_target_tokens == "all" else batch["labels"] != NO_LABEL
            losses["soft_targets"] = soft_target_loss(*logits, tokens, self.temperature)
        if "masked_words" in self.weights:
            assert student.token_logits is not None
            losses["masked_words"] = masked_word_loss(student.token_logits, batch["labels"])
        if "cosine" in self.weights:
            assert student.hidden_states is not None
            assert teacher is not None
            assert teacher.hidden_states is not None
            losses["cosine"] = cosine_loss(student.hidden_states[-1], teacher.hidden_states[-1], mask)
        masks = self.masks(batch)
        return {name: LossTerm(values, masks[name]) for name, values in losses.items()}
