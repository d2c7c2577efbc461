"""TokenTranslation: one tokenizer's windows as another reads them, where both cut text into the same pieces.

MPNet has BERT's word pieces under other ids, and other special tokens around them: a window of one is a window of the
other, but for those. So a teacher of the one family can teach its layers to a student of the other.
"""

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from haystack_distill.data.text_tokenizer import PairTemplate, tokenizer_fingerprint
from haystack_distill.errors import DistilError


class Translated(NamedTuple):
    """A batch for a model of the other tokenizer.

    Attributes:
        inputs: `input_ids`, `attention_mask`, `token_type_ids`, (B, M) int64.
        places: For each token of the original batch its position among these, (B, L) int64. A special token has that of
            its counterpart, padding an arbitrary one.
    """

    inputs: dict[str, Tensor]
    places: Tensor


@dataclass(frozen=True)
class TokenTranslation:
    """From the windows of one tokenizer to those of another with the same pieces; `TokenTranslation.between` makes it.

    Attributes:
        ids: The other tokenizer's id of each token, (V,) int64; that of its unknown token for special tokens.
        source: The special tokens of the first tokenizer.
        target: Those of the other.
        pad_token_id: The padding of the other.
    """

    ids: Tensor
    source: PairTemplate
    target: PairTemplate
    pad_token_id: int

    @classmethod
    def between(cls, source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> "TokenTranslation | None":
        """The translation from one fast tokenizer to another, or None if both are the same.

        Raises:
            DistilError: They cut text into different pieces.
        """
        if tokenizer_fingerprint(source) == tokenizer_fingerprint(target):
            return None
        first, second = _Pieces(source), _Pieces(target)
        special = first.special | second.special
        for what, one, other in (
            ("normalise text differently", first.text, second.text),
            ("have different pieces", first.ordinary(special), second.ordinary(special)),
        ):
            if one != other:
                raise DistilError(f"the tokenizers {what}")
        vocabulary = target.get_vocab()
        unknown = vocabulary.get(second.unknown, second.pad_token_id)
        counterparts = {first.unknown: unknown}
        if source.mask_token is not None and target.mask_token is not None:
            counterparts[source.mask_token] = vocabulary[target.mask_token]
        own = source.get_vocab()
        ids = torch.full((max(own.values()) + 1,), unknown)
        for token, number in own.items():
            if token in counterparts:
                ids[number] = counterparts[token]
            elif token not in special:
                ids[number] = vocabulary[token]
        return cls(ids, PairTemplate.of(source), PairTemplate.of(target), second.pad_token_id)

    @property
    def more_tokens(self) -> int:
        """How many tokens a window has more when it is translated; negative if it has fewer."""
        return self.target.n_special - self.source.n_special

    def translate(self, input_ids: Tensor, attention_mask: Tensor) -> Translated:
        """Translate a batch of B windows, L tokens long.

        Args:
            input_ids: (B, L) int64.
            attention_mask: 1 for tokens, (B, L) int64; a window's tokens come before its padding.
        """
        source, target, device = self.source, self.target, input_ids.device
        prefix, more = len(source.prefix), len(target.prefix) - len(source.prefix)
        rows = torch.arange(input_ids.shape[1], device=device).expand_as(input_ids)
        lengths = attention_mask.sum(dim=1, keepdim=True)
        suffix = lengths - len(source.suffix)
        # Where the question ends. In plain text, which is a single sequence, nothing stands between two sequences.
        middle = ((input_ids == source.middle[0]) & (rows >= prefix)).int().argmax(dim=1, keepdim=True)
        alone = middle >= suffix
        middle = torch.where(alone, suffix, middle)
        context = torch.where(alone, suffix, middle + len(source.middle))
        their_middle = middle + more
        their_context = torch.where(alone, their_middle, their_middle + len(target.middle))
        their_suffix = suffix - context + their_context
        their_lengths = their_suffix + len(target.suffix)

        places = torch.where(rows < context, rows + more, rows - context + their_context)
        between, after = (rows >= middle) & (rows < context), (rows >= suffix) & (rows < lengths)
        places = torch.where(between, their_middle + (rows - middle).clamp(max=len(target.middle) - 1), places)
        places = torch.where(after, their_suffix + (rows - suffix).clamp(max=len(target.suffix) - 1), places)
        places = torch.where(rows < prefix, rows.clamp(max=len(target.prefix) - 1), places)
        places[:, source.no_answer_position] = target.no_answer_position
        text = ((rows >= prefix) & (rows < middle)) | ((rows >= context) & (rows < suffix))
        places = torch.where(rows < lengths, places, 0)

        shape = (len(input_ids), int(their_lengths.max()))
        positions = torch.arange(shape[1], device=device).expand(shape)
        present = positions < their_lengths
        made = torch.full(shape, self.pad_token_id, device=device)
        which = torch.arange(shape[0], device=device)[:, None].expand_as(input_ids)
        made[which[text], places[text]] = self.ids.to(device)[input_ids[text]]
        no_pair = torch.full_like(their_middle, shape[1])  # a position that there is not
        for start, tokens in (
            (torch.zeros_like(their_middle), target.prefix),
            (torch.where(alone, no_pair, their_middle), target.middle),
            (their_suffix, target.suffix),
        ):
            for offset, token in enumerate(tokens):
                made = torch.where(positions == start + offset, token, made)
        in_question = (positions < their_context) | alone
        types = torch.where(in_question, target.question_type, target.context_type) * present
        inputs = {"input_ids": made, "attention_mask": present.long(), "token_type_ids": types}
        return Translated(inputs, places)


class _Pieces:
    """What decides how a fast tokenizer cuts text: its settings and its pieces."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        model: dict[str, Any] = content["model"]
        vocabulary, unknown = model.pop("vocab"), model.pop("unk_token", None)
        unknown_id = model.pop("unk_id", None)
        # Unigram models weigh their pieces, and the weights count.
        pieces = vocabulary if isinstance(vocabulary, dict) else dict(vocabulary)
        self._pieces: dict[str, Any] = dict.fromkeys(pieces) if isinstance(vocabulary, dict) else pieces
        self.unknown: str | None = list(pieces)[unknown_id] if unknown is None and unknown_id is not None else unknown
        added = content["added_tokens"]
        self.special = {*tokenizer.all_special_tokens, *(entry["content"] for entry in added if entry["special"])}
        if self.unknown is not None:
            self.special.add(self.unknown)
        words = sorted(entry["content"] for entry in added if entry["content"] not in self.special)
        self.text = (content["normalizer"], content["pre_tokenizer"], model, words)
        self.pad_token_id: int = tokenizer.pad_token_id or 0

    def ordinary(self, special: set[str]) -> dict[str, Any]:
        """The pieces that are not special in either tokenizer, with their weights."""
        return {piece: weight for piece, weight in self._pieces.items() if piece not in special}
