"""A corpus as full windows of tokens: text -> tokens -> shuffled chunks -> masked batches."""

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

NOT_GUESSED = -100  # the label of a token that is not to be guessed, as PyTorch's cross entropy has it


_CHUNKS_REMEMBERED = 4  # the windows of one step, those of the last checkpoint and what is read ahead lie within


@dataclass(frozen=True)
class TextSettings:
    """How text becomes windows.

    Args:
        max_seq_len: Tokens of a window, special tokens included. Every window is full.
        mask_probability: Share of the tokens that are to be guessed; of those 80 % are masked, 10 % replaced by a
            random token, 10 % left (BERT, arXiv 1810.04805). They are drawn anew in each pass. 0 masks nothing.
        buffer_windows: Windows that are shuffled together; also what is read before the first step.

    Raises:
        DistilError: A value that cannot be.
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
    """Some windows: their numbers, and their tokens without special ones (n, body length)."""

    indices: np.ndarray
    tokens: np.ndarray


class _Bookmark(NamedTuple):
    """Where a chunk begins: the corpus' state, and the tokens that were read but belong to this chunk.

    In a corpus that does not fill a chunk: its start, and how many of its tokens belong to the chunks before.
    """

    state: dict[str, Any] | None
    left_over: list[int]
    skip: int = 0


class _Whole:
    """The tokens of one pass over a corpus, kept as long as they are fewer than `limit`."""

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
    """A corpus as full windows of tokens, numbered from 0 without end: after its last text the corpus begins again.

    Documents follow each other with a separator between them. Chunks of `buffer_windows` windows are shuffled by
    (seed, number of the chunk), and the next chunk is read while one is trained on. What stands in window i depends on
    corpus, tokenizer, settings and seed alone, not on the number of processes: all of them read the whole corpus, share
    out the work of tokenizing it and exchange the tokens. It is a map-style data set for
    `torch.utils.data.DataLoader` that is quick where the windows are asked for about in their order.

    Args:
        corpus: The text.
        tokenizer: A fast tokenizer.
        settings: See `TextSettings`.
        n_steps: How many optimiser steps the windows are to last.
        seed: Of the order and of the masks.
        token_types: Whether batches carry `token_type_ids`.
        processes: The processes of a run, if there are several.

    Raises:
        DistilError: Tokens are to be masked and the tokenizer has no mask token, or it has no separator.
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
                "the tokenizer puts no separator behind a text, so documents would run into each other; "
                "use a tokenizer that has one"
            )
        self.body = settings.max_seq_len - len(self.prefix) - len(self.suffix)
        # Not the special ones: a random token that ends the text would be no text.
        self._words = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
        self._bookmarks: OrderedDict[int, _Bookmark] = OrderedDict({0: _Bookmark(None, [])})
        self._held: OrderedDict[int, np.ndarray] = OrderedDict()
        self._reading: Queue[tuple[np.ndarray, _Bookmark] | Exception] | None = None
        self._readers: list[tuple[Thread, Queue[Any]]] = []
        self._closing = Event()  # set by whoever trains, when the rest of the corpus is not wanted
        self._closed = False  # whether the processes have agreed on that
        self._next = 0  # the chunk that comes out of the queue next
        self._n_processes = 1 if processes is None else processes.num_processes
        self._process = 0 if processes is None else processes.process_index
        # A group of its own: reading goes on in the background while training uses the other one.
        self._group = torch.distributed.new_group(backend="gloo") if self._n_processes > 1 else None

    def batches(self, batch_size: int, *, seed: int, **sharing: int) -> StepBatches:
        """The windows in their order, for `n_steps` steps; they are shuffled already."""
        return InOrderBatches(self.n_steps, batch_size, **sharing)

    def __getitems__(self, indices: Sequence[int]) -> TextRows:
        size = self.settings.buffer_windows
        tokens = np.stack([self._chunk(index // size)[index % size] for index in indices])
        return TextRows(np.array(indices, dtype=np.int64), tokens)

    def describe(self, windows: Iterable[int]) -> str:
        """What to call these windows where something is wrong with them."""
        return f"the windows {', '.join(map(str, windows))} of the corpus"

    def collate(self, rows: TextRows) -> dict[str, torch.Tensor]:
        """A batch of B windows, L tokens long.

        Returns:
            `input_ids`, `attention_mask` and, where the model takes them, `token_type_ids` (B, L) int64; `labels`
            (B, L) int64: the token that stood there, or -100 where nothing is to be guessed; `weight` (B,) float32;
            `window` (B,) int64.
        """
        length = self.settings.max_seq_len
        inputs = np.empty((len(rows.indices), length), dtype=np.int64)
        labels = np.full_like(inputs, NOT_GUESSED)
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
        """What `go_to` needs to find a window again that is about to be asked for; it can be written as JSON."""
        number = max(known for known in self._bookmarks if known <= window // self.settings.buffer_windows)
        return {"chunk": number, **self._bookmarks[number]._asdict()}

    def go_to(self, place: dict[str, Any]) -> None:
        """Go to where `place_of` was asked, so that nothing before it is read."""
        self._bookmarks[int(place["chunk"])] = _Bookmark(place["state"], place["left_over"], place.get("skip", 0))

    def close(self) -> None:
        """Stop reading ahead and wait until that is done; otherwise a thread may be cut off in a library's own code,
        which then ends the whole process.

        With several processes each of them calls this, and after the same window: they read together.
        """
        self._closing.set()
        for reader, chunks in self._readers:
            while reader.is_alive():
                with contextlib.suppress(Empty):
                    chunks.get(timeout=0.05)  # it may be waiting for room
        self._readers.clear()
        self._reading = None
        self._closing.clear()
        self._closed = False

    def __enter__(self) -> "TextWindows":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or self._n_processes == 1:  # after an error, the other processes may never come here
            self.close()

    def _masked(self, index: int, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens with some hidden, and those tokens as labels."""
        random = np.random.default_rng([self.seed, 1, index])
        guessed = random.random(len(tokens)) < self.settings.mask_probability
        guessed &= tokens != self.suffix[0]
        how = random.random(len(tokens))
        hidden = np.where(guessed & (how < 0.8), self.tokenizer.mask_token_id or 0, tokens)
        swapped = guessed & (how >= 0.9)
        hidden[swapped] = random.choice(self._words, int(swapped.sum()))
        return hidden, np.where(guessed, tokens, NOT_GUESSED)

    def _chunk(self, number: int) -> np.ndarray:
        """The windows of a chunk, shuffled: (buffer_windows, body)."""
        if number in self._held:
            return self._held[number]
        if self._reading is None or self._next > number:
            self._next = max((known for known in self._bookmarks if known <= number), default=0)
            self._reading = self._begin_reading(self._bookmarks.get(self._next, _Bookmark(None, [])))
        while number not in self._held:
            found = self._reading.get()
            if isinstance(found, Exception):
                raise found
            windows, behind = found
            order = np.random.default_rng([self.seed, 0, self._next]).permutation(len(windows))
            self._held[self._next] = windows[order]
            self._next += 1
            self._bookmarks[self._next] = behind
            while len(self._held) > _CHUNKS_REMEMBERED:
                self._held.popitem(last=False)
            while len(self._bookmarks) > _CHUNKS_REMEMBERED + 1:
                self._bookmarks.popitem(last=False)
        return self._held[number]

    def _begin_reading(self, bookmark: _Bookmark) -> "Queue[tuple[np.ndarray, _Bookmark] | Exception]":
        """Chunks from a bookmark on, each made while the one before it is trained on."""
        chunks: Queue[tuple[np.ndarray, _Bookmark] | Exception] = Queue(maxsize=1)

        def read() -> None:
            try:
                for chunk in self._chunks(bookmark):
                    chunks.put(chunk)
            except Exception as error:  # whatever it is, it is raised where the chunk is asked for
                chunks.put(error)

        # A daemon: where nobody closes these windows, nobody waits for the chunk after the last.
        reader = Thread(target=read, name="corpus", daemon=True)
        self._readers.append((reader, chunks))
        reader.start()
        return chunks

    def _chunks(self, bookmark: _Bookmark) -> Iterator[tuple[np.ndarray, _Bookmark]]:
        """Chunks in the order of the corpus from a bookmark on, and with each the bookmark of the one behind it."""
        wanted = self.settings.buffer_windows * self.body
        pieces = [np.array(bookmark.left_over, dtype=np.int32)]
        have = len(pieces[0])
        state, skip = bookmark.state, bookmark.skip
        while True:
            whole = _Whole(wanted) if state is None else None
            for tokens, here in self._read_tokens(state):
                if whole is not None:
                    whole.add(tokens)
                pieces.append(tokens[skip:])
                skip -= min(skip, len(tokens))
                have += len(pieces[-1])
                if have >= wanted:
                    tokens = np.concatenate(pieces)
                    for first in range(0, have - wanted + 1, wanted):
                        left = tokens[first + wanted :]
                        yield tokens[first : first + wanted].reshape(-1, self.body), _Bookmark(here(), left.tolist())
                    pieces, have = [left], len(left)
            if self._closed:
                return
            if whole is not None and whole.tokens is not None:
                yield from self._repeated(whole.tokens, np.concatenate(pieces))
                return
            state = None

    def _repeated(self, corpus: np.ndarray, left: np.ndarray) -> Iterator[tuple[np.ndarray, _Bookmark]]:
        """Chunks of what is left and then of a corpus that does not fill one, over and over, without reading it again.

        A corpus of a page would be read thousands of times before the first step otherwise.
        """
        if not len(corpus):
            raise DataError(f"the corpus {self.corpus.identity} holds no text")
        wanted = self.settings.buffer_windows * self.body
        place = 0  # of the next token in the corpus
        while not self._closing.is_set():
            needed = wanted - len(left)
            repeated = np.tile(corpus, -(-(place + needed) // len(corpus)))[place : place + needed]
            place = (place + needed) % len(corpus)
            yield np.concatenate([left, repeated]).reshape(-1, self.body), _Bookmark(None, [], place)
            left = left[:0]

    def _read_tokens(self, state: dict[str, Any] | None) -> Iterator[tuple[np.ndarray, Callable[[], dict[str, Any]]]]:
        """The corpus' tokens from a state on, and with each piece what gives the state behind it."""
        batches = self.corpus.read(state, process=self._process, processes=self._n_processes)
        while group := list(islice(batches, self._n_processes)):
            closing = self._closing.is_set()
            mine = self._tokens_of(group[self._process][0] if self._process < len(group) and not closing else [])
            pieces = [(mine, closing)]
            if self._group is not None:
                pieces = pieces * self._n_processes
                torch.distributed.all_gather_object(pieces, (mine, closing), group=self._group)
            if any(closes for _, closes in pieces):  # in all processes, at the same place
                self._closed = True
                return
            yield np.concatenate([tokens for tokens, _ in pieces]), group[-1][1]

    def _tokens_of(self, texts: list[str]) -> np.ndarray:
        """The tokens of some texts, with a separator behind each document."""
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
    """Lines as texts, each with whether its document ends behind it: at an empty line."""
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
    """What a tokenizer puts before and behind a single text."""
    encoding = tokenizer("a", return_special_tokens_mask=True)
    ids, mask = encoding["input_ids"], encoding["special_tokens_mask"]
    inside = [place for place, special in enumerate(mask) if not special]
    return ids[: inside[0]], ids[inside[-1] + 1 :]
