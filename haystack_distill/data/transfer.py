"""Transfer sets: unlabelled questions and contexts that a student learns from through its teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from haystack_distill.data.squad.arrow import SCHEMA, hash_columns, plain_rows, record_batches
from haystack_distill.data.squad.load import OnBadExample, PathLike, content_hash, load_examples
from haystack_distill.data.squad.validation import Row
from haystack_distill.errors import DataError, DistilError
from haystack_distill.utils.cache import cached_table
from haystack_distill.utils.checks import check_argument, is_integer, is_number
from haystack_distill.utils.files import expand_user
from haystack_distill.utils.hashing import hash_json

_FORMAT = 1  # increase it when other questions would be drawn


@dataclass(frozen=True)
class TransferSet:
    """Unlabelled examples that are mixed into the optimiser steps, beside the training data.

    Their labels, if there are any, are ignored: the student learns from them what its teacher predicts. An epoch has
    every window of the training data once, and as many windows of the transfer set as `proportion` asks for. The next
    epoch continues in the transfer set where the last one stopped, so that all of it is used before any of it is
    repeated.

    Args:
        data: SQuAD-format files, tables (CSV, JSON lines, Parquet) with the columns question and context, a
            `datasets.Dataset`, or the name of a data set on the hub; with `question_pool`, a column context is enough.
        proportion: The share of the windows of each step that are of the transfer set, above 0 and below 1. Where
            one of the two would have less than one window per step, it is in some of the steps alone.
        question_pool: A file of questions that are drawn for the contexts of `data`, whose own questions are then
            ignored: a text file (.txt) with one question a line, or questions in the formats of `data`.
        questions_per_context: How many questions of the pool are drawn for each context.
        same_title: Whether a context gets only questions of the pool that are asked of other contexts with its title
            (in SQuAD, of the same article), as many as there are: passages that look right and do not hold the answer.

    Raises:
        DistilError: A value is out of range or has no effect.

    Example:
        >>> transfer = TransferSet("questions.jsonl", proportion=0.75)  # doctest: +SKIP
        >>> trainer.distil(teacher, "train.json", PredictionLayer(), transfer=transfer)  # doctest: +SKIP
    """

    data: PathLike | Sequence[PathLike] | datasets.Dataset
    proportion: float = 0.5
    question_pool: PathLike | None = None
    questions_per_context: int = 1
    same_title: bool = False

    def __post_init__(self) -> None:
        share = self.proportion
        check_argument(
            "proportion",
            share,
            is_number(share) and 0 < share < 1,
            "a number above 0 and below 1",
        )
        number = self.questions_per_context
        check_argument("questions_per_context", number, is_integer(number, 1), "at least 1 and whole")
        if self.question_pool is None and number != 1:
            raise DistilError(
                f"questions_per_context={number} draws from question_pool, which is not given; give it, or leave "
                "questions_per_context out"
            )
        check_argument("same_title", self.same_title, isinstance(self.same_title, bool), "True or False")
        if self.same_title and (self.question_pool is None or Path(self.question_pool).suffix == ".txt"):
            raise DistilError(
                "same_title draws from a question_pool whose questions have contexts and titles; give one in SQuAD's "
                "format, which may be the data itself, or leave same_title out"
            )

    def load(
        self, seed: int = 0, *, on_bad_example: OnBadExample = "error", cache_dir: PathLike | None = None
    ) -> datasets.Dataset:
        """The unlabelled examples, as `data.squad.load.load_examples` returns them.

        Args:
            seed: The seed of the questions that are drawn from the pool.
            on_bad_example: As for `data.squad.load.read_squad`.
            cache_dir: See `utils.cache.cache_directory`.

        Raises:
            DataError: The data or the pool cannot be read, lacks a column or has no question.
        """
        if self.question_pool is None:
            return load_examples(self.data, only="questions", on_bad_example=on_bad_example, cache_dir=cache_dir)
        if self.same_title:
            return self._load_by_title(seed, on_bad_example, cache_dir)
        pool = _questions_of(expand_user(self.question_pool), on_bad_example, cache_dir)
        if self.questions_per_context > len(pool):
            raise DataError(
                f"{self.question_pool} has {len(pool)} different questions, fewer than "
                f"questions_per_context={self.questions_per_context}: give more, or lower it"
            )
        contexts = load_examples(self.data, only="contexts", on_bad_example=on_bad_example, cache_dir=cache_dir)
        key = hash_json("pool", _FORMAT, _hash(contexts), pool, self.questions_per_context, seed)

        def batches() -> Iterator[dict[str, pa.Array]]:
            return record_batches(paired(contexts, pool, self.questions_per_context, seed))

        return cached_table("examples", key, SCHEMA, batches, cache_dir)[0]

    def _load_by_title(self, seed: int, on_bad_example: OnBadExample, cache_dir: PathLike | None) -> datasets.Dataset:
        reading: dict[str, Any] = {"on_bad_example": on_bad_example, "cache_dir": cache_dir}
        contexts = load_examples(self.data, only="contexts", **reading)
        assert self.question_pool is not None
        pool = load_examples(expand_user(self.question_pool), only="questions", **reading)
        key = hash_json("pool by title", _FORMAT, _hash(contexts), _hash(pool), self.questions_per_context, seed)

        def batches() -> Iterator[dict[str, pa.Array]]:
            return record_batches(paired_by_title(contexts, pool, self.questions_per_context, seed))

        made = cached_table("examples", key, SCHEMA, batches, cache_dir)[0]
        if not len(made):
            raise DataError(
                f"{self.question_pool} has no question of another context with the title of one of these; leave "
                "same_title out"
            )
        return made


def paired(contexts: datasets.Dataset, pool: Sequence[str], per_context: int, seed: int) -> Iterator[Row]:
    """Each different context with questions drawn from a pool, no question twice for one context.

    Args:
        contexts: Rows as `data.squad.load.load_examples` returns them; their order and the seed decide what is drawn.
        pool: The questions, all different.
        per_context: Questions for each context.
        seed: The seed of the draws.
    """
    random = np.random.default_rng(seed)
    for row in _different(contexts):
        drawn = random.choice(len(pool), size=per_context, replace=False)
        yield from _unlabelled(row, [pool[place] for place in drawn])


def paired_by_title(contexts: datasets.Dataset, pool: datasets.Dataset, per_context: int, seed: int) -> Iterator[Row]:
    """Each different context with questions that are asked of other contexts with the same title.

    Args:
        contexts: As for `paired`.
        pool: Examples, from whose questions is drawn.
        per_context: Questions for each context at most.
        seed: The seed of the draws.
    """
    random = np.random.default_rng(seed)
    of_title: dict[str, dict[str, set[int]]] = {}  # of each title its questions with their contexts
    for row in plain_rows(pool, ["title", "context", "question"]):
        of_title.setdefault(row["title"], {}).setdefault(row["question"], set()).add(hash(row["context"]))
    for row in _different(contexts):
        own = hash(row["context"])
        others = [question for question, asked in of_title.get(row["title"], {}).items() if own not in asked]
        if others:
            drawn = random.choice(len(others), size=min(per_context, len(others)), replace=False)
            yield from _unlabelled(row, [others[place] for place in drawn])


def _hash(examples: datasets.Dataset) -> str:
    """What the rows drawn for some examples depend on: their content, and titles, which `content_hash` leaves out."""
    return hash_json(content_hash(examples), hash_columns(examples, ["title"]))


def _different(contexts: datasets.Dataset) -> Iterator[dict[str, Any]]:
    """The rows with each context once."""
    seen: set[int] = set()
    for row in plain_rows(contexts, ["id", "title", "context"]):
        if hash(row["context"]) not in seen:
            seen.add(hash(row["context"]))
            yield row


def _unlabelled(row: dict[str, Any], questions: Sequence[str]) -> Iterator[Row]:
    """The context of a row with other questions."""
    for number, question in enumerate(questions, start=1):
        yield Row(f"{row['id']}-pool{number}", row["title"], row["context"], question, [], [], False, False, False)


def _questions_of(path: Path, on_bad_example: Any, cache_dir: PathLike | None) -> list[str]:
    """The different questions of a pool, in order."""
    if path.suffix == ".txt":
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path}: cannot be read ({error}): give a UTF-8 text file with one question a line"
            ) from error
        questions = [line.strip() for line in lines]
    else:
        rows = load_examples(path, only="questions", on_bad_example=on_bad_example, cache_dir=cache_dir)
        questions = [row["question"] for row in plain_rows(rows, ["question"])]
    found = list(dict.fromkeys(question for question in questions if question))
    if not found:
        raise DataError(f"{path} has no question: give at least one")
    return found
