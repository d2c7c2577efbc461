"""Tokenizers for windows: the places of special tokens, and text in which the names of special tokens are text."""

import json
from dataclasses import asdict, dataclass
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from haystack_distill.errors import DistilError
from haystack_distill.utils.hashing import hash_json

_HIDING = "special "  # prefix of hidden special tokens; with its space, it never occurs in a lookup


_TEXT_TOKENIZERS: WeakKeyDictionary[PreTrainedTokenizerBase, Tokenizer] = WeakKeyDictionary()  # a cache


@dataclass(frozen=True)
class PairTemplate:
    """The special tokens that a tokenizer puts around a question and a context, as ids."""

    prefix: tuple[int, ...]
    middle: tuple[int, ...]
    suffix: tuple[int, ...]
    no_answer_position: int
    context_type: int  # token type id of the context and of what follows it; before, it is `question_type`
    question_type: int

    @property
    def n_special(self) -> int:
        """The number of special tokens in a window."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "PairTemplate":
        """The template of a tokenizer, from an encoded pair.

        Raises:
            DistilError: The tokenizer is not a fast one, or does not write the question before the context.
        """
        if tokenizer not in _TEMPLATES:
            _TEMPLATES[tokenizer] = cls._of(tokenizer)
        return _TEMPLATES[tokenizer]

    @classmethod
    def _of(cls, tokenizer: PreTrainedTokenizerBase) -> "PairTemplate":
        _require_fast(tokenizer)
        encoded = tokenizer("a", "b", return_token_type_ids=True, padding=False, truncation=False)
        sequences = encoded.sequence_ids(0)
        ids: list[int] = encoded["input_ids"]
        types: list[int] = encoded.get("token_type_ids") or [0] * len(ids)
        question = [i for i, sequence in enumerate(sequences) if sequence == 0]
        context = [i for i, sequence in enumerate(sequences) if sequence == 1]
        prefix = tuple(ids[: question[0]])
        if context[0] < question[0] or not prefix:
            raise DistilError(
                f"{type(tokenizer).__name__} does not write a leading special token, the question and then the "
                "context, and such models (XLNet, T5) are not supported: use a BERT-like reader"
            )
        cls_id = tokenizer.cls_token_id
        return cls(
            prefix=prefix,
            middle=tuple(ids[question[-1] + 1 : context[0]]),
            suffix=tuple(ids[context[-1] + 1 :]),
            no_answer_position=prefix.index(cls_id) if cls_id in prefix else 0,
            question_type=types[question[0]],
            context_type=types[context[0]],
        )


_TEMPLATES: WeakKeyDictionary[PreTrainedTokenizerBase, PairTemplate] = WeakKeyDictionary()  # a cache


def _require_fast(tokenizer: PreTrainedTokenizerBase) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise DistilError(
            f"{type(tokenizer).__name__} is not a fast tokenizer, and only those have character offsets: load it "
            "with AutoTokenizer.from_pretrained(..., use_fast=True) or convert it to a tokenizer.json"
        )


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 (hex) of everything that determines the tokens of a text; truncation and padding are not used here."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content.pop("truncation", None)
    content.pop("padding", None)
    return hash_json(content, asdict(PairTemplate.of(tokenizer)), tokenizer.pad_token_id)


def text_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A tokenizer for questions and contexts, in which the names of special tokens are ordinary text.

    Otherwise a text with "[SEP]" would end there. Only the mask token is recognised, because augmentation writes it
    into contexts. All other text gets the same tokens as from `tokenizer`, without special tokens around them.

    Args:
        tokenizer: A fast tokenizer. It is not changed.

    Raises:
        DistilError: The tokenizer is not a fast one.
    """
    if tokenizer not in _TEXT_TOKENIZERS:
        _TEXT_TOKENIZERS[tokenizer] = _for_text(tokenizer)
    return _TEXT_TOKENIZERS[tokenizer]


def _for_text(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    _require_fast(tokenizer)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    mask, names = tokenizer.special_tokens_map.get("mask_token"), set(tokenizer.all_special_tokens)
    for entry in content["added_tokens"]:
        entry["special"] = entry["content"] != mask and (entry["special"] or entry["content"] in names)
    special = {entry["content"] for entry in content["added_tokens"] if entry["special"]}
    # They keep their places, so that all ids stay the same, under names that never occur in a text. In SentencePiece
    # models they are pieces too.
    for entry in content["added_tokens"]:
        entry["content"] = _hidden(entry["content"], special)
    model = content["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {_hidden(token, special): id for token, id in model["vocab"].items()}
    else:
        model["vocab"] = [[_hidden(token, special), score] for token, score in model["vocab"]]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if not special & _of_merge(merge, model)]
    if model.get("unk_token") is not None:
        model["unk_token"] = _hidden(model["unk_token"], special)
    made = Tokenizer.from_str(json.dumps(content))
    made.no_truncation()
    made.no_padding()
    made.encode_special_tokens = True  # as text
    return made


def _hidden(token: str, special: set[str]) -> str:
    return _HIDING + token if token in special else token


def _of_merge(merge: str | list[str], model: dict[str, Any]) -> set[str]:
    """The two tokens that a merge of byte pair encoding joins, and the result."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return {left, right, left + right.removeprefix(model.get("continuing_subword_prefix") or "")}
