"""Commands that are stopped by a signal."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

_COMMAND = """
import time, typer
from haystack_distill.cli.output import Commands
from haystack_distill.utils.files import temporary_directory

app = typer.Typer(cls=Commands)

@app.callback()
def group() -> None:
    pass

@app.command()
def work() -> None:
    with temporary_directory() as scratch:
        print(scratch, flush=True)
        time.sleep(60)

app()
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM")
@pytest.mark.parametrize("rank", [None, "0"])
def test_a_command_that_is_terminated_cleans_up(rank: str | None, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RANK"} | {"TMPDIR": str(tmp_path)}
    if rank is not None:  # of a run of several processes, which ends at once
        environment["RANK"] = rank
    with subprocess.Popen(
        [sys.executable, "-c", _COMMAND, "work"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as command:
        assert command.stdout is not None
        scratch = Path(command.stdout.readline().strip())
        assert scratch.is_dir()
        command.send_signal(signal.SIGTERM)
        _, errors = command.communicate(timeout=30)
    assert scratch.exists() == (rank is not None)
    assert command.returncode == (130 if rank is None else -signal.SIGTERM)
    assert errors.strip() == ("Interrupted." if rank is None else "")
