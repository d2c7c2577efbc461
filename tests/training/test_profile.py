"""Where the time of training goes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from haystack_distill import Reader, TrainingSettings, students
from haystack_distill.errors import DistilError
from haystack_distill.objectives import IntermediateLayers, Labels, PredictionLayer
from haystack_distill.training.gradual_unfreezing import GradualUnfreezing
from haystack_distill.training.profile import profile_training

STEP = ["batches", "forward", "losses", "backward", "optimiser"]


@pytest.mark.parametrize(
    ("method", "once", "each"),
    [
        (PredictionLayer(), {"reading", "tokenising", "teacher"}, {*STEP, "teacher"}),
        (IntermediateLayers(), {"reading", "tokenising"}, {*STEP, "teacher"}),
        (Labels(), {"reading", "tokenising"}, set(STEP)),
    ],
    ids=["cached teacher", "live teacher", "labels"],
)
def test_the_parts_are_those_of_a_step(
    tiny_reader: Callable[..., Reader], squad_file: Path, method: object, once: set[str], each: set[str]
) -> None:
    teacher = tiny_reader()
    student = students.from_teacher(teacher, layers=1)
    before = {name: weight.clone() for name, weight in student.model.state_dict().items()}
    taught = None if isinstance(method, Labels) else teacher
    settings = TrainingSettings(batch_size=2, gradient_accumulation_steps=2)
    found = profile_training(student, taught, squad_file, method, settings, steps=2, questions=6)
    assert (found.unit, found.n) == ("step", 2)
    assert set(found.once) == once
    assert set(found.each) == each
    assert [name for name in found.each if name != "teacher"] == STEP
    assert all(seconds > 0 for seconds in (*found.once.values(), *found.each.values()))
    assert 2 < found.windows <= 4
    assert all(torch.equal(before[name], weight) for name, weight in student.model.state_dict().items())


def test_a_live_teacher_takes_its_share(tiny_reader: Callable[..., Reader], squad_file: Path) -> None:
    teacher = tiny_reader()
    student = students.from_teacher(teacher, layers=1)
    live = profile_training(student, teacher, squad_file, IntermediateLayers(), steps=3)
    cached = profile_training(student, teacher, squad_file, PredictionLayer(), steps=3)
    assert live.each["teacher"] > 10 * cached.each["teacher"]


def test_an_adaptation_that_depends_on_evaluations_is_profiled(
    tiny_reader: Callable[..., Reader], squad_file: Path
) -> None:
    adaptation = GradualUnfreezing(phase_patience=1)
    found = profile_training(tiny_reader(), None, squad_file, Labels(), steps=1, adaptation=adaptation)
    assert set(found.each) == set(STEP)


@pytest.mark.parametrize(
    "changed",
    [{"keep_best": True, "early_stopping_patience": 2}, {"best_by": "loss"}, {"tensorboard": True}, {"resume": True}],
    ids=lambda changed: next(iter(changed)),
)
def test_the_settings_of_a_whole_run_are_profiled(
    tiny_reader: Callable[..., Reader], squad_file: Path, changed: dict[str, Any]
) -> None:
    settings = TrainingSettings(**{"batch_size": 4} | changed)
    found = profile_training(tiny_reader(), None, squad_file, "labels", settings, steps=1)
    assert found.each["backward"] > 0


def test_numbers_below_one_are_refused(tiny_reader: Callable[..., Reader], squad_file: Path) -> None:
    for name in ("steps", "questions"):
        with pytest.raises(DistilError, match=f"{name} must be at least 1"):
            profile_training(tiny_reader(), None, squad_file, Labels(), **{name: 0})
