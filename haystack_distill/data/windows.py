"""Examples -> token windows with character offsets -> padded batches.

A window is what the model sees of an example: special tokens, the question, and a stretch of at most
`max_seq_len` minus those of the context's tokens. A row without a question is plain text, and its windows hold a single
sequence. Windows are built once, kept on disk as Arrow and read memory-mapped.
"""

import functools
import itertools
import logging
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerBase

from haystack_distill.data.mixture import Mixture
from haystack_distill.data.samplers import LengthGroupedBatches, MixedBatches, StepBatches
from haystack_distill.data.squad.load import content_hash
from haystack_distill.data.squad.validation import count_lone_surrogates, replace_lone_surrogates
from haystack_distill.data.text_tokenizer import PairTemplate, text_tokenizer, tokenizer_fingerprint
from haystack_distill.data.window_settings import WindowSettings
from haystack_distill.errors import DistilError
from haystack_distill.utils.cache import cached_table
from haystack_distill.utils.hashing import hash_json

logger = logging.getLogger(__name__)

_FORMAT = 2  # raise it when the meaning of a stored window changes
_ROWS_PER_BATCH = 1000
_IS_BLANK = np.array([chr(code).isspace() for code in range(0x3001)] + [False])  # the last for all above
_FIRST_MARK = 0x300  # below, no character is a combining mark

_SCHEMA = pa.schema(
    {
        "example": pa.int32(),  # row of the examples
        "input_ids": pa.list_(pa.int32()),
        "context_start": pa.int32(),  # position of the first context token
        "char_starts": pa.list_(pa.int32()),  # of the context tokens, in code points of the context
        "char_ends": pa.list_(pa.int32()),
        "start_position": pa.int32(),
        "end_position": pa.int32(),
        "labelled": pa.bool_(),
        "length": pa.int32(),
    }
)


class AnyWindows:
    """Windows that are cut already, and the padded batches that are made of them.

    Args:
        tokenizer: A fast tokenizer.
        settings: How they were cut.
        token_types: Whether batches carry `token_type_ids` (see `takes_token_types`).
    """

    lengths: np.ndarray  # tokens of each window
    example_of: np.ndarray  # row of the example that each window was cut from, rising
    n_examples: int

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: WindowSettings, *, token_types: bool) -> None:
        self.settings = settings
        self.template = PairTemplate.of(tokenizer)
        self.pad_token_id = tokenizer.pad_token_id or 0
        self.token_types = token_types

    @property
    def question_of(self) -> np.ndarray:
        """The question of each window, as a number: the windows of one question compete for its answer."""
        return self.example_of

    def rows(self, windows: np.ndarray, weights: np.ndarray) -> "WindowRows":
        """Some windows with their weights, in the order asked for."""
        raise NotImplementedError

    def contexts(self, first: int, stop: int) -> list[str]:
        """The contexts of the examples first..stop-1."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitems__(self, indices: Sequence[int]) -> "WindowRows":
        weights = np.array([0.0 if index < 0 else 1.0 for index in indices], dtype=np.float32)
        real = np.array([~index if index < 0 else index for index in indices], dtype=np.int64)
        return self.rows(real, weights)

    def __getitem__(self, index: int) -> "WindowRows":
        return self.__getitems__([index])

    def windows_of_examples(self, first: int, stop: int) -> range:
        """The (contiguous) windows of the examples first..stop-1."""
        return range(
            int(np.searchsorted(self.example_of, first, "left")), int(np.searchsorted(self.example_of, stop, "left"))
        )

    def collate(self, rows: "WindowRows", multiple: int = 1) -> dict[str, torch.Tensor]:
        """A padded batch of B windows, L tokens long.

        Args:
            rows: The windows.
            multiple: L is the next multiple of this from the longest window on, at most `max_seq_len`.

        Returns:
            `input_ids`, `attention_mask` and, where the model takes them, `token_type_ids` (B, L) int64; `context_mask`
            (B, L) bool: context tokens and the no-answer position; `start_positions`, `end_positions` (B,) int64;
            `labelled` (B,) bool; `weight` (B,) float32; `window` (B,) int64.
        """
        lengths = rows.ints("length")
        starts = rows.ints("context_start")
        n, longest = len(lengths), int(lengths.max())
        longest = max(longest, min(-(-longest // multiple) * multiple, self.settings.max_seq_len))
        input_ids = np.full((n, longest), self.pad_token_id, dtype=np.int64)
        attention = np.zeros((n, longest), dtype=np.int64)
        types = np.zeros((n, longest), dtype=np.int64)
        context = np.zeros((n, longest), dtype=bool)
        context[:, self.template.no_answer_position] = True
        ids, char_starts, char_ends = (rows.lists(name) for name in ("input_ids", "char_starts", "char_ends"))
        for row in range(n):
            length, start = lengths[row], starts[row]
            input_ids[row, :length] = ids[row]
            attention[row, :length] = 1
            types[row, :start] = self.template.question_type
            alone = start == len(self.template.prefix)  # plain text: the only sequence there is
            types[row, start:length] = self.template.question_type if alone else self.template.context_type
            # A token that stands for white space alone can begin or end no answer.
            context[row, start : start + len(char_starts[row])] = char_ends[row] > char_starts[row]
        batch = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(attention)}
        if self.token_types:
            batch["token_type_ids"] = torch.from_numpy(types)
        return batch | {
            "context_mask": torch.from_numpy(context),
            "start_positions": torch.from_numpy(rows.ints("start_position")),
            "end_positions": torch.from_numpy(rows.ints("end_position")),
            "labelled": torch.from_numpy(rows.bools("labelled")),
            "weight": torch.from_numpy(rows.weights),
            "window": torch.from_numpy(rows.indices),
        }


def _whole_pairs(pairs: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    """Questions and contexts without half surrogate pairs, which tokenizers refuse."""
    whole = [(replace_lone_surrogates(question), replace_lone_surrogates(context)) for question, context in pairs]
    if any(new is not old for pair in zip(whole, pairs, strict=True) for new, old in zip(*pair, strict=True)):
        replaced = sum(count_lone_surrogates(text) for pair in pairs for text in pair)
        logger.warning("replaced %d lone surrogate(s), which are not characters, by U+FFFD", replaced)
    return whole


class PairWindows(AnyWindows):
    """The windows of a few (question, context) pairs, in memory: what a reader looks at while it serves.

    `PairWindows.cut` makes them.

    Args:
        contexts: The context of each pair.
        cut_windows: The windows, each with the columns of a stored one, in the order of the pairs.
        tokenizer: The fast tokenizer that they were cut with.
        settings: How they were cut.
        token_types: Whether batches carry `token_type_ids` (see `takes_token_types`).
        question_of: The question of each pair, as a number that pairs share whose answers compete; None: each is a
            question of its own.
    """

    def __init__(
        self,
        contexts: list[str],
        cut_windows: list[dict[str, Any]],
        tokenizer: PreTrainedTokenizerBase,
        settings: WindowSettings,
        *,
        token_types: bool,
        question_of: Sequence[int] | None = None,
    ) -> None:
        super().__init__(tokenizer, settings, token_types=token_types)
        self._contexts = contexts
        self._cut_windows = cut_windows
        self.lengths, self.example_of = (
            np.array([window[name] for window in cut_windows], dtype=np.int32) for name in ("length", "example")
        )
        self.n_examples = len(contexts)
        self._question_of = None if question_of is None else np.asarray(question_of)[self.example_of]

    @property
    def question_of(self) -> np.ndarray:
        return super().question_of if self._question_of is None else self._question_of

    @classmethod
    def cut(
        cls,
        pairs: Sequence[tuple[str, str]],
        tokenizer: PreTrainedTokenizerBase,
        settings: WindowSettings | None = None,
        *,
        token_types: bool,
        question_of: Sequence[int] | None = None,
    ) -> "PairWindows":
        """Cut (question, context) pairs.

        Args:
            pairs: Questions and contexts.
            tokenizer: A fast tokenizer.
            settings: How to cut.
            token_types: Whether batches carry `token_type_ids` (see `takes_token_types`).
            question_of: See the class.

        Raises:
            DistilError: A question leaves no room for its context.
        """
        settings = settings or WindowSettings()
        pairs = _whole_pairs(pairs)
        contexts = [context for _, context in pairs]
        nothing: dict[str, list] = {"text": [], "answer_start": []}
        rows: dict[str, list] = {
            "question": [question for question, _ in pairs],
            "context": contexts,
            "answers": [nothing] * len(pairs),
            "labelled": [False] * len(pairs),
        }
        cut_windows = list(_cut(rows, 0, tokenizer, PairTemplate.of(tokenizer), settings))
        return cls(contexts, cut_windows, tokenizer, settings, token_types=token_types, question_of=question_of)

    def rows(self, windows: np.ndarray, weights: np.ndarray) -> "WindowRows":
        return RowsInMemory(windows, weights, [self._cut_windows[window] for window in windows.tolist()])

    def contexts(self, first: int, stop: int) -> list[str]:
        return self._contexts[first:stop]


class Windows(AnyWindows):
    """All windows of a set of examples, memory-mapped, with batches made on demand.

    It is a map-style data set for `torch.utils.data.DataLoader`: with a batch sampler, `__getitems__` hands whole
    batches to `collate`. A negative index `~i` stands for window i with weight 0: it fills a batch without
    adding to the loss.

    `Windows.cut` makes them.

    Args:
        examples: Rows as `data.squad.load.load_examples` gives them.
        table: Their windows, in the order of the examples.
        key: What the windows depend on, as a hash.
        tokenizer: The fast tokenizer that they were cut with.
        settings: How they were cut.
        token_types: Whether batches carry `token_type_ids` (see `takes_token_types`).
        answers: What cutting did to the labelled answers.

    Attributes:
        tokenizer: As given.
        mixture: How parts of the data are mixed in training; None for windows that are all alike.
    """

    mixture: Mixture | None = None

    def __init__(
        self,
        examples: datasets.Dataset,
        table: datasets.Dataset,
        key: str,
        tokenizer: PreTrainedTokenizerBase,
        settings: WindowSettings,
        *,
        token_types: bool,
        answers: "CutAnswers",
    ) -> None:
        super().__init__(tokenizer, settings, token_types=token_types)
        self.tokenizer = tokenizer
        self.examples = examples
        self.table = table
        self.key = key
        self.n_examples = len(examples)
        self.lengths = _whole_numbers(table.data, "length")
        self.example_of = _whole_numbers(table.data, "example")
        self._answers = answers
        self._arrow = table.with_format("arrow")

    @classmethod
    def cut(
        cls,
        examples: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        settings: WindowSettings | None = None,
        *,
        token_types: bool,
        cache_dir: str | Path | None = None,
    ) -> "Windows":
        """Cut examples, or take their windows from the cache.

        Args:
            examples: Rows as `data.squad.load.load_examples` gives them.
            tokenizer: A fast tokenizer.
            settings: How to cut.
            token_types: Whether batches carry `token_type_ids` (see `takes_token_types`).
            cache_dir: See `utils.cache.cache_directory`.

        Raises:
            DistilError: A question leaves no room for its context, or the cache directory cannot be used.
        """
        settings = settings or WindowSettings()
        template = PairTemplate.of(tokenizer)
        answers = CutAnswers()

        def batches() -> Iterator[dict[str, list]]:
            for first in range(0, len(examples), _ROWS_PER_BATCH):
                rows = examples[first : first + _ROWS_PER_BATCH]
                yield _columns(_cut(rows, first, tokenizer, template, settings, answers))

        key = hash_json(_FORMAT, content_hash(examples), tokenizer_fingerprint(tokenizer), asdict(settings))
        notes = functools.partial(asdict, answers)
        table, found, _ = cached_table("windows", key, _SCHEMA, batches, cache_dir, notes)
        return cls(examples, table, key, tokenizer, settings, token_types=token_types, answers=CutAnswers(**found))

    def rows(self, windows: np.ndarray, weights: np.ndarray) -> "WindowRows":
        return RowsOnDisk(windows, weights, self._arrow[windows.tolist()])

    def contexts(self, first: int, stop: int) -> list[str]:
        return self.examples[first:stop]["context"]

    def collate(self, rows: "WindowRows", multiple: int = 1) -> dict[str, torch.Tensor]:
        """As `AnyWindows.collate`; where parts of the data have heads of their own, also `head` (B,) int64."""
        batch = super().collate(rows, multiple)
        if self.mixture is not None and self.mixture.heads is not None:
            batch["head"] = torch.from_numpy(self.mixture.heads_of(rows.indices))
        return batch

    def batches(self, batch_size: int, *, seed: int, **sharing: int) -> StepBatches:
        """The order in which the windows are trained on; `sharing` is that of `StepBatches`."""
        if self.mixture is not None:
            parts, counts = self.mixture.part_of, self.mixture.counts
            return MixedBatches(self.lengths, parts, counts, batch_size, seed=seed, **sharing)
        return LengthGroupedBatches(self.lengths, batch_size, seed=seed, **sharing)

    def warn_of_lost_answers(self) -> None:
        """Log a warning if there are labelled answers that no window holds whole, with what keeps them."""
        if not self._answers.lost:
            return
        known = self._answers
        remedies = [f"{known.too_long} of them need a larger max_seq_len"] * bool(known.too_long)
        if known.lost > known.too_long:
            remedies.append(f"doc_stride={known.stride} loses none" + " of the others" * bool(known.too_long))
        logger.warning(
            "%d of %d answers lie in no window whole, so their questions are trained as unanswerable: windows of "
            "max_seq_len=%d start doc_stride=%d tokens apart; %s",
            known.lost,
            known.labelled,
            self.settings.max_seq_len,
            self.settings.doc_stride,
            ", and ".join(remedies),
        )

    def place_of(self, window: int) -> None:
        """Any window is found at once, so there is nothing to remember."""

    def go_to(self, place: dict[str, Any]) -> None:
        """Nothing to do: any window is found at once."""

    def describe(self, windows: Iterable[int]) -> str:
        """What to call these windows where something is wrong with them."""
        return f"the questions {', '.join(self.example_ids(windows))}"

    def example_ids(self, windows: Iterable[int]) -> list[str]:
        """The ids of the examples that these windows belong to, in order, each once."""
        rows = dict.fromkeys(int(self.example_of[window]) for window in windows)
        return [self.examples[row]["id"] for row in rows]


@dataclass(frozen=True)
class WindowRows(ABC):
    """Some windows: their indices, weights (1, or 0 for filling), and what was stored of them, column by column."""

    indices: np.ndarray
    weights: np.ndarray

    @abstractmethod
    def ints(self, name: str) -> np.ndarray:
        """A column of whole numbers, int64."""

    @abstractmethod
    def bools(self, name: str) -> np.ndarray:
        """A column of truth values."""

    @abstractmethod
    def lists(self, name: str) -> list[np.ndarray]:
        """A list column as one numpy array a row."""


@dataclass(frozen=True)
class RowsInMemory(WindowRows):
    """Windows that were never stored: a few, for which Arrow would take longer than it saves."""

    windows: list[dict[str, Any]]

    def ints(self, name: str) -> np.ndarray:
        return np.array([window[name] for window in self.windows], dtype=np.int64)

    def bools(self, name: str) -> np.ndarray:
        return np.array([window[name] for window in self.windows], dtype=bool)

    def lists(self, name: str) -> list[np.ndarray]:
        return [window[name] for window in self.windows]


@dataclass(frozen=True)
class RowsOnDisk(WindowRows):
    """Windows, or what goes with them, as they lie on disk: an Arrow table."""

    table: pa.Table

    def column(self, name: str) -> pa.Array:
        return self.table.column(name).combine_chunks()

    def ints(self, name: str) -> np.ndarray:
        return self.column(name).to_numpy().astype(np.int64)

    def bools(self, name: str) -> np.ndarray:
        found: np.ndarray = self.column(name).to_numpy(zero_copy_only=False)
        return found

    def lists(self, name: str) -> list[np.ndarray]:
        column = self.column(name)
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
        offsets, values = column.offsets.to_numpy(), column.values.to_numpy()
        return [values[a:b] for a, b in itertools.pairwise(offsets)]


@dataclass
class CutAnswers:
    """What cutting did to the labelled answers.

    Attributes:
        labelled: How many there are.
        lost: How many of them lie in no window whole.
        too_long: How many of those are longer than their windows, wherever these start.
        stride: The largest `doc_stride` that loses none of the others; None where all contexts fit one window.
    """

    labelled: int = 0
    lost: int = 0
    too_long: int = 0
    stride: int | None = None

    def count(self, n_tokens: int, room: int, n_context: int, *, whole: bool) -> None:
        """Add an answer of so many tokens to windows with room for so many of the context's; `whole`: one holds it."""
        self.labelled += 1
        self.lost += not whole
        self.too_long += n_tokens > room
        if n_tokens <= room < n_context:
            enough = room - n_tokens + 1
            self.stride = enough if self.stride is None else min(self.stride, enough)


def _whole_numbers(table: Any, name: str) -> np.ndarray:
    return table.column(name).to_numpy()


def _columns(windows: Iterable[dict[str, Any]]) -> dict[str, list]:
    """Windows as the columns of a table."""
    columns: dict[str, list] = {name: [] for name in _SCHEMA.names}
    for window in windows:
        for name, value in window.items():
            columns[name].append(value)
    return columns


def _cut(
    rows: dict[str, list],
    first: int,
    tokenizer: PreTrainedTokenizerBase,
    template: PairTemplate,
    settings: WindowSettings,
    answers: CutAnswers | None = None,
) -> Iterator[dict[str, Any]]:
    """The windows of a batch of example rows, in order; what becomes of their answers is counted in `answers`."""
    contexts = _encode_each(tokenizer, rows["context"])
    questions = _encode_each(tokenizer, [question.strip() for question in rows["question"]])
    for row, (context, question) in enumerate(zip(rows["context"], rows["question"], strict=True)):
        ids, starts, ends = contexts[context]
        question_ids, _, _ = questions[question.strip()]
        yield from _cut_example(
            first + row,
            question_ids[: settings.max_query_length],
            (ids, starts, ends),
            {name: rows[name][row] for name in ("answers", "labelled")},
            template,
            settings,
            answers or CutAnswers(),
        )


def _cut_example(
    example: int,
    question: np.ndarray,
    context: tuple[np.ndarray, np.ndarray, np.ndarray],
    labels: dict[str, Any],
    template: PairTemplate,
    settings: WindowSettings,
    answers: CutAnswers,
) -> Iterator[dict[str, Any]]:
    ids, starts, ends = context
    # No question: plain text, which a tokenizer writes as a single sequence.
    middle = template.middle if len(question) else ()
    head = np.concatenate([template.prefix, question, middle]).astype(np.int32)
    room = settings.max_seq_len - len(head) - len(template.suffix)
    if room < 1:
        raise DistilError(
            f"a question of {len(question)} tokens leaves no room for the context in max_seq_len "
            f"{settings.max_seq_len}; raise max_seq_len or lower max_query_length"
        )
    answer = _answer_tokens(labels, starts, ends)
    labelled = bool(labels["labelled"]) and answer is not None
    first, whole = 0, False
    while True:
        stop = min(first + room, len(ids))
        start_position = end_position = template.no_answer_position
        if answer is not None and answer[0] >= first and 0 <= answer[1] < stop:
            start_position, end_position = (len(head) + token - first for token in answer)
            whole = True
        yield {
            "example": example,
            "input_ids": np.concatenate([head, ids[first:stop], template.suffix]).astype(np.int32),
            "context_start": len(head),
            "char_starts": starts[first:stop],
            "char_ends": ends[first:stop],
            "start_position": start_position,
            "end_position": end_position,
            "labelled": labelled,
            "length": len(head) + stop - first + len(template.suffix),
        }
        if stop == len(ids):
            break
        first += min(settings.doc_stride, room)
    if labelled and answer is not None and answer[0] >= 0:
        answers.count(answer[1] - answer[0] + 1, room, len(ids), whole=whole)


def _answer_tokens(labels: dict[str, Any], starts: np.ndarray, ends: np.ndarray) -> tuple[int, int] | None:
    """First and last context token of the first answer; (-1, -1) for no answer, None if no token stands for it."""
    texts, offsets = labels["answers"]["text"], labels["answers"]["answer_start"]
    if not texts:
        return (-1, -1)
    begin, end = offsets[0], offsets[0] + len(texts[0])
    inside = np.nonzero((ends > begin) & (starts < end) & (ends > starts))[0]
    return (int(inside[0]), int(inside[-1])) if len(inside) else None


def _encode_each(
    tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """`_encode` by text: once where it is the question to many contexts, or the context of many questions."""
    different = list(dict.fromkeys(texts))
    return dict(zip(different, _encode(tokenizer, different), strict=True))


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Token ids, first and past-the-last character of each token, without special tokens, for each text."""
    encoded = text_tokenizer(tokenizer).encode_batch(texts, add_special_tokens=False)
    result = []
    for text, encoding in zip(texts, encoded, strict=True):
        spans = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
        starts, ends = _trim(text, spans[:, 0].copy(), spans[:, 1].copy())
        ends = _with_marks(text, starts, ends)
        result.append((np.array(encoding.ids, dtype=np.int32), starts, ends))
    return result


def _trim(text: str, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take white space off both ends of each span: some tokenizers count the space before a word to the word."""
    blank = _IS_BLANK[np.minimum(_codes(text), len(_IS_BLANK) - 1)]
    spans = starts < ends
    if not (blank[starts[spans]].any() or blank[ends[spans] - 1].any()):
        return starts, ends
    starts = np.where(starts < ends, np.minimum(_first_outside(blank)[starts], ends), starts)
    # Backwards, the character before place p is the one at len(text) - p.
    last = len(text) - _first_outside(blank[::-1])[len(text) - ends]
    ends = np.where(starts < ends, np.maximum(last, starts), ends)
    return starts.astype(np.int32), ends.astype(np.int32)


def _with_marks(text: str, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Ends moved over combining marks that no token covers: some tokenizers would cut "e" from its accent."""
    if text.isascii() or not len(ends):
        return ends
    codes = _codes(text)
    mark = codes >= _FIRST_MARK
    mark[mark] = [unicodedata.category(chr(code))[0] == "M" for code in codes[mark]]
    if not mark.any():
        return ends
    following = np.append(starts[1:], len(text))
    moved = np.minimum(_first_outside(mark)[ends], following)
    return np.where((starts < ends) & (ends < following), moved, ends).astype(np.int32)


def _codes(text: str) -> np.ndarray:
    """The code point of each character."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _first_outside(within: np.ndarray) -> np.ndarray:
    """Of each place in a text, its end included, the first place from there on that is not `within`."""
    places = np.append(np.where(within, len(within), np.arange(len(within))), len(within))
    return np.minimum.accumulate(places[::-1])[::-1]
