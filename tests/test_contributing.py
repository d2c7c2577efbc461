"""CONTRIBUTING.md's worked example, followed to the letter in a copy of the package."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
METHOD = "haystack_distill/objectives/patient_hidden_states.py"
TEST = "tests/objectives/test_patient_hidden_states.py"
REGISTRY = "haystack_distill/training/methods.py"


def block_after(introduction: str, language: str) -> str:
    """The fenced code that follows the end of a paragraph."""
    found = re.findall(rf"{re.escape(introduction)}\n\n```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, introduction
    return found[0]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and of some tests, with the method added as the text has it."""
    root = tmp_path_factory.mktemp("contribution")
    for name in ("haystack_distill", "augment"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "tests" / "objectives").mkdir(parents=True)
    for name in ("pyproject.toml", "tests/conftest.py", "tests/vocab.txt", "tests/test_rooms.py"):
        shutil.copy(ROOT / name, root / name)
    shutil.copy(ROOT / "tests/training/test_methods.py", root / "tests")
    for name in (METHOD, TEST):
        assert not (root / name).exists()
        (root / name).write_text(block_after(f"Write `{name}`:", "python"), encoding="utf-8")
    line = block_after(f"Add to `METHODS` in `{REGISTRY}`:", "python")
    registry = (root / REGISTRY).read_text(encoding="utf-8")
    entry = re.findall(r'^ {8}"\w+": "haystack_distill\.objectives\.\w+:\w+",\n', registry, re.MULTILINE)[-1]
    (root / REGISTRY).write_text(registry.replace(entry, entry + line), encoding="utf-8")
    return root


def run(copy: Path, *command: str | Path) -> str:
    """What Python prints, given a command line; it runs in the copy and imports from there."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=os.environ | {"PYTHONPATH": str(copy), "COLUMNS": "200"},
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_it_is_one_short_file_and_one_line() -> None:
    assert len(block_after(f"Write `{METHOD}`:", "python").splitlines()) <= 70
    assert len(block_after(f"Add to `METHODS` in `{REGISTRY}`:", "python").splitlines()) == 1
    assert not (ROOT / METHOD).exists(), "an example, not a method of the package"


def test_it_is_in_the_projects_style(copy: Path) -> None:
    run(copy, "-m", "ruff", "check", METHOD, TEST, REGISTRY)
    run(copy, "-m", "ruff", "format", "--check", METHOD, TEST, REGISTRY)


def test_its_tests_and_those_of_the_registry_and_the_rooms_are_green(copy: Path) -> None:
    printed = run(
        copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", TEST, "tests/test_methods.py", "tests/test_rooms.py"
    )
    assert "failed" not in printed


def test_its_name_and_options_are_in_the_help(copy: Path) -> None:
    printed = run(copy, "-m", "haystack_distill", "distil", "--help")
    for word in ("patient_hidden_states", "--patient-loss-weight", "beta in the paper"):
        assert word in " ".join(printed.split())


# What the text runs is run in one process, because starting one takes longer than any of it.
EVERYTHING = """
import haystack_distill
from haystack_distill.cli.app import app

print("from", haystack_distill.__file__)
{python}
for words in {commands}:
    app(words, prog_name="haystack-distill", standalone_mode=False)
"""


@pytest.mark.slow
def test_it_trains_from_python_on_the_command_line_and_in_a_recipe(copy: Path) -> None:
    lines = block_after("On the command line: its name and options are in `haystack-distill distil --help`.", "bash")
    commands = [shlex.split(line) for line in lines.replace("\\\n", " ").splitlines()]
    commands.append(shlex.split("haystack-distill recipe --config recipe.yaml"))
    assert {words[0] for words in commands} == {"haystack-distill"}
    introduction = f"In a recipe, as `recipe.yaml` for `{' '.join(commands[-1])}`:"
    (copy / "recipe.yaml").write_text(block_after(introduction, "yaml"), encoding="utf-8")
    python = block_after("In Python, alone or in a sum:", "python")
    printed = run(copy, "-c", EVERYTHING.format(python=python, commands=[words[1:] for words in commands]))
    assert printed.startswith(f"from {copy}")
    assert "loss_patient" in printed

    record = json.loads((copy / "patient" / "haystack_distill.json").read_text(encoding="utf-8"))
    assert record["method"] == "prediction_layer + patient_hidden_states"
    parts = record["arguments"]["parts"]
    assert [part["method"] for part in parts] == ["prediction_layer", "patient_hidden_states"]
    assert parts[1] == {
        "method": "patient_hidden_states",
        "weight": 10.0,
        "arguments": {"layer_mapping": "uniform", "patient_loss_weight": 1.0},
    }

    record = json.loads((copy / "by-command" / "haystack_distill.json").read_text(encoding="utf-8"))
    assert record["method"] == "patient_hidden_states"
    assert record["arguments"] == {"layer_mapping": "skip", "patient_loss_weight": 10.0}
    assert record["steps"] == 2

    card = (copy / "by-recipe" / "reader" / "README.md").read_text(encoding="utf-8")
    assert "### Patient hidden states" in card
    assert "| patient_loss_weight | 10 |" in card.replace("\\_", "_")
