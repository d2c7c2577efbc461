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
from haystack_distill.data.text_tokenizer import text_tokenizer
from haystack_distill.students.vocabulary import prune_vocabulary
from tests.conftest import CONTEXTS, QUESTIONS

TEXTS = [*CONTEXTS, *(question for question, _, _ in QUESTIONS)]
PAIRS = [(question, CONTEXTS[place]) for question, place, _ in QUESTIONS]


def roberta_reader(tmp_path: Path, pad: int = 1) -> Reader:
    """A tiny RoBERTa with a byte-level BPE tokenizer trained on the texts of the tests; `pad` is its padding's id."""
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
    vocab = content["model"]["vocab"]
    other = next(token for token, id in vocab.items() if id == pad)
    vocab["<pad>"], vocab[other] = pad, 1
    next(entry for entry in content["added_tokens"] if entry["content"] == "<pad>")["id"] = pad
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
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
            max_position_embeddings=129 + pad,
            pad_token_id=pad,
            type_vocab_size=1,
        )
    )
    return Reader(model, fast, window_settings=WindowSettings(100, 32, 40), device="cpu")


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
    return Reader(BertForQuestionAnswering(config), fast, window_settings=WindowSettings(100, 32, 40), device="cpu")


@pytest.fixture(params=["WordPiece", "BPE", "Unigram"])
def reader(request: pytest.FixtureRequest, tiny_reader: Callable[..., Reader], tmp_path: Path) -> Reader:
    if request.param == "WordPiece":
        return tiny_reader(window_settings=WindowSettings(100, 32, 40))
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
    saved = Reader.load(directory, window_settings=reader.window_settings, device="cpu", precision=reader.precision)
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


def test_positions_that_are_counted_from_the_padding_id_stay(tmp_path: Path) -> None:
    reader = roberta_reader(tmp_path, pad=270)
    reader.precision = "fp32"
    assert reader.tokenizer.pad_token_id == 270
    pairs = [PAIRS[0], ("Who?", CONTEXTS[0])]  # of unequal length: one is padded
    pruned = prune_vocabulary(reader, [text for pair in pairs for text in pair])
    assert len(pruned.tokenizer) < len(reader.tokenizer)
    assert pruned.tokenizer.pad_token_id == pruned.model.config.pad_token_id == 270
    loaded = Reader.load(
        pruned.save(tmp_path / "pruned"), window_settings=reader.window_settings, device="cpu", precision="fp32"
    )
    expected = reader.answer_batch(pairs, 5)
    for found in (pruned, loaded):
        assert found.answer_batch(pairs, 5) == expected


def test_positions_counted_from_an_id_that_the_tokenizer_lacks_are_refused(tmp_path: Path) -> None:
    reader = roberta_reader(tmp_path)
    reader.model.roberta.embeddings.position_embeddings.padding_idx = len(reader.tokenizer) + 5
    with pytest.raises(DistilError, match="counts positions from padding id"):
        prune_vocabulary(reader, TEXTS)


@pytest.mark.parametrize("beyond", [True, False])
def test_a_padding_index_that_is_not_the_tokenizers(tiny_reader: Callable[..., Reader], beyond: bool) -> None:
    plain = tiny_reader(window_settings=WindowSettings(100, 32, 40))
    n_tokens = len(plain.tokenizer)
    rare = plain.tokenizer.convert_tokens_to_ids("glacier") if not beyond else n_tokens + 3
    reader = tiny_reader(window_settings=WindowSettings(100, 32, 40), vocab_size=n_tokens + 8, pad_token_id=rare)
    assert reader.model.get_input_embeddings().padding_idx == rare
    pruned = prune_vocabulary(reader, PAIRS[0])
    padding = pruned.model.get_input_embeddings().padding_idx
    if beyond:
        assert padding is None
    else:
        assert pruned.tokenizer.convert_ids_to_tokens(padding) == "glacier"
    assert pruned.model.config.pad_token_id == padding
    assert pruned.answer_batch(PAIRS[:1], 3) == reader.answer_batch(PAIRS[:1], 3)


def test_pieces_that_stand_for_bytes_stay(tmp_path: Path) -> None:
    reader = unigram_reader(tmp_path)
    content = json.loads(reader.tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    model["byte_fallback"] = True
    model["vocab"] += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]
    reader.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), **reader.tokenizer.special_tokens_map
    )
    reader.model.resize_token_embeddings(len(reader.tokenizer))
    pruned = prune_vocabulary(reader, PAIRS[0])
    assert len(pruned.tokenizer) < len(reader.tokenizer)
    text = "\U0001f41d dance \u6771"
    before, after = (one.tokenizer.convert_ids_to_tokens(one.tokenizer(text)["input_ids"]) for one in (reader, pruned))
    assert "<0xF0>" in before
    assert [token for token in after if token.startswith("<0x")] == [
        token for token in before if token.startswith("<0x")
    ]
    assert pruned.tokenizer.unk_token not in after


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
    with pytest.raises(DistilError, match="keep must be at least"):
        prune_vocabulary(reader, TEXTS, keep=least - 1)


@pytest.mark.parametrize("keep", [0, -1.0, 2.5, "0.5", None, True, float("inf")])
def test_refused(tiny_reader: Callable[..., Reader], keep: float) -> None:
    with pytest.raises(DistilError, match="keep must be"):
        prune_vocabulary(tiny_reader(), TEXTS, keep=keep)
    with pytest.raises(DistilError, match="corpus has no text"):
        prune_vocabulary(tiny_reader(), [])


def test_other_tokenizers_are_refused(tiny_reader: Callable[..., Reader]) -> None:
    reader = tiny_reader()
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}, unk_token="[UNK]"))
    words.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    reader.tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, cls_token="[CLS]", sep_token="[SEP]")
    with pytest.raises(DistilError, match="WordLevel tokenizer cannot be pruned"):
        prune_vocabulary(reader, TEXTS)
