"""What the processes of one run share out among themselves: asking a reader, asking a teacher.

They need a cache directory and an output directory that all of them see.
"""

from accelerate import PartialState
from accelerate.utils import gather_object

from haystack_distill.data.windows import Windows
from haystack_distill.models.reader import Prediction, Reader
from haystack_distill.utils.processes import share_of
from haystack_distill.utils.progress import progress_bar


def predict_together(
    reader: Reader, windows: Windows, processes: PartialState | None, *, progress: bool = True
) -> list[Prediction]:
    """`Reader.predict_windows`, each process predicting its share; every process gets the predictions of all."""
    alone = processes is None or processes.num_processes == 1
    share = range(len(windows.examples)) if processes is None else share_of(len(windows.examples), processes)
    own_windows = windows.windows_of_examples(share.start, share.stop)
    with progress_bar("evaluation", len(own_windows), "windows", shown=progress) as bar:
        own = list(reader.predict_windows(windows, examples=share, advance=bar.advance))
    if alone:
        return own
    found: list[Prediction] = gather_object(own)
    return found


def evaluate_together(
    reader: Reader, windows: Windows, processes: PartialState, *, progress: bool = True
) -> dict[str, float]:
    """`Reader.evaluate_windows`, shared out likewise; every process gets the metrics of the whole."""
    if processes.num_processes == 1:
        return reader.evaluate_windows(windows, progress=progress)
    return reader.metrics_of(windows.examples, predict_together(reader, windows, processes, progress=progress))
