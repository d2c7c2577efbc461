"""Export of a reader to ONNX, in fp32 and int8, verified against the original model."""

import contextlib
import io
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from haystack_distill.data.squad.load import load_examples
from haystack_distill.data.windows import AnyWindows, Windows
from haystack_distill.errors import DistilError
from haystack_distill.models.adapters import copy_adapters
from haystack_distill.models.backends.onnx_runtime import FILES, ExportedModel, import_onnx
from haystack_distill.models.early_exit import EarlyExitModel
from haystack_distill.models.reader import ExampleSource, Reader
from haystack_distill.training.run_record import versions
from haystack_distill.utils.atomic import write_atomically, write_json
from haystack_distill.utils.files import expand_user, require_writable, system_reason, temporary_directory, writing
from haystack_distill.utils.model_files import EXPORT_FOLDER, EXPORT_RECORD
from haystack_distill.utils.model_inputs import model_inputs
from haystack_distill.utils.transformers_compat import with_plain_attention

INT8 = ("dynamic", "static", "none")
_OPSET = 18
_FLOAT = 1  # onnx.TensorProto.FLOAT
_TOLERANCE = 1e-3  # of the fp32 logits, which normally differ by less than 1e-5
_CALIBRATION_WINDOWS = 256
_COMPARED_WINDOWS = 200
# Inputs for tracing, and for comparing where there is no data: of different lengths.
_PROBES = [
    ("Who wrote it?", "Ada Lovelace wrote it in 1843."),
    ("Where was the harbour built, and by whom?", "The harbour of Lindow was built in 1702 by a mason from Delft."),
    ("Why?", "Bees dance to tell their sisters where the flowers are. " * 12),
]


@dataclass(frozen=True)
class ExportSettings:
    """How a reader is exported.

    Args:
        int8: "dynamic" (int8 weights, activations scaled in every call), "static" (activations scaled once, on
            calibration data) or "none".
        per_channel: Whether each output column of a weight has its own int8 scale.
        reduce_range: Whether weights use 7 of the 8 bits. Processors without VNNI add pairs of int8 products in 16 bits
            and overflow otherwise; with VNNI it costs a little precision and no time.
    """

    int8: str = "dynamic"
    per_channel: bool = True
    reduce_range: bool = True

    def __post_init__(self) -> None:
        if self.int8 not in INT8:
            raise DistilError(f"int8 must be one of {', '.join(INT8)}, not {self.int8!r}")


def export_reader(
    reader: Reader,
    directory: str | Path,
    settings: ExportSettings | None = None,
    *,
    calibration: ExampleSource | None = None,
    data: ExampleSource | None = None,
) -> dict[str, Any]:
    """Write a reader and, in its folder `onnx`, exported models for `Reader.load(directory, backend=...)`.

    `model.onnx` is the model in fp32 with an optimised graph, for any batch size and length; `model_int8.onnx` has int8
    weights, a quarter of the size (dynamic quantisation: https://onnxruntime.ai/docs/performance/model-optimizations/).
    `export.json` records how close they are to the original model, and their metrics.

    Args:
        reader: A reader with weights.
        directory: The directory for the reader and the exported models. Each file is replaced atomically.
        settings: The settings of the export; the default is `ExportSettings()`.
        calibration: Examples for static quantisation to scale activations; training data, never evaluation data.
        data: Examples to evaluate every backend on.

    Returns:
        The content of `export.json`.

    Raises:
        DistilError: The `onnx` extra is not installed, the model cannot be exported, the exported model computes other
            logits, or calibration data is missing or unused.
        WriteError: The directory or a temporary one cannot be written.
    """
    chosen = settings or ExportSettings()
    if (chosen.int8 == "static") != (calibration is not None):
        raise DistilError("calibration data is needed for static quantisation, and only for it: give both or neither")
    reader.require_weights()
    if reader.model.config.model_type == "longformer":  # its export fails only after minutes
        raise DistilError(
            f"{type(reader.model).__name__} cannot be exported to ONNX, because the traced attention depends on the "
            "length of the text: use it with backend='torch', or distil it into a model of another type"
        )
    if isinstance(reader.model, EarlyExitModel):
        raise DistilError(
            f"{type(reader.model).__name__} cannot be exported to ONNX, because how many layers run depends on the "
            "text: use it with backend='torch', or export the reader that it was made from"
        )
    reader = reader.replace(precision="fp32")  # as exported; bf16 would exceed the tolerance
    for module in ("onnx", "onnxruntime"):
        import_onnx(module)
    target = expand_user(directory)
    require_writable(target)
    with temporary_directory() as scratch, writing(Path(scratch)):
        exported = {"onnx": Path(scratch) / FILES["onnx"]}
        _write_onnx(reader, exported["onnx"])
        if chosen.int8 != "none":
            exported["onnx-int8"] = Path(scratch) / FILES["onnx-int8"]
            windows = None if calibration is None else reader.cut(load_examples(calibration))
            _quantise(exported["onnx"], exported["onnx-int8"], chosen, windows)
        record = {
            "settings": vars(chosen),
            "versions": versions("onnx", "onnxruntime"),
            "backends": _compare(reader, exported, data),
        }
        reader.save(target)
        write_json(target / EXPORT_FOLDER / EXPORT_RECORD, record)  # first: marks the other files as exports
        for backend, file in exported.items():
            write_atomically(target / EXPORT_FOLDER / FILES[backend], partial(shutil.copyfile, file))
    return record


class _Logits(nn.Module):
    """A model for the exporter: tensors as inputs, start and end logits as outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        return output.start_logits, output.end_logits


def _write_onnx(reader: Reader, path: Path) -> None:
    """Export the model in fp32, for any batch size and length, with fused attention, normalisation and activation."""
    batch = _inputs(reader, _PROBES[:2])
    model = _Logits(with_plain_attention(reader.model, partial(copy_adapters, reader.model))).cpu().eval()
    raw = path.with_name("raw.onnx")
    names = [*batch, "start_logits", "end_logits"]
    with _quiet(), _without_native_messages():
        try:
            # The tracing exporter is ten times faster than the newer one, and the optimizer fuses its graphs only.
            torch.onnx.export(
                model,
                tuple(batch.values()),
                str(raw),
                dynamo=False,
                opset_version=_OPSET,
                input_names=list(batch),
                output_names=names[len(batch) :],
                dynamic_axes={name: {0: "batch", 1: "length"} for name in names},
            )
        except Exception as error:  # the exporter raises many classes for models that it cannot trace
            if system_reason(error) is not None:
                raise
            raise DistilError(
                f"{type(reader.model).__name__} cannot be exported to ONNX ({error}): use it with backend='torch'"
            ) from error
    _optimise(reader, raw, path)
    raw.unlink()


def _optimise(reader: Reader, raw: Path, path: Path) -> None:
    optimizer = import_onnx("onnxruntime.transformers.optimizer")
    config = reader.model.config
    heads = getattr(config, "num_attention_heads", 0)  # a BiLSTM reader has none
    with _quiet():
        optimised = optimizer.optimize_model(
            str(raw),
            model_type="bert",
            num_heads=heads,
            hidden_size=config.hidden_size if heads else 0,
            opt_level=1,
        )
        for node in optimised.nodes():
            if node.op_type == "LSTM":  # is quantised only if its input is known to hold floats, and that gets lost
                known = import_onnx("onnx").helper.make_tensor_value_info(node.input[0], _FLOAT, None)
                optimised.model.graph.value_info.append(known)
        optimised.save_model_to_file(str(path))


def _quantise(source: Path, target: Path, settings: ExportSettings, windows: Windows | None) -> None:
    quantization = import_onnx("onnxruntime.quantization")
    shared = {
        "per_channel": settings.per_channel,
        "reduce_range": settings.reduce_range,
        "weight_type": quantization.QuantType.QInt8,
        # ONNX cannot infer the output types of fused nodes, which are specific to ONNX Runtime.
        "extra_options": {"DefaultTensorType": _FLOAT},
    }
    with _quiet():
        if windows is None:
            quantization.quantize_dynamic(str(source), str(target), **shared)
            return
        calibration = _Calibration(windows)
        quantization.quantize_static(
            str(source),
            str(target),
            calibration,
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            op_types_to_quantize=["MatMul", "Gemm", "Attention", "Gather"],
            **shared,
        )


class _Calibration:
    """A calibration data reader for ONNX Runtime, with batches of one window."""

    def __init__(self, windows: Windows) -> None:
        chosen = np.linspace(0, len(windows) - 1, min(len(windows), _CALIBRATION_WINDOWS)).astype(int)
        batches = (model_inputs(windows.collate(windows[int(window)])) for window in chosen)
        self._batches: Iterator[dict[str, torch.Tensor]] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, or None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {name: tensor.numpy() for name, tensor in batch.items()}


def _compare(reader: Reader, exported: dict[str, Path], data: ExampleSource | None) -> dict[str, Any]:
    """Compare the logits of each exported model with those of the reader, and evaluate all of them on `data`.

    Raises:
        DistilError: The logits of the fp32 model differ by more than the tolerance.
    """
    examples = None if data is None else load_examples(data)
    windows = reader.cut_pairs(_PROBES) if examples is None else reader.cut(examples)
    selection = range(len(windows))[:_COMPARED_WINDOWS]
    expected = dict(_logits(reader, windows, selection))
    compared: dict[str, Any] = {"torch": {}}
    served = {"torch": reader}
    for backend, file in exported.items():
        served[backend] = _with_exported(reader, ExportedModel(file, one_by_one=backend == "onnx-int8"))
        largest, same = 0.0, []
        for window, (starts, ends) in _run(served[backend], backend, windows, selection):
            other_starts, other_ends = expected[window]
            largest = max(largest, float((starts - other_starts).abs().max()), float((ends - other_ends).abs().max()))
            same.append(bool(starts.argmax() == other_starts.argmax() and ends.argmax() == other_ends.argmax()))
        if backend == "onnx" and not largest <= _TOLERANCE:
            raise DistilError(
                f"the logits of {type(reader.model).__name__} and of its ONNX export differ by up to {largest:.3g}, so "
                "it is not written: use backend='torch', or other versions of torch and transformers"
            )
        compared[backend] = {
            "megabytes": file.stat().st_size / 1e6,
            "largest_difference": largest,
            "same_answer": sum(same) / len(same),
        }
    if examples is not None:
        for backend, one in served.items():
            compared[backend]["metrics"] = one.evaluate_windows(windows)  # type: ignore[arg-type]
    return compared


def _run(
    reader: Reader, backend: str, windows: AnyWindows, selection: range
) -> Iterator[tuple[int, tuple[torch.Tensor, torch.Tensor]]]:
    """`_logits` of an exported model.

    Raises:
        DistilError: ONNX Runtime cannot run it: it works for some lengths only, or not in int8.
    """
    try:
        yield from _logits(reader, windows, selection)
    except Exception as error:  # the errors of ONNX Runtime have no common class
        reason = " ".join(str(error).split())[:200]
        model_class = type(reader.model).__name__
        if backend == "onnx-int8":
            raise DistilError(
                f"ONNX Runtime cannot run {model_class} in int8 ({reason}): export it with int8='none'"
            ) from error
        raise DistilError(
            f"the ONNX export of {model_class} runs only at the length that it was traced with, so it is not written "
            f"({reason}): use this model with backend='torch'"
        ) from error


def _logits(
    reader: Reader, windows: AnyWindows, selection: range
) -> Iterator[tuple[int, tuple[torch.Tensor, torch.Tensor]]]:
    """The index of each window with its start and end logits, without padding."""
    for batch, starts, ends in reader.logits(windows, selection):
        for row, window in enumerate(batch["window"].tolist()):
            length = int(windows.lengths[window])
            yield window, (starts[row, :length], ends[row, :length])


def _with_exported(reader: Reader, exported: ExportedModel) -> Reader:
    """A copy of a reader that runs an exported model."""
    return reader.replace(exported=exported, device="cpu")


def _inputs(reader: Reader, pairs: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    windows = reader.cut_pairs(pairs)
    return model_inputs(windows.collate(windows.__getitems__(range(len(windows)))))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the progress output and the internal warnings of the exporters."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def _without_native_messages() -> Iterator[None]:
    """Suppress what PyTorch writes to stderr by itself: that it cannot infer shapes of packed sequences."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
