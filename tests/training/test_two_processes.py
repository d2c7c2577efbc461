"""Runs of two processes, which this file is the program of, against the same runs in one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from haystack_distill import DistilError, Reader, ReaderTrainer, RunResult, WindowSettings, students
from haystack_distill.objectives import AttentionRelations, HardTargets, IntermediateLayers, Method, PredictionLayer
from haystack_distill.training.adaptation import ADAPTATIONS
from tests.training.helpers import furthest, settings, weights_of, with_gradients

# The windows of the last step of three are fewer than 8, and in most steps the two processes have different numbers of
# windows with a label and of windows whose teacher is confident. The adaptation is that of the run.
RUNS: dict[str, tuple[Method, str]] = {
    "all": (PredictionLayer(temperature=2.0) + 0.1 * IntermediateLayers(), "all"),
    "relations": (AttentionRelations() + PredictionLayer(), "lora"),
    "hard_targets": (HardTargets(confidence_threshold=0.0032), "adapters"),
    "unfreezing": (PredictionLayer(), "gradual_unfreezing"),
    "exits": (PredictionLayer(), "all"),  # whose branches have no gradient
}


def train(directory: Path, name: str, output: Path, batch_size: int) -> tuple[Reader, RunResult]:
    student, teacher = (
        Reader.load(directory / part, window_settings=WindowSettings(48, 16, 16), device="cpu", precision="fp32")
        for part in ("student", "teacher")
    )
    method, adaptation = RUNS[name]
    if name == "exits":
        student = students.early_exit(student, branch_size=4)
    # A checkpoint between two lines of the log has the losses since the first one, of both processes.
    between = {"checkpoint_every": 2, "log_every": 3} if name == "all" else {}
    chosen = settings(batch_size=batch_size, learning_rate=5e-5, n_epochs=1, **between)
    trainer = ReaderTrainer(student, output, chosen)
    result = trainer.distil(teacher, directory / "data.json", method, adaptation=ADAPTATIONS[adaptation]())
    return student, result


@pytest.fixture
def directory(pair: Callable[[], tuple[Reader, Reader]], data: Path, tmp_path: Path) -> Path:
    """Student, teacher and data; every third question has a label."""
    student, teacher = pair()
    student.save(tmp_path / "student")
    teacher.save(tmp_path / "teacher")
    content = json.loads(data.read_text())
    questions = [qa for article in content["data"] for one in article["paragraphs"] for qa in one["qas"]]
    for number, qa in enumerate(questions):
        qa["labelled"] = number % 3 == 0
    data.write_text(json.dumps(content))
    return tmp_path


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch is built without torch.distributed")
def test_two_processes_do_what_one_does(directory: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, __file__, str(directory)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in RUNS:
        two = directory / "two" / name
        record = json.loads((two / "haystack_distill.json").read_text())
        assert not (two / "checkpoints").exists()
        student, result = train(directory, name, directory / "one" / name, batch_size=8)
        assert record["steps"] == result.steps == 3
        assert record["trained"] == result.trained
        terms = {term for line in result.history for term in line if term.startswith("loss")}
        for term in terms:
            theirs, ours = (
                [line[term] for line in lines if term in line] for lines in (record["history"], result.history)
            )
            assert theirs == pytest.approx(ours, abs=2e-4), (name, term)
        file = next(two.glob("*.safetensors"))
        found = load_file(file)
        assert furthest(with_gradients(found), with_gradients(weights_of(student))) < 1e-5, name


if __name__ == "__main__":
    for run in RUNS:
        place = Path(sys.argv[1])
        train(place, run, place / "two" / run, batch_size=4)
    # Projections alone would learn: the layer that is compared is frozen.
    RUNS["nothing"] = IntermediateLayers([2, None], attention_loss_weight=0, embedding_loss_weight=0), "last_layers"
    with pytest.raises(DistilError, match="no trained weight of the student changes the loss"):
        train(place, "nothing", place / "two" / "nothing", batch_size=4)
