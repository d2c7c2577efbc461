"""Texts as words with character offsets: what the operations edit, and what a tagger reads."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import regex

from haystack_distill.errors import DistilError
from haystack_distill.utils.files import expand_user

Span: TypeAlias = tuple[int, int]  # first character, one past the last
Tagger: TypeAlias = Callable[[list[str]], list[str]]  # the tokens of a text -> their part-of-speech tags

UNTAGGED = ""

# Scripts that write no spaces between words: as BERT does with Chinese, each letter stands for itself.
_SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_NO_SPACES = regex.compile(f"[{_SPACELESS}]")
_LETTER = rf"[[\p{{L}}\p{{N}}]--[{_SPACELESS}]]"
_TOKENS = regex.compile(
    rf"""(?V1)
    (?P<word>
      \p{{N}}+(?:[.,:]\p{{N}}+)+                      # 8.5, 10,000, 12:30
      |{_LETTER}[{_LETTER}\p{{M}}\u200c\u200d]*       # letters and digits, with the marks that combine with them
       (?:['\u2019]{_LETTER}[{_LETTER}\p{{M}}]*)*          # don't, l'eau
      |[{_SPACELESS}]\p{{M}}*
    )
    |[^\s]                                            # punctuation and signs, one by one
    """,
    regex.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a text, without its punctuation.

    Attributes:
        spans: where each word stands, in order.
        tags: the part-of-speech tag of each; empty strings where the text was not tagged.
    """

    spans: list[Span]
    tags: list[str]

    def __len__(self) -> int:
        return len(self.spans)

    def outside(self, protected: Sequence[Span]) -> list[int]:
        """The indices of the words that no protected span touches."""
        if not protected:
            return list(range(len(self.spans)))
        return [
            index
            for index, (start, end) in enumerate(self.spans)
            if not any(start < stop and begin < end for begin, stop in protected)
        ]


def split_words(text: str, tagger: Tagger | None = None) -> Words:
    """Split a text at spaces and punctuation, and tag its words.

    A word is a run of letters, digits and combining marks, an apostrophe between them included; numbers keep their
    decimal points. In scripts without spaces each letter is a word.

    Args:
        text: any text.
        tagger: reads the tokens, punctuation among them; None leaves the words untagged.
    """
    matches = list(_TOKENS.finditer(text))
    if tagger is None:
        spans = [match.span() for match in matches if match.lastgroup]
        return Words(spans, [UNTAGGED] * len(spans))
    tags = tagger([match.group() for match in matches])
    tagged = [(match.span(), tag) for match, tag in zip(matches, tags, strict=True) if match.lastgroup]
    return Words([span for span, _ in tagged], [tag for _, tag in tagged])


class TokenizerWords:
    """Splits text into the words of a tokenizer: for languages without spaces, and to know its mask token.

    Args:
        name: a directory with `tokenizer.json`, such a file, or a name on the Hugging Face hub.

    Raises:
        DistilError: no such tokenizer.
    """

    def __init__(self, name: str | Path) -> None:
        from tokenizers import Tokenizer  # not transformers: it would bring torch

        path = expand_user(name)
        try:
            if path.is_dir():
                path = path / "tokenizer.json"
            self._tokenizer = Tokenizer.from_file(str(path)) if path.exists() else Tokenizer.from_pretrained(str(name))
        except Exception as error:  # the library raises bare Exception
            raise DistilError(
                f"cannot load a tokenizer from {str(name)!r} ({error}). Give a directory with tokenizer.json, or a "
                "name that the hub (or, offline, its local cache) has"
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @property
    def mask_token(self) -> str:
        """The token that stands for a hidden word.

        Raises:
            DistilError: the tokenizer has none.
        """
        known = self._tokenizer.get_added_tokens_decoder().values()
        found = [token.content for token in known if token.special and "mask" in token.content.lower()]
        if not found:
            raise DistilError("the tokenizer has no mask token; name the one to use with mask_token")
        return found[0]

    def __call__(self, text: str) -> Words:
        """The words of a text, untagged: what the tokenizer splits at, or its pieces in scripts without spaces."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        spans: list[Span] = []
        last = None
        for word, (start, end) in zip(encoding.word_ids, encoding.offsets, strict=True):
            while start < end and text[start].isspace():  # byte-level tokenizers count the space before a word
                start += 1
            if start == end:
                continue
            apart = _NO_SPACES.search(text, spans[-1][0] if spans else start, end)
            if word is not None and word == last and spans and not apart:
                spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
            elif not spans or start >= spans[-1][1]:
                spans.append((start, end))
            last = word
        spans = [span for span in (_trimmed(text, *span) for span in spans) if span[0] < span[1]]
        return Words(spans, [UNTAGGED] * len(spans))


def _trimmed(text: str, start: int, end: int) -> Span:
    """A span without the punctuation at its ends; an empty one where it is all that there is."""
    while start < end and not text[start].isalnum():
        start += 1
    while start < end and not (text[end - 1].isalnum() or unicodedata.category(text[end - 1])[0] == "M"):
        end -= 1
    return start, end
