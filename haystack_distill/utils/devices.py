"""The device and the precision to compute in."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import nn

from haystack_distill.errors import DistilError
from haystack_distill.utils.checks import PRECISIONS

AUTO_PRECISION_VARIABLE = "HAYSTACK_DISTILL_AUTO_PRECISION"
_TILE = 16  # tokens
_FP32_ONLY = ("deberta",)  # it masks with the lowest number of fp32, whatever its precision


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device that a name stands for; `auto` is the GPU if there is one (CUDA, then MPS), else the CPU.

    Raises:
        DistilError: There is no such type of device.
    """
    if str(device) != "auto":
        try:
            return torch.device(device)
        except (RuntimeError, TypeError) as error:
            raise DistilError(
                f"device must be 'auto' or a PyTorch device such as 'cpu' or 'cuda:0', not {device!r}"
            ) from error
    if torch.cuda.is_available():
        # With several processes, LOCAL_RANK names the GPU before anything has made it the current one.
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def require_device(device: str) -> None:
    """Check that tensors can be created on a device, before anything is loaded for it.

    Raises:
        DistilError: They cannot.
    """
    if device == "auto":
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: PyTorch was built without it
        raise DistilError(
            f"device {device!r} cannot be used here ({str(error).splitlines()[0]}): choose another, or 'auto'"
        ) from error


def resolve_precision(precision: str, device: torch.device, model_type: str | None = None) -> str:
    """The precision that `precision` stands for on `device`: "fp32", "bf16" or "fp16".

    `auto` is bf16 where the hardware is fast at it (a processor with AMX or AVX512-BF16, a GPU that supports it), fp16
    on other GPUs, and fp32 elsewhere. On a CPU without such instructions bf16 is several times slower than fp32. The
    environment variable `HAYSTACK_DISTILL_AUTO_PRECISION` ("fp32", "bf16" or "fp16") overrides what `auto` stands for,
    so that different machines compute alike. Under `auto`, a model type (`config.model_type`) that overflows in lower
    precision runs in fp32.

    Raises:
        DistilError: The precision is unknown, fp16 on a CPU (which has no gradient scaling), or one in which the model
            type overflows.
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


def length_multiple(precision: str) -> int:
    """The multiple of tokens to which batches are padded at a precision from `resolve_precision`.

    In half precision kernels work on tiles, so other lengths are slower than longer ones that fill them: attention over
    185 tokens takes 1.6 times as long as over 192 on a CPU (PyTorch 2.13, a Xeon with AMX). There a kernel is also made
    for each new shape, which for a length takes as long as the pass over the batch itself. In fp32 nothing is gained.
    """
    return 1 if precision == "fp32" else _TILE


def _cpu_multiplies_bf16() -> bool:
    # Private functions, which not every PyTorch version has; without them, fp32 is the safe choice.
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context manager for forward passes at a precision from `resolve_precision`."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


@contextlib.contextmanager
def evaluating(model: nn.Module | None) -> Iterator[None]:
    """Put a model in evaluation mode, and restore the mode of each module afterwards."""
    before = {} if model is None else {module: module.training for module in model.modules()}
    if model is not None:
        model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
