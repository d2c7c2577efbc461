"""The order in which windows are trained on: grouped by length, and a function of (seed, epoch) alone."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

_STEPS_SORTED_TOGETHER = 50  # long enough for little padding, short enough that each epoch mixes differently


class LengthGroupedBatches(Sampler[list[int]]):
    """Batches of window indices of about equal length.

    Each optimiser step gets `batch_size * accumulation * processes` windows. Their order depends on (seed, epoch)
    alone, so a resumed run sees the batches that an uninterrupted one sees; and the windows of a step do not depend
    on how the step is divided among accumulated batches and processes. Where a last step has too few windows to go
    round, a batch holds a filler: index `~i`, window i with weight 0.

    Args:
        lengths: Tokens of each window.
        batch_size: Windows a forward pass.
        accumulation: Forward passes an optimiser step, per process.
        processes: Processes that share each step.
        process: Which of them this one is.
        seed: Seed of the order.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        *,
        accumulation: int = 1,
        processes: int = 1,
        process: int = 0,
        seed: int = 0,
    ) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.processes = processes
        self.process = process
        self.seed = seed
        self.epoch = 0

    @property
    def step_size(self) -> int:
        """Windows an optimiser step."""
        return self.batch_size * self.accumulation * self.processes

    @property
    def steps(self) -> int:
        """Optimiser steps an epoch."""
        return -(-len(self.lengths) // self.step_size)

    def start_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is iterated next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(len(self.lengths))
        together = self.step_size * _STEPS_SORTED_TOGETHER
        steps = []
        for first in range(0, len(order), together):
            group = order[first : first + together]
            group = group[np.argsort(self.lengths[group], kind="stable")]
            steps += [group[i : i + self.step_size] for i in range(0, len(group), self.step_size)]
        for step in random.permutation(len(steps)):
            parts = np.array_split(steps[step], self.accumulation * self.processes)
            for part in parts[self.process :: self.processes]:
                yield part.tolist() if len(part) else [~int(steps[step][0])]
