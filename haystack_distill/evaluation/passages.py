"""Questions with several passages each, as a retriever hands them over, and a reader's answers to them."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import datasets
import numpy as np
import torch

from haystack_distill.errors import DistilError
from haystack_distill.models.answers import merged
from haystack_distill.models.reader import Reader
from haystack_distill.utils.checks import check_argument, is_integer


class PassageAnswers(NamedTuple):
    """A reader's answers to questions with several passages.

    Attributes:
        texts: The best span of each question, "" where there is none.
        layers: How many layers ran for each window.
        tokens: The tokens of each window.
        seconds: How long each question took.
    """

    texts: list[str]
    layers: list[int]
    tokens: list[int]
    seconds: list[float]


def with_other_passages(
    examples: datasets.Dataset, questions: int, passages: int, seed: int = 1
) -> tuple[datasets.Dataset, list[list[str]]]:
    """Questions with their own context among others of the same title (in SQuAD, of the same article), in random order.

    Args:
        examples: Rows as `data.squad.load.load_examples` returns them.
        questions: How many questions, spread evenly over those that have an answer and enough contexts; all if there
            are fewer.
        passages: Passages of each question, its own included.
        seed: The seed of the other passages and of their order.

    Returns:
        The examples of the questions, and the passages of each.

    Raises:
        DistilError: No title of an answerable question has so many contexts.
    """
    for name, value in (("questions", questions), ("passages", passages)):
        check_argument(name, value, is_integer(value, 1), "at least 1 and whole")
    titles = examples["title"]
    contexts: dict[str, dict[str, None]] = {}
    for title, context in zip(titles, examples["context"], strict=True):
        contexts.setdefault(title, {})[context] = None
    rows = [
        row
        for row, (title, impossible) in enumerate(zip(titles, examples["is_impossible"], strict=True))
        if len(contexts[title]) >= passages and not impossible
    ]
    if not rows:
        raise DistilError(
            f"no question has an answer and {passages} contexts with its title; ask for fewer passages, or give data "
            "with titles"
        )
    questions = min(questions, len(rows))
    chosen = examples.select([rows[number * len(rows) // questions] for number in range(questions)])
    random = np.random.default_rng(seed)
    mixed = []
    for title, own in zip(chosen["title"], chosen["context"], strict=True):
        others = [text for text in contexts[title] if text != own]
        texts = [own, *(others[place] for place in random.choice(len(others), passages - 1, replace=False))]
        mixed.append([texts[place] for place in random.permutation(passages)])
    return chosen, mixed


def answer_with_passages(reader: Reader, questions: Sequence[str], passages: Sequence[Sequence[str]]) -> PassageAnswers:
    """Ask a reader one question at a time, as a pipeline asks.

    Args:
        reader: The reader, at its speed if it has early exits.
        questions: The questions.
        passages: The passages of each.
    """
    found = PassageAnswers([], [], [], [])
    depth = int(reader.model.config.num_hidden_layers)

    def observe(batch: dict[str, torch.Tensor], starts: torch.Tensor, _ends: torch.Tensor) -> None:
        found.layers.extend(batch["layers"].tolist() if reader.speed else [depth] * len(starts))
        found.tokens.extend(batch["attention_mask"].sum(dim=1).tolist())

    for question, own in zip(questions, passages, strict=True):
        began = time.perf_counter()
        windows = reader.cut_pairs([(question, passage) for passage in own], [0] * len(own))
        answers = merged(list(reader.predict_windows(windows, observe=observe))).answers
        found.seconds.append(time.perf_counter() - began)
        found.texts.append(answers[0].text if answers else "")
    return found
