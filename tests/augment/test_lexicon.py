"""Counts of words by tag, and exact draws from them."""

from collections import Counter
from pathlib import Path
from random import Random

import pytest

from augment.lexicon import AliasTable, Lexicon, TagCounts
from augment.words import Words, split_words
from haystack_distill import DataError


def chi_squared(drawn: Counter[str], wanted: dict[str, float]) -> float:
    """The statistic over degrees of freedom; about 1 when `drawn` follows `wanted`."""
    total = sum(drawn.values())
    assert set(drawn) <= set(wanted)
    terms = [(drawn[word] - share * total) ** 2 / (share * total) for word, share in wanted.items()]
    return sum(terms) / (len(terms) - 1)


@pytest.mark.parametrize("weights", [[1], [5, 5], [1, 2, 3, 4], [1000, 1, 1], list(range(1, 60))])
def test_an_alias_table_is_exact(weights: list[int]) -> None:
    """Without drawing: what each slot gives to its word and to its alias adds up to the weights."""
    table = AliasTable([str(number) for number in range(len(weights))], weights)
    shares = [0.0] * len(weights)
    for slot, share in enumerate(table._share):
        shares[slot] += share / len(weights)
        shares[table._alias[slot]] += (1 - share) / len(weights)
    assert shares == pytest.approx([weight / sum(weights) for weight in weights], abs=1e-12)


def test_draws_follow_the_tags_unigram_distribution_without_the_word_itself() -> None:
    counts = {"NN": {"cat": 500, "dog": 300, "eel": 150, "fox": 50}, "DT": {"the": 970, "a": 20, "an": 10}}
    lexicon = Lexicon(TagCounts(counts))
    random = Random(7)
    for tag, word in [("NN", "cat"), ("NN", "fox"), ("NN", "unseen"), ("DT", "the"), ("DT", "a")]:
        others = {other: count for other, count in counts[tag].items() if other != word}
        wanted = {other: count / sum(others.values()) for other, count in others.items()}
        drawn = Counter(lexicon.draw(word, tag, random) for _ in range(20_000))
        assert chi_squared(drawn, wanted) < 4.0  # beyond 3 sigma for 1 to 3 degrees of freedom


def test_no_draw_where_there_is_no_other_word() -> None:
    lexicon = Lexicon(TagCounts({"TO": {"to": 9}}))
    assert lexicon.draw("to", "TO", Random(0)) is None
    assert lexicon.draw("unseen", "TO", Random(0)) == "to"
    assert lexicon.draw("to", "", Random(0)) is None
    assert lexicon.draw("to", "XX", Random(0)) is None


def test_a_heavy_word_is_left_out_without_drawing_for_ever() -> None:
    lexicon = Lexicon(TagCounts({"DT": {"the": 10**12, "a": 1}}))
    assert {lexicon.draw("the", "DT", Random(seed)) for seed in range(50)} == {"a"}


def test_counts_add_up_and_come_back_from_json(tmp_path: Path) -> None:
    counts = TagCounts()
    text = "the cat the dog"
    counts.add(text, Words(split_words(text).spans, ["DT", "NN", "DT", "NN"]))
    counts.add("untagged", split_words("untagged"))
    other = TagCounts({"NN": {"cat": 2}, "VB": {"go": 1}})
    counts.merge(other)
    wanted = {"DT": {"the": 2}, "NN": {"cat": 3, "dog": 1}, "VB": {"go": 1}}
    assert counts.as_json() == wanted
    assert list(counts.as_json()) == sorted(wanted)
    assert TagCounts.from_json(counts.as_json(), "x").as_json() == wanted


@pytest.mark.parametrize("content", [[], {"NN": 3}, {"NN": {"cat": 0}}, {"NN": {"cat": "1"}}, {"NN": {"cat": True}}])
def test_what_is_not_counts_is_refused(content: object) -> None:
    with pytest.raises(DataError, match=r"stats\.json: not a statistics file"):
        TagCounts.from_json(content, "stats.json")
