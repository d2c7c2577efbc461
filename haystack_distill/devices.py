"""Which device and which number format to compute in."""

import contextlib
from contextlib import AbstractContextManager

import torch

from haystack_distill.errors import DistilError
from haystack_distill.settings import PRECISIONS


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """`auto` is the GPU where there is one, Apple's where that is there, else the CPU."""
    if str(device) != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def resolve_precision(precision: str, device: torch.device) -> str:
    """The number format for `precision` on `device`: "fp32", "bf16" or "fp16".

    `auto` takes bf16 where the hardware multiplies it fast (a processor with AMX or AVX512-BF16, a GPU that supports it),
    fp16 on other GPUs, fp32 elsewhere. On a CPU without such instructions bf16 is several times slower than fp32.

    Raises:
        DistilError: An unknown precision, or fp16 on a CPU (no gradient scaling there).
    """
    if precision not in PRECISIONS:
        raise DistilError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision == "fp16" and device.type == "cpu":
        raise DistilError("fp16 is for GPUs; on a CPU use precision 'auto', 'bf16' or 'fp32'")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        return "bf16"
    return "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context in which forward passes run at a resolved precision."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)
