"""Vocabulary pruning: tokens that a domain never uses are dropped (half of a small reader is its embeddings)."""

import copy
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from haystack_distill.data.text_tokenizer import text_tokenizer
from haystack_distill.errors import DistilError
from haystack_distill.models.reader import Reader
from haystack_distill.students.layers import require_weights
from haystack_distill.utils.checks import is_number
from haystack_distill.utils.files import temporary_directory, writing
from haystack_distill.utils.transformers_compat import load_tokenizer

_TEXTS_PER_BATCH = 1000
_BYTE = re.compile("<0x[0-9A-F]{2}>")  # a byte-fallback piece of SentencePiece


def prune_vocabulary(reader: Reader, corpus: Iterable[str], *, keep: float = 1.0) -> Reader:
    """Create a reader with a smaller vocabulary, without the embeddings of tokens that a corpus does not need.

    The embeddings of the remaining tokens do not change, so text that consists of them is encoded exactly as before. A
    word whose token was dropped is split into smaller ones. Special tokens, single characters and the parts that a kept
    token is merged from remain, so the reader can still encode every word.

    Args:
        reader: A reader with a WordPiece, BPE or Unigram tokenizer. It is not changed.
        corpus: Texts of the domain, questions and contexts. It is iterated over once, to count tokens.
        keep: A share above 0 and at most 1: the most frequent tokens that make up this share of the corpus are kept
            (1: all that occur). A whole number above 1: the number of tokens to keep, including the mandatory ones.

    Raises:
        DistilError: The corpus is empty, `keep` is invalid, or the tokenizer or model is of another type.
    """
    require_weights(reader)
    content = json.loads(reader.tokenizer.backend_tokenizer.to_str())
    vocabulary = _Vocabulary.of(content)
    kept = _choose(vocabulary, _count(reader.tokenizer, corpus), keep, _fixed(reader.model, vocabulary))
    number = {old: new for new, old in enumerate(kept)}
    vocabulary.keep(number)
    tokenizer = _rebuilt(reader.tokenizer, content, number)
    if len(tokenizer) != len(kept):
        raise DistilError(
            f"{type(tokenizer).__name__} cannot be given another vocabulary: choose a reader with another tokenizer"
        )
    rows = reader.model.get_input_embeddings().weight.detach()[kept]
    return reader.replace(model=with_embeddings(reader.model, rows, number), tokenizer=tokenizer)


class _Vocabulary:
    """The tokens of a tokenizer.json by their ids, and how they depend on each other."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content
        self.model = content["model"]
        self.added = {entry["id"]: entry["content"] for entry in content["added_tokens"]}

    @classmethod
    def of(cls, content: dict[str, Any]) -> "_Vocabulary":
        kinds = {"WordPiece": _WordPiece, "BPE": _Bpe, "Unigram": _Unigram}
        kind = content["model"].get("type")
        if kind not in kinds:
            raise DistilError(
                f"the vocabulary of a {kind} tokenizer cannot be pruned: choose one with WordPiece, BPE or Unigram"
            )
        return kinds[kind](content)

    def tokens(self) -> dict[int, str]:
        """Every token by its id, including added ones."""
        return {id: token for token, id in self.model["vocab"].items()} | self.added

    def mandatory(self) -> set[int]:
        """The mandatory ids: special tokens, single characters, and bytes that spell other characters."""
        letters = {id for id, token in self.tokens().items() if len(self.letters(token)) <= 1 or _BYTE.fullmatch(token)}
        return letters | set(self.added) | self._unknown()

    def letters(self, token: str) -> str:
        """A token without the marker of its place in a word."""
        return token

    def parts(self) -> dict[int, tuple[int, int]]:
        """The two tokens that a token is merged from, by its id."""
        return {}

    def keep(self, number: dict[int, int]) -> None:
        """Drop all tokens except those in `number`, and give those their new ids."""
        self.model["vocab"] = {
            token: number[id]
            for token, id in sorted(self.model["vocab"].items(), key=lambda one: one[1])
            if id in number
        }
        for entry in self.content["added_tokens"]:
            entry["id"] = number[entry["id"]]

    def _unknown(self) -> set[int]:
        unknown = self.model.get("unk_token")
        return {self.model["vocab"][unknown]} if unknown in self.model["vocab"] else set()


class _WordPiece(_Vocabulary):
    def letters(self, token: str) -> str:
        return token.removeprefix(self.model["continuing_subword_prefix"])


class _Bpe(_Vocabulary):
    def merges(self) -> Iterator[tuple[str, str, str]]:
        """Left part, right part and the merged token."""
        prefix = self.model.get("continuing_subword_prefix") or ""
        for merge in self.model["merges"]:
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            yield left, right, left + right.removeprefix(prefix)

    def parts(self) -> dict[int, tuple[int, int]]:
        ids = self.model["vocab"]
        found: dict[int, tuple[int, int]] = {}
        for left, right, whole in self.merges():
            if whole in ids:
                found.setdefault(ids[whole], (ids[left], ids[right]))
        return found

    def keep(self, number: dict[int, int]) -> None:
        super().keep(number)
        remaining = self.model["vocab"]
        # A dropped merge may have led to a kept token, but never the first one that does: parts() keeps that.
        self.model["merges"] = [
            [left, right]
            for left, right, whole in self.merges()
            if left in remaining and right in remaining and whole in remaining
        ]


class _Unigram(_Vocabulary):
    def tokens(self) -> dict[int, str]:
        return {id: token for id, (token, _) in enumerate(self.model["vocab"])} | self.added

    def letters(self, token: str) -> str:
        return token.removeprefix("▁")

    def keep(self, number: dict[int, int]) -> None:
        pieces = self.model["vocab"]
        self.model["vocab"] = [pieces[id] for id in number if id < len(pieces)]
        if self.model.get("unk_id") is not None:
            self.model["unk_id"] = number[self.model["unk_id"]]
        for entry in self.content["added_tokens"]:
            entry["id"] = number[entry["id"]]

    def _unknown(self) -> set[int]:
        return set() if self.model.get("unk_id") is None else {self.model["unk_id"]}


def _count(tokenizer: PreTrainedTokenizerBase, corpus: Iterable[str]) -> Counter[int]:
    counts: Counter[int] = Counter()
    texts = iter(corpus)
    while some := list(islice(texts, _TEXTS_PER_BATCH)):
        for encoding in text_tokenizer(tokenizer).encode_batch(some, add_special_tokens=False):
            counts.update(encoding.ids)
    if not counts:
        raise DistilError("the corpus has no text: give texts of the domain, questions and contexts")
    return counts


def _fixed(model: PreTrainedModel, vocabulary: _Vocabulary) -> set[int]:
    """The ids that must not change: RoBERTa and related models count positions from the padding id.

    Raises:
        DistilError: The tokenizer lacks one of them.
    """
    tokens = set(vocabulary.tokens())
    fixed = tokens & {getattr(model.config, "pad_token_id", None)}
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            if not tokens.issuperset(range(padding + 1)):
                raise DistilError(
                    f"the vocabulary of {type(model).__name__} cannot be pruned, because it counts positions from "
                    f"padding id {padding} and its tokenizer lacks smaller ids: choose another reader"
                )
            fixed.update(range(padding + 1))
    return fixed


def _choose(vocabulary: _Vocabulary, counts: Counter[int], keep: float, fixed: set[int]) -> list[int]:
    """The ids to keep, including `fixed`, in ascending order."""
    total, wanted = sum(counts.values()), None
    if is_number(keep) and 0 < keep <= 1:
        share = keep
    elif is_number(keep) and keep > 1 and keep == int(keep):
        share, wanted = 1.0, int(keep)
    else:
        raise DistilError(f"keep must be a share above 0 and at most 1, or a whole number above 1, not {keep!r}")
    parts = vocabulary.parts()
    kept = vocabulary.mandatory() | fixed
    seen = sum(counts[id] for id in kept)
    if wanted is not None and wanted < len(kept):
        raise DistilError(
            f"keep must be at least {len(kept)}, the number of special tokens and single characters, not {wanted}"
        )
    for id, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])):
        if seen >= share * total:
            break
        if id in kept:
            continue
        more = set(_closure(id, parts)) - kept
        if wanted is not None and len(kept) + len(more) > wanted:
            break
        kept |= more
        seen += sum(counts[one] for one in more) if len(more) > 1 else count
    return sorted(kept)


def _closure(id: int, parts: dict[int, tuple[int, int]]) -> Iterator[int]:
    """A token and all tokens that it is merged from."""
    waiting = [id]
    while waiting:
        one = waiting.pop()
        yield one
        waiting.extend(parts.get(one, ()))


def _rebuilt(
    tokenizer: PreTrainedTokenizerBase, content: dict[str, Any], number: dict[int, int]
) -> PreTrainedTokenizerBase:
    """A tokenizer with other content, loaded from files so that all versions of transformers agree."""
    _renumber_specials(content.get("post_processor"), number)
    with temporary_directory() as scratch, writing(Path(scratch)):
        tokenizer.save_pretrained(scratch)
        directory = Path(scratch)
        for file in directory.iterdir():
            if file.name not in ("tokenizer_config.json", "special_tokens_map.json"):
                file.unlink()  # vocab.txt and the like have the old vocabulary
        (directory / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        path = directory / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        if "added_tokens_decoder" in config:
            config["added_tokens_decoder"] = {
                str(number[int(id)]): entry for id, entry in config["added_tokens_decoder"].items()
            }
        path.write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
        return load_tokenizer(scratch)


def _renumber_specials(processor: dict[str, Any] | None, number: dict[int, int]) -> None:
    """Give new ids to the special tokens that a post-processor adds."""
    if processor is None:
        return
    for inner in processor.get("processors", []):
        _renumber_specials(inner, number)
    for entry in processor.get("special_tokens", {}).values():
        entry["ids"] = [number[id] for id in entry["ids"]]
    for name in ("sep", "cls"):
        if name in processor:
            processor[name] = [processor[name][0], number[processor[name][1]]]


def with_embeddings(model: PreTrainedModel, rows: torch.Tensor, number: dict[int, int]) -> PreTrainedModel:
    """A copy of a model with other token embeddings.

    Args:
        model: It is not changed.
        rows: The embeddings, (tokens, width).
        number: New ids by old ones, those of special tokens at least.
    """
    changed = copy.deepcopy(model)
    table = changed.get_input_embeddings()
    made = torch.nn.Embedding(len(rows), rows.shape[1], device=table.weight.device, dtype=table.weight.dtype)
    with torch.no_grad():
        made.weight.copy_(rows)
    padding = table.padding_idx
    made.padding_idx = None if padding is None else number.get(padding)  # its row may have been dropped
    changed.set_input_embeddings(made)
    changed.config.vocab_size = len(rows)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id"):
        old = getattr(changed.config, name, None)
        if old is not None:
            setattr(changed.config, name, number.get(old))
    return changed
