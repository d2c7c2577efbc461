"""What a run was computed on: the processor with the instructions that decide speed and precision, and the GPU."""

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Instructions that multiply bf16 and int8 numbers; flags as Linux names them.
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")
_CPU_INFO = Path("/proc/cpuinfo")
# Those that add products of int8 numbers in 32 bits. Other x86 processors add pairs of them in 16 bits.
_ADDS_IN_32_BITS = {"avx512_vnni", "avx_vnni", "amx_int8"}
_ARM = ("aarch64", "arm64")


def processor_record(device: "torch.device") -> dict[str, Any]:
    """Name, instructions and threads of the processor, and the name of the GPU where `device` is one.

    Args:
        device: The device that was computed on.
    """
    import torch

    name, flags = _cpu()
    record: dict[str, Any] = {
        "cpu": name,
        "instructions": [flag for flag in _INSTRUCTIONS if flag in flags],
        "threads": torch.get_num_threads(),
        "device": device.type,
    }
    if device.type == "cuda":
        record["gpu"] = torch.cuda.get_device_name(device)
    return record


def adds_in_32_bits() -> bool:
    """Whether this processor adds products of int8 numbers in 32 bits, so that weights may have all 8 bits."""
    return platform.machine().lower() in _ARM or bool(_ADDS_IN_32_BITS & _cpu()[1])


def usable_cores() -> int:
    """Processor cores that this process may use: by its affinity, and by the quota of its container, rounded up."""
    from joblib import cpu_count  # half a second that most commands do without

    return int(cpu_count())


def restricted_threads() -> int | None:
    """The threads of a process that may use fewer cores than the machine has; None where it may use them all.

    It may by its affinity (`taskset`, a cpuset), which not every runtime looks at, or by the quota of its container: a
    thread for each core of the machine would wait for another, or be stopped again and again, because the quota is used
    up in a fraction of each period.
    """
    usable = usable_cores()
    return usable if usable < (os.cpu_count() or 1) else None


def _cpu() -> tuple[str, set[str]]:
    """The processor's name and flags; without Linux's file, what Python knows."""
    try:
        text = _CPU_INFO.read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine(), set()
    first = {
        name.strip(): value.strip()
        for name, colon, value in (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
        if colon
    }
    return first.get("model name") or platform.machine(), set(first.get("flags", first.get("Features", "")).split())
