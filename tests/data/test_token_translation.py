"""TokenTranslation: a translated batch is what the other tokenizer makes of the same text."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, normalizers, processors
from transformers import BertTokenizerFast, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from haystack_distill import DistilError, WindowSettings
from haystack_distill.data.token_translation import TokenTranslation
from haystack_distill.data.windows import PairWindows
from tests.conftest import CONTEXTS, QUESTIONS

OTHER_NAMES = {"[CLS]": "<s>", "[PAD]": "<pad>", "[SEP]": "</s>", "[UNK]": "[UNK]", "[MASK]": "<mask>"}
ROLES = ("cls_token", "pad_token", "sep_token", "unk_token", "mask_token")
SETTINGS = WindowSettings(max_seq_len=30, doc_stride=7, max_query_length=12)


def like_mpnet(bert: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """MPNet's layout: BERT's pieces under other ids, other special tokens, two separators, no token types."""
    content = json.loads(bert.backend_tokenizer.to_str())
    old = content["model"]["vocab"]
    names = ["<s>", "<pad>", "</s>", *sorted(old, key=old.get), "<mask>"]
    content["model"]["vocab"] = {name: number for number, name in enumerate(names)}
    content["added_tokens"] = []
    content["post_processor"] = None
    made = Tokenizer.from_str(json.dumps(content))
    made.add_special_tokens(list(OTHER_NAMES.values()))
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    named = dict(zip(ROLES, OTHER_NAMES.values(), strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=512, **named)


@pytest.fixture(params=["from BERT to MPNet", "from MPNet to BERT"])
def pair(request: pytest.FixtureRequest, tokenizer: BertTokenizerFast) -> tuple[PreTrainedTokenizerBase, ...]:
    both = (tokenizer, like_mpnet(tokenizer))
    return both if request.param == "from BERT to MPNet" else both[::-1]


def test_a_translated_batch_is_the_other_tokenizers_own(pair: tuple[PreTrainedTokenizerBase, ...]) -> None:
    strange = "The words \u266b and \u5b57 are unknown, and [SEP] and </s> are text. "
    pairs = [(question, strange + CONTEXTS[place]) for question, place, _ in QUESTIONS]
    pairs.append(("", "A glacier moves."))  # plain text, as for distilling layers
    translation = TokenTranslation.between(*pair)
    assert translation is not None
    same_room = replace(SETTINGS, max_seq_len=SETTINGS.max_seq_len + translation.more_tokens)
    windows = PairWindows.cut(pairs, pair[0], SETTINGS, token_types=True)
    theirs = PairWindows.cut(pairs, pair[1], same_room, token_types=True)
    everything = list(range(len(windows)))
    assert len(theirs) == len(everything) > len(pairs)
    batch, expected = (one.collate(one.__getitems__(everything)) for one in (windows, theirs))
    before = batch["input_ids"].clone()
    inputs, places = translation.translate(batch["input_ids"], batch["attention_mask"])
    assert torch.equal(batch["input_ids"], before)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(inputs[name], expected[name]), name
    # What may be an answer is in the same places, and each token stands at its own.
    assert torch.equal(
        expected["context_mask"].gather(1, places) & batch["attention_mask"].bool(), batch["context_mask"]
    )
    read = (batch["input_ids"], inputs["input_ids"].gather(1, places))
    names = [one.convert_ids_to_tokens(ids.flatten().tolist()) for one, ids in zip(pair, read, strict=True)]
    renamed = OTHER_NAMES | {new: old for old, new in OTHER_NAMES.items()}
    real = batch["attention_mask"].flatten().tolist()
    assert all(there in (here, renamed.get(here)) for here, there, one in zip(*names, real, strict=True) if one)


def test_the_mask_and_the_unknown_token_have_counterparts(tokenizer: BertTokenizerFast) -> None:
    other = like_mpnet(tokenizer)
    translation = TokenTranslation.between(tokenizer, other)
    assert translation is not None
    assert translation.ids[tokenizer.mask_token_id] == other.mask_token_id
    assert translation.ids[tokenizer.unk_token_id] == other.unk_token_id
    assert translation.more_tokens == 1


def test_one_tokenizer_needs_no_translation(family: PreTrainedTokenizerFast) -> None:
    assert TokenTranslation.between(family, family) is None


def test_names_of_special_tokens_may_differ_in_any_family(family: PreTrainedTokenizerFast) -> None:
    """Byte pairs and Unigram, too: another separator between question and context is all that differs."""
    content = family.backend_tokenizer.to_str()
    made = Tokenizer.from_str(content)
    cls, sep = family.cls_token, family.sep_token
    made.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} {sep} {sep} $B {sep}",
        special_tokens=[(cls, family.cls_token_id), (sep, family.sep_token_id)],
    )
    other = PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=512, **family.special_tokens_map)
    translation = TokenTranslation.between(family, other)
    assert translation is not None
    batch = family(["Who built it?"], ["Cornelis Baak built the harbour."], return_tensors="pt")
    expected = other(["Who built it?"], ["Cornelis Baak built the harbour."], return_tensors="pt")
    inputs, _ = translation.translate(batch["input_ids"], batch["attention_mask"])
    assert torch.equal(inputs["input_ids"], expected["input_ids"])


def changed_normaliser(backend: Tokenizer) -> None:
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)


def added_word(backend: Tokenizer) -> None:
    backend.add_tokens(["harbourmaster"])


@pytest.mark.parametrize(
    ("change", "message"),
    [(changed_normaliser, "normalise text differently"), (added_word, "normalise text differently")],
)
def test_other_pieces_are_refused(
    change: Callable[[Tokenizer], None], message: str, tokenizer: BertTokenizerFast
) -> None:
    other = like_mpnet(tokenizer)
    change(other.backend_tokenizer)
    with pytest.raises(DistilError, match=message):
        TokenTranslation.between(tokenizer, other)


def test_another_vocabulary_is_refused(tokenizer: BertTokenizerFast, family: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DistilError, match=r"normalise text differently|have different pieces"):
        TokenTranslation.between(tokenizer, family)
    fewer = json.loads(tokenizer.backend_tokenizer.to_str())
    fewer["model"]["vocab"].popitem()
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(fewer)), **tokenizer.special_tokens_map
    )
    with pytest.raises(DistilError, match="have different pieces"):
        TokenTranslation.between(tokenizer, other)
