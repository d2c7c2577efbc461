"""What the processes of one run share out among themselves: asking a reader, asking a teacher.

They need a cache directory and an output directory that all of them see.
"""

from accelerate import PartialState
from accelerate.utils import gather_object

from haystack_distill.data.windows import Windows
from haystack_distill.models.reader import Prediction, Reader
from haystack_distill.utils.processes import process_share


def predict_distributed(reader: Reader, windows: Windows, processes: PartialState | None) -> list[Prediction]:
    """`Reader.predict_windows`, each process predicting its share; every process gets the predictions of all."""
    if processes is None or processes.num_processes == 1:
        return list(reader.predict_windows(windows))
    own = reader.predict_windows(windows, examples=process_share(len(windows.examples), processes))
    found: list[Prediction] = gather_object(list(own))
    return found


def evaluate_distributed(reader: Reader, windows: Windows, processes: PartialState) -> dict[str, float]:
    """`Reader.evaluate_windows`, shared out likewise; every process gets the metrics of the whole."""
    if processes.num_processes == 1:
        return reader.evaluate_windows(windows)
    return reader.metrics_of(windows.examples, predict_distributed(reader, windows, processes))
