"""The matcher: log-odds by hand, what is a question and what a context, and padding."""

import pytest
import torch

from haystack_distill.models.matching import Matcher, question_and_context

# [CLS] q q [SEP] c c c [SEP], and [CLS] q [SEP] [SEP] c [SEP] with padding
IDS = torch.tensor([[1, 5, 6, 2, 7, 8, 9, 2], [1, 5, 2, 2, 7, 2, 0, 0]])
MASK = (IDS != 0).long()


def test_question_and_context() -> None:
    question, context = question_and_context(IDS, MASK)
    assert question.long().tolist() == [[0, 1, 1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0]]
    assert context.long().tolist() == [[0, 0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 0, 0, 0]]
    # Plain text has no context.
    question, context = question_and_context(torch.tensor([[1, 5, 6, 2]]), torch.ones(1, 4))
    assert question.long().tolist() == [[0, 1, 1, 0]]
    assert not context.any()


def matcher() -> Matcher:
    made = Matcher(2, 2)
    torch.nn.init.eye_(made.projection.weight)
    return made


def test_the_log_odds_by_hand() -> None:
    made, (question, context) = matcher(), question_and_context(IDS[:1], MASK[:1])
    hidden = torch.zeros(1, 8, 2)
    hidden[0, 0] = torch.tensor([1.0, 2.0])
    hidden[0, 1], hidden[0, 2] = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 1.0])
    # The first token of the question has its like in the context, the second one the half of it.
    hidden[0, 4], hidden[0, 5], hidden[0, 6] = (torch.tensor(one) for one in ([2.0, 0.0], [3**0.5, 1.0], [-1.0, 0.0]))
    assert made(hidden, question, context).tolist() == pytest.approx([10 * (1 + 0.5) / 2])
    # The second token counts three times as much.
    with torch.no_grad():
        made.weight.weight[0, 1] = torch.log(torch.tensor(7.0))  # softplus: log(1 + 7), and of 0 log(2)
        made.first.weight.copy_(torch.tensor([[0.5, -1.0]]))
        made.first.bias.fill_(0.25)
    assert made(hidden, question, context).tolist() == pytest.approx([10 * (1 + 3 * 0.5) / 4 + 0.5 - 2 + 0.25])


def test_padding_and_other_windows_change_nothing() -> None:
    made = Matcher(3, 2)
    torch.manual_seed(0)
    for weight in made.parameters():
        torch.nn.init.normal_(weight)
    hidden = torch.randn(2, 8, 3)
    both = made(hidden, *question_and_context(IDS, MASK))
    alone = made(hidden[1:, :6], *question_and_context(IDS[1:, :6], MASK[1:, :6]))
    assert torch.allclose(both[1], alone[0], atol=1e-6)
    text = made(hidden[:1, :4], *question_and_context(torch.tensor([[1, 5, 6, 2]]), torch.ones(1, 4)))
    assert text.isfinite().all()
    empty = torch.zeros(1, 4, dtype=torch.bool)
    assert made(hidden[:1, :4], empty, empty).isfinite().all()
