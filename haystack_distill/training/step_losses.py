"""The losses of the steps since the last line of the log, and the check that they are finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

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
        self.clear()

    def begin_step(self, names: Iterable[str]) -> None:
        """Count an optimiser step.

        Args:
            names: Its terms: those that at least one of its windows has.
        """
        for name in ("loss", *(f"loss_{name}" for name in names)):
            self._steps_with[name] = self._steps_with.get(name, 0) + 1

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

    def read(self) -> None:
        """Take the numbers of all batches so far from the device.

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
            for name, value in {"loss": total, **{f"loss_{name}": value for name, value in parts.items()}}.items():
                self._sums[name] = self._sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """Means since `clear`: "loss" over the steps, and "loss_" and its name of each term over those that have it.

        Raises:
            DistilError: See `read`.
        """
        self.read()
        return {name: value / self._steps_with.get(name, 1) for name, value in self._sums.items()}

    def clear(self) -> None:
        """Begin anew, after a line of the log."""
        self._sums: dict[str, float] = {}
        self._steps_with: dict[str, int] = {}

    def state(self) -> dict[str, Any]:
        """What `restore` needs, for a checkpoint.

        Raises:
            DistilError: See `read`.
        """
        self.read()
        return {"sums": dict(self._sums), "steps_with": dict(self._steps_with)}

    def restore(self, state: Mapping[str, dict[str, Any]]) -> None:
        """Continue from what `state` returned, in a run that is resumed."""
        self._sums, self._steps_with = dict(state["sums"]), dict(state["steps_with"])


def _numbers(rows: Sequence[Tensor]) -> list[list[float]]:
    """Some vectors as lists, by one read from their device."""
    if not rows:
        return []
    flat = iter(torch.cat(list(rows)).tolist())
    return [[next(flat) for _ in range(len(row))] for row in rows]
