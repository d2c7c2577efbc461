"""Tokenizers of each family, trained on texts in many scripts, for the tests of windows and tokens."""

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    PreTrainedTokenizerFast,
)

PLAIN = "The harbour of Lindow was built in 1702 by Cornelis Baak, who came from Delft; forty masons came too (so they say)."
UNICODE = (
    "Cafe\u0301 na\u00efve re\u0301sume\u0301s cost 5 \u20ac in Zu\u0308rich. "  # letters with combining marks
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 met \U0001f44d\U0001f3fd and \u2764\ufe0f here. "  # emoji, joined and varied
    "\u05e9\u05dc\u05d5\u05b9\u05dd \u05e2\u05d5\u05dc\u05dd \u0645\u0631\u062d\u0628\u0627 said he. "  # right to left
    "\u6771\u4eac\u30bf\u30ef\u30fc is 333\u00a0metres\u2003high, \U00020bb7 too. "  # Chinese, Japanese, spaces, beyond the BMP
    "\ufb01ne \u2122 \u00bd end"  # ligature and compatibility signs
)
QUESTION = "Who built the harbour, and when was that?"


def wordpiece() -> Tokenizer:
    """As BERT's, uncased."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(
        [PLAIN, UNICODE, QUESTION],
        trainers.WordPieceTrainer(vocab_size=220, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"]),
    )
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


def byte_level() -> Tokenizer:
    """As RoBERTa's: bytes, a space belongs to the word after it, two separators between question and context."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.train_from_iterator(
        [PLAIN, UNICODE, QUESTION],
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    made.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    return made


def unigram(normalizer: normalizers.Normalizer) -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    made.train_from_iterator(
        [PLAIN, UNICODE, QUESTION] * 3,
        trainers.UnigramTrainer(vocab_size=180, special_tokens=special, unk_token="[UNK]"),
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return made


def albert_like() -> Tokenizer:
    """Lower case, no accents, pieces that begin with a space."""
    return unigram(normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]))


def deberta_like() -> Tokenizer:
    """As sentencepiece: cased, composed, compatibility signs spelt out."""
    return unigram(normalizers.NFKC())


def fast(backend: Tokenizer) -> PreTrainedTokenizerFast:
    bert = backend.token_to_id("[CLS]") is not None
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    roberta = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=4096, **(names if bert else roberta))


FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    "wordpiece": wordpiece,
    "byte_level": byte_level,
    "albert_like": albert_like,
    "deberta_like": deberta_like,
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return fast(FAMILIES[request.param]())


@pytest.fixture(scope="module")
def bert() -> PreTrainedTokenizerFast:
    return fast(wordpiece())
