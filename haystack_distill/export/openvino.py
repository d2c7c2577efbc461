"""A reader's model for OpenVINO: converted from its ONNX graph, and in int8 (NNCF)."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from haystack_distill.errors import DistilError
from haystack_distill.export.onnx import quiet
from haystack_distill.models.backends.openvino_runtime import import_openvino
from haystack_distill.utils.checks import check_argument, is_number


@dataclass(frozen=True)
class Quantisation:
    """How a model is quantised for OpenVINO.

    Args:
        recipe: "dynamic" (int8 weights; activations are scaled as they come, a group of one token's at a time) or
            "static" (NNCF's post-training quantisation of weights and activations, which are scaled once, on
            calibration data: https://docs.openvino.ai/nncf).
        smooth_quant: For "static": how much of the range of activations goes over to the weights, from 0 to 1
            (SmoothQuant, Xiao et al. 2023, arXiv 2211.10438); None leaves them as they are.
        reduce_range: For "static": whether weights use 7 of the 8 bits, so that no sum overflows on a processor without
            VNNI.
        ignored: Layers that stay in float, as regular expressions for names of nodes (`node_names`).
    """

    recipe: Literal["dynamic", "static"] = "dynamic"
    smooth_quant: float | None = None
    reduce_range: bool = True
    ignored: tuple[str, ...] = ()

    @property
    def weight_bits(self) -> int | None:
        """Bits of the weights, where a processor without VNNI might overflow: in "static"."""
        return None if self.recipe == "dynamic" else 7 if self.reduce_range else 8

    def __post_init__(self) -> None:
        check_argument("recipe", self.recipe, self.recipe in ("dynamic", "static"), "one of dynamic, static")
        alpha = self.smooth_quant
        valid = alpha is None or (is_number(alpha) and 0 <= alpha <= 1)
        check_argument("smooth_quant", alpha, valid, "a number from 0 to 1, or None")
        if self.recipe == "dynamic" and (alpha is not None or not self.reduce_range):
            raise DistilError(
                "smooth_quant and reduce_range have no effect in dynamic quantisation; leave them out, or use 'static'"
            )


def convert(source: Path, target: Path) -> None:
    """Write an ONNX graph in OpenVINO's format, in fp32.

    Args:
        source: The graph that `export.onnx.trace` wrote.
        target: The .xml file; a .bin file of the same name comes beside it.

    Raises:
        DistilError: OpenVINO cannot convert it.
    """
    openvino = import_openvino("openvino")
    try:
        model = openvino.Core().read_model(str(source))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise DistilError(
            f"OpenVINO cannot convert the model ({reason}): export it with runtime='onnx', or use backend='torch'"
        ) from error
    openvino.save_model(model, str(target), compress_to_fp16=False)


def quantise(
    source: Path,
    target: Path,
    quantisation: Quantisation,
    calibration: Iterable[dict[str, torch.Tensor]] | None = None,
) -> None:
    """Write a model in int8.

    Args:
        source: The .xml file that `convert` wrote.
        target: The .xml file of the quantised model; a .bin file of the same name comes beside it.
        quantisation: How.
        calibration: For static quantisation: inputs to scale activations on, one window each.

    Raises:
        DistilError: NNCF is not installed or cannot quantise the model, or calibration inputs are missing or unused.
    """
    if (quantisation.recipe == "static") != (calibration is not None):
        raise DistilError("calibration data is needed for static quantisation, and only for it: give both or neither")
    openvino, nncf = import_openvino("openvino"), import_openvino("nncf")
    model = openvino.Core().read_model(str(source))
    ignored = nncf.IgnoredScope(patterns=list(quantisation.ignored)) if quantisation.ignored else None
    try:
        with quiet():
            if calibration is None:
                mode = nncf.CompressWeightsMode.INT8_SYM
                model = nncf.compress_weights(model, mode=mode, ignored_scope=ignored)
            else:
                model = _static(nncf, model, quantisation, ignored, calibration)
    except (RuntimeError, ValueError, nncf.ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DistilError(f"NNCF cannot quantise the model ({reason}): export it with int8='none'") from error
    openvino.save_model(model, str(target), compress_to_fp16=False)


def node_names(source: Path) -> list[str]:
    """The names of the matrix products of a model that `convert` wrote, for `Quantisation.ignored`."""
    model = import_openvino("openvino").Core().read_model(str(source))
    return [node.get_friendly_name() for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]


def _static(
    nncf: Any,
    model: Any,
    quantisation: Quantisation,
    ignored: Any,
    calibration: Iterable[dict[str, torch.Tensor]],
) -> Any:
    batches = [{name: tensor.numpy() for name, tensor in batch.items()} for batch in calibration]
    alpha = -1.0 if quantisation.smooth_quant is None else quantisation.smooth_quant  # -1 turns it off
    advanced = nncf.AdvancedQuantizationParameters(
        overflow_fix=nncf.OverflowFix.ENABLE if quantisation.reduce_range else nncf.OverflowFix.DISABLE,
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=alpha, convolution=-1.0),
    )
    return nncf.quantize(
        model,
        nncf.Dataset(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(batches),
        ignored_scope=ignored,
        advanced_parameters=advanced,
    )
