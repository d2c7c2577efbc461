"""What importing the package does."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = "import haystack_distill, os, sys; print(os.environ['THP_MEM_ALLOC_ENABLE'], 'torch' in sys.modules)"


@pytest.mark.parametrize(("named", "found"), [(None, "1"), ("0", "0")])
def test_huge_pages_are_asked_for_before_pytorch_is_there(named: str | None, found: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    environment |= {} if named is None else {"THP_MEM_ALLOC_ENABLE": named}
    command = [sys.executable, "-c", PROGRAM]
    told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()
    assert told == [found, "False"]


def test_help_is_quick_and_needs_no_torch() -> None:
    """By the processor time of the fastest of three: a busy machine holds up each of them."""
    command = [sys.executable, "-X", "importtime", "-m", "haystack_distill", "--help"]
    seconds = []
    for _ in range(3):
        began = os.times()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        ended = os.times()
        seconds.append(ended.children_user - began.children_user + ended.children_system - began.children_system)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "haystack_distill.cli.app" in imported
    assert not {"torch", "transformers", "datasets", "accelerate"} & imported
    assert min(seconds) < 1


@pytest.mark.only_in("haystack")
@pytest.mark.slow
def test_the_wheel_holds_every_module(tmp_path: Path) -> None:
    """It is installed by itself into an empty folder; what it depends on comes from this environment."""
    source = tmp_path / "source"
    for name in ("haystack_distill", "augment"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    wheels, target = tmp_path / "wheels", tmp_path / "target"
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, source], check=True)
    subprocess.run([*pip, "install", "--no-deps", "--target", target, *wheels.glob("*.whl")], check=True)
    files = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file() and path.parent != source}
    files = {name for name in files if "egg-info" not in name and not name.startswith("build")}
    assert files <= {str(path.relative_to(target)) for path in target.rglob("*")}

    # Started elsewhere, with the folder before the editable install of the working tree.
    environment = os.environ | {"PYTHONPATH": str(target)}
    program = [target / "bin" / "haystack-distill", "--help"]
    shown = subprocess.run(program, check=True, capture_output=True, text=True, env=environment, cwd=tmp_path).stdout
    assert "distil" in shown
    modules = [
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in files if name.endswith(".py")
    ]
    elsewhere = "haystack" if importlib.util.find_spec("haystack.nodes") else "farm"  # for the other Haystack
    modules = [
        name
        for name in modules
        if "__main__" not in name and not name.startswith(f"haystack_distill.integrations.{elsewhere}")
    ]
    code = (
        "import importlib, sys; names = sys.stdin.read().split(); "
        "print(*{importlib.import_module(name).__file__ for name in names})"
    )
    imported = subprocess.run(
        [sys.executable, "-c", code],
        input=" ".join(sorted(modules)),
        check=True,
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    ).stdout.split()
    assert len(imported) == len(modules) > 90
    assert all(file.startswith(str(target)) for file in imported)
