"""Does a window hold the answer? A cheap estimate from hidden states, by late interaction of question and context.

Late interaction is that of ColBERT (Khattab & Zaharia 2020, arXiv 2004.12832): each token of the question is compared
with the most similar token of the context. Here the tokens of the question have learnt weights, and the first token of
the window, which gathers whether there is an answer, takes part.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

_SCALE = 10.0  # of the mean similarity, at the start: about the spread of the log-odds of a reader


class Matcher(nn.Module):
    """The log-odds that a window holds the answer, from the hidden states of one layer.

    Args:
        hidden_size: Width of the hidden states, H.
        size: Width in which tokens are compared.
    """

    def __init__(self, hidden_size: int, size: int) -> None:
        super().__init__()
        self.projection = nn.Linear(hidden_size, size, bias=False)
        self.weight = nn.Linear(hidden_size, 1)  # of a token of the question, before softplus
        self.first = nn.Linear(hidden_size, 1)  # its bias is that of the log-odds
        self.scale = nn.Parameter(torch.tensor([_SCALE]))
        for linear in (self.weight, self.first):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, hidden: Tensor, question: Tensor, context: Tensor) -> Tensor:
        """The log-odds of each window, (B,), float32.

        Args:
            hidden: Hidden states, (B, L, H).
            question: True for the tokens of the question, (B, L).
            context: True for the tokens of the context, (B, L).
        """
        length = 1 + int(question.sum(dim=1).amax())  # the question begins at the second token
        asked, question = hidden[:, :length], question[:, :length]
        tokens = normalize(self.projection(hidden).float(), dim=2)
        similarity = torch.bmm(tokens[:, :length], tokens.transpose(1, 2)).masked_fill(~context.unsqueeze(1), -1.0)
        weights = softplus(self.weight(asked).float().squeeze(2)).masked_fill(~question, 0.0)
        mean = (weights * similarity.amax(dim=2)).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-6)
        return self.scale * mean + self.first(hidden[:, 0]).float().squeeze(1)


def question_and_context(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens of windows are the question's, and which the context's.

    A window is a first token, the question, one separator or two, the context and a separator, then padding. Plain text
    counts as a question without a context.

    Args:
        input_ids: (B, L).
        attention_mask: (B, L).

    Returns:
        Two masks, (B, L) bool.
    """
    tokens = attention_mask.bool()
    last = tokens.sum(dim=1, keepdim=True).clamp(min=1) - 1
    separators = input_ids == input_ids.gather(1, last)
    behind = separators.cumsum(dim=1) > 0
    question = tokens & ~behind
    question[:, 0] = False
    return question, tokens & behind & ~separators
