"""Ranked spans against a double loop over all pairs of positions."""

import math

import pytest
import torch

from haystack_distill.models.span_decoding import best_spans, log_partition, no_answer_score, separate_spans


def by_hand(
    start: list[float], end: list[float], allowed: list[bool], max_answer_length: int
) -> dict[tuple[int, int], float]:
    """The score of every span that may be an answer, by a loop over all pairs."""
    spans = {}
    for i in range(len(start)):
        for j in range(len(end)):
            if allowed[i] and allowed[j] and i <= j < i + max_answer_length:
                spans[i, j] = start[i] + end[j]
    return spans


@pytest.mark.parametrize("max_answer_length", [1, 3, 12, 50])
@pytest.mark.parametrize("top_k", [1, 7, 1000])
def test_best_spans_are_those_of_a_double_loop(top_k: int, max_answer_length: int) -> None:
    generator = torch.Generator().manual_seed(top_k * 100 + max_answer_length)
    start, end = torch.randn(5, 12, generator=generator), torch.randn(5, 12, generator=generator)
    mask = torch.rand(5, 12, generator=generator) < 0.6
    mask[3] = False  # a window without a context token
    mask[4] = True
    scores, first, last = best_spans(start, end, mask, top_k, max_answer_length)
    for row in range(5):
        spans = by_hand(start[row].tolist(), end[row].tolist(), mask[row].tolist(), max_answer_length)
        wanted = sorted(spans.values(), reverse=True)[:top_k]
        found = [score for score in scores[row].tolist() if score > -math.inf]
        assert found == pytest.approx(wanted)
        pairs = list(zip(first[row].tolist(), last[row].tolist(), strict=True))[: len(found)]
        assert len(set(pairs)) == len(found)
        assert [spans[pair] for pair in pairs] == pytest.approx(found)  # KeyError: a span that may not be an answer
        assert scores[row, len(found) :].tolist() == [-math.inf] * (scores.shape[1] - len(found))


def test_no_more_spans_than_there_are() -> None:
    logits = torch.zeros(2, 4)
    scores, first, last = best_spans(logits, logits, torch.ones(2, 4, dtype=torch.bool), 99, 2)
    assert scores.shape == first.shape == last.shape == (2, 8)
    assert (scores > -math.inf).sum(dim=1).tolist() == [7, 7]  # 4 spans of one token and 3 of two


@pytest.mark.parametrize("apart", [-1, 0, 2])
@pytest.mark.parametrize("top_k", [1, 4, 30])
def test_separate_spans_are_those_of_a_greedy_choice(top_k: int, apart: int) -> None:
    generator = torch.Generator().manual_seed(10 * top_k + apart)
    start, end = torch.randn(5, 12, generator=generator), torch.randn(5, 12, generator=generator)
    mask = torch.rand(5, 12, generator=generator) < 0.7
    mask[3] = False
    scores, first, last = separate_spans(start, end, mask, top_k, apart)
    for row in range(5):
        spans = by_hand(start[row].tolist(), end[row].tolist(), mask[row].tolist(), 12)
        wanted: list[tuple[int, int]] = []
        for i, j in sorted(spans, key=lambda span: -spans[span]):
            near = any(abs(i - other) <= apart or abs(j - until) <= apart for other, until in wanted)
            if len(wanted) < top_k and not near:
                wanted.append((i, j))
        n = int((scores[row] > -math.inf).sum())
        assert list(zip(first[row].tolist(), last[row].tolist(), strict=True))[:n] == wanted
        assert scores[row, :n].tolist() == pytest.approx([spans[span] for span in wanted])


def test_no_answer_score_adds_start_and_end_at_its_position() -> None:
    start, end = torch.arange(6.0).view(2, 3), 10 * torch.arange(6.0).view(2, 3)
    assert no_answer_score(start, end, 1).tolist() == [11.0, 44.0]


def test_log_partition_leaves_masked_positions_out() -> None:
    logits = torch.tensor([[0.5, 99.0, -1.0]])
    mask = torch.tensor([[True, False, True]])
    assert log_partition(logits, mask).item() == pytest.approx(math.log(math.exp(0.5) + math.exp(-1.0)))
