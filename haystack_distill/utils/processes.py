"""What the processes of one run agree on and share out."""

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from haystack_distill.errors import DistilError

_T = TypeVar("_T")


def run_on_main_process(decide: Callable[[], _T], processes: PartialState) -> _T:
    """What `decide` returns in the main process, in every process; a DistilError of it is raised in every one."""
    if processes.num_processes == 1:
        return decide()
    outcome: list[Any] = [None, None]
    if processes.is_main_process:
        try:
            outcome[0] = decide()
        except DistilError as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    decided: _T = outcome[0]
    return decided


def process_share(n: int, processes: PartialState) -> range:
    """This process's share of n things that lie in a row; the shares of all processes are the whole, in order."""
    own, all_ = processes.process_index, processes.num_processes
    return range(n * own // all_, n * (own + 1) // all_)
