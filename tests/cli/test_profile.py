"""The command `profile`."""

from pathlib import Path

import pytest

from haystack_distill.objectives import PredictionLayer
from haystack_distill.training import profile
from tests.cli.command_line import WINDOWS, refusal, run, run_json


def test_profile_of_answers(student_dir: Path, squad_file: Path) -> None:
    base = ["profile", "--model", student_dir, "--data", squad_file, "--questions", 3, *WINDOWS]
    found = run_json(*base)
    assert found["unit"] == "question"
    assert found["n"] == 3
    assert found["backend"] == "torch"
    assert {"tokenising", "model", "spans"} < set(found["each"])
    printed = run(*base).stdout
    assert "mean of 3 questions" in printed
    assert "tokenising" in printed
    assert "together" in printed


def test_profile_of_training(student_dir: Path, squad_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[object] = []
    real = profile.profile_training

    def noted(student: object, teacher: object, data: object, method: object, *rest: object, **more: object) -> object:
        taken.append(method)
        return real(student, teacher, data, method, *rest, **more)

    monkeypatch.setattr(profile, "profile_training", noted)
    base = ["profile", "--model", student_dir, "--data", squad_file, "--training", "--steps", 2, *WINDOWS]
    found = run_json(*base, "--teacher", "embedded", "--temperature", "3", "--batch-size", "2")
    assert taken == [PredictionLayer(temperature=3.0)]
    assert found["unit"] == "step"
    assert found["windows"] <= 2
    assert "teacher" in found["once"]
    assert "teacher" not in run_json(*base, "--method", "labels")["each"]
    assert "optimiser" in run(*base, "--method", "labels").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher", "embedded"], "--teacher has no effect on answers; add --training"),
        (["--temperature", "2"], "--temperature has no effect on answers; add --training"),
        (["--no-answer-threshold", "2"], "No such option"),
        (["--training", "--passages", "2"], "--passages has no effect with --training"),
        (["--training", "--backend", "onnx"], "--backend has no effect with --training"),
        (["--training", "--method", "labels", "--teacher", "embedded"], "--teacher has no effect on this method"),
        (["--training"], "needs a teacher"),
        (["--questions", "0"], "questions must be at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_profile_refuses_what_has_no_effect(
    student_dir: Path, squad_file: Path, arguments: list[str], message: str
) -> None:
    assert message in refusal("profile", "--model", student_dir, "--data", squad_file, *WINDOWS, *arguments)
