"""Start and end logits -> ranked answer spans. No loop over pairs of positions."""

import torch


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
        top_k: Spans wanted a window.
        max_answer_length: Longest span, in tokens.

    Returns:
        Scores, first and last positions, each (B, k), best first, k = min(top_k, possible spans); a span that does not
        exist (fewer than k allowed ones) has score -inf.
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
    return values, first, first + places % widths


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
        top_k: Spans wanted a window.
        apart: Starts, and ends, of two spans are more than so many tokens apart; -1 lets them be the same.

    Returns:
        As `best_spans` does.
    """
    if apart < 0:
        return best_spans(start_logits, end_logits, context_mask, top_k, start_logits.shape[1])
    start = start_logits.masked_fill(~context_mask, -torch.inf)
    end = end_logits.masked_fill(~context_mask, -torch.inf)
    places = torch.arange(start.shape[1])
    found = []
    for _ in range(top_k):
        best_end, end_place = end.flip(1).cummax(1)
        score, first = (start + best_end.flip(1)).max(1)
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
    """Log of the sum of exponentials over the allowed positions, (B,): what turns a logit into a probability."""
    return logits.masked_fill(~mask, -torch.inf).logsumexp(dim=1)
