"""Dropping the tokens that a domain never uses: half of a small reader is its embedding table."""

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
from haystack_distill.utils.checks import is_number
from haystack_distill.utils.files import temporary_directory, writing
from haystack_distill.utils.transformers_compat import load_tokenizer

_TEXTS_AT_ONCE = 1000
_BYTE = re.compile("<0x[0-9A-F]{2}>")  # a piece of SentencePiece's byte fallback


def prune_vocabulary(reader: Reader, corpus: Iterable[str], *, keep: float = 1.0) -> Reader:
    """A reader with a smaller vocabulary: tokens that a corpus does not need lose their embedding rows.

    Tokens that stay keep their embeddings, so text that needs no others is read exactly as before. A word whose token
    is gone is spelt with smaller ones; special tokens, single characters and whatever a kept token is merged from stay,
    so there is no word that the reader could read and now cannot.

    Args:
        reader: A reader with a WordPiece, BPE or Unigram tokenizer. It is not changed.
        corpus: Texts of the domain, questions and contexts. It is read once, and counted.
        keep: A share above 0 and at most 1: as many of the most frequent tokens stay as make up this share of the
            corpus (1: all that occur). A whole number above 1: so many tokens stay, those that must included.

    Raises:
        DistilError: The corpus is empty, `keep` is neither, or a tokenizer or model of another kind.
    """
    reader.require_weights()
    content = json.loads(reader.tokenizer.backend_tokenizer.to_str())
    vocabulary = _Vocabulary.of(content)
    kept = _choose(vocabulary, _count(reader.tokenizer, corpus), keep, _fixed(reader.model, vocabulary))
    number = {old: new for new, old in enumerate(kept)}
    vocabulary.keep(number)
    tokenizer = _rebuilt(reader.tokenizer, content, number)
    if len(tokenizer) != len(kept):
        raise DistilError(f"{type(tokenizer).__name__} cannot be given another vocabulary")
    return reader.with_model(_with_rows(reader.model, kept, number), tokenizer)


class _Vocabulary:
    """The tokens of a tokenizer.json, by their ids, and what stands on what."""

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
                f"the vocabulary of a {kind} tokenizer cannot be pruned; WordPiece, BPE and Unigram ones can"
            )
        return kinds[kind](content)

    def tokens(self) -> dict[int, str]:
        """Every token by its id, added ones included."""
        return {id: token for token, id in self.model["vocab"].items()} | self.added

    def needed(self) -> set[int]:
        """What no text can be read without: special tokens, single characters, and the bytes that spell the others."""
        letters = {id for id, token in self.tokens().items() if len(self.letters(token)) <= 1 or _BYTE.fullmatch(token)}
        return letters | set(self.added) | self._unknown()

    def letters(self, token: str) -> str:
        """A token without what marks its place in a word."""
        return token

    def parts(self) -> dict[int, tuple[int, int]]:
        """What a token is merged from."""
        return {}

    def keep(self, number: dict[int, int]) -> None:
        """Leave out all tokens but those in `number` and give those their new ids."""
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
        """Left part, right part and what they become."""
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
        left_over = self.model["vocab"]
        # A merge that is left out could have been a way to a token that stays, but never its first: parts() keeps that.
        self.model["merges"] = [
            [left, right]
            for left, right, whole in self.merges()
            if left in left_over and right in left_over and whole in left_over
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
    while some := list(islice(texts, _TEXTS_AT_ONCE)):
        for encoding in text_tokenizer(tokenizer).encode_batch(some, add_special_tokens=False):
            counts.update(encoding.ids)
    if not counts:
        raise DistilError("the corpus holds no text: give texts of the domain, questions and contexts")
    return counts


def _fixed(model: PreTrainedModel, vocabulary: _Vocabulary) -> set[int]:
    """The ids that must stay what they are: RoBERTa and its kin count positions from the padding id."""
    tokens = set(vocabulary.tokens())
    fixed = tokens & {getattr(model.config, "pad_token_id", None)}
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            if not tokens.issuperset(range(padding + 1)):
                raise DistilError(
                    f"{type(model).__name__} counts positions from padding id {padding}, and its tokenizer lacks ids "
                    "up to there: its vocabulary cannot be pruned"
                )
            fixed.update(range(padding + 1))
    return fixed


def _choose(vocabulary: _Vocabulary, counts: Counter[int], keep: float, fixed: set[int]) -> list[int]:
    """The ids that stay, `fixed` among them, rising."""
    total, wanted = sum(counts.values()), None
    if is_number(keep) and 0 < keep <= 1:
        share = keep
    elif is_number(keep) and keep > 1 and keep == int(keep):
        share, wanted = 1.0, int(keep)
    else:
        raise DistilError(f"keep must be a share above 0 and at most 1, or a whole number above 1, not {keep!r}")
    parts = vocabulary.parts()
    kept = vocabulary.needed() | fixed
    seen = sum(counts[id] for id in kept)
    if wanted is not None and wanted < len(kept):
        raise DistilError(f"{len(kept)} tokens are special or single characters and must stay; keep at least as many")
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
    """A token and all that it is merged from."""
    waiting = [id]
    while waiting:
        one = waiting.pop()
        yield one
        waiting.extend(parts.get(one, ()))


def _rebuilt(
    tokenizer: PreTrainedTokenizerBase, content: dict[str, Any], number: dict[int, int]
) -> PreTrainedTokenizerBase:
    """The tokenizer with other contents, made as it is made from files, which is the same in every transformers."""
    _renumber_specials(content.get("post_processor"), number)
    with temporary_directory() as scratch, writing(Path(scratch)):
        tokenizer.save_pretrained(scratch)
        directory = Path(scratch)
        for file in directory.iterdir():
            if file.name not in ("tokenizer_config.json", "special_tokens_map.json"):
                file.unlink()  # vocab.txt and the like hold the old vocabulary
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
    """Give the special tokens that a post-processor adds their new ids."""
    if processor is None:
        return
    for inner in processor.get("processors", []):
        _renumber_specials(inner, number)
    for entry in processor.get("special_tokens", {}).values():
        entry["ids"] = [number[id] for id in entry["ids"]]
    for name in ("sep", "cls"):
        if name in processor:
            processor[name] = [processor[name][0], number[processor[name][1]]]


def _with_rows(model: PreTrainedModel, kept: list[int], number: dict[int, int]) -> PreTrainedModel:
    """A copy of a model with some rows of its embedding table."""
    pruned = copy.deepcopy(model)
    table = pruned.get_input_embeddings()
    smaller = torch.nn.Embedding(len(kept), table.embedding_dim, device=table.weight.device, dtype=table.weight.dtype)
    padding = table.padding_idx
    with torch.no_grad():
        smaller.weight.copy_(table.weight[kept])
    smaller.padding_idx = None if padding is None else number.get(padding)  # the row may be one of no token
    pruned.set_input_embeddings(smaller)
    pruned.config.vocab_size = len(kept)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id"):
        old = getattr(pruned.config, name, None)
        if old is not None:
            setattr(pruned.config, name, number.get(old))
    return pruned
