"""Batch samplers: the order of the windows in training, as a function of (seed, epoch), shared by the processes."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence

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


class MixedBatches(StepBatches):
    """Steps that hold windows of several parts of the data in fixed proportions, of about equal length.

    An epoch has `counts[p]` windows of part p, spread evenly over its steps. Each part is an endless sequence of its
    windows, shuffled anew in each pass over the part. An epoch continues where the epoch before it stopped, so every
    window of a part is taken once before any is taken again. The order depends on (seed, epoch) only, so a resumed run
    gets the same batches as an uninterrupted one.

    Args:
        lengths: Length of each window in tokens.
        parts: The part that each window belongs to, 0 or more.
        counts: Windows per epoch of each part.
        batch_size: Windows per forward pass.
        seed: The seed of the order.
        sharing: `accumulation`, `processes` and `process`, as for `StepBatches`.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        parts: np.ndarray,
        counts: Sequence[int],
        batch_size: int,
        *,
        seed: int = 0,
        **sharing: int,
    ) -> None:
        super().__init__(batch_size, **sharing)
        self.lengths = lengths
        self.members = [np.flatnonzero(parts == part) for part in range(len(counts))]
        self.counts = list(counts)
        self.seed = seed

    @property
    def steps(self) -> int:
        """Optimiser steps per epoch."""
        return -(-sum(self.counts) // self.step_size)

    @property
    def windows_per_step(self) -> float:
        """Windows of an optimiser step, on average."""
        return sum(self.counts) / max(1, self.steps)

    def windows_of_steps(self) -> Iterator[np.ndarray]:
        """The windows of each step: of about equal length within a step, with the steps in random order."""
        drawn = [self._of_epoch(part) for part in range(len(self.counts))]
        # The j-th of n windows of a part stands at (j + 1/2) / n of the epoch, which spreads every part evenly.
        places = np.concatenate([(np.arange(count) + 0.5) / count for count in self.counts if count])
        sequence = np.repeat(np.arange(len(self.counts)), self.counts)[np.argsort(places, kind="stable")]
        steps: list[np.ndarray] = []
        done = np.zeros(len(self.counts), dtype=np.int64)
        together = self.step_size * _STEPS_SORTED_TOGETHER
        for first in range(0, len(sequence), together):
            group = sequence[first : first + together]
            sizes = [
                np.bincount(group[i : i + self.step_size], minlength=len(done))
                for i in range(0, len(group), self.step_size)
            ]
            ends = np.cumsum(sizes, axis=0)
            by_part = []
            for part, windows in enumerate(drawn):
                chosen = windows[done[part] : done[part] + ends[-1, part]]
                chosen = chosen[np.argsort(self.lengths[chosen], kind="stable")]
                by_part.append(np.split(chosen, ends[:-1, part]))
            done += ends[-1]
            for mixed in zip(*by_part, strict=True):
                step = np.concatenate(mixed)
                steps.append(step[np.argsort(self.lengths[step], kind="stable")])
        random = np.random.default_rng([self.seed, self.epoch])
        for number in random.permutation(len(steps)):
            yield steps[number]

    def _of_epoch(self, part: int) -> np.ndarray:
        """The windows of a part in the current epoch, in random order."""
        members, count = self.members[part], self.counts[part]
        if not count:
            return members[:0]
        begin = self.epoch * count
        first, last = begin // len(members), (begin + count - 1) // len(members)
        passes = [
            members[np.random.default_rng([self.seed, part, number]).permutation(len(members))]
            for number in range(first, last + 1)
        ]
        begin -= first * len(members)
        return np.concatenate(passes)[begin : begin + count]
