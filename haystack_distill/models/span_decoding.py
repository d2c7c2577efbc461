"""Start and end logits of windows -> ranked answer spans in the characters of the contexts.

`best_spans` and `separate_spans` search one batch of windows, without a loop over pairs of positions; `window_spans`
adds the no-answer; `SpanDecoder` merges the windows of each example.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, takewhile
from typing import Any, NamedTuple, TypeAlias

import torch

from haystack_distill.data.windows import AnyWindows
from haystack_distill.models.answers import Answer, Prediction

# (start logits, end logits, context mask) -> scores, first and last positions, as `best_spans` returns them.
SpanSearch: TypeAlias = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]
]


def best_spans(
    start_logits: torch.Tensor,
    end_logits: torch.Tensor,
    context_mask: torch.Tensor,
    top_k: int,
    max_answer_length: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The best spans of each window: the largest start logit plus end logit, start <= end, at most max_answer_length
    long.

    Args:
        start_logits: (B, L).
        end_logits: (B, L).
        context_mask: (B, L) bool, True where an answer may begin or end (not the no-answer position).
        top_k: Spans wanted per window.
        max_answer_length: Longest span, in tokens.

    Returns:
        Scores, first and last positions, each (B, k), best first, k = min(top_k, possible spans). Where a window has
        fewer than k allowed spans, the others have score -inf and arbitrary positions within the window.
    """
    length = start_logits.shape[1]
    start = start_logits.masked_fill(~context_mask, -torch.inf)
    end = end_logits.masked_fill(~context_mask, -torch.inf)
    widths = min(max_answer_length, length)
    # scores[:, i, d] is the span i .. i + d; one strided view of the ends instead of a Python loop over pairs.
    padded = torch.nn.functional.pad(end, (0, widths - 1), value=-torch.inf)
    scores = start.unsqueeze(2) + padded.unfold(1, widths, 1)
    flat = scores.flatten(1)
    values, places = flat.topk(min(top_k, flat.shape[1]), dim=1)
    first = places // widths
    return values, first, (first + places % widths).clamp(max=length - 1)


def separate_spans(
    start_logits: torch.Tensor, end_logits: torch.Tensor, context_mask: torch.Tensor, top_k: int, apart: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The best spans of each window of any length, none beginning or ending near the beginning or end of a better one.

    Time and memory are those of the window's length, not of its square: the best end for a start is the largest end
    logit from there on.

    Args:
        start_logits: (B, L).
        end_logits: (B, L).
        context_mask: (B, L) bool, True where an answer may begin or end (not the no-answer position).
        top_k: Spans wanted per window.
        apart: Starts, and ends, of two spans are more than this many tokens apart; -1 lets them be the same.

    Returns:
        Scores, first and last positions, each (B, k), as `best_spans` returns them.
    """
    if apart < 0:
        return best_spans(start_logits, end_logits, context_mask, top_k, start_logits.shape[1])
    start = start_logits.masked_fill(~context_mask, -torch.inf)
    end = end_logits.masked_fill(~context_mask, -torch.inf)
    places = torch.arange(start.shape[1])
    found = []
    for _ in range(top_k):
        best_end, end_place = end.flip(1).cummax(1)
        total = start + best_end.flip(1)
        first = total.argmax(1)  # not `max`, which wakes PyTorch's threads even for a few numbers
        score = total.gather(1, first.unsqueeze(1)).squeeze(1)
        last = (len(places) - 1 - end_place.flip(1)).gather(1, first.unsqueeze(1)).squeeze(1)
        found.append((score, first, last))
        start = start.masked_fill((places - first.unsqueeze(1)).abs() <= apart, -torch.inf)
        end = end.masked_fill((places - last.unsqueeze(1)).abs() <= apart, -torch.inf)
    scores, firsts, lasts = (torch.stack(parts, dim=1) for parts in zip(*found, strict=True))
    return scores, firsts, lasts


def no_answer_score(start_logits: torch.Tensor, end_logits: torch.Tensor, position: int) -> torch.Tensor:
    """Start plus end logit at the no-answer position, (B,)."""
    return start_logits[:, position] + end_logits[:, position]


def log_partition(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Log of the sum of exponentials over the allowed positions, (B,): what turns a logit into a probability.

    Added up in float64, which Apple's GPUs do not have: in float32 the last bits depend on how far a batch is padded.
    """
    allowed = logits.masked_fill(~mask, -torch.inf)
    return (allowed if allowed.device.type == "mps" else allowed.double()).logsumexp(dim=1).to(logits.dtype)


def joint_log_partition(
    start_logits: torch.Tensor, end_logits: torch.Tensor, mask: torch.Tensor, no_answer_position: int
) -> torch.Tensor:
    """Log of the sum of exponentials over all pairs of a start and an end but (no-answer, no-answer), (B,)."""
    context = mask.clone()
    context[:, no_answer_position] = False
    starts_in_context = log_partition(start_logits, context) + log_partition(end_logits, mask)
    starts_in_no_answer = start_logits[:, no_answer_position] + log_partition(end_logits, context)
    return torch.logaddexp(starts_in_context, starts_in_no_answer)


@dataclass(frozen=True)
class WindowSpans:
    """The best spans of B windows, in token positions, and their no-answers.

    Attributes:
        logits: (B, k), start plus end logit, best first; -inf where a window has fewer spans.
        first: (B, k), position of the first token.
        last: (B, k), position of the last token.
        no_answer: (B,), start plus end logit at the no-answer position.
    """

    logits: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor
    no_answer: torch.Tensor

    def rows(
        self, scores: torch.Tensor, numbers: Callable[[torch.Tensor], Any] = torch.Tensor.tolist
    ) -> Iterator[Iterable[tuple[float, float, int, int]]]:
        """Of each window the spans that exist: (logit, score, first position, last position), best first.

        Args:
            scores: (B, k), a score of each span.
            numbers: Turns logits and scores into rows of numbers.
        """
        columns = (numbers(self.logits), numbers(scores), self.first.tolist(), self.last.tolist())
        for row in zip(*columns, strict=True):
            yield takewhile(_exists, zip(*row, strict=True))


def _exists(span: tuple[float, float, int, int]) -> bool:
    return span[0] != -math.inf


def window_spans(
    start_logits: torch.Tensor,
    end_logits: torch.Tensor,
    context_mask: torch.Tensor,
    no_answer_position: int,
    search: SpanSearch,
) -> WindowSpans:
    """The spans of each window of a batch that `search` finds in the context, and the no-answer.

    Args:
        start_logits: (B, L).
        end_logits: (B, L).
        context_mask: (B, L) bool, the batch's: True at context tokens and the no-answer position.
        no_answer_position: Where start and end logit of the no-answer stand.
        search: `best_spans` or `separate_spans` with its settings.
    """
    context = context_mask.clone()
    context[:, no_answer_position] = False
    spans = search(start_logits, end_logits, context)
    return WindowSpans(*spans, no_answer_score(start_logits, end_logits, no_answer_position))


class Span(NamedTuple):
    """A span of a context, with logit and probability of the window where its logit is highest.

    Attributes:
        example: Row of the example.
        start: First character in the context.
        end: One past the last character.
        logit: Start plus end logit.
        probability: Of this span among all starts and all ends of its window, no-answer included (0 to 1).
    """

    example: int
    start: int
    end: int
    logit: float
    probability: float


class NoAnswer(NamedTuple):
    """Logit and probability of the no-answer, of the window where its logit is lowest."""

    logit: float
    probability: float


class SpanDecoder:
    """Merges the spans of all windows of each example; the batches may come in any order.

    Args:
        windows: What the batches are made of.
        examples: The (contiguous) examples whose windows are added.
        top_k: Spans taken from each window.
        max_answer_length: Longest span, in tokens.
    """

    def __init__(self, windows: AnyWindows, examples: range, top_k: int, max_answer_length: int) -> None:
        self._windows = windows
        self._examples = examples
        self._search = partial(best_spans, top_k=top_k, max_answer_length=max_answer_length)
        self._spans: list[dict[tuple[int, int], tuple[float, float]]] = [{} for _ in examples]
        self._no_answers = [NoAnswer(math.inf, 0.0)] * len(examples)
        self._without_text = list(self._no_answers)  # of windows in which no span is possible

    def add(self, batch: dict[str, torch.Tensor], start_logits: torch.Tensor, end_logits: torch.Tensor) -> None:
        """Take the spans and the no-answer of each window of a batch, with logits (B, L)."""
        mask, position = batch["context_mask"], self._windows.template.no_answer_position
        spans = window_spans(start_logits, end_logits, mask, position, self._search)
        normaliser = log_partition(start_logits, mask) + log_partition(end_logits, mask)
        probabilities = (spans.logits - normaliser.unsqueeze(1)).exp()
        no_answers = zip(spans.no_answer.tolist(), (spans.no_answer - normaliser).exp().tolist(), strict=True)
        rows = self._windows.__getitems__(batch["window"].tolist())
        columns = zip(
            rows.ints("example").tolist(),
            rows.ints("context_start").tolist(),
            rows.lists("char_starts"),
            rows.lists("char_ends"),
            no_answers,
            spans.rows(probabilities),
            strict=True,
        )
        for example, offset, char_starts, char_ends, no_answer, found in columns:
            place = example - self._examples.start
            possible = list(found)
            lowest = self._no_answers if possible else self._without_text
            lowest[place] = min(lowest[place], NoAnswer(*no_answer))
            best = self._spans[place]
            for logit, probability, first, last in possible:
                span = (int(char_starts[first - offset]), int(char_ends[last - offset]))
                if span not in best or best[span][0] < logit:
                    best[span] = (logit, probability)

    def spans(self, example: int) -> list[Span]:
        """The spans of one example, best first; of equal ones the earlier first."""
        return _ranked(self._spans_of(example))

    def all_spans(self) -> list[Span]:
        """The spans of all examples in one ranking."""
        return _ranked(chain.from_iterable(self._spans_of(example) for example in self._examples))

    def no_answer(self, example: int) -> NoAnswer:
        """The no-answer of one example: of the window where it is lowest among those that have text at all.

        A window of nothing but what the tokenizer drops is no reason to believe in an answer.
        """
        place = example - self._examples.start
        return self._no_answers[place] if self.has_text(example) else self._without_text[place]

    def has_text(self, example: int) -> bool:
        """Whether a span is possible anywhere in an example."""
        return self._no_answers[example - self._examples.start].logit < math.inf

    def prediction(self, example: int, context: str, top_k: int) -> Prediction:
        """The `top_k` best answers to one example, and its no-answer."""
        logit, probability = self.no_answer(example)
        return Prediction(
            [
                Answer(context[span.start : span.end], span.start, span.end, span.probability, span.logit)
                for span in self.spans(example)[:top_k]
            ],
            Answer("", 0, 0, probability, logit, no_answer=True),
        )

    def _spans_of(self, example: int) -> Iterator[Span]:
        for (start, end), (logit, probability) in self._spans[example - self._examples.start].items():
            yield Span(example, start, end, logit, probability)


def _ranked(spans: Iterable[Span]) -> list[Span]:
    return sorted(spans, key=lambda span: (-span.logit, span.example, span.start, span.end))
