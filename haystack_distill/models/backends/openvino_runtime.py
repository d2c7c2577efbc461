"""How OpenVINO runs a reader's model."""

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from haystack_distill.errors import DistilError
from haystack_distill.models.backends.exported import require_same_process
from haystack_distill.utils.devices import resolve_precision
from haystack_distill.utils.processor import restricted_threads, usable_cores

_HINTS = {"fp32": "f32", "bf16": "bf16"}
_IMPORTING = threading.Lock()
# Activations that share a scale in dynamic quantisation: this many of one token, never those of two tokens.
_DYNAMIC_GROUP = 128


class OpenVinoModel:
    """A question answering model in OpenVINO, on the processor; see `backends.exported.ExportedModel`.

    Args:
        path: The model's .xml file, with the .bin file of the same name beside it.
        backend: "openvino" or "openvino-int8".
        num_threads: Processor threads of one call; None: one for each core that the process may use. With fewer than
            there are cores, as many calls run side by side as the cores allow.
        precision: "auto", "fp32" or "bf16"; see `utils.devices.resolve_precision`. Dynamic int8 is always "fp32":
            OpenVINO scales no activations in bf16, where int8 weights alone are slower than bf16 ones.
        model_type: The model's `config.model_type`.

    Raises:
        DistilError: OpenVINO is not installed or cannot read the file, or model or processor cannot compute in the
            precision.
    """

    # A kernel is made for each new shape, and in bf16 kernels work on tiles of so many tokens.
    length_multiple = 16

    def __init__(
        self,
        path: Path,
        backend: str = "openvino",
        num_threads: int | None = None,
        *,
        precision: str = "auto",
        model_type: str | None = None,
    ) -> None:
        self.path = path
        self.backend = backend
        self._opened_with = partial(type(self), path, backend, num_threads, precision=precision, model_type=model_type)
        self._process = os.getpid()
        core = _core()
        try:
            model = core.read_model(str(path))
        except RuntimeError as error:
            raise _unusable(path, error) from error
        self.precision = resolve_precision(precision, torch.device("cpu"), model_type)
        if is_dynamic(model):
            if precision == "bf16":
                raise DistilError(f"{path} computes in fp32 between its int8 weights; leave precision out")
            self.precision = "fp32"
        if self.precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            if precision == "bf16":
                raise DistilError("this processor cannot compute in bf16; use precision 'fp32'")
            self.precision = "fp32"  # "auto" was made bf16 for all machines, and PyTorch can do it on any
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(_DYNAMIC_GROUP),
            # Two readers, or two processes, would otherwise be bound to the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        if num_threads is None and (limit := restricted_threads()):
            settings["INFERENCE_NUM_THREADS"] = limit
        if num_threads is not None:
            streams = max(1, usable_cores() // num_threads)
            settings |= {"NUM_STREAMS": str(streams), "INFERENCE_NUM_THREADS": streams * num_threads}
        try:
            self._compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise _unusable(path, error) from error
        self._inputs = [entry.any_name for entry in self._compiled.inputs]
        self._idle: deque[Any] = deque()  # requests that no call is using; append and pop are atomic

    def __reduce__(self) -> tuple[Any, ...]:
        return self._opened_with, ()  # copied and pickled as the file that it opens

    def __call__(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Start and end logits (B, L), float32, of a batch of `utils.model_inputs.model_inputs`."""
        require_same_process(self._process)
        try:
            request = self._idle.pop()
        except IndexError:  # one request can serve one call at a time
            request = self._compiled.create_infer_request()
        try:
            found = request.infer({name: inputs[name].contiguous().numpy() for name in self._inputs}, share_inputs=True)
        finally:
            self._idle.append(request)
        return torch.from_numpy(found["start_logits"]), torch.from_numpy(found["end_logits"])


def is_dynamic(model: Any) -> bool:
    """Whether only the weights of an OpenVINO model are int8, by the record that NNCF leaves in it."""
    return bool(model.has_rt_info(["nncf", "weight_compression"]))


def _unusable(path: Path, error: RuntimeError) -> DistilError:
    return DistilError(f"{path} cannot be run ({_last_line(error)}): export the reader again")


def _last_line(error: Exception) -> str:
    """The last line of a message of OpenVINO, which begins with places in its source."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def import_openvino(module: str) -> Any:
    """A module of the `openvino` extra, which will not report its use to its makers.

    Raises:
        DistilError: It is not installed.
    """
    try:
        with _without_telemetry():
            return import_module(module)
    except ImportError as error:
        raise DistilError(
            f"readers exported for OpenVINO need {module.split('.')[0]}: pip install 'haystack-distill[openvino]' "
            f"({error})"
        ) from error


@contextlib.contextmanager
def _without_telemetry() -> Iterator[None]:
    """Hide the module with which OpenVINO and NNCF report each use to a web service, unless someone opted out."""
    name = "openvino_telemetry"
    with _IMPORTING:
        before = {known: sys.modules[known] for known in sys.modules if known.split(".")[0] == name}
        for known in before:
            del sys.modules[known]
        sys.modules[name] = None  # type: ignore[assignment]  # makes importing it an ImportError
        try:
            yield
        finally:
            del sys.modules[name]
            sys.modules.update(before)


@cache
def _core() -> Any:
    return import_openvino("openvino").Core()
