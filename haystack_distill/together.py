"""What the processes of one run share out among themselves: asking a reader, asking a teacher.

They need a cache directory and an output directory that all of them see.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from haystack_distill.errors import DistilError
from haystack_distill.features import Windows
from haystack_distill.reader import Prediction, Reader

_T = TypeVar("_T")


def decided_by_main(decide: Callable[[], _T], processes: PartialState) -> _T:
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


def share_of(n: int, processes: PartialState) -> range:
    """This process's share of n things that lie in a row; the shares of all processes are the whole, in order."""
    own, all_ = processes.process_index, processes.num_processes
    return range(n * own // all_, n * (own + 1) // all_)


def predict_together(reader: Reader, windows: Windows, processes: PartialState | None) -> list[Prediction]:
    """`Reader.predict_windows`, each process predicting its share; every process gets the predictions of all."""
    if processes is None or processes.num_processes == 1:
        return list(reader.predict_windows(windows))
    own = reader.predict_windows(windows, examples=share_of(len(windows.examples), processes))
    found: list[Prediction] = gather_object(list(own))
    return found


def evaluate_together(reader: Reader, windows: Windows, processes: PartialState) -> dict[str, float]:
    """`Reader.evaluate_windows`, shared out likewise; every process gets the metrics of the whole."""
    if processes.num_processes == 1:
        return reader.evaluate_windows(windows)
    return reader.metrics_of(windows.examples, predict_together(reader, windows, processes))
