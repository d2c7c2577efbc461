"""Files of word vectors, and the words among a tokenizer's pieces."""

import re
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from haystack_distill.errors import DataError

_HEADER = re.compile(r"\d+ (?P<width>[1-9]\d*)\s*")  # of a .vec file: how many words, and numbers a word
_CONTINUES = "##"
_BEGINS = ("\u0120", "\u2581")  # byte-level and SentencePiece tokenizers mark the beginning of a word


def read_word_vectors(
    path: Path, option: str, wanted: Container[str] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Words and vectors (float32) of a file in GloVe's text form (a line is a word and its numbers), or in fastText's
    and word2vec's (.vec, with a line before the words that holds their number and the width of the vectors).

    Args:
        path: The file.
        option: The option that names it, for messages.
        wanted: The words that are read; None for all.

    Raises:
        DataError: The file cannot be read, a line is not a word and its vector, or there is no word at all.
    """
    number, words = 1, 0
    try:
        with open(path, encoding="utf-8") as file:
            width = -1  # numbers a word; the first line sets it
            for number, line in enumerate(file, 1):
                if number == 1 and (header := _HEADER.fullmatch(line)):
                    width = int(header["width"])
                    continue
                word, *numbers = line.rstrip().rsplit(" ", width)  # the word may hold spaces
                if not numbers or 0 < width != len(numbers):
                    raise ValueError(f"{len(numbers)} numbers")
                width = len(numbers)
                words += 1
                if wanted is None or word in wanted:
                    vector = np.array(numbers, dtype=np.float32)
                    if not np.isfinite(vector).all():
                        raise ValueError("a number is NaN or infinite")
                    yield word, vector
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); {option} must be a GloVe file") from error
    except ValueError as error:
        raise DataError(
            f"{path}, line {number}: not a word and its vector ({error}); {option} must be a file in GloVe's or "
            "word2vec's text form"
        ) from error
    if not words:
        raise DataError(f"{path}: the file holds no words; {option} must be a file in GloVe's or word2vec's text form")


def whole_words(tokenizer: Any) -> dict[int, str]:
    """Ids and surfaces of the tokens that are words by themselves; punctuation is, too."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    special = set(tokenizer.all_special_ids)
    pieces = any(token.startswith(_CONTINUES) for token in vocabulary)
    marks = [mark for mark in _BEGINS if any(token.startswith(mark) for token in vocabulary)]
    begins = marks[0] if marks and not pieces else None
    found = {}
    for token, id_ in vocabulary.items():
        if id_ in special or token.startswith(_CONTINUES) or (begins and not token.startswith(begins)):
            continue
        found[id_] = tokenizer.convert_tokens_to_string([token]).strip() if begins else token
    return found
