"""The losses of the steps since the last line of the log, and the check that they are finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from haystack_distill.errors import DistilError


class _Batch(NamedTuple):
    step: int
    names: list[str]
    values: Tensor  # the parts of the loss, then their weighted sum
    windows: Tensor


class StepLosses:
    """Sums of the loss components over batches.

    On a CPU each batch is checked at once. On another device to read a number is to wait until all before it has been
    computed, so the losses stay there, and one read takes those of all batches: when a line is logged, and before the
    student is measured or saved.

    Args:
        device: Where the losses are.
        describe: Describes windows by their numbers, for messages.
    """

    def __init__(self, device: torch.device, describe: Callable[[Sequence[int]], str]) -> None:
        self.at_once = device.type == "cpu"
        self._describe = describe
        self._batches: list[_Batch] = []
        self._sums: dict[str, float] = {}

    def add(self, step: int, parts: Mapping[str, Tensor], total: Tensor, windows: Tensor) -> None:
        """Add the losses of a batch.

        Args:
            step: The number of the optimiser step, from 1.
            parts: This batch's unweighted share of each term's mean.
            total: Their weighted sum.
            windows: The numbers of the batch's windows, (B,).

        Raises:
            DistilError: A sum is not finite; see `read`.
        """
        values = torch.stack([part.detach().float() for part in (*parts.values(), total)])
        self._batches.append(_Batch(step, list(parts), values, windows))
        if self.at_once:
            self.read()

    def read(self) -> dict[str, float]:
        """The sum of each component over the batches since `clear`.

        Raises:
            DistilError: The loss of one of these batches is not finite.
        """
        batches, self._batches = self._batches, []
        rows = _numbers([batch.values for batch in batches])
        for batch, (*values, total) in zip(batches, rows, strict=True):
            parts = dict(zip(batch.names, values, strict=True))
            if not math.isfinite(total):
                found = ", ".join(f"{name} {value:.4g}" for name, value in parts.items())
                raise DistilError(
                    f"the loss is {total} at step {batch.step} ({found}) on {self._describe(batch.windows.tolist())}; "
                    "lower learning_rate or set precision='fp32'"
                )
            for name, value in parts.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
        return dict(self._sums)

    def clear(self) -> None:
        """Begin anew, after a line of the log."""
        self._sums = {}


def _numbers(rows: Sequence[Tensor]) -> list[list[float]]:
    """Some vectors as lists, by one read from their device."""
    if not rows:
        return []
    flat = iter(torch.cat(list(rows)).tolist())
    return [[next(flat) for _ in range(len(row))] for row in rows]
