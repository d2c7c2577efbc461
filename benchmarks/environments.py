"""The environments of the tools that are compared, each built once from pinned packages."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINNED = {
    # TextBrewer with what it trains in ours: the same torch and transformers.
    "textbrewer": ["textbrewer==0.2.1"],
    "nlpaug": ["nlpaug==1.1.11"],
}


def python_of(name: str) -> Path:
    """The interpreter of an environment, built where it is absent; "farm" and "haystack" are the Makefile's."""
    directory = ROOT / ".venv" / name
    python = directory / "bin" / "python"
    done = directory / ".installed"
    if name in ("farm", "haystack"):
        subprocess.run(["make", "-s", f".venv/{name}/.installed-dev"], cwd=ROOT, check=True)
        return python
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
        pip = [str(python), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints" / "farm.txt")]
        subprocess.run([*pip, "torch==2.13.0"], check=True)
        # Our own package too: it cuts the windows of one arm and is what measures memory and time.
        subprocess.run([*pip, "-e", str(ROOT), "setuptools", *PINNED[name]], check=True)
        done.touch()
    return python
