"""Transfer sets: unlabelled questions and contexts that a student learns from through its teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from haystack_distill.data.squad.arrow import SCHEMA, plain_rows, record_batches
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
    """Unlabelled examples that are mixed into every optimiser step, beside the training data.

    Their labels, if there are any, are ignored: the student learns from them what its teacher predicts. An epoch has
    every window of the training data once, and as many windows of the transfer set as `proportion` asks for. The next
    epoch continues in the transfer set where the last one stopped, so that all of it is used before any of it is
    repeated.

    Args:
        data: SQuAD-format files, tables (CSV, JSON lines, Parquet) with the columns question and context, a
            `datasets.Dataset`, or the name of a data set on the hub; with `question_pool`, a column context is enough.
        proportion: The share of the windows of each step that are of the transfer set, above 0 and below 1.
        question_pool: A file of questions that are drawn for the contexts of `data`, whose own questions are then
            ignored: a text file (.txt) with one question a line, or questions in the formats of `data`.
        questions_per_context: How many questions of the pool are drawn for each context.

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
        pool = _questions_of(expand_user(self.question_pool), on_bad_example, cache_dir)
        if self.questions_per_context > len(pool):
            raise DataError(
                f"{self.question_pool} has {len(pool)} different questions, fewer than "
                f"questions_per_context={self.questions_per_context}: give more, or lower it"
            )
        contexts = load_examples(self.data, only="contexts", on_bad_example=on_bad_example, cache_dir=cache_dir)
        key = hash_json("pool", _FORMAT, content_hash(contexts), pool, self.questions_per_context, seed)

        def batches() -> Iterator[dict[str, pa.Array]]:
            return record_batches(paired(contexts, pool, self.questions_per_context, seed))

        return cached_table("examples", key, SCHEMA, batches, cache_dir)[0]


def paired(contexts: datasets.Dataset, pool: Sequence[str], per_context: int, seed: int) -> Iterator[Row]:
    """Each different context with questions drawn from a pool, no question twice for one context.

    Args:
        contexts: Rows as `data.squad.load.load_examples` returns them; their order and the seed decide what is drawn.
        pool: The questions, all different.
        per_context: Questions for each context.
        seed: The seed of the draws.
    """
    random = np.random.default_rng(seed)
    seen: set[int] = set()
    for row in plain_rows(contexts, ["id", "title", "context"]):
        if hash(row["context"]) in seen:
            continue
        seen.add(hash(row["context"]))
        for number, drawn in enumerate(random.choice(len(pool), size=per_context, replace=False), start=1):
            yield Row(
                f"{row['id']}-pool{number}", row["title"], row["context"], pool[drawn], [], [], False, False, False
            )


def _questions_of(path: Path, on_bad_example: Any, cache_dir: PathLike | None) -> list[str]:
    """The different questions of a pool, in order."""
    if path.suffix == ".txt":
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
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
