"""Prediction and evaluation by the processes of one distributed run, which must share a cache directory."""

from accelerate import PartialState
from accelerate.utils import gather_object

from haystack_distill.data.windows import Windows
from haystack_distill.models.answers import Prediction
from haystack_distill.models.reader import Reader
from haystack_distill.utils.processes import process_share


def predict_distributed(reader: Reader, windows: Windows, processes: PartialState | None) -> list[Prediction]:
    """`Reader.predict_windows`, with the examples divided among processes; every process gets all predictions."""
    if processes is None or processes.num_processes == 1:
        return list(reader.predict_windows(windows))
    own = reader.predict_windows(windows, examples=process_share(len(windows.examples), processes))
    predictions: list[Prediction] = gather_object(list(own))
    return predictions


def evaluate_distributed(reader: Reader, windows: Windows, processes: PartialState) -> dict[str, float]:
    """`Reader.evaluate_windows`, with the examples divided among processes; every process gets the metrics."""
    if processes.num_processes == 1:
        return reader.evaluate_windows(windows)
    return reader.metrics_of(windows.examples, predict_distributed(reader, windows, processes))
