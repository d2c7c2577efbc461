"""Exporting a reader to ONNX, in fp32 and int8, checked against the model that it was made from."""

import contextlib
import copy
import io
import logging
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
from haystack_distill.models.backends.onnx_runtime import FILES, ExportedModel, import_onnx
from haystack_distill.models.reader import ExampleSource, Reader
from haystack_distill.training.run_directory import versions
from haystack_distill.utils.atomic import write_atomically, write_json
from haystack_distill.utils.files import expand_user, require_writable, system_reason, temporary_directory, writing
from haystack_distill.utils.model_files import EXPORT_FOLDER, EXPORT_RECORD
from haystack_distill.utils.model_inputs import model_inputs
from haystack_distill.utils.transformers_compat import with_plain_attention

INT8 = ("dynamic", "static", "none")
_OPSET = 18
_FLOAT = 1  # onnx.TensorProto.FLOAT
_TOLERANCE = 1e-3  # of the fp32 logits; they come within 1e-5 where all is well
_CALIBRATION_WINDOWS = 256
_COMPARED_WINDOWS = 200
# What is exported with and compared on where there is no data: batches and lengths that differ.
_PROBES = [
    ("Who wrote it?", "Ada Lovelace wrote it in 1843."),
    ("Where was the harbour built, and by whom?", "The harbour of Lindow was built in 1702 by a mason from Delft."),
    ("Why?", "Bees dance to tell their sisters where the flowers are. " * 12),
]


@dataclass(frozen=True)
class ExportSettings:
    """How a reader is exported.

    Args:
        int8: "dynamic" (weights in int8, activations scaled in every call), "static" (activations scaled once, by what
            they were on calibration data) or "none".
        per_channel: One int8 scale an output column of a weight, not one a weight.
        reduce_range: Weights in 7 of the 8 bits. Processors without VNNI add pairs of int8 products in 16 bits, which
            overflow otherwise; with VNNI it costs a little precision and no time.
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
    """Write a reader and, in its folder `onnx`, what `Reader.load(directory, backend=...)` runs faster.

    `model.onnx` is the model in fp32, any batch and length, its graph optimised; `model_int8.onnx` has its weights in
    int8, a quarter of the size (dynamic quantisation: https://onnxruntime.ai/docs/performance/model-optimizations/).
    `export.json` says how near they are to the model and what each scores.

    Args:
        reader: A reader with weights.
        directory: Where reader and exported models go. Each file is replaced as a whole.
        settings: See `ExportSettings`.
        calibration: Examples that static quantisation scales activations by; training data, never what is measured on.
        data: Examples to measure every backend on.

    Returns:
        What `export.json` holds.

    Raises:
        DistilError: The `onnx` extra is not installed, the model cannot be exported, its exported form says something
            else than the model, or calibration data is missing or useless.
        WriteError: The directory or a temporary one cannot be written.
    """
    chosen = settings or ExportSettings()
    if (chosen.int8 == "static") != (calibration is not None):
        raise DistilError("static quantisation needs calibration data, and nothing else does")
    reader.require_weights()
    if reader.model.config.model_type == "longformer":  # found out by exporting, which takes minutes
        raise DistilError(
            f"{type(reader.model).__name__} cannot be exported to ONNX: its attention is cut into as many pieces as "
            "the text that it is exported with has; use it with backend='torch', or distil it into a model of another "
            "kind"
        )
    reader = copy.copy(reader)
    reader.precision = "fp32"  # what is exported; in bf16 the model itself would differ from it by more than allowed
    for module in ("onnx", "onnxruntime"):
        import_onnx(module)
    target = expand_user(directory)
    require_writable(target)
    with temporary_directory() as scratch, writing(Path(scratch)):
        made = {"onnx": Path(scratch) / FILES["onnx"]}
        _write_onnx(reader, made["onnx"])
        if chosen.int8 != "none":
            made["onnx-int8"] = Path(scratch) / FILES["onnx-int8"]
            windows = None if calibration is None else reader.cut(load_examples(calibration))
            _quantise(made["onnx"], made["onnx-int8"], chosen, windows)
        record = {
            "settings": vars(chosen),
            "versions": versions("onnx", "onnxruntime"),
            "backends": _compare(reader, made, data),
        }
        reader.save(target)
        write_json(target / EXPORT_FOLDER / EXPORT_RECORD, record)  # first: what lies beside it is known to be ours
        for backend, file in made.items():
            write_atomically(target / EXPORT_FOLDER / FILES[backend], partial(shutil.copyfile, file))
    return record


class _Logits(nn.Module):
    """A model as ONNX wants it: tensors in, two tensors out."""

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
    """The model in fp32, for any batch and length, its attention, normalisation and activation fused to a node each."""
    batch = _inputs(reader, _PROBES[:2])
    model = _Logits(with_plain_attention(reader.model)).cpu().eval()
    raw = path.with_name("raw.onnx")
    names = [*batch, "start_logits", "end_logits"]
    with _quietly():
        try:
            # The tracing exporter: ten times as quick as the newer one, and what it writes is what gets fused below.
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
        except Exception as error:  # whatever the exporter raises, the model is what it cannot read
            if system_reason(error) is not None:
                raise
            raise DistilError(f"{type(reader.model).__name__} cannot be exported to ONNX: {error}") from error
    _optimise(reader, raw, path)
    raw.unlink()


def _optimise(reader: Reader, raw: Path, path: Path) -> None:
    optimizer = import_onnx("onnxruntime.transformers.optimizer")
    config = reader.model.config
    with _quietly():
        optimised = optimizer.optimize_model(
            str(raw),
            model_type="bert",
            num_heads=config.num_attention_heads,
            hidden_size=config.hidden_size,
            opt_level=1,
        )
        optimised.save_model_to_file(str(path))


def _quantise(source: Path, target: Path, settings: ExportSettings, windows: Windows | None) -> None:
    quantization = import_onnx("onnxruntime.quantization")
    shared = {
        "per_channel": settings.per_channel,
        "reduce_range": settings.reduce_range,
        "weight_type": quantization.QuantType.QInt8,
        # Fused nodes are ONNX Runtime's own, and ONNX cannot tell of what type their outputs are.
        "extra_options": {"DefaultTensorType": _FLOAT},
    }
    with _quietly():
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
    """Batches of one window each, as ONNX Runtime's quantiser asks for them."""

    def __init__(self, windows: Windows) -> None:
        chosen = np.linspace(0, len(windows) - 1, min(len(windows), _CALIBRATION_WINDOWS)).astype(int)
        batches = (model_inputs(windows.collate(windows[int(window)])) for window in chosen)
        self._batches: Iterator[dict[str, torch.Tensor]] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {name: tensor.numpy() for name, tensor in batch.items()}


def _compare(reader: Reader, made: dict[str, Path], data: ExampleSource | None) -> dict[str, Any]:
    """How near each exported model is to the model, and what each scores.

    Raises:
        DistilError: The fp32 one says something else.
    """
    examples = None if data is None else load_examples(data)
    windows = reader.cut_pairs(_PROBES) if examples is None else reader.cut(examples)
    selection = range(len(windows))[:_COMPARED_WINDOWS]
    expected = dict(_logits(reader, windows, selection))
    compared: dict[str, Any] = {"torch": {}}
    served = {"torch": reader}
    for backend, file in made.items():
        served[backend] = _like(reader, ExportedModel(file, one_by_one=backend == "onnx-int8"))
        largest, same = 0.0, []
        for window, (starts, ends) in _run(served[backend], backend, windows, selection):
            other_starts, other_ends = expected[window]
            largest = max(largest, float((starts - other_starts).abs().max()), float((ends - other_ends).abs().max()))
            same.append(bool(starts.argmax() == other_starts.argmax() and ends.argmax() == other_ends.argmax()))
        if backend == "onnx" and not largest <= _TOLERANCE:
            raise DistilError(
                f"the logits of {type(reader.model).__name__} and of its ONNX form differ by up to {largest:.3g}, so "
                "it is not written; this model cannot be exported with these versions of torch and transformers"
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
        DistilError: ONNX Runtime cannot run it: what was exported works at some lengths only, or not in int8.
    """
    try:
        yield from _logits(reader, windows, selection)
    except Exception as error:  # ONNX Runtime's own errors have no base class of their own
        reason = " ".join(str(error).split())[:200]
        kind = type(reader.model).__name__
        if backend == "onnx-int8":
            raise DistilError(
                f"ONNX Runtime cannot run {kind} in int8; export it with int8='none' ({reason})"
            ) from error
        raise DistilError(
            f"the ONNX form of {kind} cannot be run at other lengths than it was made at, so it is not written; use "
            f"this model with backend='torch' ({reason})"
        ) from error


def _logits(
    reader: Reader, windows: AnyWindows, selection: range
) -> Iterator[tuple[int, tuple[torch.Tensor, torch.Tensor]]]:
    """Start and end logits of each window, without its padding."""
    for batch, starts, ends in reader.logits(windows, selection):
        for row, window in enumerate(batch["window"].tolist()):
            length = int(windows.lengths[window])
            yield window, (starts[row, :length], ends[row, :length])


def _like(reader: Reader, exported: ExportedModel) -> Reader:
    """The reader, but run by an exported model."""
    other = copy.copy(reader)
    other.exported = exported
    return other


def _inputs(reader: Reader, pairs: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    windows = reader.cut_pairs(pairs)
    return model_inputs(windows.collate(windows.__getitems__(range(len(windows)))))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The exporters' progress and their warnings about themselves are not for our users."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
