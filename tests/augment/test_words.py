"""Texts as words with character offsets."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from augment.words import TokenizerWords, Words, split_words
from haystack_distill import DistilError


def words_of(text: str) -> list[str]:
    return [text[start:end] for start, end in split_words(text).spans]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Don't go, said l\u2019abbé!", ["Don't", "go", "said", "l\u2019abbé"]),
        ("8.5 of 10,000 at 12:30.", ["8.5", "of", "10,000", "at", "12:30"]),
        ("cafe\u0301s, a well-known sign", ["cafe\u0301s", "a", "well", "known", "sign"]),
        ("東京は2020年", ["東", "京", "は", "2020", "年"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("שלום, עולם 🙂", ["שלום", "עולם"]),
        ("...", []),
        ("", []),
    ],
)
def test_words_keep_together_what_belongs_together(text: str, wanted: list[str]) -> None:
    assert words_of(text) == wanted


@given(st.text())
def test_spans_are_in_order_and_hold_no_space(text: str) -> None:
    last = 0
    for start, end in split_words(text).spans:
        assert last <= start < end <= len(text)
        assert not any(character.isspace() for character in text[start:end])
        last = end


def test_the_tagger_reads_punctuation_and_its_tags_are_left_out() -> None:
    seen: list[list[str]] = []

    def tagger(tokens: list[str]) -> list[str]:
        seen.append(tokens)
        return [f"tag-{token}" for token in tokens]

    words = split_words("Yes, we can.", tagger)
    assert seen == [["Yes", ",", "we", "can", "."]]
    assert words == Words([(0, 3), (5, 7), (8, 11)], ["tag-Yes", "tag-we", "tag-can"])


def test_outside_leaves_out_every_word_that_a_span_touches() -> None:
    words = split_words("one two three four")
    assert words.outside([]) == [0, 1, 2, 3]
    assert words.outside([(4, 7)]) == [0, 2, 3]
    assert words.outside([(6, 9)]) == [0, 3]  # the last letter of two, the first of three
    assert words.outside([(3, 4)]) == [0, 1, 2, 3]  # a space
    assert words.outside([(0, 18)]) == []


def wordpiece(directory: Path, mask: str | None = "[MASK]") -> Path:
    pieces = ["[UNK]", "東", "京", "play", "##ing", "the", "##s", "##京"]
    made = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if mask:
        made.add_special_tokens([mask])
    made.save(str(directory / "tokenizer.json"))
    return directory


def test_a_tokenizers_words_and_mask(tmp_path: Path) -> None:
    words = TokenizerWords(wordpiece(tmp_path))
    assert words.mask_token == "[MASK]"
    text = "playing the, unknown"
    assert [text[start:end] for start, end in words(text).spans] == ["playing", "the", "unknown"]
    assert words("the").tags == [""]
    text = "東京 plays"
    assert [text[start:end] for start, end in words(text).spans] == ["東", "京", "plays"]
    assert TokenizerWords(tmp_path / "tokenizer.json").mask_token == "[MASK]"


def test_byte_level_tokenizers_count_no_space_as_part_of_a_word(tmp_path: Path) -> None:
    made = Tokenizer(models.BPE({letter: n for n, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(["<mask>"])
    made.save(str(tmp_path / "tokenizer.json"))
    words = TokenizerWords(tmp_path)
    text = "go  home é 🙂"
    assert [text[start:end] for start, end in words(text).spans] == ["go", "home", "é"]
    assert words.mask_token == "<mask>"


def test_a_tokenizer_that_is_not_there_or_has_no_mask(tmp_path: Path) -> None:
    with pytest.raises(DistilError, match=r"cannot load a tokenizer from.*nowhere"):
        TokenizerWords(tmp_path / "nowhere")
    with pytest.raises(DistilError, match="no mask token"):
        _ = TokenizerWords(wordpiece(tmp_path, mask=None)).mask_token
