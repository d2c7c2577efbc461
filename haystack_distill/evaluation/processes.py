"""Prediction and evaluation by the processes of one distributed run, which must share a cache directory."""

from accelerate import PartialState
from accelerate.utils import gather_object

from haystack_distill.data.windows import Windows
from haystack_distill.models.answers import Prediction
from haystack_distill.models.reader import Observe, Reader
from haystack_distill.utils.processes import process_share
from haystack_distill.utils.progress import progress_bar


def predict_distributed(
    reader: Reader,
    windows: Windows,
    processes: PartialState | None,
    *,
    progress: bool = True,
    observe: Observe | None = None,
) -> list[Prediction]:
    """`Reader.predict_windows`, with the examples divided among processes; every process gets all predictions."""
    alone = processes is None or processes.num_processes == 1
    share = range(len(windows.examples)) if processes is None else process_share(len(windows.examples), processes)
    own_windows = windows.windows_of_examples(share.start, share.stop)
    with progress_bar("evaluation", len(own_windows), "windows", visible=progress) as bar:
        own = list(reader.predict_windows(windows, examples=share, advance=bar.advance, observe=observe))
    if alone:
        return own
    predictions: list[Prediction] = gather_object(own)
    return predictions


def evaluate_distributed(
    reader: Reader,
    windows: Windows,
    processes: PartialState,
    *,
    progress: bool = True,
    observe: Observe | None = None,
) -> dict[str, float]:
    """`Reader.evaluate_windows`, with the examples divided among processes; every process gets the metrics."""
    if processes.num_processes == 1:
        return reader.evaluate_windows(windows, progress=progress, observe=observe)
    found = predict_distributed(reader, windows, processes, progress=progress, observe=observe)
    return reader.metrics_of(windows.examples, found)
