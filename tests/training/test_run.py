"""A run: methods by name, and methods that do not suit teacher or data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from haystack_distill import DistilError, Reader, ReaderTrainer, TrainingSettings, students
from haystack_distill.objectives import (
    IntermediateLayers,
    Labels,
    PredictionLayer,
)
from tests.training.helpers import MakeReader, same, weights_of

QUICK = TrainingSettings(
    max_steps=2, batch_size=4, learning_rate=1e-3, precision="fp32", progress=False, log_every=1, checkpoint_every=None
)


@pytest.fixture
def teacher(tiny_reader: MakeReader) -> Reader:
    return tiny_reader()


def test_methods_by_name_and_wrappers_are_the_same_run(teacher: Reader, squad_file: Path) -> None:
    runs: list[Callable[[ReaderTrainer], Any]] = [
        lambda trainer: trainer.distil(teacher, squad_file, "intermediate_layers"),
        lambda trainer: trainer.distil(teacher, squad_file, IntermediateLayers()),
        lambda trainer: trainer.distil_intermediate_layers_from(teacher, squad_file),
    ]
    weights = []
    for run in runs:
        student = students.from_teacher(teacher, layers=2)
        run(ReaderTrainer(student, settings=QUICK))
        weights.append(weights_of(student))
    assert same(weights[0], weights[1])
    assert same(weights[0], weights[2])


def test_what_does_not_fit(teacher: Reader, squad_file: Path) -> None:
    def run(source: Any, method: Any) -> None:
        ReaderTrainer(students.from_teacher(teacher, layers=2), settings=QUICK).distil(source, squad_file, method)

    with pytest.raises(DistilError, match="this method needs a teacher; give one"):
        run(None, PredictionLayer())
    with pytest.raises(DistilError, match="needs a teacher"):
        run(None, IntermediateLayers())
    with pytest.raises(
        DistilError, match="this method needs no teacher, so one would have no effect; set teacher to None"
    ):
        run(teacher, Labels())
    with pytest.raises(DistilError, match="unknown method 'layers'"):
        run(teacher, "layers")
    with pytest.raises(DistilError, match="must be a Method, an Objective or one of the names labels, "):
        run(teacher, 3)
    with pytest.raises(DistilError, match="masked_language_model needs a corpus to train on, not questions"):
        run(teacher, "masked_language_model")
