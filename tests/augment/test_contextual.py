"""Candidates from a masked language model: the right places are asked, many at a time."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertModel,
    BertTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from augment import contextual
from augment.augmenter import Augmenter
from augment.contextual import ContextualCandidates
from augment.settings import AugmentSettings
from augment.words import split_words
from haystack_distill import DataError, DistilError

TEXT = "Ada Lovelace wrote the first program, and bees dance to tell their sisters where the flowers are."


@pytest.fixture(scope="module")
def directory(tokenizer: BertTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT for masked language modelling."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
    )
    path = tmp_path_factory.mktemp("mlm")
    BertForMaskedLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def candidates_of(model: Path, **changed: Any) -> ContextualCandidates:
    return ContextualCandidates(AugmentSettings(model=model, **changed))


def spans_of(text: str) -> list[tuple[int, int]]:
    return split_words(text).spans


def test_candidates_are_the_models_for_each_hidden_word(directory: Path, tokenizer: BertTokenizerFast) -> None:
    """Against a pass made by hand: word 3 is hidden together with every seventh word of one piece after it."""
    candidates = candidates_of(directory, word_possibilities=3, device="cpu")
    spans = spans_of(TEXT)
    (found,) = candidates([TEXT], [spans])
    assert len(found) == len(spans)
    encoding = tokenizer(TEXT, return_offsets_mapping=True)
    offsets = encoding["offset_mapping"]
    single = [place for place, span in enumerate(offsets) if tuple(span) in set(spans)]
    turn = 2
    hidden = single[turn::7]
    ids = torch.tensor([encoding["input_ids"]])
    ids[0, hidden] = tokenizer.mask_token_id
    model = BertForMaskedLM.from_pretrained(directory).eval()
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0]
    words = {id_ for token, id_ in tokenizer.get_vocab().items() if token.isalnum()}
    for place in hidden:
        word = spans.index(tuple(offsets[place]))
        ranked = [id_ for id_ in logits[place].argsort(descending=True).tolist() if id_ in words]
        surface = TEXT[slice(*spans[word])]
        wanted = [tokenizer.convert_ids_to_tokens(id_) for id_ in ranked]
        wanted = [guess for guess in wanted if guess != surface.lower()][:3]
        assert [guess.lower() for guess in found[word]] == wanted


def test_batches_change_nothing_and_long_texts_are_cut(directory: Path) -> None:
    texts = [TEXT, "Bees dance.", " ".join([TEXT] * 6), "", "..."]
    spans = [spans_of(text) for text in texts]
    alone = candidates_of(directory, word_possibilities=4, device="cpu", batch_size=1)(texts, spans)
    together = candidates_of(directory, word_possibilities=4, device="cpu", batch_size=64)(texts, spans)
    assert alone == together
    assert [len(found) for found in alone] == [len(words) for words in spans]
    assert all(1 <= len(choices) <= 4 for choices in alone[2])
    for text, words, found in zip(texts, spans, alone, strict=True):
        for (start, end), choices in zip(words, found, strict=True):
            assert text[start:end].lower() not in [choice.lower() for choice in choices]
            assert all(choice.isalnum() for choice in choices)


def test_special_tokens_written_in_a_text_are_text(
    directory: Path, tokenizer: BertTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = candidates_of(directory, device="cpu")
    seen: list[int] = []
    real = BertForMaskedLM.forward

    def forward(self: Any, *arguments: Any, **keywords: Any) -> Any:
        seen.extend((keywords["input_ids"] == tokenizer.sep_token_id).sum(1).tolist())
        return real(self, *arguments, **keywords)

    monkeypatch.setattr(BertForMaskedLM, "forward", forward)
    text = "Ada wrote [SEP] the first [SEP] program"
    candidates([text], [spans_of(text)])
    assert set(seen) == {1}  # the one that ends the sequence


def test_few_passes_a_text(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = candidates_of(directory, device="cpu", batch_size=64)
    rows = []
    real = BertForMaskedLM.forward

    def forward(self: Any, *arguments: Any, **keywords: Any) -> Any:
        rows.append(keywords["input_ids"].shape[0])
        return real(self, *arguments, **keywords)

    monkeypatch.setattr(BertForMaskedLM, "forward", forward)
    candidates([TEXT], [spans_of(TEXT)])
    assert rows == [7]


def test_case_is_kept(directory: Path) -> None:
    found = candidates_of(directory, device="cpu")(["The harbour WAS built"], [spans_of("The harbour WAS built")])
    the, _, was, _ = found[0]
    assert all(choice[0].isupper() or choice[0].isdigit() for choice in the)
    assert all(choice == choice.upper() for choice in was)


def test_words_of_several_pieces_get_neighbours_from_glove(directory: Path, tmp_path: Path) -> None:
    glove = tmp_path / "glove.txt"
    glove.write_text("zyzzy 1 0\nflub 0.9 0.1\nother 0 1\nnone -1 0\n", encoding="utf-8")
    candidates = candidates_of(directory, word_possibilities=2, glove_path=glove, device="cpu")
    found = candidates(["Zyzzy unknownword"], [spans_of("Zyzzy unknownword")])
    assert found == [[["Flub", "Other"], []]]


def test_vectors_with_a_line_before_the_words(directory: Path, tmp_path: Path) -> None:
    """As fastText and word2vec write them, with a space behind the last number."""
    path = tmp_path / "wiki.vec"
    path.write_text("5 2\n</s> 0.5 0.5 \nzyzzy 1 0 \nflub 0.9 0.1 \ntwo words 0.8 0.1 \nother 0 1 \n", encoding="utf-8")
    words, vectors = contextual._glove(path)
    assert words == ["</s>", "zyzzy", "flub", "two words", "other"]
    assert vectors.tolist() == pytest.approx(np.array([[0.5, 0.5], [1, 0], [0.9, 0.1], [0.8, 0.1], [0, 1]]))
    candidates = candidates_of(directory, word_possibilities=1, glove_path=path, device="cpu")
    assert candidates(["Zyzzy unknownword"], [spans_of("Zyzzy unknownword")]) == [[["Flub"], []]]


def test_the_first_words_of_a_long_file_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contextual, "_VECTORS", 2)
    for name, header in (("glove.txt", ""), ("wiki.vec", "3 2\n")):
        (tmp_path / name).write_text(f"{header}a 1 0\nb 0 1\nc 1 1\n")
        assert contextual._glove(tmp_path / name)[0] == ["a", "b"]


def test_without_glove_neighbours_come_from_the_models_embeddings(
    directory: Path, tokenizer: BertTokenizerFast
) -> None:
    candidates = candidates_of(directory, word_possibilities=1, device="cpu")
    pieces = tokenizer("programs", add_special_tokens=False)["input_ids"]
    assert len(pieces) > 1
    table = BertForMaskedLM.from_pretrained(directory).get_input_embeddings().weight.detach().numpy()
    vector = table[pieces].mean(0)
    words = {token: id_ for token, id_ in tokenizer.get_vocab().items() if token.isalnum()}
    best = max(words, key=lambda token: table[words[token]] @ vector / np.linalg.norm(table[words[token]]))
    assert candidates(["programs"], [[(0, 8)]]) == [[[best]]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no words"),
        ("0 2\n", "holds no words"),
        ("2 2\na 1 2\nb 1\n", "line 3"),
        ("2 3\na 1 2\nb 1 2\n", "line 2"),
        ("a 1 2\nb 1\n", "line 2"),
        ("a x y\n", "line 1"),
        ("alone\n", "line 1"),
        (None, "cannot be read"),
    ],
)
def test_a_glove_file_that_is_none(directory: Path, tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "glove.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        candidates_of(directory, glove_path=path, device="cpu")


def test_a_tokenizer_with_more_tokens_than_the_model(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory, tmp_path / "more")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    added = tokenizer.add_tokens(["xylophone", "zeppelin"])
    assert added == 2
    tokenizer.save_pretrained(tmp_path / "more")
    text = "Bees dance to tell their sisters."
    [found], [expected] = (candidates_of(model)([text], [spans_of(text)]) for model in (tmp_path / "more", directory))
    assert found == expected


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DistilError, match="cannot load a masked language model"):
        candidates_of(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", [BertModel, BertForQuestionAnswering])
def test_a_model_without_its_head_is_refused(tokenizer: BertTokenizerFast, tmp_path: Path, kind: type) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    kind(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path / "headless")
    tokenizer.save_pretrained(tmp_path / "headless")
    with pytest.raises(DistilError, match=r"holds no weights for cls\.predictions.*would be random"):
        candidates_of(tmp_path / "headless")


def test_byte_level_tokenizers(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = [
        "<s>",
        "</s>",
        "<pad>",
        "<mask>",
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        "\u0120a",
        "\u0120b",
        "ab",
    ]
    made = Tokenizer(
        models.BPE({piece: n for n, piece in enumerate(pieces)}, [("\u0120", "a"), ("\u0120", "b"), ("a", "b")])
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        mask_token="<mask>",
    )
    config = RobertaConfig(
        vocab_size=len(pieces),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        pad_token_id=2,
        max_position_embeddings=40,
    )
    torch.manual_seed(0)
    RobertaForMaskedLM(config).save_pretrained(tmp_path)
    fast.save_pretrained(tmp_path)
    found = candidates_of(tmp_path, device="cpu")(["a b a"], [[(0, 1), (2, 3), (4, 5)]])
    assert found == [[["b"], ["a"], ["b"]]]  # "ab" does not begin a word


def test_an_augmenter_replaces_by_candidates(directory: Path) -> None:
    row = {
        "id": "1",
        "title": "",
        "context": TEXT,
        "question": "Who wrote the program?",
        "answers": {"text": ["Ada Lovelace"], "answer_start": [0]},
    }
    chosen = AugmentSettings(
        model=str(directory),
        device="cpu",
        p_mask=0,
        p_pos=0,
        replace_probability=0.5,
        tagger="none",
        augment="context",
        multiplication_factor=4,
    )
    rows = Augmenter.of([row], chosen)(row)
    assert len({row["context"] for row in rows}) == 4
    assert all(row["context"].startswith("Ada Lovelace") for row in rows)
    assert contextual._EVERY == 7


def test_a_word_that_the_tokenizer_does_not_know_has_no_vector(directory: Path) -> None:
    assert candidates_of(directory, device="cpu")(["zyzzy"], [[(0, 5)]]) == [[[]]]


@pytest.mark.parametrize(
    ("augment", "asked"), [("question", (True, False)), ("context", (False, True)), ("both", (True, True))]
)
def test_only_texts_that_are_edited_are_asked_for(directory: Path, augment: str, asked: tuple[bool, bool]) -> None:
    chosen = AugmentSettings(model=str(directory), device="cpu", tagger="none", p_pos=0, augment=augment)
    made = Augmenter(chosen).prepare(["Who wrote the program?"], [TEXT])
    assert tuple(text.candidates is not None for text in made) == asked
