"""Coordination of the processes of one distributed run."""

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from haystack_distill.errors import DistilError

_T = TypeVar("_T")


def run_on_main_process(function: Callable[[], _T], processes: PartialState) -> _T:
    """The result of `function` in the main process, broadcast to all; a DistilError is raised in every process."""
    if processes.num_processes == 1:
        return function()
    outcome: list[Any] = [None, None]
    if processes.is_main_process:
        try:
            outcome[0] = function()
        except DistilError as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: _T = outcome[0]
    return result


def process_share(n: int, processes: PartialState) -> range:
    """The indices from 0 to n - 1 that this process handles; the shares of all processes are contiguous, in order."""
    index, count = processes.process_index, processes.num_processes
    return range(n * index // count, n * (index + 1) // count)
