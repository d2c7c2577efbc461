"""Ranked spans against a double loop over all pairs of positions."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch

from haystack_distill import Reader
from haystack_distill.models.span_decoding import (
    Span,
    SpanDecoder,
    best_spans,
    joint_log_partition,
    log_partition,
    no_answer_score,
    separate_spans,
    window_spans,
)


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


def test_spans_that_do_not_exist_lie_within_their_window() -> None:
    logits, mask = torch.zeros(1, 6), torch.zeros(1, 6, dtype=torch.bool)
    mask[0, 4] = True
    for apart in (-1, 0):
        scores, first, last = separate_spans(logits, logits, mask, 20, apart)
        assert (scores > -math.inf).sum() == 1
        assert first.max() < 6
        assert last.max() < 6


def test_joint_log_partition_counts_all_pairs_but_the_no_answer() -> None:
    generator = torch.Generator().manual_seed(0)
    start, end = (torch.randn(1, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.tensor([[True, False, True, True]])
    pairs = [(i, j) for i in (0, 2, 3) for j in (0, 2, 3) if (i, j) != (0, 0)]
    wanted = math.log(sum(math.exp(start[0, i] + end[0, j]) for i, j in pairs))
    assert joint_log_partition(start, end, mask, 0).item() == pytest.approx(wanted)


def test_window_spans_keep_the_no_answer_out_of_the_search_and_the_mask_as_it_is() -> None:
    start, end = torch.tensor([[9.0, 1.0, 2.0]] * 2), torch.tensor([[9.0, 3.0, 1.0]] * 2)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    before = mask.clone()
    spans = window_spans(start, end, mask, 0, partial(best_spans, top_k=9, max_answer_length=2))
    assert spans.no_answer.tolist() == [18.0, 18.0]
    assert torch.equal(mask, before)
    rows = [list(row) for row in spans.rows(spans.logits * 2)]
    assert rows == [[(4.0, 8.0, 1, 1), (3.0, 6.0, 2, 2), (2.0, 4.0, 1, 2)], []]


def test_decoder_keeps_the_best_window_of_each_span_and_the_lowest_no_answer(
    tiny_reader: Callable[..., Reader],
) -> None:
    reader = tiny_reader()
    contexts = ["Ada Lovelace wrote the first program in 1843. " * 12, "Karl von Frisch described it in 1927."]
    windows = reader.cut_pairs([("Who wrote it?", context) for context in contexts])
    assert len(windows.windows_of_examples(0, 1)) > 2
    batches = list(reader.logits(windows, range(len(windows))))
    decoder, backwards = (SpanDecoder(windows, range(2), 4, 5) for _ in range(2))
    best: dict[tuple[int, int, int], float] = {}
    no_answers = [math.inf, math.inf]
    for batch, starts, ends in batches:
        decoder.add(batch, starts, ends)
        context_mask = batch["context_mask"].clone()
        context_mask[:, 0] = False
        scores, first, last = best_spans(starts, ends, context_mask, 4, 5)
        for row, window in enumerate(batch["window"].tolist()):
            stored = windows[window]
            (char_starts,), (char_ends,) = stored.lists("char_starts"), stored.lists("char_ends")
            example, offset = int(stored.ints("example")[0]), int(stored.ints("context_start")[0])
            no_answers[example] = min(no_answers[example], (starts[row, 0] + ends[row, 0]).item())
            for score, i, j in zip(scores[row].tolist(), first[row].tolist(), last[row].tolist(), strict=True):
                if score > -math.inf:
                    span = (example, int(char_starts[i - offset]), int(char_ends[j - offset]))
                    best[span] = max(score, best.get(span, -math.inf))
    for batch, starts, ends in reversed(batches):
        backwards.add(batch, starts, ends)
    assert {span[:3]: span.logit for span in decoder.all_spans()} == best
    assert backwards.all_spans() == decoder.all_spans()
    logits = [span.logit for span in decoder.all_spans()]
    assert logits == sorted(logits, reverse=True)
    for example, context in enumerate(contexts):
        assert decoder.spans(example) == [span for span in decoder.all_spans() if span.example == example]
        assert decoder.no_answer(example).logit == no_answers[example]
        prediction = decoder.prediction(example, context, 2)
        assert [Span(example, one.start, one.end, one.logit, one.score) for one in prediction.answers] == decoder.spans(
            example
        )[:2]
        assert all(one.text == context[one.start : one.end] for one in prediction.answers)
        assert (prediction.no_answer.logit, prediction.no_answer.score) == decoder.no_answer(example)


def test_a_probability_does_not_depend_on_padding() -> None:
    """To the bit: in float32 the order in which exponentials are added up would change with the length of the batch."""
    logits = torch.randn(50, 97, generator=torch.Generator().manual_seed(0)) * 4
    mask = torch.ones(50, 97, dtype=torch.bool)
    alone = log_partition(logits, mask)
    for more in (1, 15, 31, 160):
        padded = torch.nn.functional.pad(logits, (0, more), value=9.0)
        assert torch.equal(log_partition(padded, torch.nn.functional.pad(mask, (0, more))), alone)
