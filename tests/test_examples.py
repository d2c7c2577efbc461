"""The scripts of examples/ run as they are, offline, for two steps, each in the environment that it is for.

So does the method that docs/own-method.md shows.
"""

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from haystack_distill import Reader, ReaderTrainer, TrainingSettings
from tests.conftest import IS_FARM

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"

# What each prints, as parts of its output.
ANYWHERE = {
    "distil_a_tagger.py": ["teacher: ", "labels alone: ", "with the teacher: "],
    "from_datasets.py": ["20 questions, 10 of them labelled", "F1 "],
    "own_objective.py": ["interrupted after 1 steps", "step 1: last_state", "step 2: last_state", "F1 "],
    "several_processes.py": ["2 processes, F1 "],
}
HAYSTACK_1 = {"distil_with_haystack_1.py": ["F1 ", "In which ocean are sea otters found?"]}
HAYSTACK_3 = {"distil_with_haystack_3.py": ["F1 ", "In which ocean are sea otters found?"]}


def of_this_environment() -> dict[str, list[str]]:
    """The examples for the Haystack that is installed here; those for any run in the environment of Haystack 3."""
    return HAYSTACK_1 if IS_FARM else ANYWHERE | HAYSTACK_3


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """The first 20 questions of the sample."""
    content = json.loads((ROOT / "haystack_distill/resources/sample-train.json").read_text(encoding="utf-8"))
    content["data"] = content["data"][:1]
    content["data"][0]["paragraphs"] = content["data"][0]["paragraphs"][:3]
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", of_this_environment())
def test_example_runs(name: str, questions: Path, tmp_path: Path) -> None:
    options = ["--output-dir", tmp_path / "student", "--max-steps", "2"]
    if name != "distil_a_tagger.py":  # which makes its data
        options += ["--data", questions, "--dev-data", questions]
    launch: list[str] = []
    if name == "several_processes.py":
        launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    done = subprocess.run(
        [sys.executable, *launch, EXAMPLES / name, *options],
        env=os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for part in of_this_environment()[name]:
        assert part in done.stdout
    assert (tmp_path / "student" / "model.safetensors").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["questions.json", "student"]


def test_every_example_is_run() -> None:
    scripts = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    assert scripts == set(ANYWHERE | HAYSTACK_1 | HAYSTACK_3)


def test_the_method_of_the_docs_trains(
    tiny_reader: Callable[..., Reader], squad_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "own-method.md").read_text(encoding="utf-8")
    section = page.partition("## A method\n")[2]
    (tmp_path / "my_method.py").write_text(re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    method = importlib.import_module("my_method").ProjectedState(weight=0.5)
    student, settings = tiny_reader(hidden_size=16), TrainingSettings(max_steps=2, log_every=1, progress=False)
    result = ReaderTrainer(student, tmp_path / "student", settings).distil(tiny_reader(), squad_file, method)
    steps = [line for line in result.history if "loss" in line]
    assert len(steps) == 2
    assert all(line["loss"] == pytest.approx(0.5 * line["loss_projected_state"], rel=1e-3) for line in steps)
    record = json.loads((tmp_path / "student" / "haystack_distill.json").read_text(encoding="utf-8"))
    assert (record["method"], record["arguments"]) == ("ProjectedState", {"weight": 0.5})
