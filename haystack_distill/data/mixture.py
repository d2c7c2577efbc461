"""Mixture: several parts of the training data, and how many windows of each an epoch has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from haystack_distill.utils.checks import check_argument, is_number


@dataclass(frozen=True)
class Mixture:
    """Parts of the training data that are mixed in every optimiser step.

    Attributes:
        part_of: The part that each window belongs to, counted from 0, (windows,).
        counts: Windows per epoch of each part.
        heads: The head of the student that each part trains, counted from 0; None where there is only one.
    """

    part_of: np.ndarray
    counts: tuple[int, ...]
    heads: tuple[int, ...] | None = None

    def heads_of(self, windows: np.ndarray) -> np.ndarray:
        """The head that each of the given windows trains, (B,) int64."""
        return np.array(self.heads, dtype=np.int64)[self.part_of[windows]]


def parts_of_windows(example_of: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """The part that each window belongs to, where the parts' examples follow one another.

    Args:
        example_of: The row of the example that each window was cut from, (windows,).
        sizes: The number of examples of each part.
    """
    return np.searchsorted(np.cumsum(sizes), example_of, side="right")


def transfer_mixture(example_of: np.ndarray, sizes: tuple[int, int], proportion: float) -> Mixture:
    """Training data with a transfer set: an epoch has every window of the first part once.

    Args:
        example_of: The row of the example that each window was cut from, (windows,).
        sizes: The number of examples of the training data and of the transfer set, which follows it.
        proportion: The share of an epoch's windows that are of the transfer set, above 0 and below 1.
    """
    part_of = parts_of_windows(example_of, sizes)
    first = int((part_of == 0).sum())
    return Mixture(part_of, (first, max(1, round(first * proportion / (1 - proportion)))))


def tempered_mixture(example_of: np.ndarray, sizes: Sequence[int], exponent: float = 1.0) -> Mixture:
    """Sources that are drawn in proportion to the `exponent`-th power of their numbers of windows.

    An epoch has as many windows as all sources together. With exponent 1 it has every window once; a smaller one gives
    small sources a larger share, and 0 gives all the same.

    Args:
        example_of: The row of the example that each window was cut from, (windows,).
        sizes: The number of examples of each source; they follow one another.
        exponent: From 0 to 1.

    Raises:
        DistilError: The exponent is out of range.
    """
    check_argument(
        "sampling_exponent", exponent, is_number(exponent) and 0 <= exponent <= 1, "a number from 0 (equal) to 1"
    )
    part_of = parts_of_windows(example_of, sizes)
    there = np.bincount(part_of, minlength=len(sizes))
    shares = there.astype(np.float64) ** exponent
    counts = np.round(shares / shares.sum() * len(part_of)).astype(int)
    return Mixture(part_of, tuple(max(1, int(count)) for count in counts))
