"""Memory that the C library keeps for the next training step, in place of handing it back to the kernel."""

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator

VARIABLE = "HAYSTACK_DISTILL_KEEP_MEMORY"

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # the names of `mallopt`: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_NEVER, _LARGEST = -1, 2**31 - 1
_LARGEST_DYNAMIC = 32 * 2**20  # up to which glibc raises its own thresholds on a 64-bit system
_OWN_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")
_OWN_TUNABLES = ("trim_threshold", "mmap_threshold", "top_pad", "mmap_max")

_lock = threading.Lock()
_depth = 0


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """While it is active, freed memory stays with the process; afterwards what is free is handed back.

    glibc takes each large block from the kernel and returns it when it is freed, and it returns the end of its heap.
    The tensors of a training step are such blocks, and the kernel fills every page of them with zeros in every step: a
    sixth of the processor time of a base-size student (PyTorch 2.13, glibc 2.36). With the thresholds raised, the next
    step finds the memory of the one before.

    Without effect where the C library is not glibc, where the environment sets these thresholds itself, and where the
    environment variable `HAYSTACK_DISTILL_KEEP_MEMORY` is "0". Uses of it may overlap.
    """
    global _depth
    library = _glibc()
    if library is None or os.environ.get(VARIABLE) == "0" or _is_set_by_environment():
        yield
        return
    with _lock:
        _depth += 1
        if _depth == 1:
            if not library.mallopt(_MMAP_THRESHOLD, _LARGEST):  # glibc before 2.35 takes no more than its own limit
                library.mallopt(_MMAP_THRESHOLD, _LARGEST_DYNAMIC)
            library.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                # What they were cannot be read. These are the values that a process with large tensors reaches.
                library.mallopt(_MMAP_THRESHOLD, _LARGEST_DYNAMIC)
                library.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_DYNAMIC)
                library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library of this process if it is glibc."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    needed = ("gnu_get_libc_version", "mallopt", "malloc_trim")
    return library if all(hasattr(library, name) for name in needed) else None


def _is_set_by_environment() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return any(name in os.environ for name in _OWN_VARIABLES) or any(
        f"glibc.malloc.{name}=" in tunables for name in _OWN_TUNABLES
    )
