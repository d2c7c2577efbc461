"""What a masked language model would put in the place of each word (TinyBERT, arXiv 1909.10351, algorithm 1).

TinyBERT masks one word a forward pass. Here each pass hides every seventh word, about the share that such models were
trained with, so a text takes seven passes however long it is; the passes of all texts are sorted by length and share
batches; and only the hidden places are multiplied with the vocabulary.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM

from augment.settings import AugmentSettings
from augment.words import Span
from haystack_distill.data.text_tokenizer import text_tokenizer
from haystack_distill.data.word_vectors import read_word_vectors, whole_words
from haystack_distill.errors import DistilError
from haystack_distill.utils.devices import resolve_device
from haystack_distill.utils.files import expand_user
from haystack_distill.utils.transformers_compat import load_with_tokenizer

_EVERY = 7  # 1/7 of the words is hidden at a time
_LONGEST = 256  # tokens a pass: longer texts are cut into pieces
_VECTORS = 100_000  # of a GloVe file, which begins with the most frequent words


class _Pass(NamedTuple):
    ids: list[int]
    places: list[int]  # of the mask tokens in `ids`
    words: list[tuple[int, int]]  # which text, which word


class ContextualCandidates:
    """Candidates for each word of a text: the model's for words of one piece, an embedding's neighbours for others.

    Args:
        settings: `model`, which must have a fast tokenizer, `word_possibilities`, `glove_path`, `device` and
            `batch_size` are taken from it. Without `glove_path` the vector of a word is the mean of the model's input
            embeddings of its pieces.

    Raises:
        DistilError: no such model, or one without its head's weights, a mask token or a fast tokenizer.
        DataError: a GloVe file that is not one.
    """

    def __init__(self, settings: AugmentSettings) -> None:
        assert settings.model is not None
        model = os.path.expanduser(str(settings.model))
        self._model, tokenizer, fresh = load_with_tokenizer(AutoModelForMaskedLM, model, "masked language model")
        if fresh:
            raise DistilError(
                f"{model!r} holds no weights for {', '.join(fresh)}, so the words it predicts would be random: give a "
                "masked language model with its head, not an encoder or a reader"
            )
        self._tokenizer: Any = tokenizer
        if not self._tokenizer.is_fast or self._tokenizer.mask_token_id is None:
            raise DistilError(f"{model!r} needs a fast tokenizer with a mask token to be used for replacements")
        if self._model.get_output_embeddings() is None:
            raise DistilError(f"{model!r} has no output layer over its vocabulary: choose another model")
        self._device = resolve_device(settings.device)
        self._model.to(self._device).eval()
        self._possibilities = settings.word_possibilities
        self._batch_size = settings.batch_size
        self._first = [id_ for id_ in [tokenizer.cls_token_id] if id_ is not None]
        self._last = [id_ for id_ in [tokenizer.sep_token_id] if id_ is not None]
        rows = self._model.get_output_embeddings().weight.shape[0]  # a tokenizer may have tokens that the model lacks
        words = whole_words(tokenizer).items()
        self._surfaces = {id_: word for id_, word in words if word.isalnum() and id_ < rows}
        ids = torch.tensor(sorted(self._surfaces), device=self._device)
        self._allowed = torch.full((rows,), -torch.inf, device=self._device)
        self._allowed[ids] = 0.0
        vectors = _glove(expand_user(settings.glove_path)) if settings.glove_path else self._own_vectors(ids)
        self._neighbours = _Neighbours(*vectors, count=2 * settings.word_possibilities + 10)

    def __call__(self, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> list[list[list[str]]]:
        """Candidates by text and word, the likeliest first; an empty list where there are none.

        Args:
            texts: the texts.
            spans: where the words of each stand.
        """
        found: list[list[list[str]]] = [[[] for _ in words] for words in spans]
        passes: list[_Pass] = []
        for number, (text, words) in enumerate(zip(texts, spans, strict=True)):
            passes += self._passes(number, text, words, found[number])
        passes.sort(key=lambda one: len(one.ids))
        for first in range(0, len(passes), self._batch_size):
            batch = passes[first : first + self._batch_size]
            guesses = self._guess(batch)
            for text_number, word in (place for one in batch for place in one.words):
                start, end = spans[text_number][word]
                found[text_number][word] = self._choices(texts[text_number][start:end], next(guesses))
        return found

    def _passes(self, number: int, text: str, words: Sequence[Span], found: list[list[str]]) -> Iterable[_Pass]:
        """The sequences to run for a text. Words of several pieces get their candidates at once."""
        encoding = text_tokenizer(self._tokenizer).encode(text, add_special_tokens=False)
        ids, pieces = encoding.ids, _pieces_of(text, words, encoding.offsets)
        single = {}
        for word, places in enumerate(pieces):
            own = tuple(ids[place] for place in places)
            if len(own) == 1 and own[0] != self._tokenizer.unk_token_id:
                single[places[0]] = word
            elif own:
                start, end = words[word]
                choices = self._neighbours(text[start:end], own if self._tokenizer.unk_token_id not in own else ())
                found[word] = self._choices(text[start:end], choices)
        limit = min(_LONGEST, getattr(self._model.config, "max_position_embeddings", _LONGEST) or _LONGEST) - 4
        for begin in range(0, len(ids), limit):
            piece = ids[begin : begin + limit]
            places = [place for place in sorted(single) if begin <= place < begin + len(piece)]
            for turn in range(min(_EVERY, len(places))):
                hidden = places[turn::_EVERY]
                masked = list(piece)
                for place in hidden:
                    masked[place - begin] = self._tokenizer.mask_token_id
                yield _Pass(
                    [*self._first, *masked, *self._last],
                    [place - begin + len(self._first) for place in hidden],
                    [(number, single[place]) for place in hidden],
                )

    @torch.inference_mode()
    def _guess(self, batch: list[_Pass]) -> Iterator[list[str]]:
        longest = max(len(one.ids) for one in batch)
        shape = (len(batch), longest)
        ids = torch.full(shape, self._tokenizer.pad_token_id or 0)
        seen, hidden = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
        for row, one in enumerate(batch):
            ids[row, : len(one.ids)] = torch.tensor(one.ids)
            seen[row, : len(one.ids)] = 1
            hidden[row, one.places] = True
        hidden = hidden.to(self._device)

        def hidden_only(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (inputs[0][hidden], *inputs[1:])

        hook = self._model.get_output_embeddings().register_forward_pre_hook(hidden_only)
        try:
            logits = self._model(input_ids=ids.to(self._device), attention_mask=seen.to(self._device)).logits
        finally:
            hook.remove()
        if logits.dim() == 3:  # a model that uses its output layer's weights without calling it
            logits = logits[hidden]
        # One more than asked for: the word itself may be among them.
        best = (logits + self._allowed).topk(min(self._possibilities + 1, len(self._surfaces))).indices.tolist()
        return iter([[self._surfaces[id_] for id_ in row] for row in best])

    def _choices(self, word: str, guesses: Iterable[str]) -> list[str]:
        """Guesses in the case of the word, without the word itself."""
        cased = dict.fromkeys(_in_case_of(word, guess) for guess in guesses)
        return [guess for guess in cased if guess.lower() != word.lower()][: self._possibilities]

    def _own_vectors(self, ids: Tensor) -> tuple[list[str], np.ndarray, Any]:
        table = self._model.get_input_embeddings().weight.detach().float().cpu().numpy()
        return (
            [self._surfaces[id_] for id_ in ids.tolist()],
            table[ids.cpu().numpy()],
            lambda pieces: table[list(pieces)].mean(0),
        )


class _Neighbours:
    """The nearest words by cosine."""

    def __init__(self, words: list[str], vectors: np.ndarray, vector_of: Any = None, *, count: int) -> None:
        self._count = count  # more than are asked for: some differ from the word in case alone
        self._words = words
        self._index = {word: row for row, word in enumerate(words)}
        self._vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        self._vector_of = vector_of
        self._nearest = lru_cache(maxsize=50_000)(self._find)

    def __call__(self, word: str, pieces: tuple[int, ...]) -> list[str]:
        return self._nearest(word.lower(), pieces)

    def _find(self, word: str, pieces: tuple[int, ...]) -> list[str]:
        if self._vector_of is not None and pieces:
            vector = self._vector_of(pieces)
        elif self._vector_of is None and word in self._index:
            vector = self._vectors[self._index[word]]
        else:
            return []
        likeness = self._vectors @ vector
        count = min(self._count, len(likeness))
        best = np.argpartition(-likeness, count - 1)[:count]
        return [self._words[row] for row in best[np.argsort(-likeness[best], kind="stable")]]


def _pieces_of(text: str, words: Sequence[Span], offsets: Sequence[Span]) -> list[list[int]]:
    """The tokens that make up each word; none where a token reaches beyond it."""
    pieces: list[list[int]] = [[] for _ in words]
    word = 0
    for place, (start, end) in enumerate(offsets):
        while start < end and text[start].isspace():  # some tokenizers count the space before a word
            start += 1
        while word < len(words) and words[word][1] <= start:
            word += 1
        if word < len(words) and words[word][0] <= start < end <= words[word][1]:
            pieces[word].append(place)
    return pieces


def _in_case_of(word: str, guess: str) -> str:
    if len(word) > 1 and word.isupper():
        return guess.upper()
    return guess[:1].upper() + guess[1:] if word[:1].isupper() else guess


def _glove(path: Path) -> tuple[list[str], np.ndarray]:
    """The most frequent words of a file of vectors, which begins with them, and their vectors."""
    words, vectors = zip(*islice(read_word_vectors(path, "glove_path"), _VECTORS), strict=True)
    return list(words), np.stack(vectors)
