"""Representation: the student's last hidden state, projected, learns the teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from transformers import PretrainedConfig

from haystack_distill.models.outputs import ModelOutputs, OutputRequest
from haystack_distill.objectives.intermediate_layers import hidden_states_of
from haystack_distill.objectives.losses import hidden_state_loss
from haystack_distill.objectives.method import Method, require_teacher
from haystack_distill.objectives.objective import CORPUS, QUESTIONS, LossTerm, Objective
from haystack_distill.objectives.states import chosen_tokens, chosen_windows
from haystack_distill.utils.checks import check_argument


@dataclass(frozen=True)
class Representation(Method):
    """Representation: the teacher's last hidden state, for a student of any width.

    Mukherjee & Awadallah 2019 (arXiv 1910.01769), equation 7: the student's last hidden state goes through a trainable
    linear projection to the teacher's width and a GELU; the loss is the mean squared difference to the teacher's last
    hidden state. Student and teacher must have tokenizers with the same pieces (`teachers.LiveTeacher`); their depths,
    widths and heads may differ. The question answering head is not trained.

    Args:
        tokens: The tokens whose hidden states are compared: "all", or "first" as in the paper, which classifies texts.
        windows: The windows that have the loss: "all", or "unlabelled" as in equation 8 of the paper, where labelled
            ones learn their label.

    Raises:
        DistilError: An option is wrong.
    """

    tokens: Literal["all", "first"] = "all"
    windows: Literal["all", "unlabelled"] = "all"

    def __post_init__(self) -> None:
        check_argument("tokens", self.tokens, self.tokens in ("all", "first"), '"all" or "first"')
        check_argument("windows", self.windows, self.windows in ("all", "unlabelled"), '"all" or "unlabelled"')

    def objective(self, student: PretrainedConfig, teacher: PretrainedConfig | None) -> RepresentationObjective:
        """Create the objective; see `Method.objective`.

        Raises:
            DistilError: There is no teacher.
        """
        return RepresentationObjective(self, student.hidden_size, require_teacher(self, teacher).hidden_size)


class RepresentationObjective(Objective):
    """The objective of `Representation`. Its one term is "representation".

    Args:
        options: The options of the method.
        student_width: The student's hidden size.
        teacher_width: The teacher's hidden size.

    Attributes:
        projection: From the student's width to the teacher's, with a GELU.
    """

    student_request = teacher_request = OutputRequest(hidden_states=True)

    def __init__(self, options: Representation, student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.weights = {"representation": 1.0}
        self.tokens, self.windows = options.tokens, options.windows
        self.projection = nn.Sequential(nn.Linear(student_width, teacher_width), nn.GELU())
        if self.windows == "all":
            self.data = frozenset({QUESTIONS, CORPUS})  # type: ignore[misc]
        else:
            self.needs_unlabelled = "windows='all'"

    def masks(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The windows of the option `windows`; see `Objective.masks`."""
        return {"representation": chosen_windows(batch, self.windows)}

    def forward(
        self, student: ModelOutputs, teacher: ModelOutputs | None, batch: Mapping[str, Tensor]
    ) -> dict[str, LossTerm]:
        """The unweighted term; see `Objective.forward`.

        Raises:
            DistilError: Hidden states of student or teacher are missing.
        """
        own, target = hidden_states_of(student, "student")[-1], hidden_states_of(teacher, "teacher")[-1]
        # Without autocast, half-precision states may meet a float32 projection.
        projected = self.projection(own.to(next(self.projection.parameters()).dtype))
        values = hidden_state_loss(projected, target, chosen_tokens(batch["attention_mask"], self.tokens))
        return {"representation": LossTerm(values, self.masks(batch)["representation"])}
