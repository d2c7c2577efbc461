"""A reader's model as an ONNX graph: traced, optimised for ONNX Runtime, and in int8."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from haystack_distill.errors import DistilError
from haystack_distill.models.adapters import copy_adapters
from haystack_distill.models.backends.onnx_runtime import import_onnx
from haystack_distill.models.reader import Reader
from haystack_distill.utils.files import system_reason
from haystack_distill.utils.transformers_compat import with_plain_attention

_OPSET = 18
_FLOAT = 1  # onnx.TensorProto.FLOAT


def trace(reader: Reader, inputs: dict[str, torch.Tensor], path: Path) -> None:
    """Write a reader's model as an ONNX graph in fp32, for any batch size and length, with start and end logits.

    Args:
        reader: A reader with weights.
        inputs: A batch to trace the model with, of `utils.model_inputs.model_inputs`.
        path: The file.

    Raises:
        DistilError: The model cannot be traced.
    """
    model = _Logits(with_plain_attention(reader.model, partial(copy_adapters, reader.model))).cpu().eval()
    names = [*inputs, "start_logits", "end_logits"]
    with quiet(), _without_native_messages():
        try:
            # The tracing exporter is ten times faster than the newer one, and the optimizer fuses its graphs only.
            torch.onnx.export(
                model,
                tuple(inputs.values()),
                str(path),
                dynamo=False,
                opset_version=_OPSET,
                input_names=list(inputs),
                output_names=names[len(inputs) :],
                dynamic_axes={name: {0: "batch", 1: "length"} for name in names},
            )
        except Exception as error:  # the exporter raises many classes for models that it cannot trace
            if system_reason(error) is not None:
                raise
            raise DistilError(
                f"{type(reader.model).__name__} cannot be exported to ONNX ({error}): use it with backend='torch'"
            ) from error


def optimise(reader: Reader, raw: Path, path: Path) -> None:
    """Write a traced graph with fused attention, normalisation and activation, for ONNX Runtime alone."""
    optimizer = import_onnx("onnxruntime.transformers.optimizer")
    # Embeddings and their normalisation in one node would be rounded together, the weights of the norm too.
    fusions = import_onnx("onnxruntime.transformers.fusion_options").FusionOptions("bert")
    fusions.enable_embed_layer_norm = False
    config = reader.model.config
    heads = getattr(config, "num_attention_heads", 0)  # a BiLSTM reader has none
    with quiet():
        optimised = optimizer.optimize_model(
            str(raw),
            model_type="bert",
            num_heads=heads,
            hidden_size=config.hidden_size if heads else 0,
            opt_level=1,
            optimization_options=fusions,
        )
        for node in optimised.nodes():
            if node.op_type == "LSTM":  # is quantised only if its input is known to hold floats, and that gets lost
                known = import_onnx("onnx").helper.make_tensor_value_info(node.input[0], _FLOAT, None)
                optimised.model.graph.value_info.append(known)
        optimised.save_model_to_file(str(path))


def quantise(
    source: Path,
    target: Path,
    *,
    per_channel: bool = True,
    reduce_range: bool = True,
    calibration: Iterable[dict[str, torch.Tensor]] | None = None,
) -> None:
    """Write an optimised graph in int8.

    Args:
        source: The graph that `optimise` wrote.
        target: The file.
        per_channel: Whether each output column of a weight has its own scale.
        reduce_range: Whether weights use 7 of the 8 bits.
        calibration: Inputs to scale activations on (static quantisation); without them activations are scaled in every
            call.
    """
    quantization = import_onnx("onnxruntime.quantization")
    shared = {
        "per_channel": per_channel,
        "reduce_range": reduce_range,
        "weight_type": quantization.QuantType.QInt8,
        # ONNX cannot infer the output types of fused nodes, which are specific to ONNX Runtime.
        "extra_options": {"DefaultTensorType": _FLOAT},
    }
    with quiet():
        if calibration is None:
            quantization.quantize_dynamic(str(source), str(target), **shared)
            return
        quantization.quantize_static(
            str(source),
            str(target),
            _Calibration(calibration),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            op_types_to_quantize=["MatMul", "Gemm", "Attention", "Gather"],
            **shared,
        )


class _Calibration:
    """A calibration data reader for ONNX Runtime."""

    def __init__(self, batches: Iterable[dict[str, torch.Tensor]]) -> None:
        self._batches: Iterator[dict[str, torch.Tensor]] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, or None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {name: tensor.numpy() for name, tensor in batch.items()}


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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the progress output and the internal warnings of the exporters.

    NNCF logs by functions that set up the root logger, after which every message would be printed twice; that is
    undone.
    """
    handlers, disabled = list(logging.root.handlers), logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        logging.root.handlers[:] = handlers


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
