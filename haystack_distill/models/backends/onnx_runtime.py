"""A reader's model outside PyTorch: where its ONNX files lie in a reader directory, and how ONNX Runtime runs them."""

import contextlib
import logging
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file

from haystack_distill.errors import DistilError
from haystack_distill.utils.model_files import EXPORT_FOLDER, EXPORT_RECORD

logger = logging.getLogger(__name__)

BACKENDS = ("torch", "onnx", "onnx-int8")
FILES = {"onnx": "model.onnx", "onnx-int8": "model_int8.onnx"}


def check_backend(backend: str) -> None:
    """Raise a DistilError unless there is such a backend."""
    if backend not in BACKENDS:
        raise DistilError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")


class ExportedModel:
    """A question answering model in ONNX Runtime, on the processor. Any number of threads may call it at once.

    Args:
        path: The ONNX file.
        num_threads: Processor threads of one call; None leaves it to ONNX Runtime: one per core.
        one_by_one: Run each window of a batch by itself and without its padding, so that its logits depend on nothing
            else, to the bit. In int8 they would: an activation has one scale for the whole batch, padding included.

    Raises:
        DistilError: ONNX Runtime is not installed, or cannot read the file.
    """

    def __init__(self, path: Path, num_threads: int | None = None, *, one_by_one: bool = False) -> None:
        runtime = import_onnx("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = num_threads or 0
        # Threads that wait for the next call would take the processor from whatever else is going on.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.path = path
        self.one_by_one = one_by_one
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own errors have no base class of their own
            raise DistilError(f"{path} cannot be run ({error}): export the reader again") from error
        self._inputs = [entry.name for entry in self._session.get_inputs()]

    def __call__(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Start and end logits (B, L), float32, of a batch of `utils.model_inputs.model_inputs`.

        The logits of padding are the model's, or -inf if windows are run one by one.
        """
        if not self.one_by_one:
            return self._run(inputs)
        mask = inputs["attention_mask"]
        start, end = torch.full(mask.shape, -torch.inf), torch.full(mask.shape, -torch.inf)
        for row, length in enumerate(mask.sum(1).tolist()):
            window = {name: tensor[row : row + 1, :length] for name, tensor in inputs.items()}
            start[row : row + 1, :length], end[row : row + 1, :length] = self._run(window)
        return start, end

    def _run(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        start, end = self._session.run(
            ["start_logits", "end_logits"], {name: inputs[name].numpy() for name in self._inputs}
        )
        return torch.from_numpy(start), torch.from_numpy(end)


def find_exported(name: str, backend: str, **hub: Any) -> Path:
    """The ONNX file of a reader directory or of a model on the hub (`hub`: `token`, `revision`).

    Raises:
        DistilError: There is none.
    """
    file = f"{EXPORT_FOLDER}/{FILES[backend]}"
    try:
        found = cached_file(name, file, **hub)
    except (OSError, ValueError) as error:
        raise DistilError(
            f"{name!r} has no {file}, which backend {backend!r} runs: make it with `haystack-distill export` ({error})"
        ) from error
    return Path(str(found))


def remove_exported(directory: Path) -> None:
    """Remove what was exported from the weights of a reader directory, before they are replaced.

    What others put into a folder of that name stays.
    """
    folder = directory / EXPORT_FOLDER
    if not (folder / EXPORT_RECORD).exists():
        for file in FILES.values():
            if (folder / file).exists():
                logger.warning("%s was not exported by this package and stays, but the weights change", folder / file)
        return
    for file in (*FILES.values(), EXPORT_RECORD):
        (folder / file).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something else is in there
        folder.rmdir()


def import_onnx(module: str) -> Any:
    """A module of the `onnx` extra.

    Raises:
        DistilError: It is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise DistilError(
            f"exported readers need {module.split('.')[0]}: pip install 'haystack-distill[onnx]' ({error})"
        ) from error
