"""How often each word of a corpus has each tag, and draws from that distribution."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random

from augment.words import Words
from haystack_distill.errors import DataError


class TagCounts:
    """How often each word has each tag."""

    def __init__(self, counts: Mapping[str, Mapping[str, int]] | None = None) -> None:
        self.counts: dict[str, Counter[str]] = {tag: Counter(words) for tag, words in (counts or {}).items()}

    def add(self, text: str, words: Words) -> None:
        """Count the tagged words of a text."""
        for (start, end), tag in zip(words.spans, words.tags, strict=True):
            if tag:
                self.counts.setdefault(tag, Counter())[text[start:end]] += 1

    def merge(self, other: "TagCounts") -> None:
        """Add the counts of another part of the corpus."""
        for tag, words in other.counts.items():
            self.counts.setdefault(tag, Counter()).update(words)

    def as_json(self) -> dict[str, dict[str, int]]:
        """The counts in an order that depends on nothing but them."""
        return {tag: dict(sorted(self.counts[tag].items())) for tag in sorted(self.counts)}

    @classmethod
    def from_json(cls, content: object, source: str) -> "TagCounts":
        """What `as_json` gave; `source` is named when it is something else.

        Raises:
            DataError: not tag counts.
        """
        sound = isinstance(content, dict) and all(
            isinstance(words, dict) and all(type(count) is int and count > 0 for count in words.values())
            for words in content.values()
        )
        if not sound:
            raise DataError(f"{source}: not a statistics file; make it again with --statistics_only")
        return cls(content)  # type: ignore[arg-type]  # just checked

    @classmethod
    def read(cls, path: Path) -> "TagCounts":
        """The counts in a JSON file."""
        return cls.from_json(json.loads(path.read_text(encoding="utf-8")), str(path))


class AliasTable:
    """Exact draws from a discrete distribution in constant time (Walker 1977; built as by Vose 1991).

    Args:
        words: what is drawn.
        weights: how often, relative to one another; whole numbers above 0.
    """

    def __init__(self, words: list[str], weights: list[int]) -> None:
        size, total = len(words), sum(weights)
        scaled = [weight * size for weight in weights]  # in whole numbers, so that no rounding adds up
        self.words = words
        self._size = size
        self._share = [1.0] * size
        self._alias = list(range(size))
        small = [index for index, weight in enumerate(scaled) if weight < total]
        large = [index for index, weight in enumerate(scaled) if weight >= total]
        while small and large:
            less, more = small.pop(), large.pop()
            self._share[less] = scaled[less] / total
            self._alias[less] = more
            scaled[more] -= total - scaled[less]
            (small if scaled[more] < total else large).append(more)

    def draw(self, random: Random) -> str:
        """One word."""
        place = random.random() * self._size
        index = int(place)
        return self.words[index if place - index < self._share[index] else self._alias[index]]


class _Tag:
    """The words of one tag. A word that is more than half of them all needs a table of the others, or leaving it out
    by drawing again could take long."""

    def __init__(self, words: Mapping[str, int]) -> None:
        ordered = sorted(words.items())
        self.all = AliasTable([word for word, _ in ordered], [count for _, count in ordered])
        heaviest, count = max(ordered, key=lambda item: item[1])
        self.heaviest = heaviest if 2 * count > sum(words.values()) else None
        others = [item for item in ordered if item[0] != self.heaviest]
        self.others = AliasTable([w for w, _ in others], [c for _, c in others]) if self.heaviest and others else None

    def other_than(self, word: str, random: Random) -> str | None:
        if word == self.heaviest:
            return self.others.draw(random) if self.others else None
        while (drawn := self.all.draw(random)) == word:
            if len(self.all.words) == 1:
                return None
        return drawn


class Lexicon:
    """Draws words by their tag, as often as the corpus has them.

    Args:
        counts: the corpus.
    """

    def __init__(self, counts: TagCounts) -> None:
        self._tags = {tag: _Tag(words) for tag, words in counts.counts.items()}

    def draw(self, word: str, tag: str, random: Random) -> str | None:
        """Another word of the same tag, drawn from the tag's unigram distribution without `word`.

        None where the tag has no other word, or where the text is untagged.
        """
        known = self._tags.get(tag)
        return known.other_than(word, random) if known else None

    def words_of(self, tag: str) -> Iterable[str]:
        """The words that have a tag, in order."""
        return tuple(self._tags[tag].all.words) if tag in self._tags else ()
