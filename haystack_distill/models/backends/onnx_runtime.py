"""How ONNX Runtime runs a reader's model."""

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from haystack_distill.errors import DistilError
from haystack_distill.models.backends.exported import require_same_process
from haystack_distill.utils.processor import restricted_threads


class OnnxModel:
    """A question answering model in ONNX Runtime, on the processor; see `backends.exported.ExportedModel`.

    In int8 each window of a batch is run by itself and without its padding, so that its logits depend on nothing else,
    to the bit. Otherwise they would: an activation has one scale for the whole batch, padding included.

    Args:
        path: The ONNX file.
        backend: "onnx" or "onnx-int8".
        num_threads: Processor threads of one call; None: one for each core that the process may use.

    Raises:
        DistilError: ONNX Runtime is not installed, or cannot read the file.
    """

    precision = "fp32"
    length_multiple = 1

    def __init__(self, path: Path, backend: str = "onnx", num_threads: int | None = None) -> None:
        runtime = import_onnx("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = num_threads or restricted_threads() or 0
        # Threads that wait for the next call would take the processor from whatever else is going on.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.path = path
        self.backend = backend
        self._opened_with = (path, backend, num_threads)
        self._process = os.getpid()
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own errors have no base class of their own
            raise DistilError(f"{path} cannot be run ({error}): export the reader again") from error
        self._inputs = [entry.name for entry in self._session.get_inputs()]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._opened_with  # copied and pickled as the file that it opens

    def __call__(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Start and end logits (B, L), float32, of a batch of `utils.model_inputs.model_inputs`.

        The logits of padding are the model's, or -inf in int8.
        """
        require_same_process(self._process)
        if self.backend != "onnx-int8":
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


def import_onnx(module: str, extra: str = "onnx") -> Any:
    """A module of the `onnx` extra, or of another one.

    Raises:
        DistilError: It is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise DistilError(
            f"exported readers need {module.split('.')[0]}: pip install 'haystack-distill[{extra}]' ({error})"
        ) from error
