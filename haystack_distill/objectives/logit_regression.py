"""Logit regression: a head of its own on the student regresses the log-odds of the teacher's probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from transformers import PretrainedConfig

from haystack_distill.models.outputs import ModelOutputs, OutputRequest
from haystack_distill.objectives.answer_losses import answer_logits_of
from haystack_distill.objectives.intermediate_layers import hidden_states_of
from haystack_distill.objectives.losses import LOG_ODDS_LIMIT, log_odds_loss
from haystack_distill.objectives.method import Method
from haystack_distill.objectives.objective import LossTerm, Objective
from haystack_distill.objectives.states import chosen_windows
from haystack_distill.utils.checks import check_argument


@dataclass(frozen=True)
class LogitRegression(Method):
    """Logit regression: the log-odds of the teacher's start and end probabilities.

    Mukherjee & Awadallah 2019 (arXiv 1910.01769), equations 4 and 5: a linear head of its own on the student's last
    hidden state regresses logit(p) = log(p / (1 - p)) of the teacher's start and end probabilities p, taken over the
    context and the no-answer position. The loss is the mean of the squared differences over those tokens, start and
    end. So that the targets are finite they are limited to -10 and 10, probabilities of 4.5e-5 and 1 - 4.5e-5.

    The head belongs to the objective and is no part of the finished reader, whose own head is not trained: add
    `Labels` or `PredictionLayer`. The mean squared difference of unscaled logits by the reader's own head (Tang et al.
    2019, arXiv 1903.12136) is `PredictionLayer(distillation_loss="mse")`.

    Args:
        windows: The windows that have the loss: "all", or "unlabelled" as in equation 8 of the paper, where labelled
            ones learn their label.

    Raises:
        DistilError: An option is wrong.
    """

    windows: Literal["all", "unlabelled"] = "all"

    def __post_init__(self) -> None:
        check_argument("windows", self.windows, self.windows in ("all", "unlabelled"), '"all" or "unlabelled"')

    def objective(self, student: PretrainedConfig, teacher: PretrainedConfig | None = None) -> LogitRegressionObjective:
        """Create the objective; see `Method.objective`."""
        return LogitRegressionObjective(self, student.hidden_size)


class LogitRegressionObjective(Objective):
    """The objective of `LogitRegression`. Its one term is "logit_regression".

    Args:
        options: The options of the method.
        student_width: The student's hidden size.

    Attributes:
        head: From the student's width to a start and an end log-odds.
    """

    student_request = OutputRequest(hidden_states=True)
    teacher_request = OutputRequest(logits=True)

    def __init__(self, options: LogitRegression, student_width: int) -> None:
        super().__init__()
        self.weights = {"logit_regression": 1.0}
        self.windows = options.windows
        self.head = nn.Linear(student_width, 2)
        # Nearly all tokens are improbable: from 0, the student's states would first move to reach their log-odds.
        nn.init.constant_(self.head.bias, -LOG_ODDS_LIMIT)
        if self.windows == "unlabelled":
            self.needs_unlabelled = "windows='all'"

    def masks(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The windows of the option `windows`; see `Objective.masks`."""
        return {"logit_regression": chosen_windows(batch, self.windows)}

    def forward(
        self, student: ModelOutputs, teacher: ModelOutputs | None, batch: Mapping[str, Tensor]
    ) -> dict[str, LossTerm]:
        """The unweighted term; see `Objective.forward`.

        Raises:
            DistilError: The student's hidden states or the teacher's logits are missing.
        """
        states = hidden_states_of(student, "student")[-1]
        # Without autocast, half-precision states may meet a float32 head.
        start, end = self.head(states.to(self.head.weight.dtype)).unbind(dim=2)
        teacher_start, teacher_end = answer_logits_of(teacher, "teacher")
        context = batch["context_mask"]
        values = (log_odds_loss(start, teacher_start, context) + log_odds_loss(end, teacher_end, context)) / 2
        return {"logit_regression": LossTerm(values, self.masks(batch)["logit_regression"])}
