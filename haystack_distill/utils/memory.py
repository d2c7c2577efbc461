"""The peak of memory of this process."""

import contextlib
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_memory() -> int | None:
    """The largest resident memory of this process so far in bytes; None where the system does not count it.

    On Linux it is VmHWM: `ru_maxrss` there begins with the memory of the process that started this one, because it
    survives fork and exec.
    """
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name == "VmHWM":
                return int(value.split()[0]) * 1024  # "kB" there are 1024 bytes
    with contextlib.suppress(ImportError):  # Windows
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return None
