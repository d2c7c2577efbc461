"""Which device and which number format to compute in."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import nn

from haystack_distill.errors import DistilError
from haystack_distill.utils.checks import PRECISIONS

AUTO_PRECISION_VARIABLE = "HAYSTACK_DISTILL_AUTO_PRECISION"
_FP32_ONLY = ("deberta",)  # the first one masks with fp32's lowest number, whatever it runs in


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """`auto` is the GPU where there is one, Apple's where that is there, else the CPU.

    Raises:
        DistilError: No such kind of device.
    """
    if str(device) != "auto":
        try:
            return torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise DistilError(
                f"device must be 'auto' or a PyTorch device such as 'cpu' or 'cuda:0', not {device!r}"
            ) from error
    if torch.cuda.is_available():
        # A process of several knows its GPU by LOCAL_RANK before anything has made it the current one.
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def require_device(device: str) -> None:
    """Check that tensors can be made on a device, before anything is loaded for it.

    Raises:
        DistilError: They cannot.
    """
    if device == "auto":
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: this PyTorch is built without it
        raise DistilError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error


def resolve_precision(precision: str, device: torch.device, model_type: str | None = None) -> str:
    """The number format for `precision` on `device`: "fp32", "bf16" or "fp16".

    `auto` takes bf16 where the hardware multiplies it fast (a processor with AMX or AVX512-BF16, a GPU that supports
    it), fp16 on other GPUs, fp32 elsewhere. On a CPU without such instructions bf16 is several times slower than fp32.
    The environment variable `HAYSTACK_DISTILL_AUTO_PRECISION` ("fp32", "bf16" or "fp16") says what `auto` takes
    instead, so that different machines compute alike. A kind of model (`config.model_type`) that runs in fp32 alone
    has that under `auto`, whatever else is fast.

    Raises:
        DistilError: An unknown precision, fp16 on a CPU (no gradient scaling there), or one that the kind of model
            cannot run in.
    """
    if precision not in PRECISIONS:
        raise DistilError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision == "auto":
        precision = os.environ.get(AUTO_PRECISION_VARIABLE) or "auto"
        if precision not in PRECISIONS:
            raise DistilError(
                f"the environment variable {AUTO_PRECISION_VARIABLE} must be one of {', '.join(PRECISIONS)}, not "
                f"{precision!r}"
            )
        if model_type in _FP32_ONLY:
            return "fp32"
    if model_type in _FP32_ONLY and precision in ("bf16", "fp16"):
        raise DistilError(f"{model_type} models overflow in {precision}; use precision 'auto' or 'fp32'")
    if precision == "fp16" and device.type == "cpu":
        raise DistilError("fp16 is for GPUs; on a CPU use precision 'auto', 'bf16' or 'fp32'")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and _cpu_multiplies_bf16() else "fp32"


def _cpu_multiplies_bf16() -> bool:
    # Private names, not all of them in every PyTorch: where one is missing, fp32 is the safe answer.
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context in which forward passes run at a resolved precision."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


@contextlib.contextmanager
def evaluating(model: nn.Module | None) -> Iterator[None]:
    """Put a model in evaluation mode, and each of its modules back into its own afterwards."""
    before = {} if model is None else {module: module.training for module in model.modules()}
    if model is not None:
        model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
