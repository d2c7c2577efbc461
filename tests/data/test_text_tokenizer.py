"""Tokenizers for windows: the template of special tokens, the fingerprint, and special tokens that are text."""

import pytest
from tokenizers import Tokenizer, normalizers, processors
from transformers import (
    PreTrainedTokenizerFast,
)

from haystack_distill import DistilError
from haystack_distill.data.text_tokenizer import PairTemplate, text_tokenizer, tokenizer_fingerprint
from tests.data.conftest import FAMILIES, byte_level, fast, wordpiece


def test_the_tokenizer_of_texts_is_made_once_and_leaves_the_other_alone(family: PreTrainedTokenizerFast) -> None:
    before = family.backend_tokenizer.to_str()
    assert text_tokenizer(family) is text_tokenizer(family)
    text_tokenizer(family).encode("so")
    assert family.backend_tokenizer.to_str() == before
    special = family.encode(f"{family.sep_token}", add_special_tokens=False)
    assert special == [family.sep_token_id]


def test_pair_template(bert: PreTrainedTokenizerFast) -> None:
    assert PairTemplate.of(bert) == PairTemplate((2,), (3,), (3,), 0, context_type=1, question_type=0)
    assert PairTemplate.of(bert) is PairTemplate.of(bert)  # found once
    assert PairTemplate.of(fast(byte_level())) == PairTemplate((0,), (2, 2), (2,), 0, context_type=0, question_type=0)


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(DistilError, match="Slow is not a fast tokenizer"):
        PairTemplate.of(Slow())  # type: ignore[arg-type]
    with pytest.raises(DistilError, match="Slow is not a fast tokenizer"):
        text_tokenizer(Slow())  # type: ignore[arg-type]


def test_a_tokenizer_that_ends_in_its_special_tokens_is_refused() -> None:
    backend = wordpiece()
    backend.post_processor = processors.TemplateProcessing(
        single="$A [SEP] [CLS]", pair="$A [SEP] $B:1 [SEP]:1 [CLS]:2", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    with pytest.raises(DistilError, match="use a BERT-like reader"):
        PairTemplate.of(fast(backend))


def test_the_fingerprint_is_of_what_decides_the_tokens(bert: PreTrainedTokenizerFast) -> None:
    again = fast(Tokenizer.from_str(bert.backend_tokenizer.to_str()))
    again.backend_tokenizer.enable_truncation(16)
    again.backend_tokenizer.enable_padding(length=16)
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(bert)
    cased = Tokenizer.from_str(bert.backend_tokenizer.to_str())
    cased.normalizer = normalizers.BertNormalizer(lowercase=False)
    others = [fast(cased), *(fast(make()) for make in FAMILIES.values())]
    assert len({tokenizer_fingerprint(other) for other in others}) == len(others)
    assert tokenizer_fingerprint(fast(cased)) != tokenizer_fingerprint(bert)
