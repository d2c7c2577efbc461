"""A BiLSTM student in training: its dropout, every method and adaptation that fits it, resuming, other widths."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from haystack_distill import Reader, ReaderTrainer, students
from haystack_distill.data.transfer import TransferSet
from haystack_distill.errors import DistilError
from haystack_distill.objectives import (
    HardTargets,
    IntermediateLayers,
    Labels,
    LogitRegression,
    PredictionLayer,
    Representation,
)
from haystack_distill.training.adaptation import ADAPTATIONS, AllWeights
from haystack_distill.training.loop import _dropout
from haystack_distill.training.methods import METHODS
from tests.training.helpers import Killed, MakeReader, kill_at_step, same, settings, weights_of

Pair = Callable[[], tuple[Reader, Reader]]
FITTING = ["prediction_layer", "logit_regression", "representation", "hard_targets", "labels"]


@pytest.fixture
def pair(tiny_reader: MakeReader) -> Pair:
    """A BiLSTM student and its teacher."""

    def make() -> tuple[Reader, Reader]:
        teacher = tiny_reader(num_hidden_layers=2)
        return students.bilstm(teacher, embedding_size=10, units=6), teacher

    return make


def test_its_own_dropout_is_used_unless_the_settings_name_another(pair: Pair) -> None:
    student, teacher = pair()

    def dropouts(model: torch.nn.Module) -> set[float]:
        plain = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
        return plain | {module.recurrent_dropout for module in model.modules() if hasattr(module, "recurrent_dropout")}

    for given, own, other in (("auto", {0.4, 0.2}, {0.0}), (None, {0.4, 0.2}, {0.1}), (0.3, {0.3}, {0.3})):
        with _dropout(student.model, given), _dropout(teacher.model, given):
            assert dropouts(student.model) == own
            assert dropouts(teacher.model) == other
    assert dropouts(student.model) == {0.4, 0.2}


@pytest.mark.parametrize(
    ("method", "adaptation"),
    [
        (Labels(), "all"),
        (PredictionLayer(temperature=2.0), "gradual_unfreezing"),
        (PredictionLayer(distillation_loss="mse"), "head"),
        (LogitRegression(), "all"),
        (Representation(), "all"),
        (HardTargets(use_labels=False), "biases"),
        (IntermediateLayers(attention_loss_weight=0, layer_mapping="last"), "all"),
    ],
    ids=lambda value: value if isinstance(value, str) else METHODS.name_of(value),
)
def test_methods_and_adaptations(method, adaptation: str, pair: Pair, data: Path) -> None:
    student, teacher = pair()
    before = weights_of(student)
    needed = None if isinstance(method, Labels) else teacher
    result = ReaderTrainer(student, settings=settings(max_steps=4, learning_rate=1e-2), cache_dir=data.parent).distil(
        needed, data, method, adaptation=ADAPTATIONS[adaptation]()
    )
    assert all(torch.isfinite(weight).all() for weight in weights_of(student).values())
    changed = {name for name, weight in weights_of(student).items() if not torch.equal(weight, before[name])}
    recurrent = "bilstm.encoder.layer.0.weight_hh_l0" in changed
    assert recurrent is (adaptation in ("all", "gradual_unfreezing"))
    assert ("qa_outputs.weight" in changed) is isinstance(method, Labels | PredictionLayer | HardTargets)
    assert result.steps == 4


def test_mukherjees_joint_schedule(pair: Pair, data: Path) -> None:
    student, teacher = pair()
    method = Labels() + LogitRegression(windows="unlabelled") + Representation(windows="unlabelled")
    trainer = ReaderTrainer(student, settings=settings(max_steps=2, batch_size=8), cache_dir=data.parent)
    result = trainer.distil(teacher, data, method, transfer=TransferSet(str(data)))
    line = next(line for line in result.history if "loss_labels" in line)
    assert {"loss_labels", "loss_representation"} <= line.keys()


@pytest.mark.parametrize("name", ["attention_relations", "intermediate_layers", "feature_maps"])
def test_methods_that_need_attention_refuse_it(name: str, pair: Pair, data: Path) -> None:
    student, teacher = pair()
    with pytest.raises(DistilError, match=r"'bilstm' model are not available .*;"):
        ReaderTrainer(student, settings=settings(max_steps=1)).distil(teacher, data, METHODS[name]())


@pytest.mark.parametrize(
    ("adaptation", "message"),
    [("adapters", "'bilstm' model are not known.*;"), ("lora", "'bilstm' model has no dense layers")],
)
def test_adaptations_that_need_dense_layers_refuse_it(
    adaptation: str, message: str, pair: Pair, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, _ = pair()
    chosen = ADAPTATIONS[adaptation]()
    with pytest.raises(DistilError, match=message):
        ReaderTrainer(student, tmp_path / "new", settings(max_steps=1)).distil(None, data, Labels(), adaptation=chosen)
    assert not (tmp_path / "new").exists()
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_at_step(patch, 2)
        with pytest.raises(Killed):
            ReaderTrainer(student, run, settings(max_steps=3, checkpoint_every=1)).train(data)
    left = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert any("checkpoint" in file.name for file in run.rglob("*"))
    with pytest.raises(DistilError, match=message):
        ReaderTrainer(pair()[0], run, settings(max_steps=3, overwrite=True)).train(data, adaptation=chosen)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == left


def test_an_interrupted_run_ends_with_the_same_bits(
    pair: Pair, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(output: str, **changed: object) -> Reader:
        student, teacher = pair()
        given = settings(max_steps=7, checkpoint_every=2, **changed)
        method = PredictionLayer(temperature=2.0) + Representation()
        ReaderTrainer(student, tmp_path / output, given, cache_dir=tmp_path / "cache").distil(
            teacher, data, method, adaptation=AllWeights()
        )
        return student

    whole = weights_of(run("whole"))
    with monkeypatch.context() as patch:
        kill_at_step(patch, 5)
        with pytest.raises(Killed):
            run("run")
    assert same(weights_of(run("run", resume=True)), whole)
