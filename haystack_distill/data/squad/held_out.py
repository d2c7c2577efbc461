"""Holding out a share of the articles, to measure on what was not trained on."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np

from haystack_distill.data.squad.load import load_examples
from haystack_distill.errors import DistilError
from haystack_distill.utils.checks import check_argument, is_number

_ROWS_AT_A_TIME = 1000


def hold_out(
    examples: datasets.Dataset,
    share: float,
    *,
    seed: int,
    cache_dir: str | Path | None = None,
    name: str = "dev_split",
    instead: str = "give dev_data instead",
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Divide examples into those to train on and those to measure on, by article.

    Questions on one article are alike, so an article is held out as a whole; where examples have no title, each context
    counts as an article. Which ones are held out is a function of the data and the seed. Their unlabelled questions are
    in neither part.

    Args:
        examples: Rows as `load_examples` returns them; read as a stream.
        share: The share of the articles, between 0 and 1; at least one is held out, and one is left.
        seed: The seed of the choice.
        cache_dir: As for `load_examples`.
        name: The name of the share in messages.
        instead: The remedy in messages where the data cannot be divided.

    Returns:
        The examples to train on and those to measure on, each in the order of the data.

    Raises:
        DistilError: The share is no such number, there is one article alone, or nothing that is held out is labelled.
    """
    check_share(share, name)
    numbers = _article_numbers(examples)
    n_articles = int(numbers.max(initial=-1)) + 1
    if n_articles < 2:
        raise DistilError(f"{name} holds out whole articles, of which there are {n_articles}; {instead}")
    count = min(max(1, round(share * n_articles)), n_articles - 1)
    is_held_out = np.zeros(n_articles, dtype=bool)
    is_held_out[np.random.default_rng(seed).permutation(n_articles)[:count]] = True
    held_out = is_held_out[numbers]
    measured = np.flatnonzero(held_out & np.asarray(examples["labelled"], dtype=bool))
    if not len(measured):
        raise DistilError(f"none of the questions that {name} holds out is labelled; {instead}")
    train, dev = (
        load_examples(examples.select(rows), cache_dir=cache_dir) for rows in (np.flatnonzero(~held_out), measured)
    )
    return train, dev


def without_articles(
    examples: datasets.Dataset, held_out: datasets.Dataset, *, cache_dir: str | Path | None = None
) -> datasets.Dataset:
    """Examples without those on articles that were held out of other data, known by their titles and contexts.

    Args:
        examples: Rows as `load_examples` returns them; read as a stream.
        held_out: The examples to measure on; the 16 bytes of a hash of each context are held in memory.
        cache_dir: As for `load_examples`.

    Raises:
        DistilError: Nothing is left.
    """
    measured = {key for title, context in _titles_and_contexts(held_out) for key in (title, context)} - {""}
    rows = [
        row
        for row, (title, context) in enumerate(_titles_and_contexts(examples))
        if title not in measured and context not in measured
    ]
    if not rows:
        raise DistilError("all articles are among those that dev_split holds out; give other data, or dev_data instead")
    return examples if len(rows) == len(examples) else load_examples(examples.select(rows), cache_dir=cache_dir)


def check_share(share: float, name: str = "dev_split") -> None:
    """Check the share of the articles that is held out.

    Raises:
        DistilError: It is not a number between 0 and 1.
    """
    check_argument(name, share, is_number(share) and 0 < share < 1, "a number between 0 and 1")


def _article_numbers(examples: datasets.Dataset) -> np.ndarray:
    """For each row the number of its article, counted from 0 in the order of the data."""
    known: dict[str | bytes, int] = {}
    articles = (title or context for title, context in _titles_and_contexts(examples))
    return np.fromiter((known.setdefault(article, len(known)) for article in articles), np.int64, len(examples))


def _titles_and_contexts(examples: datasets.Dataset) -> Iterator[tuple[str, bytes]]:
    """The title of each row, and a hash of its context."""
    for table in examples.select_columns(["title", "context"]).with_format("arrow").iter(batch_size=_ROWS_AT_A_TIME):
        for title, context in zip(table["title"].to_pylist(), table["context"].to_pylist(), strict=True):
            yield title, hashlib.blake2b(context.encode(), digest_size=16).digest()
