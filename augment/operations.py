"""The operations on a text: pure functions of its words and a source of random numbers.

Masking, POS-guided replacement and n-gram sampling are those of Tang et al. 2019 (arXiv 1903.12136, section 3.2),
contextual replacement is TinyBERT's (Jiao et al. 2020, arXiv 1909.10351, algorithm 1).
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from random import Random
from typing import NamedTuple

from augment.lexicon import Lexicon
from augment.words import Span, Words

MASK_TOKEN = "[MASK]"  # BERT's
MASK, REPLACE, CONTEXTUAL, NGRAM = "mask", "replace", "contextual", "ngram"
OPERATIONS = (MASK, REPLACE, CONTEXTUAL, NGRAM)


class Edit(NamedTuple):
    """One word that becomes another."""

    start: int
    end: int
    text: str
    operation: str


class Edited(NamedTuple):
    """A text after editing.

    Attributes:
        text: the new text.
        edits: what was replaced, offsets in the old text, in order.
        kept: the part of the old text that is left.
        shortened: whether an n-gram was sampled.
    """

    text: str
    edits: list[Edit]
    kept: Span
    shortened: bool = False


def edit_words(
    text: str,
    words: Words,
    editable: Sequence[int],
    random: Random,
    *,
    p_mask: float = 0.0,
    p_pos: float = 0.0,
    mask_token: str = MASK_TOKEN,
    lexicon: Lexicon | None = None,
    replace_probability: float = 0.0,
    candidates: Sequence[Sequence[str]] | None = None,
) -> list[Edit]:
    """Masking, POS-guided and contextual replacement: one uniform draw a word, so that they exclude each other.

    Args:
        text: the text.
        words: its words.
        editable: indices of the words that may change.
        random: the random numbers.
        p_mask: probability that a word becomes `mask_token`.
        p_pos: probability that it becomes another word of its tag, drawn from `lexicon`; it stays where there is none.
        mask_token: the student tokenizer's own.
        lexicon: needed where `p_pos` is above 0.
        replace_probability: probability that it becomes one of its `candidates`, each equally likely.
        candidates: for each word of the text, what a masked language model would put there.
    """
    p_replace = p_mask + p_pos
    p_any = p_replace + (replace_probability if candidates is not None else 0.0)
    uniform = random.random
    spans = words.spans
    edits = []
    for index, drawn in [(index, drawn) for index in editable if (drawn := uniform()) < p_any]:
        start, end = spans[index]
        if drawn < p_mask:
            edits.append(Edit(start, end, mask_token, MASK))
        elif drawn < p_replace:
            assert lexicon is not None
            other = lexicon.draw(text[start:end], words.tags[index], random)
            if other is not None:
                edits.append(Edit(start, end, other, REPLACE))
        else:
            assert candidates is not None
            choices = candidates[index]
            if choices:
                edits.append(Edit(start, end, choices[int(uniform() * len(choices))], CONTEXTUAL))
    return edits


def sample_ngram(words: Words, random: Random, p_ng: float, longest: int) -> Span | None:
    """With probability `p_ng` the characters of one random n-gram, else None.

    n is uniform in 1..`longest` (or as many words as there are), and every window of n words is equally likely.
    """
    if not len(words) or random.random() >= p_ng:
        return None
    n = 1 + int(random.random() * min(longest, len(words)))
    first = int(random.random() * (len(words) - n + 1))
    return words.spans[first][0], words.spans[first + n - 1][1]


def apply(text: str, edits: list[Edit], kept: Span | None = None) -> Edited:
    """The text with its edits made, cut to the characters `kept`."""
    begin, stop = kept or (0, len(text))
    if kept is not None:
        edits = [edit for edit in edits if begin <= edit.start and edit.end <= stop]
    parts = []
    done = begin
    for start, end, new, _ in edits:
        parts.append(text[done:start])
        parts.append(new)
        done = end
    parts.append(text[done:stop])
    return Edited("".join(parts), edits, (begin, stop), kept is not None)


def moved(starts: Sequence[int], lengths: Sequence[int], edited: Edited) -> list[int | None]:
    """Where spans that no edit touches stand after editing; None for one that was cut off.

    Args:
        starts: first characters in the old text.
        lengths: characters of each span.
        edited: what `apply` gave.
    """
    begin, stop = edited.kept
    ends = [end for _, end, _, _ in edited.edits]
    grown = list(accumulate([len(new) - end + start for start, end, new, _ in edited.edits], initial=0))
    return [
        start - begin + grown[bisect_right(ends, start)] if begin <= start and start + length <= stop else None
        for start, length in zip(starts, lengths, strict=True)
    ]
