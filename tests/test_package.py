"""What importing the package does."""

import os
import subprocess
import sys

import pytest

PROGRAM = "import haystack_distill, os, sys; print(os.environ['THP_MEM_ALLOC_ENABLE'], 'torch' in sys.modules)"


@pytest.mark.parametrize(("named", "found"), [(None, "1"), ("0", "0")])
def test_huge_pages_are_asked_for_before_pytorch_is_there(named: str | None, found: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    environment |= {} if named is None else {"THP_MEM_ALLOC_ENABLE": named}
    command = [sys.executable, "-c", PROGRAM]
    told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()
    assert told == [found, "False"]
