"""A pruned vocabulary: what stays is read as before, what goes is spelt, and the model follows its tokenizer."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForQuestionAnswering,
    RobertaTokenizerFast,
)

from haystack_distill import DistilError, Reader, WindowSettings
from haystack_distill.features import text_tokenizer
from haystack_distill.students import prune_vocabulary
from tests.conftest import CONTEXTS, QUESTIONS

TEXTS = [*CONTEXTS, *(question for question, _, _ in QUESTIONS)]
PAIRS = [(question, CONTEXTS[place]) for question, place, _ in QUESTIONS]


def roberta_reader(tmp_path: Path) -> Reader:
    """A tiny RoBERTa with a byte-level BPE tokenizer trained on the texts of the tests."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "vocab.json").write_text(json.dumps(content["model"]["vocab"]), encoding="utf-8")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    fast = RobertaTokenizerFast.from_pretrained(str(tmp_path))
    torch.manual_seed(0)
    model = RobertaForQuestionAnswering(
        RobertaConfig(
            vocab_size=len(fast),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=130,
            pad_token_id=1,
            type_vocab_size=1,
        )
    )
    return Reader(model, fast, windows=WindowSettings(100, 32, 40), device="cpu")


def unigram_reader(tmp_path: Path) -> Reader:
    """A tiny BERT with a Unigram tokenizer, as ALBERT's is."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=specials, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(fast),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=128,
        pad_token_id=0,
    )
    return Reader(BertForQuestionAnswering(config), fast, windows=WindowSettings(100, 32, 40), device="cpu")


@pytest.fixture(params=["WordPiece", "BPE", "Unigram"])
def reader(request: pytest.FixtureRequest, tiny_reader: Callable[..., Reader], tmp_path: Path) -> Reader:
    if request.param == "WordPiece":
        return tiny_reader(windows=WindowSettings(100, 32, 40))
    return (roberta_reader if request.param == "BPE" else unigram_reader)(tmp_path)


def test_texts_of_the_corpus_are_read_as_before(reader: Reader, tmp_path: Path) -> None:
    corpus = [text for pair in PAIRS[:3] for text in pair]
    pruned = prune_vocabulary(reader, corpus)
    assert len(pruned.tokenizer) == pruned.model.config.vocab_size < len(reader.tokenizer)
    assert pruned.n_parameters < reader.n_parameters
    for text in corpus:
        before, after = (
            one.tokenizer.convert_ids_to_tokens(one.tokenizer(text)["input_ids"]) for one in (reader, pruned)
        )
        assert after == before
    assert pruned.answer_batch(PAIRS[:3], 5) == reader.answer_batch(PAIRS[:3], 5)
    directory = pruned.save(tmp_path / "pruned")
    saved = Reader.load(directory, windows=reader.windows, device="cpu", precision=reader.precision)
    assert saved.answer_batch(PAIRS[:3], 5) == reader.answer_batch(PAIRS[:3], 5)
    assert len(saved.tokenizer) == len(pruned.tokenizer)
    assert saved.tokenizer.pad_token_id == saved.model.config.pad_token_id


def test_other_texts_are_spelt_not_unknown(reader: Reader) -> None:
    pruned = prune_vocabulary(reader, PAIRS[0])
    unknown = pruned.tokenizer.unk_token_id
    for text in TEXTS:
        before, after = (one.tokenizer(text, add_special_tokens=False)["input_ids"] for one in (reader, pruned))
        assert after.count(unknown) <= before.count(reader.tokenizer.unk_token_id)
        assert len(after) >= len(before)
    assert pruned.answer_batch(PAIRS)  # windows, offsets and positions hold


def test_special_tokens_written_in_the_corpus_are_counted_as_text(reader: Reader) -> None:
    name = reader.tokenizer.sep_token
    text = f"Ada {name} wrote"
    spelt = text_tokenizer(reader.tokenizer).encode(text, add_special_tokens=False).tokens
    pruned = prune_vocabulary(reader, [text])
    assert text_tokenizer(pruned.tokenizer).encode(text, add_special_tokens=False).tokens == spelt
    assert reader.tokenizer.sep_token not in spelt


def test_the_reader_itself_is_left_alone(reader: Reader) -> None:
    before = reader.answer_batch(PAIRS[:2], 3)
    prune_vocabulary(reader, PAIRS[3])
    assert reader.answer_batch(PAIRS[:2], 3) == before


def test_keep_says_how_many(reader: Reader) -> None:
    everything = len(prune_vocabulary(reader, TEXTS).tokenizer)
    least = len(prune_vocabulary(reader, TEXTS, keep=1e-9).tokenizer)
    share = len(prune_vocabulary(reader, TEXTS, keep=0.9).tokenizer)
    assert least < share < everything
    assert least < len(prune_vocabulary(reader, TEXTS, keep=least + 5).tokenizer) <= least + 5
    with pytest.raises(DistilError, match="must stay"):
        prune_vocabulary(reader, TEXTS, keep=least - 1)


@pytest.mark.parametrize("keep", [0, -1.0, 2.5, "0.5", None, True, float("inf")])
def test_refused(tiny_reader: Callable[..., Reader], keep: float) -> None:
    with pytest.raises(DistilError, match="keep must be"):
        prune_vocabulary(tiny_reader(), TEXTS, keep=keep)
    with pytest.raises(DistilError, match="holds no text"):
        prune_vocabulary(tiny_reader(), [])


def test_other_tokenizers_are_refused(tiny_reader: Callable[..., Reader]) -> None:
    reader = tiny_reader()
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}, unk_token="[UNK]"))
    words.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    reader.tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, cls_token="[CLS]", sep_token="[SEP]")
    with pytest.raises(DistilError, match="WordLevel tokenizer cannot be pruned"):
        prune_vocabulary(reader, TEXTS)
