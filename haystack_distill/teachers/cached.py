"""CachedTeacher: the teacher runs once over the data; its logits are cached on disk and aligned by character.

Stored per teacher window: the character spans of its context tokens, their start and end logits in fp32, and the logits
of its no-answer position. For a student with the same windows these logits are used bit for bit; for any other student
(another tokenizer, other window sizes) they are mapped through characters.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState

from haystack_distill.data.text_tokenizer import tokenizer_fingerprint
from haystack_distill.data.windows import RowsOnDisk, Windows
from haystack_distill.errors import DistilError
from haystack_distill.models.backends.exported import exported_hash
from haystack_distill.models.language_model import LanguageModel
from haystack_distill.models.outputs import ModelOutputs, OutputRequest
from haystack_distill.models.reader import Reader, require_trained
from haystack_distill.teachers.teacher import Teacher
from haystack_distill.utils.allocator import kept_memory
from haystack_distill.utils.cache import cached_table, drop_cached, is_cached
from haystack_distill.utils.devices import evaluating
from haystack_distill.utils.hashing import hash_json
from haystack_distill.utils.model_fingerprint import model_fingerprint
from haystack_distill.utils.model_inputs import takes_token_types
from haystack_distill.utils.processes import process_share
from haystack_distill.utils.progress import progress_bar
from haystack_distill.utils.stopwatch import part

logger = logging.getLogger(__name__)

_FORMAT = 1  # increase it when the meaning of a stored output changes
_WINDOWS_PER_BATCH = 1024

_SCHEMA = pa.schema(
    {
        "char_starts": pa.list_(pa.int32()),
        "char_ends": pa.list_(pa.int32()),
        "start_logits": pa.list_(pa.float32()),
        "end_logits": pa.list_(pa.float32()),
        "no_answer_start": pa.float32(),
        "no_answer_end": pa.float32(),
    }
)


class CachedTeacher(Teacher):
    """A reader that runs once over the data; its start and end logits are cached on disk and memory-mapped.

    Its tokenizer, windows and device may differ from the student's. With the same tokenizer and windows, the outputs
    are the reader's own logits. Otherwise they are aligned by character: the reader's no-answer logits are subtracted
    in each of its windows; a character in several windows takes its scores from the window in which it is farthest
    from an edge (the earlier of equals); a student token gets the log-sum-exp of the start (end) scores whose first
    (last) character it covers; the no-answer score is 0.

    A reader that is given as a function is loaded when it has to run and released afterwards, so that of several
    teachers only one is in memory at a time. A reader that was exported and loaded with another backend runs in that
    one, which on a processor may be faster: `Reader.load(directory, backend="openvino")`.

    Args:
        reader: The teacher, or a function that loads it. It is not changed.

    Attributes:
        reader: The teacher; None if it is loaded when it has to run.
        from_cache: After `prepare`: whether all outputs were in the cache already.

    Example:
        >>> teacher = CachedTeacher(Reader.load("deepset/roberta-large-squad2"))  # doctest: +SKIP
        >>> ReaderTrainer(student).distil(teacher, "train.json", PredictionLayer())  # doctest: +SKIP
    """

    caches_logits = True

    def __init__(self, reader: Reader | Callable[[], Reader]) -> None:
        self.reader = reader if isinstance(reader, Reader) else None
        self._source = reader
        with self._loaded() as found:
            self.config = found.model.config
            self._tokenizer, self._window_settings = found.tokenizer, found.window_settings
            self._takes_token_types = takes_token_types(found.model)
            if self.reader is None:  # the reader itself is not at hand later
                self._fingerprint = _fingerprint_of(found)
                self._untrained = found.untrained

    @contextlib.contextmanager
    def _loaded(self) -> Iterator[Reader]:
        yield self._source if isinstance(self._source, Reader) else self._source()

    def models(self) -> list[Reader | LanguageModel]:
        """The reader, where it is at hand; see `Teacher.models`."""
        return [] if self.reader is None else [self.reader]

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Hashes of the weights (of an exported reader those of its files) and of the tokenizer, the precision and the
        window settings, and the backend where it is not PyTorch.
        """
        return self._fingerprint if self.reader is None else _fingerprint_of(self.reader)

    def check(self, student: Reader, request: OutputRequest) -> None:
        """Check that only logits are requested and that the head is trained; see `Teacher.check`.

        Raises:
            DistilError: Hidden states or attention scores are requested, or the head is untrained, so that the
                teacher's answers are random.
        """
        if request.beyond_logits:
            raise DistilError("only logits are cached; use a LiveTeacher for hidden states and attention scores")
        require_trained(self._untrained if self.reader is None else self.reader.untrained)

    def prepare(
        self,
        examples: datasets.Dataset,
        windows: Windows,
        *,
        cache_dir: str | Path | None = None,
        progress: bool = True,
        processes: PartialState | None = None,
    ) -> None:
        """Run the teacher over the examples, unless its outputs are in the cache; see `Teacher.prepare`.

        Several processes share the work.
        """
        self.student_windows = windows
        with part("tokenising"):
            self.windows = Windows.cut(
                examples,
                self._tokenizer,
                self._window_settings,
                token_types=self._takes_token_types,
                cache_dir=cache_dir,
            )
        identity = self.fingerprint
        self.key = hash_json(_FORMAT, identity["weights"], self.windows.key, identity["precision"])

        def run(share: range) -> Iterator[dict[str, Any]]:
            with self._loaded() as reader, evaluating(reader.model), kept_memory():
                yield from _run(reader, self.windows, share, progress)

        everything = range(len(self.windows))
        if processes is None or processes.num_processes == 1:
            made = cached_table("teachers", self.key, _SCHEMA, lambda: run(everything), cache_dir)
        else:
            made = _run_together(self.key, run, len(everything), processes, cache_dir)
        self.table, _, self.from_cache = made
        self._arrow = self.table.with_format("arrow")
        self._scores_of = functools.lru_cache(maxsize=64)(self._character_scores)

    def cached(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The teacher's logits for the student's tokens; see `CachedTeacher` for how they are aligned.

        Args:
            batch: A collated batch of B of the student's windows, L tokens long.

        Returns:
            `teacher_start_logits`, `teacher_end_logits`: (B, L) float32, -inf at positions without a teacher score.
            With the student's windows they are the teacher's own logits, with others relative to its no-answer logit.
        """
        windows = self.student_windows
        shape = batch["input_ids"].shape
        starts = np.full(shape, -np.inf, dtype=np.float32)
        ends = np.full(shape, -np.inf, dtype=np.float32)
        indices = batch["window"].numpy()
        if windows.key == self.windows.key:
            rows = RowsOnDisk(indices, indices, self._arrow[indices.tolist()])
            offsets = windows.__getitems__(indices.tolist()).ints("context_start")
            place = windows.template.no_answer_position
            starts[:, place] = rows.column("no_answer_start").to_numpy()
            ends[:, place] = rows.column("no_answer_end").to_numpy()
            for target, name in ((starts, "start_logits"), (ends, "end_logits")):
                for row, values in enumerate(rows.lists(name)):
                    target[row, offsets[row] : offsets[row] + len(values)] = values
        else:
            student = windows.__getitems__(indices.tolist())
            offsets = student.ints("context_start")
            spans = zip(student.lists("char_starts"), student.lists("char_ends"), strict=True)
            starts[:, windows.template.no_answer_position] = 0.0
            ends[:, windows.template.no_answer_position] = 0.0
            for row, (first, past) in enumerate(spans):
                scores = self._scores_of(int(windows.example_of[indices[row]]))
                here = slice(offsets[row], offsets[row] + len(first))
                starts[row, here], ends[row, here] = _on_tokens(scores, first, past)
        return {"teacher_start_logits": torch.from_numpy(starts), "teacher_end_logits": torch.from_numpy(ends)}

    def outputs(self, batch: Mapping[str, torch.Tensor], request: OutputRequest) -> ModelOutputs:
        """The logits that `cached` added to the batch; see `Teacher.outputs`."""
        return ModelOutputs(batch["teacher_start_logits"], batch["teacher_end_logits"])

    def _character_scores(self, example: int) -> "_CharacterScores":
        """Start and end scores of an example by character, from the window in which it is farthest from an edge."""
        windows = self.windows.windows_of_examples(example, example + 1)
        indices = np.arange(windows.start, windows.stop)
        rows = RowsOnDisk(indices, indices, self._arrow[indices.tolist()])
        columns = [rows.lists(name) for name in ("char_starts", "char_ends", "start_logits", "end_logits")]
        nulls = rows.column("no_answer_start").to_numpy(), rows.column("no_answer_end").to_numpy()
        edges = np.array(
            [(first[0], past[-1]) if len(first) else (0, 0) for first, past in zip(*columns[:2], strict=True)]
        )
        kept: dict[str, list[np.ndarray]] = {name: [] for name in ("starts", "start_scores", "ends", "end_scores")}
        for window, (first, past, start_logits, end_logits) in enumerate(zip(*columns, strict=True)):
            real = past > first
            for name, characters, logits, null in (
                ("start", first[real], start_logits[real], nulls[0][window]),
                ("end", past[real] - 1, end_logits[real], nulls[1][window]),
            ):
                # Distance of each character to the nearer edge of each window; argmax takes the earlier of equals.
                depth = np.minimum(characters - edges[:, :1], edges[:, 1:] - 1 - characters)
                own = depth.argmax(axis=0) == window
                kept[f"{name}s"].append(characters[own])
                kept[f"{name}_scores"].append(logits[own] - null)
        return _CharacterScores(
            *(np.concatenate(kept[name]) for name in ("starts", "start_scores", "ends", "end_scores"))
        )


def _fingerprint_of(reader: Reader) -> dict[str, Any]:
    exported = reader.exported
    return {
        "weights": model_fingerprint(reader.model) if exported is None else exported_hash(exported),
        **({} if exported is None else {"backend": exported.backend}),
        "precision": reader.precision,
        "windows": asdict(reader.window_settings),
        "tokenizer": tokenizer_fingerprint(reader.tokenizer),
    }


class _CharacterScores:
    """A teacher's scores of one example: the character of each start (end), and its score relative to no-answer."""

    def __init__(self, starts: np.ndarray, start_scores: np.ndarray, ends: np.ndarray, end_scores: np.ndarray) -> None:
        self.starts, self.start_scores = starts, start_scores
        self.ends, self.end_scores = ends, end_scores


def _on_tokens(scores: _CharacterScores, first: np.ndarray, past: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A teacher's scores on a student's tokens, -inf where no scored character falls on a token.

    Of several tokens of one character (bytes of an emoji), the first gets its start score and the last its end score.
    """
    start_target = np.full(len(first), -np.inf, dtype=np.float32)
    end_target = np.full(len(first), -np.inf, dtype=np.float32)
    real = np.nonzero(past > first)[0]
    if len(real):
        first, past = first[real], past[real]
        token = np.minimum(np.searchsorted(past, scores.starts, "right"), len(real) - 1)
        inside = (first[token] <= scores.starts) & (scores.starts < past[token])
        np.logaddexp.at(start_target, real[token[inside]], scores.start_scores[inside])
        token = np.maximum(np.searchsorted(first, scores.ends, "right") - 1, 0)
        inside = (first[token] <= scores.ends) & (scores.ends < past[token])
        np.logaddexp.at(end_target, real[token[inside]], scores.end_scores[inside])
    return start_target, end_target


def _run_together(
    key: str,
    run: Callable[[range], Iterator[dict[str, Any]]],
    n_windows: int,
    processes: PartialState,
    cache_dir: str | Path | None,
) -> tuple[datasets.Dataset, dict[str, Any], bool]:
    """The table of a teacher's outputs: each process computes a part, the main process joins them."""

    def part_key(process: int) -> str:
        return f"{key}-part-{process}-of-{processes.num_processes}"

    processes.wait_for_everyone()
    there = is_cached("teachers", key, cache_dir)
    processes.wait_for_everyone()  # no process writes before all have checked the cache
    if not there:
        own = process_share(n_windows, processes)
        cached_table("teachers", part_key(processes.process_index), _SCHEMA, lambda: run(own), cache_dir)
        processes.wait_for_everyone()

    def parts() -> Iterator[dict[str, Any]]:
        for process in range(processes.num_processes):
            part, _, _ = cached_table("teachers", part_key(process), _SCHEMA, lambda: iter(()), cache_dir)
            for table in part.with_format("arrow").iter(batch_size=_WINDOWS_PER_BATCH):
                yield {name: table[name].combine_chunks() for name in _SCHEMA.names}

    with processes.main_process_first():
        made = cached_table("teachers", key, _SCHEMA, parts, cache_dir)
    if processes.is_main_process and not there:
        for process in range(processes.num_processes):
            drop_cached("teachers", part_key(process), cache_dir)
    return *made[:2], there


def _run(teacher: Reader, windows: Windows, share: range, progress: bool) -> Iterator[dict[str, Any]]:
    """Run the teacher over a share of the windows, in order; yields the columns of one record batch at a time."""
    position = windows.template.no_answer_position
    if teacher.speed:
        teacher = teacher.at_speed(0.0)  # a student learns from the whole of it
    with progress_bar("teacher", len(share), "windows", visible=progress) as bar:
        for first in range(share.start, share.stop, _WINDOWS_PER_BATCH):
            selection = range(first, min(first + _WINDOWS_PER_BATCH, share.stop))
            rows = windows.__getitems__(list(selection))
            char_starts, char_ends = rows.lists("char_starts"), rows.lists("char_ends")
            offsets = rows.ints("context_start")
            columns: dict[str, list] = {name: [None] * len(selection) for name in _SCHEMA.names}
            columns["char_starts"], columns["char_ends"] = char_starts, char_ends
            for batch, starts, ends in teacher.logits(windows, selection):
                for row, window in enumerate(batch["window"].tolist()):
                    here = window - first
                    tokens = slice(int(offsets[here]), int(offsets[here]) + len(char_starts[here]))
                    columns["start_logits"][here] = starts[row, tokens].numpy()
                    columns["end_logits"][here] = ends[row, tokens].numpy()
                    columns["no_answer_start"][here] = float(starts[row, position])
                    columns["no_answer_end"][here] = float(ends[row, position])
                bar.advance(len(starts))
            yield columns
