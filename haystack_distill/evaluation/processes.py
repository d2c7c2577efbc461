"""What the processes of one run share out among themselves: asking a reader, asking a teacher.

They need a cache directory and an output directory that all of them see.
"""

from accelerate import PartialState
from accelerate.utils import gather_object

from haystack_distill.data.windows import Windows
from haystack_distill.models.answers import Prediction
from haystack_distill.models.reader import Reader
from haystack_distill.utils.processes import share_of


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
