"""Where benchmarks run: environments of the tools that are compared, built once from pinned packages; old commits."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def tree_of(commit: str) -> Iterator[Path]:
    """A work tree of a commit, for the time of the block."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "old"
        subprocess.run(["git", "worktree", "add", "-q", "--detach", str(tree), commit], cwd=ROOT, check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)
