"""Running the command line in tests."""

import json
import os
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from haystack_distill.cli.app import app

WINDOWS = ["--max-seq-len", "48", "--doc-stride", "16", "--max-query-length", "16"]
QUICK = [
    *WINDOWS,
    "--n-epochs",
    "1",
    "--no-progress",
    "--device",
    "cpu",
    "--precision",
    "fp32",
    "--checkpoint-every",
    "none",
]


def run(*arguments: object, **more: Any) -> Result:
    """The command line in this process; an exception that is not its own is raised."""
    result = CliRunner(env={"COLUMNS": "200", "TERMINAL_WIDTH": "200", "NO_COLOR": "1"}).invoke(
        app, [str(argument) for argument in arguments], **more
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run_json(*arguments: object) -> dict:
    """A command's result for scripts: one JSON object, and nothing else on stdout."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refusal(*arguments: object, **more: Any) -> str:
    """A command's error message, on one line."""
    result = run(*arguments, **more)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.replace("│", " ").split())


def environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    return os.environ | {"PYTHONPATH": root, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
