"""The peak of memory of a process is its own, not that of the process that started it."""

import subprocess
import sys

import pytest

from haystack_distill.utils.memory import peak_memory


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system counts it for each process")
def test_the_peak_of_a_process_is_its_own() -> None:
    size = 300_000_000
    held = bytearray(b"x") * size
    own = peak_memory()
    assert own is not None
    assert own > size
    code = "from haystack_distill.utils.memory import peak_memory; print(peak_memory())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) < size
    del held
