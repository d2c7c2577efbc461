"""The operations do what they say, as often as they say."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment.lexicon import Lexicon, TagCounts
from augment.operations import CONTEXTUAL, MASK, REPLACE, Edit, apply, edit_words, moved, sample_ngram
from augment.words import Words, split_words

WORDS = 1_000_000


def tagged(text: str, tag: str = "NN") -> Words:
    spans = split_words(text).spans
    return Words(spans, [tag] * len(spans))


def test_each_operation_happens_as_often_as_asked() -> None:
    """Within 1 % of the probability: over a million words that is more than three standard deviations."""
    text = " ".join(["word"] * 1000)
    words = tagged(text)
    lexicon = Lexicon(TagCounts({"NN": {"word": 1, "other": 1}}))
    random = Random(1)
    seen: Counter[str] = Counter()
    for _ in range(WORDS // 1000):
        edits = edit_words(
            text,
            words,
            range(1000),
            random,
            p_mask=0.1,
            p_pos=0.15,
            lexicon=lexicon,
            replace_probability=0.4,
            candidates=[["guess"]] * 1000,
        )
        assert len({edit.start for edit in edits}) == len(edits)  # they exclude each other
        seen.update(edit.operation for edit in edits)
    for operation, probability in [(MASK, 0.1), (REPLACE, 0.15), (CONTEXTUAL, 0.4)]:
        assert seen[operation] / WORDS == pytest.approx(probability, rel=0.01)


def test_ngrams_are_sampled_as_often_as_asked_and_every_window_alike() -> None:
    text = "a b c d e f g"
    words = split_words(text)
    random = Random(2)
    drawn = [sample_ngram(words, random, 0.25, 5) for _ in range(400_000)]
    sampled = [text[span[0] : span[1]].split() for span in drawn if span]
    assert len(sampled) / len(drawn) == pytest.approx(0.25, rel=0.01)
    lengths = Counter(map(len, sampled))
    assert set(lengths) == {1, 2, 3, 4, 5}
    for n, count in lengths.items():
        assert count / len(sampled) == pytest.approx(0.2, rel=0.02)
        windows = Counter(" ".join(gram) for gram in sampled if len(gram) == n)
        assert len(windows) == 7 - n + 1  # the last one included
        for times in windows.values():
            assert times / count == pytest.approx(1 / (7 - n + 1), rel=0.06)


def test_ngrams_of_short_texts() -> None:
    assert sample_ngram(split_words(""), Random(0), 1.0, 5) is None
    assert {sample_ngram(split_words("so it"), Random(seed), 1.0, 5) for seed in range(30)} == {(0, 2), (3, 5), (0, 5)}
    assert {sample_ngram(split_words("a b c"), Random(seed), 1.0, longest=1) for seed in range(30)} == {
        (0, 1),
        (2, 3),
        (4, 5),
    }
    assert sample_ngram(split_words("a b c"), Random(0), 0.0, 5) is None


def test_only_editable_words_change_and_a_lone_word_of_its_tag_stays() -> None:
    text = "one two three"
    lexicon = Lexicon(TagCounts({"NN": {"one": 1}}))
    edits = edit_words(text, tagged(text), [1], Random(0), p_mask=1.0)
    assert apply(text, edits).text == "one [MASK] three"
    assert edit_words(text, tagged(text), [0], Random(0), p_pos=1.0, lexicon=lexicon) == []
    assert edit_words(text, tagged(text), [0, 2], Random(0), p_mask=1.0, mask_token="<mask>")[1] == Edit(
        8, 13, "<mask>", MASK
    )


def test_contextual_replacement_takes_each_candidate_alike() -> None:
    text = "one two"
    candidates: list[list[str]] = [["uno", "eins"], []]
    random = Random(3)
    drawn = Counter(
        apply(
            text,
            edit_words(text, tagged(text), [0, 1], random, replace_probability=1.0, candidates=candidates),
        ).text
        for _ in range(4000)
    )
    assert set(drawn) == {"uno two", "eins two"}
    assert drawn["uno two"] / 4000 == pytest.approx(0.5, abs=0.03)
    assert edit_words(text, tagged(text), [0, 1], random, replace_probability=1.0) == []


def test_spans_move_with_the_edits_before_them() -> None:
    text = "The cat saw the small dog run."
    edits = [Edit(0, 3, "[MASK]", MASK), Edit(8, 11, "ate", REPLACE), Edit(16, 21, "old", REPLACE)]
    edited = apply(text, edits)
    assert edited.text == "[MASK] cat ate the old dog run."
    assert moved([4, 22, 12], [3, 3, 3], edited) == [7, 23, 15]
    cut = apply(text, edits, (12, 25))
    assert (cut.text, cut.shortened, cut.edits) == ("the old dog", True, [edits[2]])
    assert moved([22, 4, 26], [3, 3, 3], cut) == [8, None, None]


@given(st.text(max_size=60), st.integers(), st.data())
def test_any_text_any_span_any_seed(text: str, seed: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    words = tagged(text)
    random = Random(seed)
    edits = edit_words(text, words, words.outside([(start, end)] if end > start else []), random, p_mask=0.6)
    edited = apply(text, edits, sample_ngram(words, random, 0.3, 5))
    (place,) = moved([start], [end - start], edited)
    if end > start:
        if not edited.shortened:
            assert place is not None
        if place is not None:
            assert edited.text[place : place + end - start] == text[start:end]
