"""A corpus as full windows of tokens: texts are tokenized, concatenated, shuffled in chunks, and masked."""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from haystack_distill.data.corpus import Corpus
from haystack_distill.data.samplers import InOrderBatches, StepBatches
from haystack_distill.data.text_tokenizer import text_tokenizer
from haystack_distill.errors import DataError, DistilError
from haystack_distill.utils.checks import check_argument, is_integer, is_number

NO_LABEL = -100  # the label of a token that is not predicted; the default ignore_index of PyTorch's cross entropy

_CHUNKS_KEPT = 4  # enough for a step's windows, those of the last checkpoint and those that are read ahead


@dataclass(frozen=True)
class TextSettings:
    """How text is cut into windows and masked.

    Args:
        max_seq_len: Tokens per window, including special tokens. Every window is full.
        mask_probability: Share of the tokens that are predicted; of these, 80 % are masked, 10 % replaced by a random
            token, 10 % unchanged (BERT, Devlin et al. 2019, arXiv 1810.04805). They are drawn anew in each pass. With
            0, no token is masked.
        buffer_windows: Number of windows that are shuffled together; as many are read before the first step.

    Raises:
        DistilError: A value is out of range.
    """

    max_seq_len: int = 128
    mask_probability: float = 0.15
    buffer_windows: int = 4096

    def __post_init__(self) -> None:
        share = self.mask_probability
        check_argument("max_seq_len", self.max_seq_len, is_integer(self.max_seq_len, 8), "a whole number of at least 8")
        check_argument("mask_probability", share, is_number(share) and 0 <= share < 1, "a number from 0 to below 1")
        check_argument(
            "buffer_windows", self.buffer_windows, is_integer(self.buffer_windows, 1), "a whole number of at least 1"
        )


class TextRows(NamedTuple):
    """Some windows: their numbers (n,), and their tokens without special tokens (n, body length)."""

    indices: np.ndarray
    tokens: np.ndarray


class _Bookmark(NamedTuple):
    """The start of a chunk: the state of the corpus, and the tokens that were read before it but belong to the chunk.

    For a corpus that is smaller than a chunk: the start of the corpus, and the number of its tokens to skip.
    """

    state: dict[str, Any] | None
    left_over: list[int]
    skip: int = 0


class _SmallCorpus:
    """Collects the tokens of one pass over a corpus, as long as there are fewer than `limit`."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._pieces: list[np.ndarray] = [np.zeros(0, dtype=np.int32)]

    def add(self, tokens: np.ndarray) -> None:
        self._left -= len(tokens)
        if self._left > 0:
            self._pieces.append(tokens)
        else:
            self._pieces.clear()

    @property
    def tokens(self) -> np.ndarray | None:
        return np.concatenate(self._pieces) if self._left > 0 else None


class TextWindows:
    """A corpus as an endless sequence of full windows of tokens: after its last text the corpus starts again.

    Documents are concatenated with a separator between them. Chunks of `buffer_windows` windows are shuffled by (seed,
    number of the chunk), and the next chunk is read in the background during training. The content of window i depends
    only on corpus, tokenizer, settings and seed, not on the number of processes: each of them reads the whole corpus,
    tokenizes its share of it, and exchanges the tokens with the others. It is a map-style dataset for
    `torch.utils.data.DataLoader`, which is fast if the windows are requested roughly in order.

    Args:
        corpus: The text.
        tokenizer: A fast tokenizer.
        settings: See `TextSettings`.
        n_steps: Number of optimiser steps of the run.
        seed: Seed of the order and of the masks.
        token_types: Whether batches include `token_type_ids`.
        processes: The processes of the run, or None for one.

    Raises:
        DistilError: The tokenizer has no mask token, although `mask_probability` is above 0, or no separator.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: PreTrainedTokenizerBase,
        settings: TextSettings,
        *,
        n_steps: int,
        seed: int,
        token_types: bool,
        processes: PartialState | None = None,
    ) -> None:
        if settings.mask_probability and tokenizer.mask_token_id is None:
            raise DistilError("the tokenizer has no mask token; set mask_probability=0")
        self.corpus = corpus
        self.tokenizer = tokenizer
        self._text_tokenizer = text_tokenizer(tokenizer)
        self.settings = settings
        self.n_steps = n_steps
        self.seed = seed
        self.token_types = token_types
        self.prefix, self.suffix = _special_tokens_around(tokenizer)
        if not self.suffix:
            raise DistilError(
                "the tokenizer adds no separator after a text, so documents cannot be separated; use one that does"
            )
        self.body = settings.max_seq_len - len(self.prefix) - len(self.suffix)
        # Without special tokens, such as the separator: they must not replace a token of the text.
        self._words = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
        self._bookmarks: OrderedDict[int, _Bookmark] = OrderedDict({0: _Bookmark(None, [])})
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._reading: Queue[tuple[np.ndarray, _Bookmark] | Exception] | None = None
        self._readers: list[tuple[Thread, Queue[Any]]] = []
        self._closing = Event()  # set by `close`, when the rest of the corpus is not needed
        self._closed = False  # whether the processes have agreed to stop reading
        self._next = 0  # number of the next chunk in the queue
        self._n_processes = 1 if processes is None else processes.num_processes
        self._process = 0 if processes is None else processes.process_index
        # A separate process group: reading in the background runs concurrently with the communication of the training.
        self._group = torch.distributed.new_group(backend="gloo") if self._n_processes > 1 else None

    def batches(self, batch_size: int, *, seed: int, **sharing: int) -> StepBatches:
        """Batches of the windows in order, for `n_steps` steps; the windows are shuffled already."""
        return InOrderBatches(self.n_steps, batch_size, **sharing)

    def __getitems__(self, indices: Sequence[int]) -> TextRows:
        size = self.settings.buffer_windows
        tokens = np.stack([self._chunk(index // size)[index % size] for index in indices])
        return TextRows(np.array(indices, dtype=np.int64), tokens)

    def describe(self, windows: Iterable[int]) -> str:
        """A description of the given windows for error messages."""
        return f"the windows {', '.join(map(str, windows))} of the corpus"

    def collate(self, rows: TextRows, multiple: int = 1) -> dict[str, torch.Tensor]:
        """A batch of B windows, L tokens long.

        Args:
            rows: The windows.
            multiple: Without effect: all windows are `max_seq_len` long.

        Returns:
            `input_ids`, `attention_mask` and, with `token_types`, `token_type_ids` (B, L) int64; `labels` (B, L) int64:
            the original token of a masked position, -100 elsewhere; `weight` (B,) float32; `window` (B,) int64.
        """
        length = self.settings.max_seq_len
        inputs = np.empty((len(rows.indices), length), dtype=np.int64)
        labels = np.full_like(inputs, NO_LABEL)
        body = slice(len(self.prefix), length - len(self.suffix))
        inputs[:, : body.start], inputs[:, body.stop :] = self.prefix, self.suffix
        for row, (index, tokens) in enumerate(zip(rows.indices, rows.tokens, strict=True)):
            inputs[row, body], labels[row, body] = self._masked(int(index), tokens)
        batch = {"input_ids": torch.from_numpy(inputs), "attention_mask": torch.ones_like(torch.from_numpy(inputs))}
        if self.token_types:
            batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
        return batch | {
            "labels": torch.from_numpy(labels),
            "weight": torch.ones(len(inputs)),
            "window": torch.from_numpy(rows.indices),
        }

    def place_of(self, window: int) -> dict[str, Any]:
        """The position of the next window to be requested, for `go_to`; it can be written as JSON."""
        number = max(known for known in self._bookmarks if known <= window // self.settings.buffer_windows)
        return {"chunk": number, **self._bookmarks[number]._asdict()}

    def go_to(self, place: dict[str, Any]) -> None:
        """Continue from a position that `place_of` returned, without reading the text before it."""
        self._bookmarks[int(place["chunk"])] = _Bookmark(place["state"], place["left_over"], place.get("skip", 0))

    def close(self) -> None:
        """Stop reading ahead and wait for the reading thread.

        If Python exits while the thread runs native code of a library, the process may abort. With several processes,
        all of them must call this after the same window, because they read together.
        """
        self._closing.set()
        for reader, chunks in self._readers:
            while reader.is_alive():
                with contextlib.suppress(Empty):
                    chunks.get(timeout=0.05)  # it may be waiting for room in the queue
        self._readers.clear()
        self._reading = None
        self._closing.clear()
        self._closed = False

    def __enter__(self) -> "TextWindows":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or self._n_processes == 1:  # after an error, the other processes may not get here
            self.close()

    def _masked(self, index: int, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The tokens with some of them masked, and the labels."""
        random = np.random.default_rng([self.seed, 1, index])
        chosen = random.random(len(tokens)) < self.settings.mask_probability
        chosen &= tokens != self.suffix[0]
        action = random.random(len(tokens))
        masked = np.where(chosen & (action < 0.8), self.tokenizer.mask_token_id or 0, tokens)
        swapped = chosen & (action >= 0.9)
        masked[swapped] = random.choice(self._words, int(swapped.sum()))
        return masked, np.where(chosen, tokens, NO_LABEL)

    def _chunk(self, number: int) -> np.ndarray:
        """The tokens of a chunk's windows, shuffled: (buffer_windows, body length)."""
        if number in self._kept:
            return self._kept[number]
        if self._reading is None or self._next > number:
            self._next = max((known for known in self._bookmarks if known <= number), default=0)
            self._reading = self._start_reading(self._bookmarks.get(self._next, _Bookmark(None, [])))
        while number not in self._kept:
            read = self._reading.get()
            if isinstance(read, Exception):
                raise read
            windows, next_bookmark = read
            order = np.random.default_rng([self.seed, 0, self._next]).permutation(len(windows))
            self._kept[self._next] = windows[order]
            self._next += 1
            self._bookmarks[self._next] = next_bookmark
            while len(self._kept) > _CHUNKS_KEPT:
                self._kept.popitem(last=False)
            while len(self._bookmarks) > _CHUNKS_KEPT + 1:
                self._bookmarks.popitem(last=False)
        return self._kept[number]

    def _start_reading(self, bookmark: _Bookmark) -> "Queue[tuple[np.ndarray, _Bookmark] | Exception]":
        """Start a thread that reads the chunks from a bookmark on, each while the one before it is trained on."""
        chunks: Queue[tuple[np.ndarray, _Bookmark] | Exception] = Queue(maxsize=1)

        def read() -> None:
            try:
                for chunk in self._chunks(bookmark):
                    chunks.put(chunk)
            except Exception as error:  # any error is raised where the chunk is requested
                chunks.put(error)

        # A daemon thread, so that Python can exit even if `close` is not called.
        reader = Thread(target=read, name="corpus", daemon=True)
        self._readers.append((reader, chunks))
        reader.start()
        return chunks

    def _chunks(self, bookmark: _Bookmark) -> Iterator[tuple[np.ndarray, _Bookmark]]:
        """Chunks in the order of the corpus from a bookmark on, each with the bookmark of the next one."""
        wanted = self.settings.buffer_windows * self.body
        pieces = [np.array(bookmark.left_over, dtype=np.int32)]
        n_tokens = len(pieces[0])
        state, skip = bookmark.state, bookmark.skip
        while True:
            small = _SmallCorpus(wanted) if state is None else None
            for tokens, state_after in self._read_tokens(state):
                if small is not None:
                    small.add(tokens)
                pieces.append(tokens[skip:])
                skip -= min(skip, len(tokens))
                n_tokens += len(pieces[-1])
                if n_tokens >= wanted:
                    tokens = np.concatenate(pieces)
                    for first in range(0, n_tokens - wanted + 1, wanted):
                        left = tokens[first + wanted :]
                        chunk = tokens[first : first + wanted].reshape(-1, self.body)
                        yield chunk, _Bookmark(state_after(), left.tolist())
                    pieces, n_tokens = [left], len(left)
            if self._closed:
                return
            if small is not None and small.tokens is not None:
                yield from self._repeated(small.tokens, np.concatenate(pieces))
                return
            state = None

    def _repeated(self, corpus: np.ndarray, left: np.ndarray) -> Iterator[tuple[np.ndarray, _Bookmark]]:
        """Chunks of the remaining tokens and then of a corpus smaller than a chunk, which is repeated from memory.

        Otherwise a corpus of one page would be read thousands of times before the first step.
        """
        if not len(corpus):
            raise DataError(f"the corpus {self.corpus.identity} holds no text; give one with text")
        wanted = self.settings.buffer_windows * self.body
        place = 0  # index of the next token in the corpus
        while not self._closing.is_set():
            needed = wanted - len(left)
            repeated = np.tile(corpus, -(-(place + needed) // len(corpus)))[place : place + needed]
            place = (place + needed) % len(corpus)
            yield np.concatenate([left, repeated]).reshape(-1, self.body), _Bookmark(None, [], place)
            left = left[:0]

    def _read_tokens(self, state: dict[str, Any] | None) -> Iterator[tuple[np.ndarray, Callable[[], dict[str, Any]]]]:
        """The tokens of the corpus from a state on, in pieces, each with a function that returns the state after it."""
        batches = self.corpus.read(state, process=self._process, processes=self._n_processes)
        while group := list(islice(batches, self._n_processes)):
            closing = self._closing.is_set()
            mine = self._tokens_of(group[self._process][0] if self._process < len(group) and not closing else [])
            pieces = [(mine, closing)]
            if self._group is not None:
                pieces = pieces * self._n_processes
                torch.distributed.all_gather_object(pieces, (mine, closing), group=self._group)
            if any(closes for _, closes in pieces):  # all processes stop at the same place
                self._closed = True
                return
            yield np.concatenate([tokens for tokens, _ in pieces]), group[-1][1]

    def _tokens_of(self, texts: list[str]) -> np.ndarray:
        """The tokens of some texts, with a separator after each document."""
        documents = _joined(texts) if self.corpus.by_line else [(text, True) for text in texts if text.strip()]
        if not documents:
            return np.zeros(0, dtype=np.int32)
        encoded = self._text_tokenizer.encode_batch([text for text, _ in documents], add_special_tokens=False)
        ids: list[int] = []
        for encoding, (_, ends) in zip(encoded, documents, strict=True):
            ids += encoding.ids
            if ends:
                ids.append(self.suffix[0])
        return np.array(ids, dtype=np.int32)


def _joined(lines: Iterable[str]) -> list[tuple[str, bool]]:
    """Lines joined to texts, each with whether a document ends after it; an empty line ends one."""
    found: list[tuple[str, bool]] = []
    text: list[str] = []
    for line in lines:
        if line.strip():
            text.append(line)
        elif text:
            found.append((" ".join(text), True))
            text = []
    return [*found, (" ".join(text), False)] if text else found


def _special_tokens_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer adds before and after a single text."""
    encoding = tokenizer("a", return_special_tokens_mask=True)
    ids, mask = encoding["input_ids"], encoding["special_tokens_mask"]
    inside = [place for place, special in enumerate(mask) if not special]
    return ids[: inside[0]], ids[inside[-1] + 1 :]
