"""Batch samplers: the order of the windows in training, as a function of (seed, epoch), shared by the processes."""

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

_STEPS_SORTED_TOGETHER = 50  # enough for little padding, few enough that epochs differ


class StepBatches(Sampler[list[int]]):
    """Batches of window indices: this process's share of each optimiser step.

    A step has `batch_size * accumulation * processes` windows, which do not depend on how the step is divided into
    accumulated batches and processes. If there are too few for all batches, a batch consists of a filler: the index
    `~i` stands for window i with weight 0.

    Args:
        batch_size: Windows per forward pass.
        accumulation: Forward passes per optimiser step and process.
        processes: The number of processes that share each step.
        process: The index of this process.
    """

    def __init__(self, batch_size: int, *, accumulation: int = 1, processes: int = 1, process: int = 0) -> None:
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.processes = processes
        self.process = process
        self.epoch = 0

    @property
    def step_size(self) -> int:
        """Windows per optimiser step."""
        return self.batch_size * self.accumulation * self.processes

    @property
    def windows_per_step(self) -> float:
        """Windows of an optimiser step, on average: the last step of an epoch may have fewer than `step_size`."""
        return self.step_size

    @property
    @abstractmethod
    def steps(self) -> int:
        """Optimiser steps per epoch."""

    @abstractmethod
    def windows_of_steps(self) -> Iterator[np.ndarray]:
        """The windows of each step of the current epoch, in order."""

    def start_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for windows in self.windows_of_steps():
            parts = np.array_split(windows, self.accumulation * self.processes)
            for part in parts[self.process :: self.processes]:
                yield part.tolist() if len(part) else [~int(windows[0])]


class InOrderBatches(StepBatches):
    """Windows 0, 1, 2, ... in this order, for `n_steps` steps: for streamed data."""

    def __init__(self, n_steps: int, batch_size: int, **sharing: int) -> None:
        super().__init__(batch_size, **sharing)
        self.n_steps = n_steps

    @property
    def steps(self) -> int:
        """Optimiser steps per epoch: all of them."""
        return self.n_steps

    def windows_of_steps(self) -> Iterator[np.ndarray]:
        """The windows of each step, in order."""
        for step in range(self.n_steps):
            yield np.arange(step * self.step_size, (step + 1) * self.step_size)


class LengthGroupedBatches(StepBatches):
    """Batches of windows of about equal length.

    Their order depends on (seed, epoch) only, so a resumed run gets the same batches as an uninterrupted one.

    Args:
        lengths: Length of each window in tokens.
        batch_size: Windows per forward pass.
        seed: The seed of the order.
        sharing: `accumulation`, `processes` and `process`, as for `StepBatches`.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, *, seed: int = 0, **sharing: int) -> None:
        super().__init__(batch_size, **sharing)
        self.lengths = lengths
        self.seed = seed

    @property
    def steps(self) -> int:
        """Optimiser steps per epoch."""
        return -(-len(self.lengths) // self.step_size)

    @property
    def windows_per_step(self) -> float:
        """Windows of an optimiser step, on average."""
        return len(self.lengths) / max(1, self.steps)

    def windows_of_steps(self) -> Iterator[np.ndarray]:
        """The windows of each step: of about equal length within a step, with the steps in random order."""
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(len(self.lengths))
        together = self.step_size * _STEPS_SORTED_TOGETHER
        steps = []
        for first in range(0, len(order), together):
            group = order[first : first + together]
            group = group[np.argsort(self.lengths[group], kind="stable")]
            steps += [group[i : i + self.step_size] for i in range(0, len(group), self.step_size)]
        for step in random.permutation(len(steps)):
            yield steps[step]
